"""What the flow's estimator spends most of a GPU's time on besides products of matrices, in Triton: attention that
knows how long each row is, and sums that are normed while they are at hand."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

_QUERIES, _KEYS = 128, 64  # of a program, and of one turn of its loop
_ROWS = 8
_LOG2_E = 1.4426950408889634


@triton.jit
def _attend(  # type: ignore[no-untyped-def]
    query, key, value, out, lengths, n, chunk, scale,
    heads: tl.constexpr, width: tl.constexpr, block_queries: tl.constexpr, block_keys: tl.constexpr,
):  # fmt: skip
    """Attend to the keys of one's own row; with a chunk, to those up to the end of one's own chunk."""
    row, head = tl.program_id(1) // heads, tl.program_id(1) % heads
    first = tl.program_id(0) * block_queries
    queries = first + tl.arange(0, block_queries)
    lane = tl.arange(0, width)
    stride = heads * width
    base = row.to(tl.int64) * n * stride + head * width
    places = queries[:, None] * stride + lane[None, :]
    length = tl.load(lengths + row).to(tl.int32)
    limits = tl.minimum(length, (queries // chunk + 1) * chunk)
    end = tl.minimum(length, ((first + block_queries - 1) // chunk + 1) * chunk)
    if first >= length:
        end = 0  # nobody listens to what is here
    asked = tl.load(query + base + places, mask=(queries < length)[:, None], other=0.0)
    highest = tl.full([block_queries], -1.0e30, tl.float32)
    total = tl.full([block_queries], 1.0e-30, tl.float32)
    found = tl.zeros([block_queries, width], tl.float32)
    for start in range(0, end, block_keys):
        keys = start + tl.arange(0, block_keys)
        there = keys < length
        tile = tl.load(key + base + keys[None, :] * stride + lane[:, None], mask=there[None, :], other=0.0)
        score = tl.dot(asked, tile, input_precision="ieee") * scale
        score = tl.where(keys[None, :] < limits[:, None], score, -float("inf"))
        higher = tl.maximum(highest, tl.max(score, axis=1))
        weight = tl.exp2(score - higher[:, None])
        fade = tl.exp2(highest - higher)
        total = total * fade + tl.sum(weight, axis=1)
        tile = tl.load(value + base + keys[:, None] * stride + lane[None, :], mask=there[:, None], other=0.0)
        found = found * fade[:, None]
        found = tl.dot(weight.to(tile.dtype), tile, found, input_precision="ieee")
        highest = higher
    kind = out.dtype.element_ty
    tl.store(out + base + places, (found / total[:, None]).to(kind), mask=(queries < n)[:, None])


@triton.jit(do_not_specialize=["count"])
def _join(  # type: ignore[no-untyped-def]
    x, more, gain, shift, out, count, epsilon, width: tl.constexpr, block_rows: tl.constexpr
):
    """Add `more` to x in place, and write the sum, normed, to `out`."""
    rows = tl.program_id(0) * block_rows + tl.arange(0, block_rows)
    lane = tl.arange(0, width)
    here = (rows < count)[:, None]
    places = rows[:, None].to(tl.int64) * width + lane[None, :]
    kind = x.dtype.element_ty
    joined = tl.load(x + places, mask=here, other=0.0).to(tl.float32)
    joined += tl.load(more + places, mask=here, other=0.0).to(tl.float32)
    joined = joined.to(kind)
    tl.store(x + places, joined, mask=here)
    joined = joined.to(tl.float32)
    joined -= tl.sum(joined, axis=1)[:, None] / width
    spread = tl.sum(joined * joined, axis=1)[:, None] / width
    normed = joined * tl.rsqrt(spread + epsilon)
    normed = normed * tl.load(gain + lane)[None, :].to(tl.float32) + tl.load(shift + lane)[None, :].to(tl.float32)
    tl.store(out + places, normed.to(kind), mask=here)


def attend(query: Tensor, key: Tensor, value: Tensor, lengths: Tensor, heads: int, chunk: int | None) -> Tensor:
    """Return (rows, n, heads * width) of such queries, keys and values; each row is `lengths` long (rows, int64), and
    what is returned behind its end is anything finite. With a `chunk`, nobody looks beyond the end of its own."""
    rows, n, inner = query.shape
    out = torch.empty_like(query)
    width = inner // heads
    _attend[(triton.cdiv(n, _QUERIES), rows * heads)](
        query, key, value, out, lengths, n, chunk or n, width**-0.5 * _LOG2_E,
        heads=heads, width=width, block_queries=_QUERIES, block_keys=_KEYS, num_warps=4, num_stages=3,
    )  # fmt: skip
    return out


def join(x: Tensor, more: Tensor, norm: Any) -> Tensor:
    """Add `more` to x (rows, n, width), in place; return the sum after the layer norm `norm`."""
    out = torch.empty_like(x)
    count = x.shape[0] * x.shape[1]
    _join[(triton.cdiv(count, _ROWS),)](
        x, more, norm.weight, norm.bias, out, count, norm.eps, width=x.shape[2], block_rows=_ROWS
    )
    return out
