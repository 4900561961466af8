import asyncio
import os
import subprocess
import sys

import pytest

from bench.errors import OptionError
from bench.watch import Sample, Watch, cost
from tests.bench.waiting import until


def test_cost_is_growth_at_the_peak_and_a_share_of_a_core() -> None:
    samples = [
        Sample(at=0.0, rss_bytes=100, cpu_seconds=5.0, fds=10, threads=2),
        Sample(at=1.0, rss_bytes=500, cpu_seconds=5.5, fds=30, threads=4),
        Sample(at=4.0, rss_bytes=300, cpu_seconds=7.0, fds=10, threads=2),
    ]
    found = cost(samples, in_flight_peak=20, in_flight_mean=5.0)
    assert found["rss_bytes"] == {"first": 100, "max": 500, "last": 300}
    assert found["cpu_seconds"] == 2.0
    assert found["cpu_share"] == 0.5
    assert found["per_stream"] == {"rss_bytes": 20.0, "fds": 1.0, "cpu_share": 0.1}


def test_without_streams_there_is_no_cost_of_one() -> None:
    sample = Sample(at=0.0, rss_bytes=100, cpu_seconds=5.0, fds=10, threads=2)
    assert cost([sample], in_flight_peak=0, in_flight_mean=0.0) == {}
    found = cost([sample, sample], in_flight_peak=0, in_flight_mean=0.0)
    assert found["per_stream"] == {"rss_bytes": None, "fds": None, "cpu_share": None}


def test_a_process_that_ends_in_between_keeps_its_samples() -> None:
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    try:
        watch = Watch([child.pid, os.getpid()])
        watch.look()
    finally:
        child.communicate(b"\n")
    watch.look()
    assert (len(watch.samples[child.pid]), len(watch.samples[os.getpid()])) == (1, 2)
    gone, here = watch.report(in_flight_peak=1, in_flight_mean=1.0)
    assert gone["pid"] == child.pid
    assert "cpu_share" not in gone
    assert here["rss_bytes"]["first"] > 1_000_000
    assert here["fds"]["max"] > 3


async def test_a_watch_looks_until_it_is_cancelled() -> None:
    watch = Watch([os.getpid()])
    task = asyncio.create_task(watch.run())
    await until(lambda: watch.samples[os.getpid()])
    task.cancel()


def test_a_process_that_does_not_run_is_refused() -> None:
    with pytest.raises(OptionError, match=r"--watch-pid: process 99999999"):
        Watch([99_999_999])
