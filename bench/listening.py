"""What can be told of a recording without understanding it: clicks where pieces meet, and the file that plays it."""

from __future__ import annotations

import io
import wave
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Sound = NDArray[np.float32]

_WINDOW_SAMPLES = 48  # 2 ms at 24 kHz
_LOUD_PERCENTILE = 95


def seam_decibels(sound: Sound, seams: Sequence[int]) -> float | None:
    """Return how rough the roughest seam is against the roughness that speech has by itself; None without a seam.

    Roughness is the energy of the second difference within 2 ms: a click is rough, a vowel is not. 0 dB is as rough as
    the roughest twentieth of the recording, which is its consonants; a click stands out by 10 dB and more.
    """
    bend = np.square(np.diff(sound.astype(np.float64), 2))
    half = _WINDOW_SAMPLES // 2
    around = [bend[max(0, seam - half) : seam + half].mean() for seam in seams if 2 <= seam < len(sound) - 2]
    windows = bend[: len(bend) // _WINDOW_SAMPLES * _WINDOW_SAMPLES].reshape(-1, _WINDOW_SAMPLES).mean(axis=1)
    if not around or not len(windows) or not windows.any():
        return None
    usual = np.percentile(windows, _LOUD_PERCENTILE)
    smallest = np.finfo(np.float64).tiny
    return float(10 * np.log10(max(max(around), smallest) / max(usual, smallest)))


def wav_file(sound: Sound, sample_rate: int) -> bytes:
    """Return a WAV file of 16 bits; what is louder than full scale is clipped."""
    file = io.BytesIO()
    with wave.open(file, "wb") as writer:
        writer.setnchannels(1)
        writer.setsampwidth(2)
        writer.setframerate(sample_rate)
        writer.writeframes(np.round(np.clip(sound, -1.0, 1.0) * 32767).astype("<i2").tobytes())
    return file.getvalue()
