"""Tokens and sound are made at the same time, on one device or on two; what befalls one does not hold the other."""

import json
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
import torch

from tests.chatterbox.conftest import Checkpoints, Models
from tests.chatterbox.speaking import ALL, distance, samples, segment, speak
from tests.worker.harness import DEADLINE_SECONDS
from worker.config import ChatterboxOptions
from worker.models.base import DeviceLost
from worker.models.chatterbox.clock import StageClock
from worker.models.chatterbox.conditionals import on_device
from worker.models.chatterbox.family import ENGLISH
from worker.models.chatterbox.memory import by_device, needed
from worker.models.chatterbox.model import ChatterboxModel
from worker.models.chatterbox.s3gen import Rendering, SoundRun, SoundStage
from worker.models.chatterbox.sounding import SoundThread
from worker.models.chatterbox.utterance import Utterance
from worker.models.chatterbox.watermark import Marker, to_pcm


def step_until(model: ChatterboxModel, states: list[Utterance], claim: Callable[[], object]) -> None:
    deadline = time.monotonic() + DEADLINE_SECONDS
    while not claim():
        assert time.monotonic() < deadline, "it did not come true"
        for output in model.step(states):
            assert output.error is None


def finish(model: ChatterboxModel, state: Utterance) -> bytes:
    pcm = b""
    while True:
        [output] = model.step([state])
        if output.error is not None:
            raise output.error
        pcm += output.audio
        if output.finished:
            return pcm


@contextmanager
def broken(module: torch.nn.Module, error: Exception) -> Iterator[None]:
    """Let a module of the model fail, as it does where the device or a file is broken."""

    def fail(*_: Any) -> None:
        raise error

    hook = module.register_forward_pre_hook(fail)
    try:
        yield
    finally:
        hook.remove()


def test_tokens_are_drawn_while_sound_is_made(loaded: Models) -> None:
    model = loaded("chatterbox")
    *_, before = model.clock.read()
    first = model.prefill(segment("chatterbox"))
    step_until(model, [first], lambda: first.run is None)
    others: list[Utterance] = []

    def overlapped() -> bool:
        if all(other.run is None for other in others):
            others.append(model.prefill(segment("chatterbox", seed=len(others))))
        return model.clock.read()[2] > before

    step_until(model, others, overlapped)
    for state in (first, *others):
        model.cancel(state)


def test_only_what_two_stages_do_at_once_is_overlap() -> None:
    now = 0.0

    def at(instant: float) -> None:
        nonlocal now
        now = instant

    clock = StageClock(("decode", "vocode"), lambda: now)
    at(1)
    with clock.at_work("decode"):
        at(4)
        with clock.at_work("vocode"):
            at(6)
        at(7)
    at(9)
    with clock.at_work("vocode"):
        at(10)
    assert clock.read() == ({"decode": 6, "vocode": 3}, 7, 2)


@pytest.mark.parametrize("model_id", ALL)
def test_two_devices_make_what_one_makes(model_id: str, loaded: Models, checkpoint: Checkpoints) -> None:
    one = loaded(model_id)
    options = ChatterboxOptions(checkpoint=str(checkpoint(model_id)), precision="fp32")
    two = ChatterboxModel(options, model_id, "cpu:0", batch=3, sound_device="cpu")
    two.load()
    try:
        texts = ("Hello there, friend.", "Why not?", "Time for tea.")
        requests = [segment(model_id, text, seed=seed) for seed, text in enumerate(texts)]
        made: list[list[list[int]]] = []
        for model in (one, two):
            states = [model.prefill(request) for request in requests]
            for state in states:
                step_until(model, [state], lambda state=state: state.run is None)
            made.append([part.tokens for state in states for part in state.parts])
            for state in states:
                model.cancel(state)
        assert made[0] == made[1]
        for ours, theirs in zip(speak(two, requests), speak(one, requests), strict=True):
            assert distance(samples(ours), samples(theirs)) < 1e-5
        assert (two.settings()["token_device"], two.settings()["sound_device"]) == ("cpu:0", "cpu")
    finally:
        two.unload()


def test_each_of_two_devices_must_have_room_for_its_own_stage() -> None:
    whole = needed(ENGLISH, is_half=True, slots=4)
    assert by_device(ENGLISH, ("cuda:0", "cuda:0"), is_half=True, slots=4) == {"cuda:0": whole}
    needs = by_device(ENGLISH, ("cuda:0", "cuda:1"), is_half=True, slots=4)
    assert list(needs) == ["cuda:0", "cuda:1"]
    assert needs["cuda:0"].weights + needs["cuda:1"].weights == whole.weights
    assert (needs["cuda:0"].slot, needs["cuda:1"].slot) == (whole.slot, 0)


def test_a_hang_up_stops_the_sound_after_the_piece_at_which_it_is(loaded: Models) -> None:
    model = loaded("chatterbox")
    state = model.prefill(segment("chatterbox"))
    step_until(model, [state], lambda: state.parts[0].sound is not None and state.parts[0].sound.work >= 2)
    sound = state.parts[0].sound
    assert sound is not None
    model.cancel(state)
    before = sound.work
    speak(model, [segment("chatterbox")])  # had it gone on, it would have been done before this one
    assert sound.work <= before + 1
    assert not sound.has_ended


