"""Both ends of a step of the token stage, in Triton: what the layers are given, and what is drawn of what they return.

Between steps all that is known of the runs is in `Slots`; these read and write its columns in place. They do what
`TokenStage` does with a hundred operations, in the same order, for models with guidance and without a watch over the
alignment, and as long as no top-p drops anything.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from worker.models.chatterbox.family import SPEECH_IDS, STOP_SPEECH
from worker.models.chatterbox.noise import MIX_1, MIX_2, WEYL, Stream
from worker.models.chatterbox.slots import Slots

_NEVER = tl.constexpr(float("-inf"))
_WEYL, _MIX_1, _MIX_2 = tl.constexpr(WEYL), tl.constexpr(MIX_1), tl.constexpr(MIX_2)
_STREAM = tl.constexpr(int(Stream.TOKENS))
_SPEECH, _STOP = tl.constexpr(SPEECH_IDS), tl.constexpr(STOP_SPEECH)


@triton.jit
def _embed(ids, drawn, table, places, out, width: tl.constexpr):  # type: ignore[no-untyped-def]
    """Write the embedding of each slot's last token, at its place in the speech, to both of its rows."""
    slot = tl.program_id(0)
    lane = tl.arange(0, width)
    token, count = tl.load(ids + slot), tl.load(drawn + slot)
    found = tl.load(table + token * width + lane).to(tl.float32) + tl.load(places + count * width + lane).to(tl.float32)
    found = found.to(out.dtype.element_ty)
    tl.store(out + 2 * slot * width + lane, found)
    tl.store(out + (2 * slot + 1) * width + lane, found)


@triton.jit
def _mixed(x):  # type: ignore[no-untyped-def]
    """splitmix64's finaliser, as `noise` has it; shifts are without the sign."""
    x = (x ^ ((x >> 30) & 0x3FFFFFFFF)) * _MIX_1
    x = (x ^ ((x >> 27) & 0x1FFFFFFFFF)) * _MIX_2
    return x ^ ((x >> 31) & 0x1FFFFFFFF)


@triton.jit
def _draw(  # type: ignore[no-untyped-def]
    logits, ids, previous, position, drawn, out, is_alive, is_due, seen, seed, temperature, min_p, penalty, guidance,
    stride, seen_stride, block: tl.constexpr,
):  # fmt: skip
    """Draw and note the next token of each slot that is on; see `sampler.draw`, `sampler.kept_of`, `Slots.take`."""
    slot = tl.program_id(0)
    number = tl.arange(0, block)
    sounds = (number < _SPEECH) | (number == _STOP)
    sees = tl.load(logits + 2 * slot * stride + number, mask=sounds, other=0.0)
    blind = tl.load(logits + (2 * slot + 1) * stride + number, mask=sounds, other=0.0)
    logit = sees + tl.load(guidance + slot) * (sees - blind)
    factor = tl.load(penalty + slot)
    was_said = tl.load(seen + slot * seen_stride + number, mask=sounds, other=0) != 0
    logit = tl.where(was_said, tl.where(logit < 0, logit * factor, logit / factor), logit)
    logit = tl.where(sounds, logit / tl.load(temperature + slot), _NEVER)
    share = tl.exp(logit - tl.max(logit, axis=0))
    total = tl.sum(share, axis=0)
    share = share / total
    is_kept = (share >= tl.load(min_p + slot) * tl.max(share, axis=0)) & (share > 0)
    count = tl.load(drawn + slot)
    key = _mixed((tl.load(seed + slot) * 4 + 1) * _WEYL + _STREAM)
    bits = _mixed(key + (count * 16384 + number) * _WEYL)
    chance = (((bits >> 40) & 0xFFFFFF).to(tl.float64) + 0.5) / 16777216.0
    score = tl.where(is_kept, logit.to(tl.float64) - tl.log(-tl.log(chance)), _NEVER)
    token = tl.argmax(score, axis=0).to(tl.int64)

    alive = tl.load(is_alive + slot) != 0
    on = alive & (tl.load(is_due + slot) != 0)
    last = tl.load(ids + slot)
    tl.store(previous + slot, tl.where(on, last, tl.load(previous + slot)))
    tl.store(ids + slot, tl.where(on, token, last))
    tl.store(out + slot, tl.where(on, token, -1))
    tl.store(seen + slot * seen_stride + token, True, mask=on)
    tl.store(drawn + slot, count + on.to(tl.int64))
    tl.store(position + slot, tl.load(position + slot) + on.to(tl.int64))
    tl.store(is_alive + slot, alive & ((token != _STOP) | (on == 0)))


def embed(slots: Slots, table: Tensor, places: Tensor, out: Tensor) -> Tensor:
    """Write (2 slots, width) to `out`: the embedding in `table` of the token, plus that in `places` of its place."""
    _embed[(len(slots.token),)](slots.token, slots.drawn, table, places, out, width=table.shape[1])
    return out


def draw(logits: Tensor, slots: Slots) -> None:
    """Draw of logits (2 slots, ids), float32, the second row of each blind to the text; go on by a position."""
    assert logits.shape[1] > STOP_SPEECH
    _draw[(len(slots.token),)](
        logits, slots.token, slots.previous, slots.position, slots.drawn, slots.out, slots.is_alive, slots.is_due,
        slots.seen, slots.seed, slots.temperature, slots.min_p, slots.repetition_penalty, slots.cfg_weight,
        logits.stride(0), slots.seen.stride(0), block=triton.next_power_of_2(STOP_SPEECH + 1), num_warps=16,
    )  # fmt: skip
