"""Open-loop load for the soak tests, and a record of everything that went wrong."""

from __future__ import annotations

import asyncio
import random
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

import psutil

from tests.e2e.cluster import Cluster, Running


@dataclass
class Tally:
    """Counts by outcome, and a few examples of what was not as it should be."""

    counts: Counter[str] = field(default_factory=Counter)
    examples: list[str] = field(default_factory=list)

    def note(self, outcome: str, example: str = "") -> None:
        self.counts[outcome] += 1
        if example and len(self.examples) < 10:
            self.examples.append(f"{outcome}: {example}")


async def arrive(
    count: int, per_second: float, request: Callable[[int], Awaitable[None]], *, most_at_once: int = 2000
) -> float:
    """Start `request(n)` for n in 0 … count-1 at a fixed rate, whether or not earlier ones have ended; wait for all.

    Returns the seconds that it took. More than `most_at_once` open requests hold the arrivals back: that many mean
    that the machine is too slow for the rate, and memory is not what is being tested.
    """
    open_requests: set[asyncio.Task[None]] = set()
    begin = time.monotonic()
    shown = begin
    for n in range(count):
        await asyncio.sleep(max(0.0, begin + n / per_second - time.monotonic()))
        while len(open_requests) >= most_at_once:
            await asyncio.wait(open_requests, return_when=asyncio.FIRST_COMPLETED)
        task = asyncio.ensure_future(request(n))
        open_requests.add(task)
        task.add_done_callback(open_requests.discard)
        if time.monotonic() - shown > 10:
            shown = time.monotonic()
            say(f"{n} of {count} sent in {shown - begin:.0f} s, {len(open_requests)} open")
    await asyncio.gather(*open_requests)
    return time.monotonic() - begin


def say(line: str) -> None:
    """Show progress beside pytest's own output (with -s, as `make soak` runs it)."""
    sys.stderr.write(f"  {line}\n")
    sys.stderr.flush()


class Chaos:
    """Kills, stops and restarts workers at random, one after another, until it is told to end."""

    def __init__(self, cluster: Cluster, seed: int, *options: str, pause_seconds: float = 1.0) -> None:
        self._cluster = cluster
        self._random = random.Random(seed)
        self._options = options
        self._pause_seconds = pause_seconds
        self.done: Counter[str] = Counter()

    async def run(self) -> None:
        import signal

        while True:
            await asyncio.sleep(self._random.uniform(0.5, 1.5) * self._pause_seconds)
            name = self._random.choice(list(self._cluster.workers))
            worker = self._cluster.workers[name]
            match self._random.choice(["SIGKILL", "SIGSTOP", "restart"]):
                case "SIGKILL":
                    await worker.kill()
                    self.done["SIGKILL"] += 1
                case "SIGSTOP":
                    worker.signal(signal.SIGSTOP)
                    await asyncio.sleep(self._random.uniform(0.2, 5.0))  # some are noticed, some are not
                    worker.signal(signal.SIGCONT)
                    self.done["SIGSTOP"] += 1
                    continue
                case "restart":
                    assert await worker.stop() == 0, f"{name} did not stop well: {worker.log_text()[-2000:]}"
                    self.done["restart"] += 1
            await self._cluster.start_worker(*self._options, name=name)
            await self._cluster.wait_ready(len(self._cluster.workers))


@dataclass
class Watch:
    """Memory and open files of processes over time."""

    processes: dict[str, psutil.Process]
    samples: list[tuple[float, dict[str, tuple[int, int]]]] = field(default_factory=list)

    @classmethod
    def of(cls, *running: Running) -> Watch:
        return cls({one.name: psutil.Process(one.pid) for one in running})

    def look(self) -> dict[str, tuple[int, int]]:
        """Return and keep (resident bytes, open files) of each process."""
        seen = {name: (p.memory_info().rss, p.num_fds()) for name, p in self.processes.items()}
        self.samples.append((time.monotonic(), seen))
        return seen

    async def run(self, every_seconds: float) -> None:
        while True:
            self.look()
            await asyncio.sleep(every_seconds)

    def bytes_per_hour(self, name: str) -> float:
        """Return the slope of resident memory over the second half of the run, by least squares."""
        half = self.samples[len(self.samples) // 2 :]
        times = [when for when, _ in half]
        sizes = [seen[name][0] for _, seen in half]
        mean_time, mean_size = sum(times) / len(times), sum(sizes) / len(sizes)
        spread = sum((t - mean_time) ** 2 for t in times)
        if not spread:
            return 0.0
        return 3600 * sum((t - mean_time) * (s - mean_size) for t, s in zip(times, sizes, strict=True)) / spread
