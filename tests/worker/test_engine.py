"""The engine thread with the tone model, seen from the event loop."""

import asyncio
import random
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import numpy as np
import pytest

from tests.worker.harness import eventually, segment
from wire.errors import ErrorCode, TtsError
from wire.segment import SegmentRequest
from worker import sequence as spoken
from worker.config import ToneOptions
from worker.engine import Engine, EngineDied
from worker.metrics import Metrics
from worker.models.base import Clip, StepOutput
from worker.models.tone import ToneModel, ToneState, decode
from worker.sequence import Chunk, Ended, Output, Progress, SequenceState


@asynccontextmanager
async def running(model: Any, batch: int = 4) -> AsyncIterator[Engine]:
    engine = Engine(model, batch=batch, metrics=Metrics())
    engine.start()
    try:
        yield engine
    finally:
        await engine.stop(5)


def tone(**options: Any) -> ToneModel:
    return ToneModel(ToneOptions(**options))


async def hear(sequence: spoken.Sequence) -> tuple[bytes, TtsError | None]:
    """Return the audio of a sequence to its end, and its error."""
    pcm = b""
    async for outputs in sequence.wait_outputs():
        for output in outputs:
            if isinstance(output, Chunk):
                pcm += output.audio
            elif isinstance(output, Ended):
                return pcm, output.error
    raise AssertionError("the outputs ended without Ended")


async def first(outputs: AsyncIterator[list[Output]], count: int) -> AsyncIterator[list[Output]]:
    """Yield so many of the lists and no more."""
    for _ in range(count):
        yield await anext(outputs)


async def test_segments_are_spoken_side_by_side_and_each_hears_its_own() -> None:
    texts = [f"This is segment number {i}." for i in range(10)]
    async with running(tone(), batch=3) as engine:
        heard = await asyncio.gather(*(hear(engine.submit(segment(text))) for text in texts))
        assert [(decode(pcm), error) for pcm, error in heard] == [(text, None) for text in texts]
        assert engine.in_flight == 0
        assert engine.steps > 0


async def test_a_text_that_fails_takes_nobody_with_it() -> None:
    async with running(tone()) as engine:
        bad, worse, good = (
            engine.submit(segment(text)) for text in ("{tone:fail-after=1}", "{tone:nonsense}", "a good text")
        )
        pcm, error = await hear(bad)
        assert (decode(pcm), error and error.code) == ("{ton", ErrorCode.SEGMENT_FAILED)
        _, error = await hear(worse)
        assert error is not None
        assert (error.code, error.param) == (ErrorCode.INVALID_VALUE, "text")
        assert decode((await hear(good))[0]) == "a good text"
        assert engine.in_flight == 0


class Brittle(ToneModel):
    """Breaks as a whole when a certain text is in the batch, and forgets nobody whom it was told to let go."""

    def __init__(self) -> None:
        super().__init__(ToneOptions())
        self.let_go: list[str] = []

    def step(self, states: Sequence[ToneState]) -> list[StepOutput]:
        if any(state.text == "break" for state in states):
            raise MemoryError("the device is full")
        return super().step(states)

    def cancel(self, state: ToneState) -> None:
        self.let_go.append(state.text)


async def test_a_step_that_breaks_fails_its_batch_and_the_next_one_is_fine() -> None:
    model = Brittle()
    async with running(model) as engine:
        _, error = await hear(engine.submit(segment("break")))
        assert error is not None
        assert error.code is ErrorCode.SEGMENT_FAILED
        assert "MemoryError" in error.message
        assert model.let_go == ["break"]
        assert decode((await hear(engine.submit(segment("whole again"))))[0]) == "whole again"


class Thinking(ToneModel):
    """Works on a text that begins with "think" for ever, and does nothing for the others."""

    def step(self, states: Sequence[ToneState]) -> list[StepOutput]:
        return [StepOutput(progressed=state.text.startswith("think")) for state in states]


async def test_who_works_without_a_sound_gives_a_sign_and_who_does_not_work_gives_none() -> None:
    async with running(Thinking(ToneOptions())) as engine:
        thinks, sleeps = engine.submit(segment("think")), engine.submit(segment("sleep"))
        heard = [outputs async for outputs in first(thinks.wait_outputs(), 2)]
        assert heard == [[Progress()], [Progress()]], "one a second, not one a step"
        assert engine.steps > 10
        engine.cancel(sleeps)
        assert [outputs async for outputs in first(sleeps.wait_outputs(), 1)] == [[Ended(None)]]


