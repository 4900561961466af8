"""From logits to the next speech token, in upstream's order of steps, with noise that depends on the request alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from worker.models.chatterbox import noise
from worker.models.chatterbox.family import SPEECH_IDS, STOP_SPEECH, Family

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


def draw(logits: Tensor, seen: Tensor, sampling: Sampling, step: int, *, is_turbo: bool) -> int:
    """Return the next token.

    `logits` (V,) are float32, after guidance; `seen` (V,) marks the ids that the repetition penalty counts.
    """
    # Of the ids from 6561 on only the end is a thing to say. Upstream draws the others too, and drops them afterwards
    # or hands them to the flow, whose table they run over.
    logits = logits.clone()
    logits[SPEECH_IDS:STOP_SPEECH] = _NEVER
    logits[STOP_SPEECH + 1 :] = _NEVER
    kept = (_turbo_kept if is_turbo else _kept)(logits, seen, sampling)
    # Gumbel's trick: the argmax of log p + noise is a draw from p, and needs no sum over p, whose rounding would
    # depend on the order of the row. With one id left it is greedy.
    ids = torch.arange(len(kept), device=kept.device)
    chance = noise.uniform(sampling.seed, noise.Stream.TOKENS, step * 16_384 + ids)
    return int((kept.double() - torch.log(-torch.log(chance))).argmax())


def _kept(logits: Tensor, seen: Tensor, sampling: Sampling) -> Tensor:
    """Repetition penalty, temperature, min-p, top-p: t3.py:355-368."""
    logits = _penalised(logits, seen, sampling.repetition_penalty) / sampling.temperature
    probabilities = logits.softmax(-1)
    logits = logits.masked_fill(probabilities < sampling.min_p * probabilities.amax(), _NEVER)
    return _top_p(logits, sampling.top_p)


def _turbo_kept(logits: Tensor, seen: Tensor, sampling: Sampling) -> Tensor:
    """Temperature, top-k, top-p, repetition penalty: t3.py:404-413."""
    logits = logits / sampling.temperature
    lowest = logits.topk(min(_TURBO_TOP_K, len(logits))).values[-1]
    logits = logits.masked_fill(logits < lowest, _NEVER)
    if sampling.top_p < 1.0:
        logits = _top_p(logits, sampling.top_p)
    return _penalised(logits, seen, sampling.repetition_penalty)


def _penalised(logits: Tensor, seen: Tensor, penalty: float) -> Tensor:
    return torch.where(seen, torch.where(logits < 0, logits * penalty, logits / penalty), logits)


def _top_p(logits: Tensor, top_p: float) -> Tensor:
    """Keep the most likely ids that together reach `top_p`, at least one; as transformers' TopPLogitsWarper."""
    ascending, order = logits.sort(descending=False)
    removed = ascending.softmax(-1).cumsum(-1) <= 1 - top_p
    removed[-1] = False
    return logits.masked_fill(torch.zeros_like(removed).scatter(0, order, removed), _NEVER)
