"""On a GPU the three families say what they say on the CPU: tokens, sound and mark. `python -m pytest` names this file.

Tiny random weights, float32 on both, so that the flow's kernels, which are for bfloat16, are not in it. A minute.
"""

import random
import sys
from collections.abc import Callable, Iterator

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
STREAMS = [(model_id, "segments") for model_id in ALL] + [("chatterbox", "chunk")]

Pair = tuple[ChatterboxModel, ChatterboxModel]


@pytest.fixture(scope="module")
def pairs(checkpoint: Checkpoints) -> Iterator[Callable[[str, str], Pair]]:
    """Return a model on the CPU and on the GPU, ready to speak."""
    made: dict[tuple[str, str], Pair] = {}

    def of(model_id: str, stream: str) -> Pair:
        if (model_id, stream) not in made:
            options = ChatterboxOptions(checkpoint=str(checkpoint(model_id)), precision="fp32", stream=stream)
            host, device = (ChatterboxModel(options, model_id, place, batch=8) for place in PLACES)
            for model in (host, device):
                model.load()
                model.warm_up()
            made[model_id, stream] = host, device
        return made[model_id, stream]

    yield of
    for pair in made.values():
        for model in pair:
            model.unload()


@pytest.mark.parametrize("parameters", [{"top_p": 0.0}, {"top_p": 1.0}], ids=["greedy", "sampled"])
@pytest.mark.parametrize("model_id", ALL)
def test_tokens_on_a_gpu_are_the_cpus(
    model_id: str, parameters: dict[str, float], pairs: Callable[[str, str], Pair]
) -> None:
    family = FAMILIES[model_id]
    made = []
    for model in pairs(model_id, "segments"):
        speaker, chance = Speakers(model._get().parts, family), random.Random(1)
        lengths = (3, 9, 30, 12, 5, 22, 8) if family.is_turbo else (3, 9, 30, 70, 12, 5, 22, 8)
        requests = [speaker.request(chance, letters=n, temperature=0.8, **parameters) for n in lengths]
        stage = TokenStage(speaker.parts.t3, family, 4)
        stage.warm_up(512)
        company = [tokens for tokens, _ in in_company(stage, requests, random.Random(2))]
        made.append((company, [alone(stage, request) for request in requests[:3]]))
        sys.stdout.write(f"{model_id}: {stage} {type(stage._backbone).__name__}, {sum(map(len, company))} tokens\n")
    assert made[1] == made[0]
    assert made[1][0][:3] == made[1][1]


@pytest.mark.parametrize(("model_id", "stream"), STREAMS)
def test_sound_on_a_gpu_is_the_cpus(model_id: str, stream: str, pairs: Callable[[str, str], Pair]) -> None:
    """Of the same tokens: alone and without the mark, and in company and with it, where it is for Perth to hear."""
    spoken, waves, voice = [], [], b""
    recording = clip(seconds=LENGTH[model_id])
    for model in pairs(model_id, stream):
        voice = voice or model.prepare_voice(recording)
        held = on_device(voice, model._get().parts)
        pieces = render(
            model, held, [n * 37 % 6000 for n in range(60)], seed=3, chunk=25 if stream == "chunk" else None
        )
        waves.append(np.concatenate([piece.cpu().numpy() for piece in pieces]))
        changes = {"voice": "cloned", "voice_sha256": name_of(recording), "parameters": {"temperature": 0.0}}
        requests = [segment(model_id, text, seed=n, **changes) for n, text in enumerate(TEXTS)]
        spoken.append(speak_with_tokens(model, requests, [voice] * len(TEXTS)))
    difference = distance(waves[1], waves[0])
    marked = [distance(samples(pcm), samples(other)) for (_, pcm), (_, other) in zip(spoken[1], spoken[0], strict=True)]
    sys.stdout.write(f"{model_id}, {stream}: sound differs by {difference:.1e}, marked by {max(marked):.1e}\n")
    assert [tokens for tokens, _ in spoken[1]] == [tokens for tokens, _ in spoken[0]]
    assert difference < 1e-3
    assert max(marked) < 1e-2