class Short(ToneModel):
    def step(self, states: Sequence[ToneState]) -> list[StepOutput]:
        return super().step(states)[:-1]


async def test_a_model_that_answers_for_too_few_is_an_error_and_not_a_silence() -> None:
    async with running(Short(ToneOptions())) as engine:
        _, error = await hear(engine.submit(segment()))
        assert error is not None
        assert "0 of 1" in error.message


async def test_no_more_than_a_batch_runs_and_the_rest_waits_in_line() -> None:
    async with running(tone(realtime_factor=10), batch=2) as engine:
        sequences = [engine.submit(segment("a long text")) for _ in range(5)]
        await eventually(lambda: [s.state for s in sequences].count(SequenceState.RUNNING) == 2)
        assert [s.state for s in sequences] == [SequenceState.RUNNING] * 2 + [SequenceState.WAITING] * 3
        engine.cancel(sequences[0])
        await eventually(lambda: sequences[2].state is SequenceState.RUNNING)
        assert sequences[3].state is SequenceState.WAITING
        await eventually(lambda: engine.in_flight == 4)


async def test_a_cancelled_sequence_ends_and_gives_no_more_audio() -> None:
    async with running(tone(realtime_factor=0.2)) as engine:
        sequence = engine.submit(segment("x" * 280))
        outputs = sequence.wait_outputs()
        await anext(outputs)
        engine.cancel(sequence)
        engine.cancel(sequence)
        await engine.wait_idle()
        assert sequence.state is SequenceState.CANCELLED
        assert sequence.samples < 280 * 1600
        rest = [output async for batch in outputs for output in batch]
        assert rest[-1] == Ended()


async def test_a_waiting_sequence_can_be_cancelled_before_it_ever_ran() -> None:
    async with running(tone(stall_after_chunks=0), batch=1) as engine:
        first, second = engine.submit(segment()), engine.submit(segment())
        engine.cancel(second)
        await eventually(lambda: second.state is SequenceState.CANCELLED)
        assert second.timings.started is None
        assert engine.in_flight == 1
        engine.cancel(first)
        await engine.wait_idle()


@pytest.mark.parametrize("seed", range(15))
async def test_whatever_is_cancelled_when_nothing_is_left_over(seed: int) -> None:
    dice = random.Random(seed)
    model = tone()
    async with running(model, batch=3) as engine:

        async def one(i: int) -> None:
            sequence = engine.submit(segment(dice.choice(["short", "a longer text " * 8, "{tone:fail-after=2}"])))
            try:
                async with asyncio.timeout(dice.choice([0, 0.001, 0.01, 20])):
                    await hear(sequence)
            except TimeoutError:
                pass
            finally:
                engine.cancel(sequence)

        await asyncio.gather(*(one(i) for i in range(30)))
        await engine.wait_idle()
        assert engine.in_flight == 0
        thread = engine._thread
        await eventually(lambda: not thread._sequences and not thread._states and thread._scheduler.is_idle)


async def test_the_event_loop_is_free_while_the_engine_is_saturated() -> None:
    async with running(tone(), batch=8) as engine:
        talk = [asyncio.create_task(hear(engine.submit(segment("y" * 280)))) for _ in range(40)]
        longest = 0.0
        while not all(task.done() for task in talk):
            before = time.monotonic()
            await asyncio.sleep(0)
            longest = max(longest, time.monotonic() - before)
        # What is meant is 100 ms; a busy machine may take the processor away for longer than that.
        assert longest < 2


async def test_the_timings_are_in_order_and_counted_once() -> None:
    async with running(tone(realtime_factor=0.1, overhead_seconds=0.02), batch=1) as engine:
        first, second = engine.submit(segment("x" * 20)), engine.submit(segment("y" * 8))
        await asyncio.gather(hear(first), hear(second))
        timings = second.timings
        assert timings.started is not None
        assert timings.first_chunk is not None
        assert timings.ended is not None
        assert timings.submitted < timings.started < timings.first_chunk <= timings.ended
        summary = second.summary(24_000)
        assert summary["samples"] == 8 * 1600
        assert summary["audio_seconds"] == pytest.approx(8 / 15, abs=1e-6)
        assert summary["queue_seconds"] >= first.summary(24_000)["synthesis_seconds"] * 0.9
        assert summary["first_chunk_seconds"] > summary["queue_seconds"]


