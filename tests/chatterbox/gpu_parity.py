"""On a GPU the three families say what they say on the CPU: tokens, sound and mark. `python -m pytest` names this file.

Tiny random weights, float32 on both; the recordings and kernels are those of real weights. Half a minute.
"""

import random
import sys

import numpy as np
import pytest
import torch

from tests.chatterbox.conftest import Checkpoints
from tests.chatterbox.decoding import Speakers, alone, in_company
from tests.chatterbox.speaking import ALL, LENGTH, clip, distance, name_of, render, samples, segment, speak_with_tokens
from worker.config import ChatterboxOptions
from worker.models.chatterbox.conditionals import on_device
from worker.models.chatterbox.family import FAMILIES
from worker.models.chatterbox.model import ChatterboxModel
from worker.models.chatterbox.t3 import TokenStage

pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU"),
    pytest.mark.timeout(600),
]
PLACES = ("cpu", "cuda:0")
TEXTS = ("Hello there, friend.", "Why not?", "Time for tea, sir.", "It is late now.", "Who goes there?")


def both(model_id: str, checkpoint: Checkpoints, **options: object) -> list[ChatterboxModel]:
    settings = ChatterboxOptions(checkpoint=str(checkpoint(model_id)), precision="fp32", **options)  # type: ignore[arg-type]
    models = [ChatterboxModel(settings, model_id, device, batch=8) for device in PLACES]
    for model in models:
        model.load()
        model.warm_up()
    return models


@pytest.mark.parametrize("model_id", ALL)
def test_tokens_on_a_gpu_are_the_cpus(model_id: str, checkpoint: Checkpoints) -> None:
    family = FAMILIES[model_id]
    made = []
    for model in both(model_id, checkpoint):
        speaker, chance = Speakers(model._get().parts, family), random.Random(1)
        requests = [
            speaker.request(chance, letters=n, temperature=0.8, top_p=0.0) for n in (3, 9, 30, 70, 12, 5, 22, 8)
        ]
        # Slots enough that none is moved: then the recordings and the reading together are what differs.
        stage = TokenStage(speaker.parts.t3, family, 8)
        stage.warm_up(512)
        company = [tokens for tokens, _ in in_company(stage, requests, random.Random(2))]
        made.append((company, [alone(stage, request) for request in requests[:3]]))
        sys.stdout.write(f"{model_id}, {model.settings()['token_device']}: {stage} {type(stage._backbone).__name__}\n")
        model.unload()
    assert made[1] == made[0]
    assert made[1][0][:3] == made[1][1]


@pytest.mark.parametrize("stream", ["segments", "chunk"])
@pytest.mark.parametrize("model_id", ALL)
def test_sound_on_a_gpu_is_the_cpus(model_id: str, stream: str, checkpoint: Checkpoints) -> None:
    """Of the same tokens: without the mark by its samples, and with it by how loud the difference is."""
    spoken, waves, voice = [], [], b""
    recording = clip(seconds=LENGTH[model_id])
    for model in both(model_id, checkpoint, stream=stream):
        voice = voice or model.prepare_voice(recording)
        held = on_device(voice, model._get().parts)
        with torch.inference_mode():
            chunk = 25 if stream == "chunk" else None
            pieces = render(model, held, [n * 37 % 6000 for n in range(60)], seed=3, chunk=chunk)
            waves.append(np.concatenate([piece.cpu().numpy() for piece in pieces]))
        requests = [
            segment(
                model_id, text, seed=n, voice="cloned", voice_sha256=name_of(recording), parameters={"temperature": 0.0}
            )
            for n, text in enumerate(TEXTS)
        ]
        spoken.append(speak_with_tokens(model, requests, [voice] * len(TEXTS)))
        model.unload()
    difference = distance(waves[1], waves[0])
    sys.stdout.write(f"{model_id}, {stream}: sound differs by {difference:.1e}\n")
    assert difference < 1e-3
    for (tokens, pcm), (expected, reference) in zip(spoken[1], spoken[0], strict=True):
        assert tokens == expected
        assert distance(samples(pcm), samples(reference)) < 1e-2
