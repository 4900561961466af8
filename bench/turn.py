"""One service under one trace: its processes up, every request sent and answered, everything read, all of it down."""

from __future__ import annotations

import asyncio
import gc
import tempfile
import time
from array import array
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.client import Api, SpeechClient, Target, open_session
from bench.figures import distribution, events_per_second, summarize
from bench.fleet import Fleet, total
from bench.generator import OpenLoop, sample_loop_lag
from bench.journey import Journey
from bench.report import samples
from bench.scenario import offered_load
from bench.services import Service, Setting, Started
from bench.trace import Arrival, digest

SAMPLE_RATE = 24_000  # of the tone model
_LEAD_SECONDS = 0.2


@dataclass(frozen=True, slots=True)
class Turn:
    """What is measured. Durations are in seconds of the clock on the wall."""

    service: Service
    setting: Setting
    trace: Sequence[Arrival]
    repeat: int
    seed: int
    duration_seconds: float
    timeout_seconds: float

    @property
    def title(self) -> str:
        return f"{self.setting.scenario} · {self.service.name}"


class Progress:
    """What can be seen of a turn from outside: its requests, once it sends any."""

    load: OpenLoop | None = None


async def measure(turn: Turn, progress: Progress) -> dict[str, Any]:
    """Return what came of it as plain JSON.

    Raises:
        FleetError: a process did not come up, or ended by itself.
    """
    with tempfile.TemporaryDirectory(prefix="tts-bench-") as folder:
        async with Fleet(Path(folder)) as fleet:
            started = await turn.service.start(fleet, Path(folder), turn.setting)
            return await fleet.guard(_measure(turn, fleet, started, progress))


async def _measure(turn: Turn, fleet: Fleet, started: Started, progress: Progress) -> dict[str, Any]:
    lags = array("d")
    cpu_seconds = time.process_time()
    journeys = await _send(turn, started.url, progress, lags)
    cpu_seconds = time.process_time() - cpu_seconds
    figures = summarize(
        journeys,
        offered_per_second=events_per_second([arrival.at_seconds for arrival in turn.trace]),
        alone=turn.setting.work.alone,
    )
    return {
        "scenario": str(turn.setting.scenario),
        "repeat": turn.repeat,
        "seed": turn.seed,
        "service": turn.service.name,
        "title": turn.service.title,
        "trace": {"requests": len(turn.trace), "digest": digest(turn.trace)},
        "load": await _loads(turn, fleet, started),
        "figures": figures,
        "generator": {
            "cpu_share": cpu_seconds / figures["elapsed_seconds"],
            "loop_lag_seconds": distribution(lags),
        },
        "samples": samples(journeys),
    }


async def _send(turn: Turn, url: str, progress: Progress, lags: array[float]) -> list[Journey]:
    """Send the trace, and return its journeys when the last request has ended."""
    target = Target(
        url=url,
        api=Api.TTS,
        model="tone",
        # Who listens to workers that are ten times faster than real ones listens ten times faster: underruns count.
        sample_rate=round(SAMPLE_RATE * turn.setting.work.compression),
        timeout_seconds=turn.timeout_seconds,
        seed=turn.seed,
    )
    async with open_session() as session:
        origin = time.monotonic() + _LEAD_SECONDS

        def clock() -> float:
            return time.monotonic() - origin

        load = progress.load = OpenLoop(turn.trace, SpeechClient(session, target, clock).speak, clock)
        sampler = asyncio.create_task(sample_loop_lag(lags, clock))
        gc.collect()
        gc.freeze()
        try:
            async with asyncio.timeout(turn.duration_seconds + 2 * turn.timeout_seconds):
                return await load.run()
        finally:
            gc.unfreeze()
            sampler.cancel()
            with suppress(asyncio.CancelledError):
                await sampler


async def _loads(turn: Turn, fleet: Fleet, started: Started) -> dict[str, Any]:
    """Return the load that was offered, counting whole texts, and what the fleet did about it.

    `carried` is what the workers were busy with, in the same unit; not known where one of them pretends to be busy.
    """
    setting = turn.setting
    available = setting.scenario.capacity(setting.workers) * turn.duration_seconds
    busy_seconds, counts = 0.0, dict.fromkeys(("ejections", "retries", "failovers"), 0)
    for gateway in started.gateways:
        seen = await fleet.metrics(gateway.internal_url)
        for name in counts:
            counts[name] += round(total(seen, f"tts_{name}_total"))
        for worker in await fleet.workers(gateway):
            spent = await fleet.metrics(f"http://{worker['address']}")
            busy_seconds += sum(
                total(spent, "tts_worker_stage_seconds_total", stage=stage) for stage in ("prefill", "step")
            )
    return {
        "offered": offered_load(turn.trace, setting.work, available_seconds=available),
        "carried": busy_seconds / available if setting.scenario.is_plain else None,
        **counts,
    }
