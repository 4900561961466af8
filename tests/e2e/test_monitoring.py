"""A real Prometheus and a real Alertmanager watch a real fleet that speaks, fails and is stopped."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import signal
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from tests.deploy.test_prometheus import rules
from tests.e2e.callers import call_for_ever
from tests.e2e.cluster import Cluster, until
from tests.e2e.gpu_faults import LOST, others
from tests.e2e.monitoring import Monitoring, monitored
from tests.e2e.panels import DASHBOARDS, load, unanswered
from tests.fakes.gpus import FakeGpus

pytestmark = [pytest.mark.e2e, pytest.mark.asyncio(loop_scope="module")]

_BETWEEN_REQUESTS_SECONDS = 0.4  # an open loop, well below what the fleet can do on a busy machine


@pytest.fixture(scope="module")
def gpus(tmp_path_factory: pytest.TempPathFactory) -> FakeGpus:
    """Two GPUs that count memory errors, and are well."""
    made = FakeGpus(tmp_path_factory.mktemp("gpus"), count=2)
    for gpu in range(2):
        made.set_gpu(gpu, ecc=0, total_mib=24576, used_mib=9000, utilization=60, temperature=65)
    return made


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def fleet(tmp_path_factory: pytest.TempPathFactory, gpus: FakeGpus) -> AsyncIterator[Cluster]:
    """Two workers with a GPU each, and one that fails at first, under load."""
    async with Cluster(tmp_path_factory.mktemp("monitored")) as made:
        made.environment = gpus.environment
        await made.start_gateway("--stall-timeout", "2")
        for index in range(2):
            worker = await made.start_worker(
                "--tone-realtime-factor", "0.02", "--device", f"cuda:{index}", name=f"w{index}"
            )
            gpus.set_gpu(index, processes=f"{worker.pid}:{8 << 30}")
        await made.start_worker("--tone-realtime-factor", "0.02", "--tone-fail-first-segments", "3", name="sick")
        await made.wait_ready(3)
        load = asyncio.create_task(call_for_ever(made, _BETWEEN_REQUESTS_SECONDS))
        yield made
        load.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await load


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def monitoring(fleet: Cluster) -> AsyncIterator[Monitoring]:
    async with monitored(fleet) as made:
        yield made


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


async def test_every_fault_of_a_gpu_is_told_to_whoever_is_on_call_and_so_is_its_end(
    fleet: Cluster, monitoring: Monitoring, gpus: FakeGpus
):
    await monitoring.wait_value('tts_worker_gpu_xid_errors_total{worker="w0"}', lambda count: count == 0, "no Xid yet")
    of_gpu = [(LOST, 1), *((fault, 0) for fault in others(LOST))]  # the figures of one that is lost cannot be had
    async with monitoring.hurried():
        began_at = time.monotonic()
        for fault, gpu in of_gpu:
            gpus.set_gpu(gpu, **fault.figures)
        fired_at: dict[str, float] = {}
        for fault, gpu in of_gpu:
            fired_at[fault.alert], alert = await monitoring.wait_alert(
                fault.alert, "firing", began_at, worker=f"w{gpu}"
            )
            assert alert["annotations"]["summary"] == fault.summary.format(gpu=gpu, worker=f"w{gpu}")
        mended_at = time.monotonic()
        for fault, gpu in of_gpu:
            gpus.set_gpu(gpu, **fault.taken_back)
        for fault, gpu in of_gpu:
            fired = fired_at[fault.alert]
            ended_at, _ = await monitoring.wait_alert(fault.alert, "resolved", fired, worker=f"w{gpu}")
            # A driver takes no Xid back: that alert ends when none has come for the length of its window.
            over_at, over = (began_at, "it") if fault.stays else (mended_at, "its end")
            sys.stdout.write(f"{fault.alert}: fired {fired - began_at:.1f} s after the fault, ")
            sys.stdout.write(f"resolved {ended_at - over_at:.1f} s after {over}\n")
        told = {
            (alert["labels"]["alertname"], alert["labels"]["worker"])
            for at, alert in monitoring.alerts
            if at > began_at and "gpu" in alert["labels"]
        }
    assert told == {(fault.alert, f"w{gpu}") for fault, gpu in of_gpu}


async def test_every_rule_finds_its_metrics(monitoring: Monitoring):
    """A misspelled name in an alert is an alert that never comes."""
    known = set(await monitoring.ask("label/__name__/values"))
    for rule in rules():
        named = set(re.findall(r"\btts[_:][\w:]+|\binstance:[\w:]+|\bworker:[\w:]+", rule["expr"]))
        assert named <= known, rule


@pytest.mark.parametrize("path", DASHBOARDS, ids=lambda path: path.stem)
async def test_every_panel_and_variable_of_a_dashboard_has_figures(monitoring: Monitoring, path: Path):
    assert await unanswered(monitoring, load(path), monitoring.began_at, time.time()) == []


async def test_a_panel_with_a_misspelled_metric_is_found_out(monitoring: Monitoring):
    dashboard = json.loads(DASHBOARDS[0].read_text().replace("tts_worker_tokens_total", "tts_worker_token_total"))
    [trouble] = await unanswered(monitoring, dashboard, monitoring.began_at, time.time())
    assert trouble.startswith("panel 'Tokens': no finite figure")
