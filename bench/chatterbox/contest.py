"""Upstream's engine against ours on one checkpoint, turn by turn: what the machine does to one it does to both."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import torch

from bench.chatterbox.device import described, finish, forget_peak, is_cuda, measured_rates, peak_bytes
from bench.chatterbox.operations import DriverWaits, OperationCount
from bench.chatterbox.ours import Tokens, Whole
from bench.chatterbox.published import Published
from bench.roofline import TOKENS_A_SECOND, SoundModel, best_seconds
from worker.config import ChatterboxOptions
from worker.models.chatterbox.family import FAMILIES, SAMPLE_RATE
from worker.models.chatterbox.upstream import Precision

_WARM_STEPS = 4
_COUNTED_STEPS = 4
_BYTES_A_SAMPLE = 2


@dataclass(frozen=True, slots=True)
class Contest:
    """What is compared. `tokens` is the length of an utterance, and bounds the steps that are timed; `rounds` is how
    many utterances follow one another in each place of a batch, where the whole engine speaks."""

    model: str
    device: str
    precision: str
    batches: tuple[int, ...]
    tokens: int
    turns: int
    rounds: int
    checked: int
    watermark: bool
    tokens_only: bool
    sound_batch: int | None  # None: as a worker has it
    is_published_size: bool
    texts: Sequence[str]


Advance = Callable[[str], None]


def count_measurements(contest: Contest) -> int:
    """Return how often `measure` calls `advance`."""
    batches = len(contest.batches)
    turns = contest.turns * (1 + batches)
    return 3 + bool(contest.checked) + 1 + batches + turns + (0 if contest.tokens_only else 2 + turns)


def measure(contest: Contest, directory: Path, advance: Advance) -> dict[str, Any]:
    """Return every figure as plain JSON. `advance` is told of each measurement before it begins."""
    advance("loading upstream's engine")
    family = FAMILIES[contest.model]
    published = Published(directory, family, contest.device, watermark=contest.watermark)
    advance("loading our token stage")
    slots = max(contest.checked, *contest.batches)
    tokens = Tokens(directory, family, contest.device, _precision(contest), slots)
    advance("measuring the device")
    rates = measured_rates(contest.device, tokens.dtype)
    report: dict[str, Any] = {
        "device": described(contest.device),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "rates": {"bytes_per_second": rates.bytes_per_second, "flops_per_second": rates.flops_per_second},
        "token_dtype": str(tokens.dtype).removeprefix("torch."),
    }
    with torch.inference_mode():
        report["equal"] = _check(contest, published, tokens, advance)
        report["decode"] = _decode(contest, published, tokens, advance)
        report["steps"] = _count(contest, published, tokens, advance)
    shape, positions, prompt = tokens.shape(), tokens.positions(contest.texts[0]), tokens.prompt_seconds
    context = positions + (contest.tokens - _WARM_STEPS) / 2
    report["best_tokens_per_second"] = {
        str(batch): batch / shape.step_seconds(batch, context, rates) for batch in contest.batches
    }
    del tokens
    report["whole"] = {"upstream": [], "ours": {}}
    if not contest.tokens_only:
        report["whole"] = _whole(contest, directory, published, advance)
    if contest.is_published_size:
        sound = SoundModel(steps=family.flow_steps, rows=1 if family.is_turbo else 2)
        report["best_audio_seconds_per_second"] = {}
        for batch, spoken in report["whole"]["ours"].items():
            audio = sum(one["audio_seconds"] for one in spoken) / len(spoken) / contest.rounds
            lengths = [round(audio * TOKENS_A_SECOND / int(batch))] * int(batch)
            best = best_seconds(shape, sound, prompt_seconds=prompt, positions=positions, lengths=lengths, rates=rates)
            report["best_audio_seconds_per_second"][batch] = audio / best
    report["memory"] = {"rss_bytes": psutil.Process().memory_info().rss, "weights": shape.weights}
    return report


def _precision(contest: Contest) -> Precision:
    if contest.precision == "auto":
        return Precision.BF16 if is_cuda(contest.device) else Precision.FP32
    return Precision(contest.precision)


def _check(contest: Contest, published: Published, tokens: Tokens, advance: Advance) -> dict[str, int] | None:
    """Compare what both draw greedily, ours of all texts at once. It says something in float32 alone."""
    if not contest.checked:
        return None
    advance("comparing greedy tokens")
    texts = contest.texts[: contest.checked]
    theirs = [published.greedy(tokens.ids(text), contest.tokens) for text in texts]
    ours: list[list[int]] = []
    for first in range(0, len(texts), max(contest.batches)):
        ours += tokens.greedy(texts[first : first + max(contest.batches)], contest.tokens)
    return {"texts": len(texts), "equal": sum(map(list.__eq__, ours, theirs)), "tokens": sum(map(len, theirs))}


def _decode(contest: Contest, published: Published, tokens: Tokens, advance: Advance) -> dict[str, Any]:
    """Return steps a second, and from them tokens, without the reading of the text."""
    upstream: list[float] = []
    ours: dict[str, list[float]] = {str(batch): [] for batch in contest.batches}
    memory: dict[str, int | None] = {}
    for turn in range(contest.turns):
        advance(f"turn {turn + 1}: upstream's token loop")
        instants = published.decode(tokens.ids(contest.texts[turn % len(contest.texts)]), contest.tokens)
        upstream.append((len(instants) - 1 - _WARM_STEPS) / (instants[-1] - instants[_WARM_STEPS]))
        for batch in contest.batches:
            advance(f"turn {turn + 1}: our token stage, {batch} at once")
            forget_peak(contest.device)
            rate = _our_steps_a_second(contest, tokens, contest.texts[:batch])
            ours[str(batch)].append(batch * rate)
            memory[str(batch)] = peak_bytes(contest.device)
    return {"upstream": upstream, "ours": ours, "peak_bytes": memory}


def _our_steps_a_second(contest: Contest, tokens: Tokens, texts: Sequence[str]) -> float:
    runs = tokens.begin(texts)
    for _ in range(_WARM_STEPS):
        tokens.step(runs)
    # One less than there are: the last token's step draws the end.
    count = contest.tokens - _WARM_STEPS - 1
    finish(contest.device)
    began = time.perf_counter()
    done = 0
    while done < count and not any(run.has_ended for run in runs):
        tokens.step(runs)
        done += 1
    finish(contest.device)
    seconds = time.perf_counter() - began
    tokens.end([run for run in runs if not run.has_ended])
    return done / seconds


def _count(contest: Contest, published: Published, tokens: Tokens, advance: Advance) -> dict[str, Any]:
    """Return operations and waits of one step, on average over a few."""
    advance("counting upstream's operations")
    upstream = _counted_upstream(contest, published, tokens)
    ours = {}
    for batch in contest.batches:
        advance(f"counting our operations, {batch} at once")
        runs = tokens.begin(contest.texts[:batch])
        for _ in range(_WARM_STEPS):
            tokens.step(runs)
        with _counting(contest.device) as (count, waits):
            for _ in range(_COUNTED_STEPS):
                tokens.step(runs)
        ours[str(batch)] = _a_step(count, waits, _COUNTED_STEPS)
        tokens.end(runs)
    return {"upstream": upstream, "ours": ours}


def _counted_upstream(contest: Contest, published: Published, tokens: Tokens) -> dict[str, float]:
    """Count two runs of different lengths: the difference is the steps', without the reading of the text."""
    ids = tokens.ids(contest.texts[0])
    counted = []
    for steps in (_WARM_STEPS, _WARM_STEPS + _COUNTED_STEPS):
        with _counting(contest.device) as (count, waits):
            published.decode(ids, steps)
        counted.append((count.operations, count.waits, waits.waits if waits else 0))
    few, many = counted
    difference = [(b - a) / _COUNTED_STEPS for a, b in zip(few, many, strict=True)]
    found = {"operations": difference[0], "waits": difference[1]}
    return found | ({"driver_waits": difference[2]} if is_cuda(contest.device) else {})


