"""What a run costs the processes that serve it: memory, CPU time, file descriptors, threads."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from bench.errors import OptionError

_INTERVAL_SECONDS = 1.0


class Sample(NamedTuple):
    """One look at a process; `at` is an instant of the monotonic clock, `cpu_seconds` user and system together."""

    at: float
    rss_bytes: int
    cpu_seconds: float
    fds: int
    threads: int


class Watch:
    """Looks at processes once a second, from the run's start to its end. One that ends in between keeps its samples."""

    def __init__(self, pids: Iterable[int]) -> None:
        """Take hold of each process.

        Raises:
            OptionError: psutil is not installed, or there is no such process.
        """
        try:
            import psutil
        except ModuleNotFoundError:
            raise OptionError("--watch-pid needs psutil: pip install 'chatterbox-gateway[bench]'") from None
        self._gone = psutil.Error
        self._one_look = threading.Lock()  # the last look may meet one that still runs in its thread
        self._processes: dict[int, Any] = {}
        self.names: dict[int, str] = {}
        self.samples: dict[int, list[Sample]] = {}
        for pid in pids:
            try:
                process = psutil.Process(pid)
                self.names[pid] = process.name()  # not its arguments, which may hold a token
            except psutil.Error:
                raise OptionError(f"--watch-pid: process {pid} does not run, or is not ours to look at") from None
            self._processes[pid] = process
            self.samples[pid] = []

    async def run(self) -> None:
        """Look once a second until cancelled."""
        while True:
            # Counting a thousand descriptors takes a millisecond or more: not on the loop that stamps answers.
            await asyncio.to_thread(self.look)
            await asyncio.sleep(_INTERVAL_SECONDS)

    def look(self) -> None:
        """Add a sample of each process that still runs."""
        with self._one_look:
            for pid, process in self._processes.items():
                with contextlib.suppress(self._gone):
                    self.samples[pid].append(self._sample(process))

    def _sample(self, process: Any) -> Sample:
        with process.oneshot():
            cpu = process.cpu_times()
            return Sample(
                at=time.monotonic(),
                rss_bytes=process.memory_info().rss,
                cpu_seconds=cpu.user + cpu.system,
                fds=process.num_fds(),
                threads=process.num_threads(),
            )

    def report(self, *, in_flight_peak: int, in_flight_mean: float) -> list[dict[str, Any]]:
        """Return the cost of each process, in the order in which they were named."""
        return [
            {"pid": pid, "name": self.names[pid]}
            | cost(samples, in_flight_peak=in_flight_peak, in_flight_mean=in_flight_mean)
            for pid, samples in self.samples.items()
        ]


def cost(samples: Sequence[Sample], *, in_flight_peak: int, in_flight_mean: float) -> dict[str, Any]:
    """Return what the samples of one process add up to. Pure.

    Memory and descriptors of a stream are the growth over the first sample at the run's peak; CPU of a stream is the
    share of a core that one stream took on average. Without two samples there is no growth: an empty dictionary.
    """
    if len(samples) < 2:
        return {}
    first, last = samples[0], samples[-1]
    rss, fds = max(s.rss_bytes for s in samples), max(s.fds for s in samples)
    cpu_seconds = last.cpu_seconds - first.cpu_seconds
    share = cpu_seconds / (last.at - first.at) if last.at > first.at else 0.0
    return {
        "rss_bytes": {"first": first.rss_bytes, "max": rss, "last": last.rss_bytes},
        "fds": {"first": first.fds, "max": fds, "last": last.fds},
        "threads": {"first": first.threads, "max": max(s.threads for s in samples), "last": last.threads},
        "cpu_seconds": cpu_seconds,
        "cpu_share": share,
        "per_stream": {
            "rss_bytes": (rss - first.rss_bytes) / in_flight_peak if in_flight_peak else None,
            "fds": (fds - first.fds) / in_flight_peak if in_flight_peak else None,
            "cpu_share": share / in_flight_mean if in_flight_mean else None,
        },
    }
