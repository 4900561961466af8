"""Runs a fleet through a bad five minutes under the eyes of Prometheus, and keeps what the dashboards then show."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from tests.e2e.callers import call_for_ever
from tests.e2e.cluster import Cluster
from tests.e2e.monitoring import Monitoring, monitored
from tests.e2e.panels import DASHBOARDS, load, variables
from tests.fakes.gpus import FakeGpus

WORKERS = 4
_BUILT_IN = {"__rate_interval": "20s", "datasource": "prometheus"}
_STEP_SECONDS = 2


async def watch() -> dict[str, Any]:
    """Return every dashboard with all that Prometheus answered to it."""
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        gpus = FakeGpus(directory, count=WORKERS)
        async with Cluster(directory) as fleet:
            fleet.environment = gpus.environment
            await fleet.start_gateway("--stall-timeout", "2")
            for index in range(WORKERS):
                await fleet.start_worker(
                    "--tone-realtime-factor", "0.05", "--device", f"cuda:{index}", name=f"worker-{index}"
                )
            await fleet.wait_ready(WORKERS)
            trouble = asyncio.Event()
            async with monitored(fleet) as monitoring, asyncio.TaskGroup() as group:
                callers = group.create_task(call_for_ever(fleet, 0.8))
                warmth = group.create_task(_warm(fleet, gpus, trouble))
                await _bad_minutes(fleet, gpus, group, trouble)
                answers = await _asked(monitoring)
                callers.cancel()
                warmth.cancel()
    return answers


async def _bad_minutes(fleet: Cluster, gpus: FakeGpus, group: asyncio.TaskGroup, trouble: asyncio.Event) -> None:
    await _say(80, "all is well")
    trouble.set()
    gpus.set_gpu(1, throttle=0x40)
    await _say(30, "GPU 1 gets hot")
    burst = group.create_task(call_for_ever(fleet, 0.25))
    await _say(25, "a burst of requests")
    burst.cancel()
    fleet.workers["worker-2"].signal(signal.SIGSTOP)
    await _say(14, "worker-2 hangs")
    fleet.workers["worker-2"].signal(signal.SIGCONT)
    await _say(40, "worker-2 is back")
    await fleet.workers["worker-3"].kill()
    await _say(70, "worker-3 is gone")


async def _say(seconds: float, what: str) -> None:
    sys.stdout.write(f"{what}, for {seconds:g} s ...\n")
    sys.stdout.flush()
    await asyncio.sleep(seconds)


async def _warm(fleet: Cluster, gpus: FakeGpus, trouble: asyncio.Event) -> None:
    """Let the pretended GPUs follow what their workers really do."""
    celsius, smooth = [52.0] * WORKERS, [0.0] * WORKERS
    while True:
        busy = {worker["id"]: worker["in_flight"] / worker["slots"] for worker in await fleet.listed()}
        for gpu in range(WORKERS):
            smooth[gpu] += 0.2 * (busy.get(f"worker-{gpu}", 0) - smooth[gpu])
            load_ = smooth[gpu]
            own = round(7000 + 900 * gpu + 2500 * load_) << 20
            hot = gpu == 1 and trouble.is_set()
            celsius[gpu] += 0.06 * ((96 if hot else 55 + 25 * load_) - celsius[gpu])
            gpus.set_gpu(
                gpu,
                temperature=round(celsius[gpu]),
                utilization=round(12 + 80 * load_),
                used_mib=(own >> 20) + 600,
                processes=f"{fleet.workers[f'worker-{gpu}'].pid}:{own}",
                power_watts=round(90 + 220 * load_),
                clock_mhz=900 if hot else 1905,
                ecc=0,
            )
        await asyncio.sleep(1)


async def _asked(monitoring: Monitoring) -> dict[str, Any]:
    until = time.time()
    since = monitoring.began_at + 12
    answers = []
    for path in DASHBOARDS:
        dashboard = load(path)
        filled = _BUILT_IN | {name: one["allValue"] for name, one in variables(dashboard).items()}
        frames: list[dict[str, Any]] = []
        for panel in dashboard["panels"]:
            found = {}
            for target in panel.get("targets", []):
                query = re.sub(r"\$\{?(\w+)\}?", lambda name, filled=filled: filled[name[1]], target["expr"])
                if target["instant"]:
                    found[target["refId"]] = await monitoring.ask("query", query=query, time=f"{until}")
                else:
                    found[target["refId"]] = await monitoring.ask(
                        "query_range", query=query, start=f"{since}", end=f"{until}", step=f"{_STEP_SECONDS}"
                    )
            frames.append(found)
        answers.append({"name": path.stem, "dashboard": dashboard, "answers": frames})
    return {"since": since, "until": until, "dashboards": answers}


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        Path(sys.argv[1]).write_text(json.dumps(asyncio.run(watch())))
