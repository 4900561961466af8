"""Time-stretching by itself: the length follows the speed, the pitch stays, and nothing is added."""

import numpy as np
import pytest

from worker.models.stretch import stretch

RATE = 24_000
SPEEDS = [0.3, 0.5, 0.77, 1.0, 1.25, 2.0, 2.44]


def hum(seconds: float = 1.0, hz: float = 150.0) -> np.ndarray:
    """A tone with overtones and a slow swell, something like a vowel."""
    t = np.arange(round(RATE * seconds)) / RATE
    tone = sum(np.sin(2 * np.pi * hz * k * t) / k for k in range(1, 6))
    return (0.2 * tone * (1 + 0.3 * np.sin(2 * np.pi * 3 * t))).astype(np.float32)


@pytest.mark.parametrize("speed", SPEEDS)
@pytest.mark.parametrize("length", [0, 1, 500, 1_919, 1_920, 5_000, 24_000])
def test_the_length_follows_the_speed_to_the_sample(speed: float, length: int) -> None:
    assert len(stretch(hum()[:length], speed)) == round(length / speed)


@pytest.mark.parametrize("speed", SPEEDS)
def test_the_pitch_stays(speed: float) -> None:
    made = stretch(hum(), speed)
    spectrum = np.abs(np.fft.rfft(made * np.hanning(len(made))))
    assert np.argmax(spectrum) * RATE / len(made) == pytest.approx(150, abs=4)


@pytest.mark.parametrize("speed", SPEEDS)
def test_the_loudness_stays_and_no_clicks_are_added(speed: float) -> None:
    plain, made = hum(), stretch(hum(), speed)
    inside = made[2_000:-2_000]
    assert np.sqrt(np.mean(inside**2)) == pytest.approx(np.sqrt(np.mean(plain**2)), rel=0.15)
    assert np.max(np.abs(np.diff(inside))) < 1.5 * np.max(np.abs(np.diff(plain)))


def test_silence_stays_silence() -> None:
    assert not stretch(np.zeros(10_000, np.float32), 1.7).any()


def test_speed_1_changes_nothing() -> None:
    assert np.array_equal(stretch(hum(), 1.0), hum())
