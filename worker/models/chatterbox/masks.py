"""Which places of padded rows are there, and which of them may look at which. Made without asking the device."""

from __future__ import annotations

import torch
from torch import Tensor


def filled(ends: Tensor, width: int) -> Tensor:
    """Return (rows, 1, width), true where a row has something."""
    return torch.arange(width, device=ends.device) < ends.view(-1, 1, 1)


def in_blocks(mask: Tensor, block: int | None) -> Tensor:
    """Return what each position may look at: all of its row, or all up to the end of its own block."""
    if not block:
        return mask
    position = torch.arange(mask.shape[2], device=mask.device)
    ends = (torch.div(position, block, rounding_mode="floor") + 1) * block
    return mask & (position[None, :] < ends[:, None])[None]
