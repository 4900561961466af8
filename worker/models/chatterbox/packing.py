"""Products of few rows with large matrices, for a CPU: oneDNN with weights laid out for it beforehand.

What torch calls by itself reads a weight of 4096 x 1024 at 7 GB/s on an AMD processor, for two rows as for sixteen;
this at 20 and more, which is what its memory gives. The weights are there once: the plain ones are given up.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

# Smaller ones are in the cache anyway, and the call itself takes longer.
_SMALLEST = 1 << 18


class PackedLinear(nn.Module):
    """In the place of an `nn.Linear` whose weight is float32 and on the CPU."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        packed = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach(), None)
        self.weight = nn.Parameter(packed, requires_grad=False)
        self.bias = linear.bias

    def forward(self, x: Tensor) -> Tensor:
        product: Tensor = torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, "none", [], "")
        return product


def pack(module: nn.Module) -> int:
    """Pack the large linear layers within a module that is on the CPU, and return how many; 0 where that is not to be
    had, and all stays as it was."""
    if not (torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")):
        return 0
    found = [
        (owner, name, child)
        for owner in module.modules()
        for name, child in owner.named_children()
        if type(child) is nn.Linear and child.weight.dtype == torch.float32 and child.weight.numel() >= _SMALLEST
    ]
    count = len(found)
    while found:
        owner, name, child = found.pop()
        setattr(owner, name, PackedLinear(child))
        del child  # and with it the plain weight, before the next is packed
    return count
