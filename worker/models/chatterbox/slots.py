"""What the token stage knows of each run between two steps, in tensors: a column a fact, a row a slot.

Everything is written in place and nothing is ever allocated anew, so that a recorded step finds it where it was. One
writer: the engine thread.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import Tensor

from worker.models.chatterbox.family import STOP_SPEECH


@dataclass(frozen=True, slots=True)
class Slots:
    """The columns. `position` of a slot that is not `on` is where its next piece of text will be written.

    A step computes all rows of its batch, those too that nobody has: what it writes to their caches at `position` is
    overwritten before anybody reads it.
    """

    token: Tensor  # (slots,) int64: the last one drawn, which the next step reads
    previous: Tensor  # the one before it
    position: Tensor  # int64: in the cache, of what is written next
    drawn: Tensor  # int64: how many tokens there are
    out: Tensor  # int64: what the last step drew, -1 for nothing
    is_alive: Tensor  # bool: has not drawn its end; a step itself writes that
    is_due: Tensor  # bool: is to be stepped; the host writes it
    seen: Tensor  # (slots, ids) bool: what the repetition penalty counts
    seed: Tensor  # int64
    temperature: Tensor  # float32
    improbable: Tensor  # float32: 1 - top_p
    min_p: Tensor  # float32
    repetition_penalty: Tensor  # float32
    cfg_weight: Tensor  # float32
    text_begin: Tensor  # int64: position in the cache
    text_length: Tensor  # int64; 0 where the alignment is not watched
    text_position: Tensor  # int64: where in the text the speech is
    is_complete: Tensor  # bool: the speech has been at the end of the text
    tail: Tensor  # (slots, 3) float32: attention to the last three ids since then
    again: Tensor  # float32: attention to earlier ids since then

    @classmethod
    def empty(cls, count: int, ids: int, device: torch.device) -> Slots:
        """Return `count` slots for speech tokens of so many ids."""
        kinds = {
            "is_alive": torch.bool, "is_due": torch.bool, "seen": torch.bool, "is_complete": torch.bool,
            "temperature": torch.float32, "improbable": torch.float32, "min_p": torch.float32,
            "repetition_penalty": torch.float32, "cfg_weight": torch.float32, "tail": torch.float32,
            "again": torch.float32,
        }  # fmt: skip
        widths = {"seen": (ids,), "tail": (3,)}
        columns = {
            field.name: torch.zeros(
                count, *widths.get(field.name, ()), dtype=kinds.get(field.name, torch.int64), device=device
            )
            for field in fields(cls)
        }
        # Rows that nobody has are computed, too: with something to divide by.
        columns["temperature"].fill_(1.0)
        columns["repetition_penalty"].fill_(1.0)
        return cls(**columns)

    def part(self, first: int, end: int) -> Slots:
        """Return the slots from `first` to before `end`: not a copy."""
        return Slots(**{field.name: getattr(self, field.name)[first:end] for field in fields(self)})

    def move(self, source: int, target: int) -> None:
        """Make slot `target` what `source` is; who is due is the host's to say."""
        for field in fields(self):
            if field.name != "is_due":
                column = getattr(self, field.name)
                column[target].copy_(column[source])

    def take(self, ids: Tensor, on: Tensor) -> None:
        """Note the tokens that were just drawn, for the slots that are `on` (bool); the others stay as they are."""
        self.previous.copy_(torch.where(on, self.token, self.previous))
        self.token.copy_(torch.where(on, ids, self.token))
        self.out.copy_(torch.where(on, ids, -1))
        index = self.token[:, None]
        self.seen.scatter_(1, index, self.seen.gather(1, index) | on[:, None])
        self.drawn.add_(on)
        self.is_alive.copy_(torch.where(on, ids != STOP_SPEECH, self.is_alive))
