"""Packed layers multiply as plain ones do."""

import pytest
import torch
from torch import nn

from worker.models.chatterbox.packing import PackedLinear, pack


class Pair(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.large = nn.Linear(512, 768)
        self.small = nn.Linear(768, 16)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.small(self.large(x))
        return y


@pytest.mark.parametrize("shape", [(1, 512), (2, 1, 512), (16, 3, 512), (200, 512)])
def test_a_packed_layer_multiplies_as_before(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    pair, x = Pair(), torch.randn(*shape)
    with torch.inference_mode():
        expected = pair(x)
        assert pack(pair) == 1
        assert isinstance(pair.large, PackedLinear)
        assert type(pair.small) is nn.Linear, "small ones stay as they are"
        made = pair(x)
    assert made.shape == expected.shape
    assert (made - expected).norm() < 1e-5 * expected.norm()


def test_what_is_packed_is_there_once_and_counted() -> None:
    pair = Pair()
    before = sum(parameter.numel() for parameter in pair.parameters())
    pack(pair)
    assert sum(parameter.numel() for parameter in pair.parameters()) == before
    assert pack(pair) == 0


def test_half_precision_is_left_alone() -> None:
    assert pack(Pair().to(torch.bfloat16)) == 0
