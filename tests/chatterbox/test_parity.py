"""What the pipeline makes is what upstream's own loops make of the same weights, tokens and noise."""

import numpy as np
import pytest
import torch

from tests.chatterbox import upstream
from tests.chatterbox.conftest import Models
from tests.chatterbox.speaking import ALL, LENGTH, clip, distance, render, segment
from worker.models.chatterbox.conditionals import on_device, prepare, prepared_default
from worker.models.chatterbox.family import FAMILIES
from worker.models.chatterbox.model import ChatterboxModel
from worker.models.chatterbox.text import to_ids

TEXTS = ("Hello there, friend.", "Why not?", "It is 7 o'clock: tea.")
GREEDY = {"temperature": 0.8, "top_p": 0.0}


def tokens_of(model: ChatterboxModel, text: str, prepared: bytes) -> list[int]:
    """Return the tokens of a text, drawn greedily, as the pipeline draws them."""
    model_id = model.info().id
    state = model.prefill(segment(model_id, text, parameters=GREEDY, voice_sha256="0" * 64), prepared)
    model._voices.clear()
    while state.run is not None:
        output = model.step([state])[0]
        if output.error is not None:
            raise output.error
    model.cancel(state)
    return [token for part in state.parts for token in part.tokens]


@pytest.mark.parametrize("model_id", ALL)
def test_greedy_tokens_are_upstreams(model_id: str, loaded: Models) -> None:
    model, family = loaded(model_id), FAMILIES[model_id]
    parts = model._get().parts
    made = set()
    for prepared in (prepared_default(parts), prepare(clip(seconds=LENGTH[model_id]), parts, family)):
        for text in TEXTS:
            ours = tokens_of(model, text, prepared)
            ids = to_ids(text, "en", parts, family)
            assert ours == upstream.greedy_tokens(parts, family, prepared, ids)
            made.add(tuple(ours))
    # Else the random weights would say the same whatever they are given, and equality would mean nothing.
    assert len(made) >= 5


@pytest.mark.parametrize("model_id", ALL)
@pytest.mark.parametrize("count", [1, 25, 120])
def test_the_wave_is_upstreams_for_the_same_tokens_and_noise(model_id: str, count: int, loaded: Models) -> None:
    model, family = loaded(model_id), FAMILIES[model_id]
    parts = model._get().parts
    prepared = prepare(clip(seconds=LENGTH[model_id]), parts, family)
    tokens = torch.randint(0, 6561, (count,), generator=torch.Generator().manual_seed(count)).tolist()
    ours = np.concatenate(render(model, on_device(prepared, parts), tokens, seed=3))
    assert distance(ours, upstream.wave(parts, family, prepared, tokens, seed=3)) < 1e-5
