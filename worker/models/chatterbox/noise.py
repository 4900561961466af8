"""Chance that is a function of (seed, stream, index) alone, on any device.

A result then depends on nobody else in the batch, a chunk is what the whole would be there, and another worker can go
on where one died. The hash is splitmix64's finaliser (Steele, Lea, Flood, 2014) over a Weyl sequence of the inputs.
"""

from __future__ import annotations

import math
from enum import IntEnum

import torch
from torch import Tensor

WEYL = -7046029254386353131  # 0x9E3779B97F4A7C15, the golden ratio, as a signed 64-bit number
MIX_1 = -4658895280553007687  # 0xBF58476D1CE4E5B9
MIX_2 = -7723592293110705685  # 0x94D049BB133111EB
_U24 = 1 << 24


class Stream(IntEnum):
    """What the noise is for; each use has its own, so that none repeats another."""

    TOKENS = 1
    FLOW = 2
    PHASE = 3
    SOURCE = 4


def _shifted(x: Tensor, bits: int) -> Tensor:
    """Shift right without the sign: torch shifts signed numbers arithmetically."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def _mixed(x: Tensor) -> Tensor:
    x = (x ^ _shifted(x, 30)) * MIX_1
    x = (x ^ _shifted(x, 27)) * MIX_2
    return x ^ _shifted(x, 31)


def _bits(seed: int | Tensor, stream: Stream, index: Tensor) -> Tensor:
    if not isinstance(seed, Tensor):
        seed = torch.tensor([seed], dtype=torch.int64, device=index.device)
    key = (seed * 4 + 1) * WEYL + int(stream)
    return _mixed(_mixed(key) + index * WEYL)


def uniform(seed: int | Tensor, stream: Stream, index: Tensor) -> Tensor:
    """Return one number of (0, 1), open at both ends, in double precision, for each element of `index` (int64).

    A tensor of seeds (int64) has the shape of `index`, or one that broadcasts to it.
    """
    return (_shifted(_bits(seed, stream, index), 40).double() + 0.5) / _U24


def normal(seed: int | Tensor, stream: Stream, index: Tensor) -> Tensor:
    """Return one standard normal number in single precision for each element of `index` (int64), by Box and Muller.

    Seeds as for `uniform`.
    """
    bits = _bits(seed, stream, index)
    first = (_shifted(bits, 40).float() + 0.5) / _U24
    second = (_shifted(bits, 16) & (_U24 - 1)).float() / _U24
    return torch.sqrt(-2.0 * torch.log(first)) * torch.cos(2.0 * math.pi * second)


def reseeded(seed: int, attempt: int) -> int:
    """Return the seed of another attempt at the same segment; attempt 0 has the seed itself."""
    if not attempt:
        return seed
    return int(_mixed(torch.tensor([(seed << 8) + attempt], dtype=torch.int64) * WEYL)) & 0xFFFFFFFF
