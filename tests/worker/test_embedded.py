"""The voice in the wheel, really speaking: what it says is measured, not listened to."""

import functools

import numpy as np
import pytest

from tests.worker.harness import segment
from wire.errors import ErrorCode, TtsError
from wire.segment import Resume, SegmentRequest
from worker.models.embedded import CHUNK_SAMPLES, EmbeddedModel, EmbeddedState, separate_digits

SENTENCES = "The clocks were striking thirteen. Nobody looked up. It was a bright cold day in April."


@functools.cache
def model() -> EmbeddedModel:
    loaded = EmbeddedModel()
    loaded.load()
    loaded.warm_up()
    return loaded


def say(text: str, voice: str = "heart", **changes: object) -> SegmentRequest:
    return segment(text, model="embedded", voice=voice, **changes)


def chunks(request: SegmentRequest) -> tuple[list[bytes], list[bytes]]:
    """Speak alone; return the chunks and the checkpoints."""
    state = model().prefill(request)
    audio: list[bytes] = []
    checkpoints: list[bytes] = []
    while True:
        (output,) = model().step([state])
        if output.error:
            raise output.error
        audio += [output.audio] if output.audio else []
        checkpoints += [output.checkpoint] if output.checkpoint else []
        if output.finished:
            return audio, checkpoints


def spoken(request: SegmentRequest) -> bytes:
    return b"".join(chunks(request)[0])


def samples(pcm: bytes) -> np.ndarray:
    return np.frombuffer(pcm, "<i2").astype(np.float64) / 32768


def test_the_first_voice_is_the_one_in_the_wheel() -> None:
    assert EmbeddedModel().info().default_voice == "heart"


@pytest.mark.parametrize("voice", ["heart", "warm", "deep"])
def test_every_voice_is_audible_and_not_clipped(voice: str) -> None:
    sound = samples(spoken(say(SENTENCES, voice)))
    assert 0.03 < np.sqrt(np.mean(sound**2)) < 0.3
    assert 0.2 < np.max(np.abs(sound)) < 0.999


def median_pitch(voice: str) -> float:
    """Return the median of the periods that autocorrelation finds in 40 ms frames, as Hz."""
    sound = samples(spoken(say(SENTENCES, voice)))
    found = []
    for start in range(0, len(sound) - 1920, 960):
        frame = sound[start : start + 1920]
        if np.sqrt(np.mean(frame**2)) < 0.05:
            continue
        likeness = np.correlate(frame, frame, "full")[1919:]
        period = 60 + int(np.argmax(likeness[60:400]))
        if likeness[period] > 0.6 * likeness[0]:
            found.append(24_000 / period)
    return float(np.median(found))


def test_the_other_voices_are_deeper_by_as_much_as_they_should_be() -> None:
    heart = median_pitch("heart")
    assert median_pitch("warm") / heart == pytest.approx(0.90, abs=0.06)
    assert median_pitch("deep") / heart == pytest.approx(0.82, abs=0.06)


def test_silence_around_speech_is_short() -> None:
    sound = samples(spoken(say("Please hold the line.")))
    loud = np.flatnonzero(np.abs(sound) > 0.02)
    assert loud[0] < 0.12 * 24_000
    assert len(sound) - loud[-1] < 0.25 * 24_000


def test_audio_comes_in_chunks_short_enough_to_hang_up_between() -> None:
    audio, _ = chunks(say(SENTENCES))
    assert max(map(len, audio)) <= 2 * CHUNK_SAMPLES
    assert CHUNK_SAMPLES <= 24_000 * 0.2
    assert len(audio) > 10


def test_the_same_request_gives_the_same_samples_and_the_seed_matters() -> None:
    assert spoken(say(SENTENCES)) == spoken(say(SENTENCES))
    assert spoken(say(SENTENCES)) != spoken(say(SENTENCES, seed=8))


