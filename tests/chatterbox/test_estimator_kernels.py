"""The kernels of the flow's estimator, carried out by Triton's interpreter."""

import pytest
import torch
import torch.nn.functional as F

from tests.chatterbox.conftest import Models
from worker.models.chatterbox import estimator_kernels as kernels
from worker.models.chatterbox.estimator import Estimator
from worker.models.chatterbox.masks import filled, in_blocks

HEADS, WIDTH = 2, 16

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="Triton's interpreter is used where there is no GPU")


@pytest.mark.parametrize("chunk", [None, 50])
def test_attention_hears_its_own_row_and_chunk(chunk: int | None) -> None:
    generator = torch.Generator().manual_seed(1)
    query, key, value = torch.randn(3, 3, 150, HEADS * WIDTH, generator=generator)
    lengths = torch.tensor([150, 129, 1])
    made = kernels.attend(query, key, value, lengths, HEADS, chunk)
    seen = in_blocks(filled(lengths, 150), chunk)[:, None]
    split = (x.unflatten(2, (HEADS, WIDTH)).transpose(1, 2) for x in (query, key, value))
    expected = F.scaled_dot_product_attention(*split, attn_mask=seen).transpose(1, 2).flatten(2)
    for row, length in enumerate(lengths.tolist()):
        assert (made[row, :length] - expected[row, :length]).norm() < 1e-5 * expected[row, :length].norm()
    assert made.isfinite().all()


def test_what_is_added_is_normed() -> None:
    generator = torch.Generator().manual_seed(2)
    x, more = torch.randn(2, 3, 5, 32, generator=generator)
    norm = torch.nn.LayerNorm(32)
    torch.nn.init.normal_(norm.weight, generator=generator)
    torch.nn.init.normal_(norm.bias, generator=generator)
    expected = x + more
    with torch.inference_mode():
        made = kernels.join(x, more, norm)
        assert torch.equal(x, expected)
        assert (made - norm(expected)).norm() < 1e-5 * made.norm()


@torch.inference_mode()
@pytest.mark.parametrize("chunk", [None, 25])
def test_the_estimator_by_kernels_is_the_estimator(chunk: int | None, loaded: Models) -> None:
    generator = torch.Generator().manual_seed(3)
    made = []
    for has_kernels in (False, True):
        estimator = Estimator(loaded("chatterbox")._get().parts.s3gen.flow.decoder, chunk, is_distilled=False)
        assert estimator._kernels is None, "there is no GPU here"
        estimator._kernels = kernels if has_kernels else None
        generator.manual_seed(3)
        x, guide, heard = torch.randn(3, 2, 80, 60, generator=generator)
        speaker, now, then = torch.randn(2, 80, generator=generator), torch.tensor([0.1, 0.4]), torch.tensor([0.2, 0.5])
        made.append(estimator(x, guide, heard, speaker, torch.tensor([60, 41]), now, then))
    assert (made[1] - made[0]).norm() < 1e-5 * made[0].norm()
