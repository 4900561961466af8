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
    """`keys[layer]` and `values[layer]` are (rows, heads, length, width), parts of one tensor: what is moved is moved
    at once. One writer: the engine thread."""

    def __init__(self, layers: int, heads: int, width: int, dtype: torch.dtype, device: torch.device) -> None:
        self._layers = layers
        self._shape = (heads, width)
        self._kind = {"dtype": dtype, "device": device}
        self.rows = self.length = 0
        self._take(self._zeros(0, 0))

    def __repr__(self) -> str:
        return f"<Cache layers={self._layers} rows={self.rows} length={self.length} bytes={self.bytes}>"

    @property
    def bytes(self) -> int:
        return self._all.numel() * self._all.element_size()

    def grow(self, rows: int, length: int) -> bool:
        """Have room for so many rows and positions; what is there stays. Returns whether the tensors are new ones.

        Old and new are there together for a moment.
        """
        if rows <= self.rows and length <= self.length:
            return False
        old = self._all
        self.rows, self.length = max(rows, self.rows), max(length, self.length)
        self._take(self._zeros(self.rows, self.length))
        self._all[:, :, : old.shape[2], :, : old.shape[4]] = old
        return True

    def move(self, source: slice, target: slice, length: int) -> None:
        """Copy the first `length` positions of some rows to other rows."""
        self._all[:, :, target, :, :length] = self._all[:, :, source, :, :length]

    def put(self, other: Cache, rows: slice) -> None:
        """Copy the one row of another cache, whole, to the beginning of `rows`."""
        self._all[:, :, rows, :, : other.length] = other._all

    def _take(self, tensor: Tensor) -> None:
        self._all = tensor
        self.keys = list(tensor[:, 0])
        self.values = list(tensor[:, 1])

    def _zeros(self, rows: int, length: int) -> Tensor:
        # Zeros: what was never written is masked, but a mask does not stop a NaN.
        heads, width = self._shape
        return torch.zeros(self._layers, 2, rows, heads, length, width, **self._kind)