def test_a_hang_up_stops_the_tokens_at_once(loaded: Models) -> None:
    model = loaded("chatterbox")
    gone, stays = (model.prefill(segment("chatterbox", seed=seed)) for seed in (1, 2))
    step_until(model, [gone, stays], lambda: len(gone.parts[0].tokens) >= 5)
    model.cancel(gone)
    before = len(gone.parts[0].tokens)
    finish(model, stays)
    assert len(gone.parts[0].tokens) == before


def test_a_fault_in_the_sound_fails_its_segment_and_the_tokens_of_others_go_on(loaded: Models) -> None:
    model = loaded("chatterbox")
    requests = [segment("chatterbox", seed=seed) for seed in (1, 2)]
    expected = speak(model, [requests[1]])[0]
    bad = model.prefill(requests[0])
    with broken(model._get().parts.s3gen.mel2wav.conv_pre, RuntimeError("no kernel image")):
        step_until(model, [bad], lambda: bad.run is None)
        good = model.prefill(requests[1])
        step_until(model, [good], lambda: len(good.parts[0].tokens) >= 5)
        with pytest.raises(RuntimeError, match="no kernel image"):
            finish(model, bad)
    assert finish(model, good) == expected


def test_a_fault_in_the_tokens_leaves_the_sound_of_others_whole(loaded: Models) -> None:
    model = loaded("chatterbox")
    requests = [segment("chatterbox", seed=seed) for seed in (1, 2)]
    expected = speak(model, [requests[0]])[0]
    good = model.prefill(requests[0])
    step_until(model, [good], lambda: good.run is None)
    bad = model.prefill(requests[1])
    with broken(model._get().parts.t3.speech_head, RuntimeError("no kernel image")), pytest.raises(RuntimeError):
        model.step([bad])
    model.cancel(bad)
    assert finish(model, good) == expected


def test_a_fault_of_the_sounds_device_ends_the_process(checkpoint: Checkpoints) -> None:
    model = ChatterboxModel(
        ChatterboxOptions(checkpoint=str(checkpoint("chatterbox")), precision="fp32"), "chatterbox", "cpu"
    )
    model.load()
    state = model.prefill(segment("chatterbox"))
    lost = torch.AcceleratorError("CUDA error: an illegal memory access was encountered")
    with (
        broken(model._get().parts.s3gen.flow.input_embedding, lost),
        pytest.raises(DeviceLost, match="illegal memory access"),
    ):
        step_until(model, [state], lambda: False)
    model.unload()


class Stuck(SoundStage):
    """A stage that does not come back from its work, as with a driver that hangs, until it is let."""

    def __init__(self) -> None:
        self.entered, self.let = threading.Event(), threading.Event()

    def advance(self, runs: Sequence[SoundRun]) -> list[Any]:
        self.entered.set()
        self.let.wait()
        return [None] * len(runs)


def test_a_sound_stage_that_does_not_come_back_ends_the_process(loaded: Models) -> None:
    held = loaded("chatterbox")._get()
    stage, clock = Stuck(), StageClock(("vocode",))
    thread = SoundThread(stage, held.marker, clock, torch.device("cpu"), batch=1, hang_seconds=0.0)
    thread.start()
    thread.check()
    run = SoundRun(on_device(held.default_voice, held.parts), seed=1)
    thread.render(run, Rendering((1,), is_last=True))
    assert stage.entered.wait(DEADLINE_SECONDS)
    with pytest.raises(DeviceLost, match="hangs"):
        thread.check()
    thread.drop(run)
    stage.let.set()
    thread.stop()
    assert not thread.is_alive()


def test_pieces_come_in_the_order_of_their_run(loaded: Models) -> None:
    held = loaded("chatterbox")._get()
    marker, clock = Marker(enabled=False, device=torch.device("cpu")), StageClock(("vocode",))
    thread = SoundThread(held.sound_stage, marker, clock, torch.device("cpu"), batch=3)
    voice = on_device(held.default_voice, held.parts)
    runs = [SoundRun(voice, seed) for seed in range(3)]
    renderings = [Rendering((seed + 1,) * 80, is_last=True) for seed in range(3)]
    alone = []
    for run, rendering in zip(runs, renderings, strict=True):
        single = SoundRun(voice, run.seed, deque([rendering]))
        pieces = [held.sound_stage.advance([single])[0] for _ in range(held.sound_stage.flow.steps + 2)]
        alone.append(torch.cat([piece for piece in pieces if piece is not None]))
        thread.render(run, rendering)
    thread.start()
    deadline = time.monotonic() + DEADLINE_SECONDS
    while not all(run.has_ended for run in runs):
        assert time.monotonic() < deadline
        thread.check()
        thread.wait(0.01)
    for run, expected in zip(runs, alone, strict=True):
        assert len(run.pieces) == 2
        ours = samples(b"".join(piece.result(DEADLINE_SECONDS) for piece in run.pieces))
        assert distance(ours, to_pcm(expected) / 32767) < 1e-3, "16 bits of it"
    thread.stop()
    marker.close()


def test_a_part_without_a_sound_is_no_checkpoint(loaded: Models) -> None:
    from worker.models.chatterbox.utterance import resumed

    part = {"text": "Hello.", "seed": 1, "attempt": 0, "is_whole": True, "tokens": ""}
    assert resumed(json.dumps({"parts": [part]}).encode(), segment("chatterbox")) == []
