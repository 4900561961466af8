"""The kernels of the token model, carried out by Triton's interpreter: the same keys, values, logits and tokens."""

import random
from typing import Any

import pytest
import torch
from chatterbox.models.t3 import T3
from safetensors.torch import load_file
from torch import Tensor

from tests.chatterbox.conftest import Checkpoints, Models
from tests.chatterbox.decoding import Speakers, begun
from worker.models.chatterbox import fused, step_kernels
from worker.models.chatterbox.backbone import Backbone
from worker.models.chatterbox.family import FAMILIES, STOP_SPEECH
from worker.models.chatterbox.fused import FusedBackbone
from worker.models.chatterbox.sampler import draw
from worker.models.chatterbox.shapes import hyperparameters, tiny_shapes
from worker.models.chatterbox.slots import Slots
from worker.models.chatterbox.t3 import TokenStage

LAYERS = 2  # the interpreter takes its time
HEARD = ((0, 2), (1, 15))

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="Triton's interpreter is used where there is no GPU")


@pytest.fixture(scope="module")
def speaker(loaded: Models) -> Speakers:
    return Speakers(loaded("chatterbox")._get().parts, FAMILIES["chatterbox"])


@pytest.fixture(scope="module")
def t3(checkpoint: Checkpoints) -> Any:
    """Upstream's class with the checkpoint's weights as they are on a GPU: not packed."""
    family = FAMILIES["chatterbox"]
    with tiny_shapes():
        plain = T3(hyperparameters(family))
    plain.load_state_dict(load_file(checkpoint(family.id) / family.t3_file))
    del plain.tfmr.layers[LAYERS:]
    return plain.eval().requires_grad_(False)


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


@torch.inference_mode()
def test_a_step_reads_what_a_piece_of_one_reads(t3: Any) -> None:
    """Of two slots, each at a position of its own."""
    backbone = FusedBackbone(t3)
    x = torch.randn(4, t3.dim, generator=torch.Generator().manual_seed(2)) * 0.1
    places = torch.tensor([140, 3])
    made = []
    for is_step in (False, True):
        cache = backbone.cache()
        cache.grow(4, 192)
        for tensor in (*cache.keys, *cache.values):
            tensor.normal_(generator=torch.Generator().manual_seed(3))
        found = x.clone()
        backbone._layers(found, cache, torch.arange(4), places, is_step=is_step)
        made.append((found, torch.stack([*cache.keys, *cache.values])))
    for one, other in zip(*made, strict=True):
        assert (one - other).norm() < 1e-5 * one.norm()


def slots_by_chance(count: int, ids: int) -> Slots:
    slots = Slots.empty(count, ids, torch.device("cpu"))
    generator = torch.Generator().manual_seed(4)
    for column, low, high in (("temperature", 0.3, 1.5), ("min_p", 0.0, 0.2), ("repetition_penalty", 1.0, 2.0)):
        getattr(slots, column).uniform_(low, high, generator=generator)
    slots.cfg_weight.uniform_(0.0, 1.0, generator=generator)
    slots.seed.random_(0, 1 << 32, generator=generator)
    slots.token.random_(0, 6561, generator=generator)
    slots.drawn.random_(0, 500, generator=generator)
    slots.position.random_(0, 500, generator=generator)
    slots.seen.copy_(torch.rand(count, ids, generator=generator) < 0.02)
    slots.is_alive.copy_(torch.tensor([True, True, True, False]).repeat(count // 4))
    slots.is_due.copy_(torch.tensor([True, True, False, True]).repeat(count // 4))
    return slots


@torch.inference_mode()
def test_what_the_kernel_draws_and_notes_is_what_the_sampler_does() -> None:
    count = 40
    logits = torch.randn(2 * count, 8194, generator=torch.Generator().manual_seed(5)) * 3
    logits[:8, STOP_SPEECH] = 100.0  # these end
    modules, kernel = slots_by_chance(count, 8194), slots_by_chance(count, 8194)
    on = modules.is_alive & modules.is_due
    modules.position.add_(on)
    guided = logits[::2] + modules.cfg_weight[:, None] * (logits[::2] - logits[1::2])
    modules.take(draw(guided, modules, is_turbo=False, is_cut=False), on)
    step_kernels.draw(logits, kernel)
    for name in Slots.__dataclass_fields__:
        assert torch.equal(getattr(kernel, name), getattr(modules, name)), name
    assert modules.is_alive[:4].tolist() == [False, False, True, False]
    assert len(set(modules.out.tolist())) > count / 4


def test_the_kernels_draw_the_same_tokens(speaker: Speakers, t3: Any) -> None:
    request = speaker.request(random.Random(2), letters=3)
    made = []
    for backbone in (Backbone(t3), FusedBackbone(t3)):
        stage = TokenStage(t3, speaker.family, 1)
        stage._backbone = stage._prefixes._backbone = stage._reader._backbone = backbone
        run = begun(stage, request)
        while len(run.tokens) < 2:
            stage.step([run])
        made.append(run.tokens)
    assert made[0] == made[1]


def test_a_machine_that_cannot_compile_them_does_without(caplog: pytest.LogCaptureFixture) -> None:
    class OnCuda:
        """The token model as it looks on a GPU; its kernels cannot be tried out there, since there is none."""

        device = torch.device("cuda")
        is_gpt = False

    with pytest.raises(AttributeError):
        fused.backbone_of(OnCuda())
    assert "kernels=off" in caplog.text
