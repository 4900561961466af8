"""The flow gives each what it would give it alone, whoever is beside it and however far they are; and asks nothing."""

import sys
from collections import deque

import numpy as np
import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from tests.chatterbox.conftest import Models
from tests.chatterbox.rounded import Rounded
from tests.chatterbox.speaking import ALL, LENGTH, clip, distance
from worker.models.chatterbox.conditionals import on_device
from worker.models.chatterbox.family import FAMILIES
from worker.models.chatterbox.flow import Flow, FlowRun, Score
from worker.models.chatterbox.graphs import few_lengths, few_rows
from worker.models.chatterbox.model import ChatterboxModel
from worker.models.chatterbox.s3gen import Rendering, SoundRun

# Whole and cut off, one token and many, in an order that pads most of them.
LENGTHS = ((9, True), (60, False), (1, True), (33, True), (28, False))


def scores(model: ChatterboxModel) -> list[Score]:
    """Return one score for each of `LENGTHS`, with three voices whose recordings differ in length."""
    model_id, parts = model.info().id, model._get().parts
    prepared = [model.prepare_voice(clip(pitch, LENGTH[model_id] + more)) for pitch, more in ((110, 0), (220, 0.7))]
    voices = [on_device(one, parts, seconds) for one, seconds in zip(prepared, (10, 1), strict=True)]
    voices.append(on_device(model._get().default_voice, parts))
    chance = np.random.default_rng(1)
    return [
        Score(voices[number % 3], chance.integers(0, 6561, count).tolist(), seed=number, is_whole=is_whole)
        for number, (count, is_whole) in enumerate(LENGTHS)
    ]


def alone(flow: Flow, score: Score) -> torch.Tensor:
    [run] = flow.begin([score])
    while not flow.is_done(run):
        flow.step([run])
    return run.mel()


@pytest.mark.parametrize("stream", ["segments", "chunk"])
@pytest.mark.parametrize("model_id", ALL)
def test_together_each_is_what_it_is_alone(model_id: str, stream: str, loaded: Models) -> None:
    model = loaded(model_id) if stream == "segments" else loaded(model_id, stream=stream)
    flow = model._get().sound_stage.flow
    wanted = scores(model)
    # The second half joins when the first is a step ahead, and leaves a step later.
    first, second = flow.begin(wanted[:3]), list[FlowRun]()
    while True:
        running = [run for run in first + second if not flow.is_done(run)]
        if not running:
            break
        flow.step(running)
        second = second or flow.begin(wanted[3:])
    for score, run in zip(wanted, first + second, strict=True):
        assert run.mel().shape[2] == score.frames - score.prompt_frames
        assert distance(run.mel(), alone(flow, score)) < 1e-5


@pytest.mark.parametrize("stream", ["segments", "chunk"])
@pytest.mark.parametrize("model_id", ALL)
def test_in_the_few_shapes_of_a_gpu_each_is_what_it_is_alone(model_id: str, stream: str, loaded: Models) -> None:
    model = loaded(model_id) if stream == "segments" else loaded(model_id, stream=stream)
    graphs, held = Rounded(), model._get()
    flow = Flow(held.parts.s3gen, FAMILIES[model_id], model._chunk, graphs=graphs)
    wanted = scores(model)
    runs = flow.begin(wanted)
    flow.begin(wanted[::-1])  # overwrites what the first were read into
    for run, score in zip(runs, wanted, strict=True):
        [single] = held.sound_stage.flow.begin([score])
        for ours, theirs in ((run.guide, single.guide), (run.speaker, single.speaker), (run.x, single.x)):
            assert distance(ours, theirs) < 1e-5
    flow.step(runs[:1])  # one is ahead of the others, which join it
    while running := [run for run in runs if not flow.is_done(run)]:
        flow.step(running)
    for score, run in zip(wanted, runs, strict=True):
        assert distance(run.mel(), alone(held.sound_stage.flow, score)) < 1e-5
    assert {shape[0][0] for shape in graphs.shapes} <= {1, 4, 6, 8}, "rows"
    assert all(shape[0][-1] % 64 == 0 for shape in graphs.shapes), "lengths"


def test_shapes_are_few_and_not_much_larger() -> None:
    assert [few_rows(count) for count in (1, 2, 3, 4, 5, 7, 9, 13, 17)] == [1, 2, 3, 4, 6, 8, 12, 16, 24]
    for length in range(1, 2500):
        assert length <= few_lengths(length) < 1.25 * length + 64
    assert len({few_lengths(length) for length in range(1, 2500)}) < 25


