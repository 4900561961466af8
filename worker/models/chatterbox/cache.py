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
    """`keys[layer]` and `values[layer]` are (rows, heads, length, width), the two halves of one tensor. One writer: the
    engine thread."""

    def __init__(self, layers: int, heads: int, width: int, dtype: torch.dtype, device: torch.device) -> None:
        self._shape = (heads, width)
        self._kind = {"dtype": dtype, "device": device}
        self.rows = self.length = 0
        self._pairs = [self._zeros(0, 0)] * layers
        self.keys = [pair[0] for pair in self._pairs]
        self.values = [pair[1] for pair in self._pairs]

    def __repr__(self) -> str:
        return f"<Cache layers={len(self._pairs)} rows={self.rows} length={self.length} bytes={self.bytes}>"

    @property
    def bytes(self) -> int:
        return sum(pair.numel() * pair.element_size() for pair in self._pairs)

    def has_room(self, rows: int, length: int) -> bool:
        return rows <= self.rows and length <= self.length

    def grow(self, rows: int, length: int) -> None:
        """Have room for so many rows and positions, in new tensors; what is there stays.

        One layer after the other, so that no more than one of them is there twice. If there is no memory for one, the
        cache is as large as it was: some layers are larger, of which nobody knows.
        """
        rows, length = max(rows, self.rows), max(length, self.length)
        for layer, old in enumerate(self._pairs):
            pair = self._zeros(rows, length)
            pair[:, : old.shape[1], :, : old.shape[3]] = old
            self._pairs[layer] = pair
            self.keys[layer], self.values[layer] = pair
        self.rows, self.length = rows, length

    def move(self, source: slice, target: slice, length: int) -> None:
        """Copy the first `length` positions of some rows to other rows."""
        for pair in self._pairs:
            pair[:, target, :, :length] = pair[:, source, :, :length]

    def put(self, other: Cache, rows: slice) -> None:
        """Copy the one row of another cache, whole, to the beginning of `rows`."""
        for pair, source in zip(self._pairs, other._pairs, strict=True):
            pair[:, rows, :, : other.length] = source

    def _zeros(self, rows: int, length: int) -> Tensor:
        # Zeros: what was never written is masked, but a mask does not stop a NaN.
        heads, width = self._shape
        return torch.zeros(2, rows, heads, length, width, **self._kind)
