"""The flow gives each what it would give it alone, whoever is beside it and however far they are; and asks nothing."""

import sys
from collections import deque

import numpy as np
import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from tests.chatterbox.conftest import Models
from tests.chatterbox.speaking import ALL, LENGTH, clip, distance
from worker.models.chatterbox.conditionals import on_device
from worker.models.chatterbox.flow import Flow, FlowRun, Score
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
