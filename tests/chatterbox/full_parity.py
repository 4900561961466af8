"""The parity of `test_parity.py` and `test_tokens.py` at the published size, with random weights: `make full-parity`.

A quarter of an hour and 8 GiB.
"""

import random
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.chatterbox import upstream
from tests.chatterbox.decoding import Speakers, in_company
from tests.chatterbox.speaking import ALL, LENGTH, clip, distance, render
from tests.chatterbox.test_parity import tokens_of
from worker.config import ChatterboxOptions
from worker.models.chatterbox.conditionals import on_device, prepare
from worker.models.chatterbox.family import FAMILIES
from worker.models.chatterbox.model import ChatterboxModel
from worker.models.chatterbox.t3 import TokenStage
from worker.models.chatterbox.text import to_ids
from worker.models.chatterbox.tiny import make

pytestmark = pytest.mark.timeout(3600)

TEXTS = ("Hello there, friend.", "Why not?")
SPEECH_TOKENS = 20
IN_COMPANY = 7  # of each model; 21 in all


@pytest.mark.parametrize("model_id", ALL)
def test_tokens_and_wave_are_upstreams_at_full_size(model_id: str, tmp_path: Path) -> None:
    family = FAMILIES[model_id]
    torch.set_num_threads(2)
    make(tmp_path, family, size="full", end_at=SPEECH_TOKENS + (len(TEXTS[0]) if family.is_turbo else 0))
    model = ChatterboxModel(ChatterboxOptions(checkpoint=str(tmp_path), precision="fp32"), model_id, "cpu")
    model.load()
    parts = model._get().parts
    voice = prepare(clip(seconds=LENGTH[model_id]), parts, family)
    for text in TEXTS:
        ours = tokens_of(model, text, voice)
        theirs = upstream.greedy_tokens(parts, family, voice, to_ids(text, "en", parts, family))
        assert ours == theirs
        assert len(set(ours)) > len(ours) / 4, "one and the same token over and over says nothing"
        sys.stdout.write(f"{model_id}: {len(ours)} tokens of {text!r} as upstream's\n")
    tokens = ours[:10]
    wave = np.concatenate(render(model, on_device(voice, parts), tokens, seed=3))
    difference = distance(wave, upstream.wave(parts, family, voice, tokens, seed=3))
    sys.stdout.write(f"{model_id}: wave of {len(tokens)} tokens differs by {difference:.1e}\n")
    assert difference < 1e-5
    _are_upstreams_in_company(Speakers(parts, family))


def _are_upstreams_in_company(speakers: Speakers) -> None:
    chance = random.Random(speakers.family.id)
    requests = [speakers.request(chance, letters=chance.randint(4, 19), top_p=0.0) for _ in range(IN_COMPANY)]
    made = in_company(TokenStage(speakers.parts.t3, speakers.family, 4), requests, chance, leaves=0.02)
    for number, (request, (ours, is_whole)) in enumerate(zip(requests, made, strict=True)):
        theirs = upstream.greedy_tokens(
            speakers.parts, speakers.family, request.prepared, request.text, request.exaggeration
        )
        assert ours == (theirs if is_whole else theirs[: len(ours)])
        sys.stdout.write(f"{speakers.family.id}: {len(ours)} tokens of request {number} in company as upstream's\n")
