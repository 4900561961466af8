"""From logits to the next speech token, in upstream's order of steps, with noise that depends on the request alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from worker.models.chatterbox import noise
from worker.models.chatterbox.family import SPEECH_IDS, STOP_SPEECH, Family
from worker.models.chatterbox.slots import Slots

_TURBO_TOP_K = 1000
_NEVER = -torch.inf


@dataclass(frozen=True, slots=True)
class Sampling:
    """How the tokens of one segment are drawn."""

    seed: int
    temperature: float
    top_p: float
    repetition_penalty: float
    min_p: float = 0.0
    cfg_weight: float = 0.0

    @classmethod
    def of(cls, family: Family, parameters: Mapping[str, float], seed: int) -> Sampling:
        """Read a segment's parameters, the family's defaults for those that are missing; temperature 0 means greedy."""
        given = {**family.defaults, **{name: value for name, value in parameters.items() if name in family.defaults}}
        greedy = given["temperature"] == 0
        return cls(
            seed=seed,
            temperature=1.0 if greedy else given["temperature"],
            top_p=0.0 if greedy else given["top_p"],
            repetition_penalty=given["repetition_penalty"],
            min_p=given.get("min_p", 0.0),
            cfg_weight=given.get("cfg_weight", 0.0),
        )

    @property
    def is_cut(self) -> bool:
        """There is a top-p that drops something."""
        return self.top_p < 1.0

    def enter(self, slots: Slots) -> None:
        """Write these settings into a slot, which is all there is of `slots`."""
        slots.seed.fill_(self.seed)
        slots.temperature.fill_(self.temperature)
        slots.improbable.fill_(1 - self.top_p)  # here, where 1 - 0.95 has more digits than on the device
        slots.min_p.fill_(self.min_p)
        slots.repetition_penalty.fill_(self.repetition_penalty)
        slots.cfg_weight.fill_(self.cfg_weight)


def draw(logits: Tensor, slots: Slots, *, is_turbo: bool, is_cut: bool = True) -> Tensor:
    """Return the next token of every slot, (slots,) int64. Waits for nothing.

    `logits` (slots, ids) are float32, after guidance. Without `is_cut` all have a top-p of 1, and nothing is sorted.
    """
    # Of the ids from 6561 on only the end is a thing to say. Upstream draws the others too, and drops them afterwards
    # or hands them to the flow, whose table they run over. So its penalty on the begin of speech, 6561, is no loss.
    ids = torch.arange(logits.shape[1], device=logits.device)
    logits = logits.masked_fill((ids >= SPEECH_IDS) & (ids != STOP_SPEECH), _NEVER)
    kept = (turbo_kept if is_turbo else kept_of)(logits, slots, is_cut=is_cut)
    # Gumbel's trick: the argmax of log p + noise is a draw from p, and needs no sum over p, whose rounding would
    # depend on the order of the row. With one id left it is greedy.
    chance = noise.uniform(slots.seed[:, None], noise.Stream.TOKENS, slots.drawn[:, None] * 16_384 + ids)
    return (kept.double() - torch.log(-torch.log(chance))).argmax(-1)


def kept_of(logits: Tensor, slots: Slots, *, is_cut: bool = True) -> Tensor:
    """Repetition penalty, temperature, min-p, top-p: t3.py:355-368. What is not kept is -inf."""
    logits = _penalised(logits, slots) / slots.temperature[:, None]
    probabilities = logits.softmax(-1)
    least = slots.min_p[:, None] * probabilities.amax(-1, keepdim=True)
    logits = logits.masked_fill(probabilities < least, _NEVER)
    if is_cut:
        return _top_p(logits, slots.improbable[:, None])
    # What upstream's top-p of 1 drops: ids whose share is too small for a number.
    return logits.masked_fill(logits.softmax(-1) == 0, _NEVER)


def turbo_kept(logits: Tensor, slots: Slots, *, is_cut: bool = True) -> Tensor:
    """Temperature, top-k, top-p, repetition penalty: t3.py:404-413. What is not kept is -inf."""
    logits = logits / slots.temperature[:, None]
    lowest = logits.topk(min(_TURBO_TOP_K, logits.shape[1])).values[:, -1:]
    logits = logits.masked_fill(logits < lowest, _NEVER)
    if not is_cut:
        return _penalised(logits, slots)
    improbable = slots.improbable[:, None]
    # With a top-p of 1 upstream leaves the step out, and with it the ids whose share is too small to add up.
    return _penalised(torch.where(improbable > 0, _top_p(logits, improbable), logits), slots)


def _penalised(logits: Tensor, slots: Slots) -> Tensor:
    penalty = slots.repetition_penalty[:, None]
    return torch.where(slots.seen, torch.where(logits < 0, logits * penalty, logits / penalty), logits)


def _top_p(logits: Tensor, improbable: Tensor) -> Tensor:
    """Drop the least likely ids that together have no more than `improbable`; as transformers' TopPLogitsWarper."""
    ascending, order = logits.sort(descending=False)
    removed = ascending.softmax(-1).cumsum(-1) <= improbable
    removed[:, -1] = False
    return logits.masked_fill(torch.zeros_like(removed).scatter(1, order, removed), _NEVER)
