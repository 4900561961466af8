"""The kernels of the token model, carried out by Triton's interpreter: the same keys, values, logits and tokens."""

import copy
import random
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.chatterbox.conftest import Models
from tests.chatterbox.decoding import Speakers, begun
from worker.models.chatterbox import fused
from worker.models.chatterbox.backbone import Backbone
from worker.models.chatterbox.family import FAMILIES
from worker.models.chatterbox.fused import FusedBackbone
from worker.models.chatterbox.t3 import TokenStage

LAYERS = 2  # the interpreter takes its time
HEARD = ((0, 2), (1, 15))


@pytest.fixture(scope="module")
def speaker(loaded: Models) -> Speakers:
    return Speakers(loaded("chatterbox")._get().parts, FAMILIES["chatterbox"])


@pytest.fixture(scope="module")
def t3(speaker: Speakers) -> Any:
    shallow = copy.deepcopy(speaker.parts.t3)
    del shallow.tfmr.layers[LAYERS:]
    return shallow


@torch.inference_mode()
def read_in_pieces(backbone: Backbone, x: Tensor) -> tuple[Tensor, list[Tensor], list[Tensor | None]]:
    """Read four rows: a piece of all, a position of all, then one of two of them, at places of their own.

    Returns the cache, the logits, and what the heads that are heard looked at.
    """
    cache = backbone.cache()
    cache.grow(5, 192)
    found = [backbone.read(x[:, :3], cache, slice(1, 5), backbone.positions(127, 130), 192)]
    places = torch.tensor([[130], [130], [130], [130]])
    found.append(backbone.read(x[:, 3:4], cache, slice(1, 5), places, 192))
    places = torch.tensor([[131], [129]])
    found.append(backbone.read(x[1::2, 4:5], cache, torch.tensor([4, 2]), places, 192))
    everything = torch.stack([torch.stack(cache.keys), torch.stack(cache.values)])
    return everything, [backbone.logits(hidden) for hidden, _ in found], [attention for _, attention in found]


@pytest.mark.parametrize("heard", [(), HEARD])
def test_the_kernels_read_what_the_modules_read(heard: tuple[tuple[int, int], ...], t3: Any) -> None:
    x = torch.randn(4, 5, t3.dim, generator=torch.Generator().manual_seed(1)) * 0.1
    given = x.clone()
    cache, logits, attention = read_in_pieces(Backbone(t3, heads_heard=heard), x)
    their_cache, their_logits, their_attention = read_in_pieces(FusedBackbone(t3, heads_heard=heard), x)
    assert torch.equal(x, given), "what was given is written over"
    assert (their_cache - cache).norm() < 1e-5 * cache.norm()
    assert not their_cache[:, :, 0].any(), "somebody else's row is written to"
    for ours, theirs in zip(logits, their_logits, strict=True):
        assert theirs.shape == ours.shape
        assert (theirs - ours).norm() < 1e-5 * ours.norm()
    for looked, they_looked in zip(attention, their_attention, strict=True):
        assert (looked is None) == (they_looked is None) == (not heard)
        if looked is not None and they_looked is not None:
            assert (they_looked - looked).abs().max() < 1e-5


def test_the_kernels_draw_the_same_tokens(speaker: Speakers, t3: Any) -> None:
    chance = random.Random(2)
    requests = [speaker.request(chance, letters=letters, temperature=0.8, top_p=0.0) for letters in (3, 4)]
    made = []
    for backbone in (Backbone(t3), FusedBackbone(t3)):
        stage = TokenStage(t3, speaker.family, 2)
        stage._backbone = stage._prefixes._backbone = stage._reader._backbone = backbone
        stage._reader.together = 2
        runs = [begun(stage, request) for request in requests]
        while any(len(run.tokens) < 3 for run in runs):
            stage.step(runs)
        made.append([run.tokens[:3] for run in runs])
    assert made[0] == made[1]
    assert made[0][0] != made[0][1]


def test_a_machine_that_cannot_compile_them_does_without(caplog: pytest.LogCaptureFixture) -> None:
    class OnCuda:
        """The token model as it looks on a GPU; its kernels cannot be tried out there, since there is none."""

        device = torch.device("cuda")
        is_gpt = False

    with pytest.raises(AttributeError):
        fused.backbone_of(OnCuda())
    assert "kernels=off" in caplog.text