@pytest.mark.parametrize(("voice", "speed"), [("heart", 1.0), ("warm", 1.3)])
def test_a_resumed_segment_is_the_tail_of_the_undisturbed_one(voice: str, speed: float) -> None:
    request = say(SENTENCES, voice, speed=speed)
    audio, checkpoints = chunks(request)
    whole = b"".join(audio)
    assert len(checkpoints) == 2  # one behind each sentence but the last
    for checkpoint in [b"", *checkpoints, b"rubbish", b'{"piece": 99, "start": 0}']:
        for delivered in (1, len(whole) // 4, len(whole) // 2):
            resumed = say(SENTENCES, voice, speed=speed, resume=Resume(checkpoint, delivered))
            assert spoken(resumed) == whole[2 * delivered :], (checkpoint, delivered)


@pytest.mark.parametrize("voice", ["heart", "deep"])
@pytest.mark.parametrize("speed", [0.25, 0.5, 0.8, 1.3, 2.0, 3.0, 4.0])
def test_the_duration_follows_the_speed(voice: str, speed: float) -> None:
    plain = len(spoken(say(SENTENCES, voice)))
    assert len(spoken(say(SENTENCES, voice, speed=speed))) * speed / plain == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize(
    "text",
    [
        "1" * 250,
        "123456 " * 35,
        "$" + "1" * 60,
        "0." + "1" * 60,
        "111," * 60 + "111",
        "١٢٣٤٥" * 20,
        "1/" * 120,
        "x" * 250,
        "https://example.com/" + "a-very-long-path/" * 12,
        "½" * 40,
    ],
)
def test_what_the_engine_underneath_trips_over_is_spoken_all_the_same(text: str) -> None:
    assert len(spoken(say(text))) > 48_000


@pytest.mark.parametrize("text", ["你好", "...", "!?", "😀", "$$$", "   ", "こんにちは世界"])
def test_a_text_without_a_word_to_read_is_refused_and_quoted(text: str) -> None:
    with pytest.raises(TtsError) as caught:
        spoken(say(text))
    assert (caught.value.code, caught.value.param) == (ErrorCode.UNSPEAKABLE_TEXT, "text")
    assert text.strip() in caught.value.message


@pytest.mark.parametrize(
    ("text", "read"),
    [
        ("Call 5551234567 now", "Call  5 5 5, 1 2 3, 4 5 6, 7  now"),
        ("in 1984, 123456 people", "in 1984, 123456 people"),
        ("$1234567.89", "$1234567.89"),
        ("3.14159265358979", "3.14159265358979"),
        ("1,234,567,890", "1,234,567,890"),
    ],
)
def test_long_numbers_are_read_digit_by_digit_and_prices_are_not(text: str, read: str) -> None:
    assert separate_digits(text) == read


def test_sequences_in_one_batch_speak_as_they_would_alone() -> None:
    requests = [say("One is short."), say(SENTENCES, "deep"), say("Two speaks faster.", speed=1.5)]
    states = [model().prefill(request) for request in requests]
    heard = [b""] * len(states)
    running = list(range(len(states)))
    while running:
        results = model().step([states[i] for i in running])
        for i, output in zip(list(running), results, strict=True):
            heard[i] += output.audio
            if output.finished:
                running.remove(i)
    assert heard == [spoken(request) for request in requests]


def test_an_error_of_one_sequence_leaves_its_neighbour_alone() -> None:
    good = model().prefill(say("This one is fine."))
    broken = EmbeddedState(say("x"), good.pieces.__class__([good.pieces[0]._replace(phonemes="")]))
    heard, errors = b"", []
    states = [broken, good]
    while states:
        results = model().step(states)
        for state, output in zip(list(states), results, strict=True):
            heard += output.audio
            errors += [output.error] if output.error else []
            if output.finished or output.error:
                states.remove(state)
    assert heard == spoken(say("This one is fine."))
    assert [type(error) for error in errors] == [TtsError]


def test_it_can_be_unloaded_and_loaded_again() -> None:
    other = EmbeddedModel()
    other.load()
    other.unload()
    other.load()
    assert other.prefill(say("Back again.")).pieces