@contextmanager
def _counting(device: str) -> Iterator[tuple[OperationCount, DriverWaits | None]]:
    waits = DriverWaits() if is_cuda(device) else None
    with waits or nullcontext(), OperationCount() as count:
        yield count, waits


def _a_step(count: OperationCount, waits: DriverWaits | None, steps: int) -> dict[str, float]:
    found = {"operations": count.operations / steps, "waits": count.waits / steps}
    return found | ({"driver_waits": waits.waits / steps} if waits else {})


def _whole(contest: Contest, directory: Path, published: Published, advance: Advance) -> dict[str, Any]:
    """Speak texts to the end: upstream one by one, ours as many at once as a batch holds, as under steady load."""
    advance("loading our model")
    options = ChatterboxOptions(
        checkpoint=str(directory),
        precision=contest.precision,
        watermark=contest.watermark,
        sound_batch=contest.sound_batch,
    )
    whole = Whole(directory, FAMILIES[contest.model], contest.device, options, batch=max(contest.batches))
    upstream: list[dict[str, Any]] = []
    ours: dict[str, list[dict[str, Any]]] = {str(batch): [] for batch in contest.batches}
    try:
        advance("warming up")
        # First ours: while it records, nobody in this process may draw the random numbers that upstream draws.
        whole.warm_up()
        published.speak(contest.texts[0])
        for batch in contest.batches:
            whole.speak(contest.texts[:batch])  # what is recorded or tuned at its first use is not measured
        for turn in range(contest.turns):
            advance(f"turn {turn + 1}: upstream speaks")
            spoken = published.speak(contest.texts[turn % len(contest.texts)])
            upstream.append(_spoken(len(spoken.samples), spoken.seconds, spoken.stages, None))
            for batch in contest.batches:
                advance(f"turn {turn + 1}: we speak, {batch} at once")
                forget_peak(contest.device)
                texts = contest.texts[: batch * contest.rounds]
                together = whole.speak(texts, 1 + turn * len(contest.texts), at_once=batch)
                samples = sum(map(len, together.pcm)) // _BYTES_A_SAMPLE
                ours[str(batch)].append(
                    _spoken(samples, together.seconds, together.stages, max(together.first_audio_seconds))
                    | {"peak_bytes": peak_bytes(contest.device)}
                )
        settings = whole.settings
    finally:
        whole.close()
    return {"upstream": upstream, "ours": ours, "settings": settings}


def _spoken(samples: int, seconds: float, stages: dict[str, float], first: float | None) -> dict[str, Any]:
    return {
        "audio_seconds": samples / SAMPLE_RATE,
        "seconds": seconds,
        "stages": stages,
        "slowest_first_audio_seconds": seconds if first is None else first,
    }
