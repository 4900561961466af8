"""A real Prometheus and a real Alertmanager watch a real fleet that speaks, fails and is stopped."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import signal
import sys
import time
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from tests.e2e.cluster import Cluster, until
from tests.e2e.monitoring import Monitoring, monitored

pytestmark = [pytest.mark.e2e, pytest.mark.asyncio(loop_scope="module")]

SHORT = "A sentence of some length is spoken here."
LONG = "A long text is spoken in pieces, by all workers at once, and heard in order. " * 12
_BETWEEN_REQUESTS_SECONDS = 0.4  # an open loop, well below what the fleet can do on a busy machine


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def fleet(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Cluster]:
    """Three workers under load, one of which fails at first."""
    async with Cluster(tmp_path_factory.mktemp("monitored")) as made:
        await made.start_gateway("--stall-timeout", "2")
        await made.start_worker("--tone-realtime-factor", "0.02", name="w0")
        await made.start_worker("--tone-realtime-factor", "0.02", name="w1")
        await made.start_worker("--tone-realtime-factor", "0.02", "--tone-fail-first-segments", "3", name="sick")
        await made.wait_ready(3)
        load = asyncio.create_task(_speak_for_ever(made))
        yield made
        load.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await load


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def monitoring(fleet: Cluster) -> AsyncIterator[Monitoring]:
    async with monitored(fleet) as made:
        yield made


async def _speak_for_ever(fleet: Cluster) -> None:
    """All that callers do: short and long texts at both doors, hang-ups, and requests that cannot be."""
    async with asyncio.TaskGroup() as group:
        for number in itertools.count():
            match number % 10:
                case 0:
                    group.create_task(fleet.speak(LONG, format="mp3"))
                case 1:
                    group.create_task(_hang_up(fleet))
                case 2:
                    group.create_task(fleet.speak(SHORT, voice="nobody"))
                case 3 | 4 | 5:
                    body = {"model": "tone", "input": SHORT, "voice": "alto", "response_format": "opus"}
                    group.create_task(fleet.post("/v1/audio/speech", body))
                case _:
                    group.create_task(fleet.speak(SHORT))
            await asyncio.sleep(_BETWEEN_REQUESTS_SECONDS)


async def _hang_up(fleet: Cluster) -> None:
    async with fleet.streaming(LONG, format="pcm") as response:
        await response.content.readexactly(100)


async def test_workers_are_found_by_asking_the_gateway(fleet: Cluster, monitoring: Monitoring):
    async def found() -> dict[str, tuple[str, str]]:
        active = (await monitoring.ask("targets", state="active"))["activeTargets"]
        seen = {one["labels"].get("worker", "gateway"): (one["labels"]["job"], one["health"]) for one in active}
        return seen if len(seen) == 4 and all(health == "up" for _, health in seen.values()) else {}

    seen = await until(found, "all targets to be scraped")
    assert seen == {"gateway": ("tts-gateway", "up")} | dict.fromkeys(("w0", "w1", "sick"), ("tts-worker", "up"))
    await monitoring.wait_value('sum(tts_requests_total{outcome="ok"})', lambda count: count > 0, "requests to be seen")


async def test_a_stopped_worker_is_told_to_whoever_is_on_call_and_so_is_its_return(
    fleet: Cluster, monitoring: Monitoring
):
    await monitoring.wait_value('up{worker="w1"}', lambda up: up == 1, "the worker to be scraped")
    stopped_at = time.monotonic()
    fleet.workers["w1"].signal(signal.SIGSTOP)
    fired_at, alert = await monitoring.wait_alert("TTSWorkerLost", "firing", worker="w1")
    assert alert["labels"]["severity"] == "warning"
    assert alert["annotations"]["runbook"] == "docs/operations.md#ttsworkerlost"
    # Of the process itself nothing can be read any more, of the others everything.
    assert await monitoring.value('up{worker="w1"}') == 0
    assert await monitoring.value("instance:tts_workers:ready") == 2
    assert {told["labels"].get("worker") for _, told in monitoring.alerts if "worker" in told["labels"]} == {"w1"}
    continued_at = time.monotonic()
    fleet.workers["w1"].signal(signal.SIGCONT)
    resolved_at, _ = await monitoring.wait_alert("TTSWorkerLost", "resolved", after=continued_at, worker="w1")
    await fleet.wait_ready(3)
    sys.stdout.write(f"fired {fired_at - stopped_at:.1f} s after the stop, ")
    sys.stdout.write(f"resolved {resolved_at - continued_at:.1f} s after the return\n")
