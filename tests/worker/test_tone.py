"""The tone model: its text can be read back, it repeats itself exactly, and it fails as it was told."""

import json
import time
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.worker.harness import segment
from wire.errors import ErrorCode, TtsError
from wire.segment import Resume, SegmentRequest
from worker.config import ToneOptions
from worker.models.base import StepOutput
from worker.models.tone import (
    CHARACTERS_A_CHUNK,
    SAMPLE_RATE,
    StagedFailure,
    ToneModel,
    Undecodable,
    decode,
    samples_a_character,
)

texts = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=40)
speeds = st.sampled_from([0.25, 0.5, 0.9, 1.0, 1.37, 2.0, 4.0])


def outputs(request: SegmentRequest, options: ToneOptions | None = None, limit: int = 1_000) -> Iterator[StepOutput]:
    """Speak alone, up to the end or `limit` steps."""
    model = ToneModel(options or ToneOptions())
    state = model.prefill(request)
    for _ in range(limit):
        (output,) = model.step([state])
        yield output
        if output.finished or output.error:
            return


def spoken(request: SegmentRequest) -> bytes:
    return b"".join(output.audio for output in outputs(request))


@settings(max_examples=60)
@given(text=texts, speed=speeds, voice=st.sampled_from(["alto", "tenor", "bass"]))
def test_any_text_can_be_read_back_at_any_speed_in_any_voice(text: str, speed: float, voice: str) -> None:
    assert decode(spoken(segment(text, speed=speed, voice=voice)), speed) == text


