"""What the sampler keeps is what upstream's processors keep; what it draws has the chances that they give."""

import sys

import pytest
import torch
from transformers.generation.logits_process import (
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from worker.models.chatterbox import sampler
from worker.models.chatterbox.sampler import Sampling
from worker.models.chatterbox.slots import Slots

ROWS = 5_000
AT_ONCE = 50


def upstreams(logits: torch.Tensor, ids: torch.Tensor, sampling: Sampling, *, is_turbo: bool) -> torch.Tensor:
    """Return what `t3.py` makes of one row, with its own processors in its own order."""
    penalty = RepetitionPenaltyLogitsProcessor(sampling.repetition_penalty)
    warm = TemperatureLogitsWarper(sampling.temperature)
    if is_turbo:
        kept = TopKLogitsWarper(1000)(ids, warm(ids, logits))
        return penalty(ids, TopPLogitsWarper(sampling.top_p)(ids, kept) if sampling.top_p < 1 else kept)
    kept = MinPLogitsWarper(sampling.min_p)(ids, warm(ids, penalty(ids, logits)))
    return TopPLogitsWarper(sampling.top_p)(ids, kept)


@pytest.mark.parametrize("is_turbo", [False, True])
def test_the_kept_ids_are_upstreams(is_turbo: bool) -> None:
    """5,000 rows in each of the two orders."""
    vocabulary = 6563 if is_turbo else 8194
    generator = torch.Generator().manual_seed(1)

    def uniform(low: float, high: float) -> float:
        return low + (high - low) * float(torch.rand((), generator=generator))

    sizes = []
    worst = 0.0
    for _ in range(ROWS // AT_ONCE):
        slots = Slots.empty(AT_ONCE, vocabulary, torch.device("cpu"))
        logits = torch.randn(AT_ONCE, vocabulary, generator=generator)
        logits *= torch.rand(AT_ONCE, 1, generator=generator) * 4 + 0.5
        samplings = []
        spoken = torch.randint(0, vocabulary, (AT_ONCE, 40), generator=generator)
        for row in range(AT_ONCE):
            top_p = 1.0 if row % 3 == 0 else 0.0 if row % 3 == 1 and row % 5 == 0 else uniform(0.05, 1.0)
            sampling = Sampling(row, uniform(0.3, 1.5), top_p, uniform(1.0, 2.0), uniform(0.0, 0.2))
            sampling.enter(slots.part(row, row + 1))
            slots.seen[row, spoken[row]] = True
            samplings.append(sampling)
        ours = (sampler.turbo_kept if is_turbo else sampler.kept_of)(logits, slots)
        for row, sampling in enumerate(samplings):
            theirs = upstreams(logits[row : row + 1], spoken[row : row + 1], sampling, is_turbo=is_turbo)[0]
            assert torch.equal(ours[row].isinf(), theirs.isinf())
            worst = max(worst, float((ours[row].softmax(-1) - theirs.softmax(-1)).abs().max()))
            sizes.append(int((~theirs.isinf()).sum()))
    sys.stdout.write(f"{ROWS} rows keep {min(sizes)} to {max(sizes)} ids; chances differ by {worst:.1e} at most\n")
    assert worst < 1e-6
    assert min(sizes) == 1 < 500 < max(sizes)


def test_ids_are_drawn_as_often_as_they_are_likely() -> None:
    slots = Slots.empty(20_000, 8, torch.device("cpu"))
    slots.seed.copy_(torch.arange(20_000))
    slots.improbable.fill_(0.0)
    logits = torch.tensor([0.0, 1.0, 2.0, -torch.inf, 0.5, -1.0, 1.5, 0.2])
    shares = sampler.draw(logits.expand(20_000, -1), slots, is_turbo=False).bincount(minlength=8) / 20_000
    assert (shares - logits.softmax(-1)).abs().max() < 0.01
    assert shares[3] == 0