async def test_stopping_fails_what_is_in_flight_as_something_to_try_elsewhere() -> None:
    async with running(tone(stall_after_chunks=1)) as engine:
        sequence = engine.submit(segment("a stalled text"))
        hearing = asyncio.create_task(hear(sequence))
        await eventually(lambda: sequence.samples)
        assert await engine.stop(5)
        _, error = await hearing
        assert error is not None
        assert error.code is ErrorCode.WORKER_NOT_READY
        assert error.retryable
        assert engine.in_flight == 0


async def test_a_model_that_hangs_does_not_hang_the_stop() -> None:
    engine = Engine(tone(hang_after_chunks=0), batch=1, metrics=Metrics())
    engine.start()
    sequence = engine.submit(segment("never"))
    await eventually(lambda: sequence.state is SequenceState.RUNNING)
    assert engine.in_flight == 1
    assert await engine.stop(0.1) is False
    _, error = await hear(sequence)
    assert error is not None
    assert engine.in_flight == 0


class Mortal(ToneModel):
    def step(self, states: Sequence[ToneState]) -> list[StepOutput]:
        raise SystemExit("not an Exception: no model should, but the engine must not vanish in silence")


async def test_an_engine_that_dies_says_so_and_leaves_nobody_waiting() -> None:
    async with running(Mortal(ToneOptions())) as engine:
        sequence = engine.submit(segment())
        _, error = await hear(sequence)
        assert error is not None
        assert error.code is ErrorCode.SEGMENT_FAILED
        with pytest.raises(EngineDied, match="SystemExit"):
            await engine.wait_died()
        assert engine.in_flight == 0


class Stubborn(ToneModel):
    def load(self) -> None:
        raise FileNotFoundError("no weights here")


async def test_a_load_that_fails_is_raised_where_it_was_asked_for() -> None:
    async with running(Stubborn(ToneOptions())) as engine:
        with pytest.raises(FileNotFoundError, match="no weights here"):
            await engine.load()


async def test_unloading_waits_for_what_is_running() -> None:
    seen: list[SequenceState] = []

    class Noted(ToneModel):
        def unload(self) -> None:
            seen.append(sequence.state)

    async with running(Noted(ToneOptions(realtime_factor=0.05))) as engine:
        await engine.load()
        sequence = engine.submit(segment("x" * 60))
        hearing = asyncio.create_task(hear(sequence))
        await engine.unload()
        assert seen == [SequenceState.FINISHED]
        assert decode((await hearing)[0]) == "x" * 60


class Cloning(ToneModel):
    """Clones a voice by its length, and notes what `prefill` was given."""

    def __init__(self, options: ToneOptions) -> None:
        super().__init__(options)
        self.given: list[bytes | None] = []

    def voice_format(self) -> str:
        return "tone-1"

    def prepare_voice(self, clip: Clip) -> bytes:
        if clip.seconds < 1:
            raise TtsError(ErrorCode.INVALID_VALUE, "too short", param="voice")
        return b"%d" % len(clip.samples)

    def prefill(self, request: SegmentRequest, voice: bytes | None = None) -> Any:
        self.given.append(voice)
        return super().prefill(request, voice)


async def test_a_voice_is_prepared_in_the_engine_and_comes_with_its_segment() -> None:
    model = Cloning(ToneOptions())
    async with running(model) as engine:
        assert engine.voice_format == "tone-1"
        prepared = await engine.prepare_voice(Clip(np.zeros(24_000, np.float32), 24_000))
        await hear(engine.submit(segment(voice_sha256="0" * 64), prepared))
        await hear(engine.submit(segment()))
        assert model.given == [b"24000", None]


async def test_a_recording_that_the_model_can_make_nothing_of_is_refused_where_it_was_given() -> None:
    async with running(Cloning(ToneOptions())) as engine:
        with pytest.raises(TtsError, match="too short"):
            await engine.prepare_voice(Clip(np.zeros(240, np.float32), 24_000))