@settings(max_examples=60)
@given(text=texts, speed=speeds, data=st.data())
def test_a_resumed_segment_is_the_tail_of_the_undisturbed_one(text: str, speed: float, data: st.DataObject) -> None:
    request = segment(text, speed=speed)
    chunks = list(outputs(request))
    whole = b"".join(chunk.audio for chunk in chunks)
    delivered = data.draw(st.integers(0, len(whole) // 2))
    checkpoint = data.draw(st.sampled_from([b"", *(chunk.checkpoint or b"" for chunk in chunks)]))
    resumed = spoken(segment(text, speed=speed, resume=Resume(checkpoint, delivered)))
    assert resumed == whole[2 * delivered :]


def test_the_same_segment_gives_the_same_bytes() -> None:
    assert spoken(segment("Once more.")) == spoken(segment("Once more."))


def test_speech_lasts_as_long_as_speed_says() -> None:
    assert len(spoken(segment("x" * 15))) == 2 * SAMPLE_RATE
    assert samples_a_character(2.0) == samples_a_character(1.0) // 2


def test_silence_between_segments_is_skipped() -> None:
    silence = bytes(2 * 1234)
    pcm = silence + spoken(segment("One.")) + silence + spoken(segment("Two.")) + silence
    assert decode(pcm) == "One.Two."


def test_a_piece_that_was_spoken_twice_is_read_twice() -> None:
    chunk = spoken(segment("abcd"))
    assert decode(chunk + chunk) == "abcdabcd"


@pytest.mark.parametrize("cut", [1, 7, 400, 800, 1599])
def test_samples_that_were_lost_are_noticed(cut: int) -> None:
    pcm = spoken(segment("Nothing may be lost."))
    middle = len(pcm) // 4 * 2
    with pytest.raises(Undecodable):
        decode(pcm[:middle] + pcm[middle + 2 * cut :])


def test_a_character_that_was_cut_at_the_end_is_noticed() -> None:
    with pytest.raises(Undecodable, match="less than a character"):
        decode(spoken(segment("cut"))[:-2])


def test_two_voices_at_once_are_noticed() -> None:
    one, other = spoken(segment("aaaa", voice="alto")), spoken(segment("zzzz", voice="alto"))
    mixed = np.frombuffer(one, "<i2") + np.frombuffer(other, "<i2")
    with pytest.raises(Undecodable):
        decode(mixed.tobytes())


def test_every_chunk_brings_a_checkpoint_for_the_moment_after_it() -> None:
    made = list(outputs(segment("x" * 10)))
    characters = [json.loads(output.checkpoint or b"")["characters"] for output in made]
    assert characters == [CHARACTERS_A_CHUNK, 2 * CHARACTERS_A_CHUNK, 10]
    assert [output.finished for output in made] == [False, False, True]


@pytest.mark.parametrize("checkpoint", [b"x", b"[]", b"3", b'{"characters": "4"}', b'{"piece": 1}', b"\xff"])
def test_a_checkpoint_that_was_mangled_on_the_way_is_refused(checkpoint: bytes) -> None:
    with pytest.raises(TtsError) as caught:
        spoken(segment("resume", resume=Resume(checkpoint, 4)))
    assert caught.value.code is ErrorCode.INVALID_VALUE
    assert caught.value.param == "resume.checkpoint"


def chunks_before_failure(request: SegmentRequest, options: ToneOptions | None = None) -> int:
    made = list(outputs(request, options))
    assert isinstance(made[-1].error, StagedFailure)
    return sum(bool(output.audio) for output in made)


@pytest.mark.parametrize("count", [0, 1, 3])
def test_a_staged_failure_comes_after_so_many_chunks(count: int) -> None:
    text = "A text of some length."
    assert chunks_before_failure(segment(text), ToneOptions(fail_after_chunks=count)) == count
    assert chunks_before_failure(segment(f"{{tone:fail-after={count}}} {text}")) == count


def test_a_failure_staged_behind_the_last_chunk_still_comes() -> None:
    assert chunks_before_failure(segment("x" * 8), ToneOptions(fail_after_chunks=2)) == 2


def test_rejecting_gives_no_chunk() -> None:
    assert chunks_before_failure(segment("{tone:reject}")) == 0
    assert chunks_before_failure(segment("any"), ToneOptions(reject=True)) == 0


def test_a_stalled_segment_says_nothing_more_and_does_not_end() -> None:
    made = list(outputs(segment("{tone:stall-after=2} and then silence"), limit=20))
    assert sum(bool(output.audio) for output in made) == 2
    assert not any(output.finished or output.error for output in made)


def test_a_resumed_segment_heeds_its_directives_no_more() -> None:
    text = "{tone:fail-after=1} goes on elsewhere"
    whole = spoken(segment(text.replace("fail-after", "fail_after")))
    first = next(outputs(segment(text)))
    rest = spoken(segment(text, resume=Resume(first.checkpoint or b"", len(first.audio) // 2)))
    assert decode(first.audio + rest) == text
    assert len(first.audio + rest) == len(whole)


def test_only_the_first_segments_fail_where_that_is_asked_for() -> None:
    model = ToneModel(ToneOptions(fail_first_segments=2))
    for _ in range(2):
        with pytest.raises(StagedFailure):
            model.prefill(segment())
    assert model.step([model.prefill(segment())])[0].audio


def test_a_directive_that_does_not_exist_is_refused() -> None:
    for text in ("{tone:explode}", "{tone:fail-after}", "{tone:reject=3}"):
        with pytest.raises(TtsError, match="no directive"):
            spoken(segment(text))


def test_chunks_come_at_the_pace_that_was_asked_for() -> None:
    """Only the lower bound holds on a busy machine, and it is the one that matters."""
    began = time.monotonic()
    audio = b"".join(
        o.audio for o in outputs(segment("x" * 12), ToneOptions(realtime_factor=0.25, overhead_seconds=0.05))
    )
    assert time.monotonic() - began >= 0.05 + 0.25 * len(audio) / 2 / SAMPLE_RATE


@settings(max_examples=20)
@given(parts=st.lists(texts, min_size=2, max_size=5))
def test_sequences_in_one_batch_do_not_touch_each_other(parts: list[str]) -> None:
    model = ToneModel(ToneOptions())
    states = [model.prefill(segment(text)) for text in parts]
    heard = [b""] * len(parts)
    running = list(range(len(parts)))
    while running:
        results = model.step([states[i] for i in running])
        for i, output in zip(list(running), results, strict=True):
            heard[i] += output.audio
            if output.finished:
                running.remove(i)
    assert [decode(pcm) for pcm in heard] == parts
