"""Keys and values of what was read: for each layer two tensors of fixed rows and length, written in place."""

from __future__ import annotations

import torch
from torch import Tensor

# A step is as long as the longest of its runs, rounded up to one of these: few enough to record a graph for each. 1344
# and 1728 are the longest segments of the two kinds of model (`memory.positions`), and 3456 is the longest text with
# the longest speech.
LENGTHS = (64, 128, 192, 256, 384, 512, 768, 1024, 1344, 1728, 2304, 3456)


def length_bucket(positions: int) -> int:
    """Return the smallest of `LENGTHS` that holds so many positions.

    Raises:
        ValueError: none does.
    """
    for length in LENGTHS:
        if positions <= length:
            return length
    raise ValueError(f"{positions} positions are more than any text and its speech can have, which is {LENGTHS[-1]}")


def batch_bucket(count: int) -> int:
    """Return the smallest power of two that is not below `count`."""
    return 1 << max(0, count - 1).bit_length()


class Cache:
    """`keys[layer]` and `values[layer]` are (rows, heads, length, width). One writer: the engine thread."""

    def __init__(self, layers: int, heads: int, width: int, dtype: torch.dtype, device: torch.device) -> None:
        self._shape = (heads, width)
        self._kind = {"dtype": dtype, "device": device}
        self.rows = self.length = 0
        self.keys: list[Tensor] = [self._zeros(0, 0)] * layers
        self.values: list[Tensor] = [self._zeros(0, 0)] * layers

    def __repr__(self) -> str:
        return f"<Cache layers={len(self.keys)} rows={self.rows} length={self.length} bytes={self.bytes}>"

    @property
    def bytes(self) -> int:
        return sum(tensor.numel() * tensor.element_size() for tensor in (*self.keys, *self.values))

    def grow(self, rows: int, length: int) -> bool:
        """Have room for so many rows and positions; what is there stays. Returns whether the tensors are new ones.

        One layer after the other, so that no more than one of them is there twice.
        """
        if rows <= self.rows and length <= self.length:
            return False
        self.rows, self.length = max(rows, self.rows), max(length, self.length)
        for tensors in (self.keys, self.values):
            for layer, old in enumerate(tensors):
                tensors[layer] = self._zeros(self.rows, self.length)
                tensors[layer][: old.shape[0], :, : old.shape[2]] = old
        return True

    def move(self, source: slice, target: slice, length: int) -> None:
        """Copy the first `length` positions of some rows to other rows."""
        for tensors in (self.keys, self.values):
            for tensor in tensors:
                tensor[target, :, :length] = tensor[source, :, :length]

    def put(self, other: Cache, rows: slice) -> None:
        """Copy the one row of another cache, whole, to the beginning of `rows`."""
        for mine, theirs in ((self.keys, other.keys), (self.values, other.values)):
            for tensor, source in zip(mine, theirs, strict=True):
                tensor[rows, :, : other.length] = source

    def _zeros(self, rows: int, length: int) -> Tensor:
        # Zeros: what was never written is masked, but a mask does not stop a NaN.
        heads, width = self._shape
        return torch.zeros(rows, heads, length, width, **self._kind)
