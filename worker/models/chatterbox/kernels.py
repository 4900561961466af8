"""The decoder's layers in five or six kernels each, in Triton: for a GPU, on which the thirty-odd that a layer else is
take longer to begin than to be carried out.

A *position* here is one row of what a layer is given: one token of one cache row. How many there are decides which
tiles are used; so a position's numbers depend on how many are beside it, by rounding alone.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

_MOST_ROWS = 64  # of a tile
_FEW = 16  # positions, for which a program has to hurry alone: no others hide its waits


@triton.jit
def _tile(x, rows, here, columns, width: tl.constexpr):  # type: ignore[no-untyped-def]
    return tl.load(x + rows[:, None] * width + columns[None, :], mask=here[:, None], other=0.0)


@triton.jit(do_not_specialize=["count"])
def _project(  # type: ignore[no-untyped-def]
    x, norm, first, second, third, out, count, each, out_stride, epsilon,
    width: tl.constexpr, precision: tl.constexpr,
    block_rows: tl.constexpr, block_outs: tl.constexpr, block: tl.constexpr,
):  # fmt: skip
    """Norm, then up to three weights of `each` outputs, side by side: `first` alone where `each` is all.

    What a row is divided by is one number, so that it may as well be divided afterwards: the row is read once.
    """
    rows = tl.program_id(1) * block_rows + tl.arange(0, block_rows)
    here = rows < count
    rows = tl.where(here, rows, 0)
    outs = tl.program_id(0) * block_outs + tl.arange(0, block_outs)
    which = tl.program_id(0) * block_outs // each
    weight = first
    if which == 1:
        weight = second
    if which == 2:
        weight = third
    inside = outs - which * each
    has_out = inside < each
    found = tl.zeros([block_rows, block_outs], tl.float32)
    squares = tl.zeros([block_rows], tl.float32)
    for start in range(0, width, block):
        columns = start + tl.arange(0, block)
        piece = _tile(x, rows, here, columns, width).to(tl.float32)
        squares += tl.sum(piece * piece, axis=1)
        piece = (piece * tl.load(norm + columns).to(tl.float32)[None, :]).to(first.dtype.element_ty)
        tile = tl.load(weight + inside[None, :] * width + columns[:, None], mask=has_out[None, :], other=0.0)
        found = tl.dot(piece, tile, found, input_precision=precision)
    found *= tl.rsqrt(squares / width + epsilon)[:, None]
    places = out + rows[:, None] * out_stride + outs[None, :]
    tl.store(places, found.to(out.dtype.element_ty), mask=here[:, None] & has_out[None, :])


@triton.jit(do_not_specialize=["count"])
def _gate(  # type: ignore[no-untyped-def]
    x, norm, gate, up, out, count, outputs, epsilon,
    width: tl.constexpr, precision: tl.constexpr,
    block_rows: tl.constexpr, block_outs: tl.constexpr, block: tl.constexpr,
):  # fmt: skip
    """Norm, then the two products of the gated layer, joined: silu(x gate) * (x up)."""
    rows = tl.program_id(1) * block_rows + tl.arange(0, block_rows)
    here = rows < count
    rows = tl.where(here, rows, 0)
    outs = tl.program_id(0) * block_outs + tl.arange(0, block_outs)
    has_out = outs < outputs
    gated = tl.zeros([block_rows, block_outs], tl.float32)
    raised = tl.zeros([block_rows, block_outs], tl.float32)
    squares = tl.zeros([block_rows], tl.float32)
    for start in range(0, width, block):
        columns = start + tl.arange(0, block)
        piece = _tile(x, rows, here, columns, width).to(tl.float32)
        squares += tl.sum(piece * piece, axis=1)
        piece = (piece * tl.load(norm + columns).to(tl.float32)[None, :]).to(gate.dtype.element_ty)
        places = outs[None, :] * width + columns[:, None]
        tile = tl.load(gate + places, mask=has_out[None, :], other=0.0)
        gated = tl.dot(piece, tile, gated, input_precision=precision)
        tile = tl.load(up + places, mask=has_out[None, :], other=0.0)
        raised = tl.dot(piece, tile, raised, input_precision=precision)
    scales = tl.rsqrt(squares / width + epsilon)[:, None]
    gated *= scales
    found = gated * tl.sigmoid(gated) * raised * scales
    places = out + rows[:, None] * outputs + outs[None, :]
    tl.store(places, found.to(out.dtype.element_ty), mask=here[:, None] & has_out[None, :])


@triton.jit(do_not_specialize=["count"])
def _add(  # type: ignore[no-untyped-def]
    x, weight, target, count, outputs,
    width: tl.constexpr, precision: tl.constexpr,
    block_rows: tl.constexpr, block_outs: tl.constexpr, block: tl.constexpr,
):  # fmt: skip
    """Add x times the transposed weight to the target, in place."""
    rows = tl.program_id(1) * block_rows + tl.arange(0, block_rows)
    here = rows < count
    rows = tl.where(here, rows, 0)
    outs = tl.program_id(0) * block_outs + tl.arange(0, block_outs)
    has_out = outs < outputs
    found = tl.zeros([block_rows, block_outs], tl.float32)
    for start in range(0, width, block):
        columns = start + tl.arange(0, block)
        tile = tl.load(weight + outs[None, :] * width + columns[:, None], mask=has_out[None, :], other=0.0)
        found = tl.dot(_tile(x, rows, here, columns, width), tile, found, input_precision=precision)
    places = target + rows[:, None] * outputs + outs[None, :]
    mask = here[:, None] & has_out[None, :]
    before = tl.load(places, mask=mask, other=0.0).to(tl.float32)
    tl.store(places, (before + found).to(target.dtype.element_ty), mask=mask)


@triton.jit
def _turn(  # type: ignore[no-untyped-def]
    mixed, cos, sin, keys, values, row_of, position_of, row_stride, head_stride,
    share: tl.constexpr, heads: tl.constexpr, heads_block: tl.constexpr, half: tl.constexpr,
):  # fmt: skip
    """Turn queries and keys by their position (rotary embedding), and put keys and values into the cache."""
    token = tl.program_id(0)
    position = tl.load(position_of + token // share)
    row = tl.load(row_of + token).to(tl.int64)
    head = tl.arange(0, heads_block)[:, None]
    there = head < heads
    low = tl.arange(0, half)[None, :]
    width: tl.constexpr = 2 * half
    angle = position * width + low
    cos_low, cos_high = tl.load(cos + angle).to(tl.float32), tl.load(cos + angle + half).to(tl.float32)
    sin_low, sin_high = tl.load(sin + angle).to(tl.float32), tl.load(sin + angle + half).to(tl.float32)
    query = mixed + token.to(tl.int64) * 3 * heads * width + head * width + low
    place = row * row_stride + head * head_stride + position * width + low
    kind = mixed.dtype.element_ty
    left = tl.load(query, mask=there, other=0.0).to(tl.float32)
    right = tl.load(query + half, mask=there, other=0.0).to(tl.float32)
    tl.store(query, (left * cos_low - right * sin_low).to(kind), mask=there)
    tl.store(query + half, (right * cos_high + left * sin_high).to(kind), mask=there)
    key = query + heads * width
    left = tl.load(key, mask=there, other=0.0).to(tl.float32)
    right = tl.load(key + half, mask=there, other=0.0).to(tl.float32)
    tl.store(keys + place, (left * cos_low - right * sin_low).to(kind), mask=there)
    tl.store(keys + place + half, (right * cos_high + left * sin_high).to(kind), mask=there)
    value = key + heads * width
    tl.store(values + place, tl.load(value, mask=there, other=0.0), mask=there)
    tl.store(values + place + half, tl.load(value + half, mask=there, other=0.0), mask=there)


@triton.jit
def _attend(  # type: ignore[no-untyped-def]
    mixed, keys, values, out, row_of, position_of, row_stride, head_stride, scale,
    share: tl.constexpr, heads: tl.constexpr, width: tl.constexpr, block: tl.constexpr,
):  # fmt: skip
    """Attend from each position to those of its row up to itself: no further, whatever the cache is long."""
    token, head = tl.program_id(0), tl.program_id(1)
    position = tl.load(position_of + token // share)
    row = tl.load(row_of + token).to(tl.int64)
    lane = tl.arange(0, width)
    query = tl.load(mixed + token.to(tl.int64) * 3 * heads * width + head * width + lane).to(tl.float32) * scale
    base = row * row_stride + head * head_stride
    highest = -float("inf")
    total = 0.0
    found = tl.zeros([width], tl.float32)
    for start in range(0, position + 1, block):
        at = start + tl.arange(0, block)
        seen = at <= position
        places = base + at[:, None] * width + lane[None, :]
        key = tl.load(keys + places, mask=seen[:, None], other=0.0).to(tl.float32)
        score = tl.where(seen, tl.sum(key * query[None, :], axis=1), -float("inf"))
        higher = tl.maximum(highest, tl.max(score, axis=0))
        weight = tl.exp(score - higher)
        fade = tl.exp(highest - higher)
        value = tl.load(values + places, mask=seen[:, None], other=0.0).to(tl.float32)
        found = found * fade + tl.sum(value * weight[:, None], axis=0)
        total = total * fade + tl.sum(weight, axis=0)
        highest = higher
    place = out + token.to(tl.int64) * heads * width + head * width + lane
    tl.store(place, (found / total).to(out.dtype.element_ty))


@triton.jit
def _attend_one(  # type: ignore[no-untyped-def]
    mixed, cos, sin, keys, values, out, row_of, position_of, row_stride, head_stride, scale,
    share: tl.constexpr, heads: tl.constexpr, half: tl.constexpr, block: tl.constexpr,
):  # fmt: skip
    """`_turn` and `_attend` of positions of which no two are in one row: none needs what another one stores."""
    token, head = tl.program_id(0), tl.program_id(1)
    position = tl.load(position_of + token // share)
    row = tl.load(row_of + token).to(tl.int64)
    width: tl.constexpr = 2 * half
    low, lane = tl.arange(0, half), tl.arange(0, width)
    kind = mixed.dtype.element_ty
    angle = position * width + low
    cos_low, cos_high = tl.load(cos + angle).to(tl.float32), tl.load(cos + angle + half).to(tl.float32)
    sin_low, sin_high = tl.load(sin + angle).to(tl.float32), tl.load(sin + angle + half).to(tl.float32)
    base = row * row_stride + head * head_stride
    here = base + position * width
    query = mixed + token.to(tl.int64) * 3 * heads * width + head * width
    left, right = tl.load(query + low).to(tl.float32), tl.load(query + half + low).to(tl.float32)
    query_low = (left * cos_low - right * sin_low).to(kind).to(tl.float32) * scale
    query_high = (right * cos_high + left * sin_high).to(kind).to(tl.float32) * scale
    key = query + heads * width
    left, right = tl.load(key + low).to(tl.float32), tl.load(key + half + low).to(tl.float32)
    key_low = (left * cos_low - right * sin_low).to(kind)
    key_high = (right * cos_high + left * sin_high).to(kind)
    value = tl.load(key + heads * width + lane)
    tl.store(keys + here + low, key_low)
    tl.store(keys + here + half + low, key_high)
    tl.store(values + here + lane, value)
    # Its own key and value are at hand; the others stand in the cache.
    highest = tl.sum(key_low.to(tl.float32) * query_low, axis=0) + tl.sum(key_high.to(tl.float32) * query_high, axis=0)
    total = tl.exp(highest - highest)
    found = value.to(tl.float32)
    for start in range(0, position, block):
        at = start + tl.arange(0, block)
        seen = at < position
        places = keys + base + at[:, None] * width + low[None, :]
        lower = tl.load(places, mask=seen[:, None], other=0.0).to(tl.float32)
        upper = tl.load(places + half, mask=seen[:, None], other=0.0).to(tl.float32)
        tile = tl.load(values + base + at[:, None] * width + lane[None, :], mask=seen[:, None], other=0.0)
        score = tl.sum(lower * query_low[None, :] + upper * query_high[None, :], axis=1)
        score = tl.where(seen, score, -float("inf"))
        higher = tl.maximum(highest, tl.max(score, axis=0))
        weight = tl.exp(score - higher)
        fade = tl.exp(highest - higher)
        found = found * fade + tl.sum(tile.to(tl.float32) * weight[:, None], axis=0)
        total = total * fade + tl.sum(weight, axis=0)
        highest = higher
    place = out + token.to(tl.int64) * heads * width + head * width + lane
    tl.store(place, (found / total).to(kind))


def _tiles(count: int, weight: Tensor, *, outs: int, block: int) -> dict[str, Any]:
    """Return how large tiles are for so many positions: enough bytes on the way for the memory's latency, and no more
    than the shared memory of a small GPU holds, 99 KiB. `outs` and `block` are for few positions in bfloat16."""
    rows = min(_MOST_ROWS, max(_FEW, triton.next_power_of_2(count)))
    is_wide = weight.dtype == torch.float32
    if rows > _FEW or is_wide:
        outs, block = max(outs, 32), 64
    block = min(block, weight.shape[1])
    assert weight.shape[1] % block == 0
    return {"block_rows": rows, "block_outs": outs, "block": block, "num_stages": 2 if is_wide else 4}


def _grid(outputs: int, count: int, tiles: dict[str, Any]) -> tuple[int, int]:
    return triton.cdiv(outputs, tiles["block_outs"]), triton.cdiv(count, tiles["block_rows"])


def project(x: Tensor, norm: Tensor, epsilon: float, weights: list[Tensor], out: Tensor, precision: str) -> Tensor:
    """Write x (n, width), normed, times one weight (outs, width), or three of one size, side by side, to `out`."""
    each, width = weights[0].shape
    first, second, third = (weights * 3)[:3]
    tiles = _tiles(len(x), first, outs=32 if len(weights) == 3 else 64, block=128)
    # A program's columns are all of one weight.
    assert len(weights) == 1 or each % tiles["block_outs"] == 0
    _project[_grid(each * len(weights), len(x), tiles)](
        x, norm, first, second, third, out, len(x), each, out.shape[1], epsilon,
        width=width, precision=precision, **tiles,
    )  # fmt: skip
    return out


def gate(x: Tensor, norm: Tensor, epsilon: float, weight: Tensor, up: Tensor, out: Tensor, precision: str) -> Tensor:
    """Write silu(n gate) * (n up) to `out`, n being x (n, width), normed."""
    outputs, width = weight.shape
    tiles = _tiles(len(x), weight, outs=32, block=128)
    _gate[_grid(outputs, len(x), tiles)](
        x, norm, weight, up, out, len(x), outputs, epsilon, width=width, precision=precision, **tiles
    )
    return out


def add(x: Tensor, weight: Tensor, target: Tensor, precision: str) -> None:
    """Add x (n, width) times the weight (outs, width) to `target` (n, outs)."""
    outputs, width = weight.shape
    tiles = _tiles(len(x), weight, outs=8, block=256)
    _add[_grid(outputs, len(x), tiles)](
        x, weight, target, len(x), outputs, width=width, precision=precision, **tiles
    )  # fmt: skip


def attend(
    mixed: Tensor,
    turns: tuple[Tensor, Tensor],
    keys: Tensor,
    values: Tensor,
    rows: Tensor,
    positions: Tensor,
    out: Tensor,
    *,
    is_step: bool = False,
) -> Tensor:
    """Turn, store and attend. `mixed` is (n, 3 * heads * width): queries, keys and values; `turns` are cosines and
    sines of all positions; `keys` and `values` are a layer's cache (rows, heads, length, width); `rows` (n,) and
    `positions` (n, or half of it where two neighbours share one), int64, say where each is. Writes (n, heads * width)
    to `out`. In a step no two are in one row; else the queries in `mixed` are turned afterwards."""
    _, heads, _, width = keys.shape
    count, few = len(mixed), len(mixed) <= _FEW
    share, scale = count // len(positions), width**-0.5
    shape = {"share": share, "heads": heads, "block": 256 if few else 128, "num_warps": 8 if few else 4}
    strides = keys.stride(0), keys.stride(1)
    if is_step and few:
        # For many the other two are faster: their reads are twice as wide.
        _attend_one[(count, heads)](
            mixed, *turns, keys, values, out, rows, positions, *strides, scale, half=width // 2, **shape
        )
        return out
    _turn[(count,)](
        mixed, *turns, keys, values, rows, positions, *strides,
        share=share, heads=heads, heads_block=triton.next_power_of_2(heads), half=width // 2,
    )  # fmt: skip
    _attend[(count, heads)](mixed, keys, values, out, rows, positions, *strides, scale, width=width, **shape)
    return out