def test_only_those_about_as_long_as_the_first_take_a_step_with_it(loaded: Models) -> None:
    model = loaded("chatterbox")
    voice = on_device(model._get().default_voice, model._get().parts)
    lengths = (40, 200, 45, 10)
    runs = [SoundRun(voice, 1, deque([Rendering((5,) * count, is_last=True)])) for count in lengths]
    model._get().sound_stage.advance(runs)
    assert [run.work for run in runs] == [1, 0, 1, 1], "the voice's own 50 tokens count, too"


def test_who_begins_does_not_wait_until_all_others_have_been_heard(loaded: Models) -> None:
    model = loaded("chatterbox")
    stage, voice = model._get().sound_stage, on_device(model._get().default_voice, model._get().parts)
    old, new = (SoundRun(voice, seed, deque([Rendering((5,) * 120, is_last=True)])) for seed in (1, 2))
    while old.vocoder is None:
        stage.advance([old])
    order = [stage.advance([old, new])[0] is not None for _ in range(4)]
    assert (order, old.work - new.work) == ([True, False, True, False], model._get().sound_stage.flow.steps)


@pytest.mark.parametrize("model_id", ALL)
def test_the_waves_of_those_together_are_those_of_each_alone(model_id: str, loaded: Models) -> None:
    model = loaded(model_id)
    stage = model._get().sound_stage
    wanted = [score for score in scores(model) if score.is_whole]
    runs = [SoundRun(score.voice, score.seed, deque([Rendering(score.tokens, is_last=True)])) for score in wanted]
    waves: list[list[np.ndarray]] = [[] for _ in runs]
    while any(run.is_due for run in runs):
        due = [number for number, run in enumerate(runs) if run.is_due]
        for number, piece in zip(due, stage.advance([runs[number] for number in due]), strict=True):
            waves[number] += [] if piece is None else [piece]
    for score, wave in zip(wanted, waves, strict=True):
        run = SoundRun(score.voice, score.seed, deque([Rendering(score.tokens, is_last=True)]))
        single = []
        while run.is_due:
            single += [piece for piece in stage.advance([run]) if piece is not None]
        difference = distance(np.concatenate(wave), np.concatenate(single))
        sys.stdout.write(f"{model_id}: {len(score.tokens)} tokens, wave differs by {difference:.1e}\n")
        assert difference < 1e-5


def test_what_pads_the_shorter_ones_is_heard_by_nobody(loaded: Models) -> None:
    flow = loaded("chatterbox")._get().sound_stage.flow
    wanted = scores(loaded("chatterbox"))
    for run, score in zip(flow.begin(wanted), wanted, strict=True):
        [single] = flow.begin([score])
        assert distance(run.guide, single.guide) < 1e-5


@pytest.mark.parametrize("model_id", ALL)
def test_a_step_asks_the_device_nothing(model_id: str, loaded: Models) -> None:
    flow = loaded(model_id)._get().sound_stage.flow
    wanted = scores(loaded(model_id))
    with profile(activities=[ProfilerActivity.CPU]) as recorded:
        flow.step(flow.begin(wanted))
    asked = [event.count for event in recorded.key_averages() if event.key == "aten::_local_scalar_dense"]
    assert asked == []


def test_fewer_steps_and_a_shorter_recording_make_another_sound_of_the_same_length(loaded: Models) -> None:
    usual, fewer = loaded("chatterbox"), loaded("chatterbox", cfm_steps=3, reference_seconds=1)
    assert (usual.settings()["cfm_steps"], usual.settings()["reference_seconds"]) == (10, 10)
    assert (fewer.settings()["cfm_steps"], fewer.settings()["reference_seconds"]) == (3, 1)
    assert usual.voice_format() == fewer.voice_format(), "what one has prepared, the other can use"
    prepared = usual.prepare_voice(clip())
    voices = [model._voices.take("a clip", prepared, model._get().parts) for model in (usual, fewer)]
    for model in (usual, fewer):
        model._voices.clear()
    assert [voice.prompt_token.shape[1] for voice in voices] == [150, 25]
    mels = [
        alone(model._get().sound_stage.flow, Score(voice, [5] * 20, 1, is_whole=True))
        for model, voice in zip((usual, fewer), voices, strict=True)
    ]
    assert mels[0].shape == mels[1].shape
    assert distance(mels[0], mels[1]) > 1e-3
