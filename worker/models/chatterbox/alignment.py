"""Multilingual's watch over where in the text the speech is: holds the end back, or forces it.

Upstream's `AlignmentStreamAnalyzer` (alignment_stream_analyzer.py of chatterbox-tts 0.1.7), for all slots at once and
on the device: it copies three maps of attention to the host in every step. Of its figures only those are here that
change a logit. Where it keeps the map of all steps and sums over it, this keeps the sums.
"""

from __future__ import annotations

import torch
from torch import Tensor

from worker.models.chatterbox.family import STOP_SPEECH
from worker.models.chatterbox.slots import Slots

# Shorter texts have no last five tokens that it could look at; upstream fails at them.
SHORTEST = 6
_SURE = 2.0**15
_LONGEST_TAIL = 5.0  # 200 ms
_MOST_AGAIN = 5.0


def watch(slots: Slots, begin: int, length: int) -> None:
    """Begin to watch a text of `length` ids that stands at position `begin` of the cache; for one slot."""
    slots.text_begin.fill_(begin)
    slots.text_length.fill_(length if length >= SHORTEST else 0)
    for column in (slots.text_position, slots.is_complete, slots.tail, slots.again):
        column.zero_()


def follow(slots: Slots, attention: Tensor, frame: Tensor, on: Tensor) -> Tensor:
    """Note what the position after token number `frame` (slots,) looked at; `attention` is (slots, length).

    Only slots that are `on` change. Returns (slots,): the id of the text that it looked at most.
    """
    text = torch.arange(attention.shape[1], device=attention.device) - slots.text_begin[:, None]
    # Of the text it counts only as much as there is speech.
    counts = (text >= 0) & (text < slots.text_length[:, None]) & (text <= frame[:, None])
    seen = attention.masked_fill(~counts, 0.0)
    now = attention.masked_fill(~counts, -1.0).argmax(-1) - slots.text_begin
    step = now - slots.text_position
    slots.text_position.copy_(torch.where(on & (step > -4) & (step < 7), now, slots.text_position))

    was_complete = on & slots.is_complete
    ends = (slots.text_begin + slots.text_length)[:, None] + torch.arange(-3, 0, device=seen.device)
    # The text of a slot that is not `on` may reach beyond what this step looks at; a GPU would be lost over that.
    tail = seen.gather(1, ends.clamp(0, attention.shape[1] - 1))
    slots.tail.add_(torch.where(was_complete[:, None], tail, 0.0))
    earlier = seen.masked_fill(text >= slots.text_length[:, None] - 5, 0.0).amax(-1)
    slots.again.add_(torch.where(was_complete, earlier, 0.0))
    slots.is_complete.logical_or_(on & (slots.text_position >= slots.text_length - 3))
    return now


def judged(slots: Slots, logits: Tensor, now: Tensor) -> Tensor:
    """Return the logits (slots, ids) of the next token, with the end held back or forced; `now` is from `follow`."""
    is_watched = slots.text_length > 0
    stutters = (slots.drawn >= 2) & (slots.token == slots.previous)
    is_over = (slots.tail.amax(-1) >= _LONGEST_TAIL) | (slots.again > _MOST_AGAIN) | stutters
    is_end = torch.arange(logits.shape[1], device=logits.device) == STOP_SPEECH
    too_early = is_watched & (now < slots.text_length - 3)
    logits = logits.masked_fill(too_early[:, None] & is_end, -_SURE)
    forced = torch.where(is_end, _SURE, -_SURE)
    return torch.where((is_watched & is_over)[:, None], forced, logits)
