"""A request's trace, from the caller's own span to the stages on the workers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from gateway.app import Gateway
from gateway.config import Address
from gateway.config import Config as GatewayConfig
from tests.e2e.cluster import Cluster, until
from tests.fakes.collector import Collector, ReceivedSpan
from tests.worker.harness import config as worker_config
from wire.tracing import OpenTelemetry
from worker.app import Worker, build_model
from worker.config import Address as GatewayAddress

pytestmark = pytest.mark.e2e

TRACE = "0af7651916cd43dd8448eb211c80319c"
CALLERS = f"00-{TRACE}-b7ad6b7169203331-01"
TEXT = "One sentence of a text. And another one, so that there are segments. Here is a third."


@pytest.fixture
async def collector() -> AsyncIterator[Collector]:
    async with Collector() as made:
        yield made


def tree(spans: list[ReceivedSpan], parent: str) -> dict[str, list[str]]:
    """Return the names of the children of every span below `parent`, by the path of names to it."""
    names: dict[str, list[str]] = {}

    def walk(of: str, path: str) -> None:
        for span in sorted((one for one in spans if one.parent == of), key=lambda one: (one.began, one.ended)):
            names.setdefault(path, []).append(span.name)
            walk(span.id, f"{path}/{span.name}")

    walk(parent, "")
    return names


async def test_a_request_is_one_trace_over_gateway_and_workers(cluster: Cluster, collector: Collector) -> None:
    gateway = await cluster.start_gateway("--trace-endpoint", collector.url)
    await cluster.start_workers(2, "--trace-endpoint", collector.url, "--tone-realtime-factor", "0.01")
    async with cluster.session.post(
        f"{cluster.url}/v1/tts", json={"text": TEXT, "format": "mp3"}, headers={"traceparent": CALLERS}
    ) as response:
        assert response.status == 200
        await response.read()
    # An end is orderly: what was not sent yet is sent then.
    for process in (gateway, *cluster.workers.values()):
        assert await process.stop() == 0
    spans = [span for span in collector.spans if span.trace == TRACE]
    assert {span.service for span in spans} == {"tts-gateway", "tts-worker"}
    assert [(span.name, span.service) for span in spans if span.parent == "b7ad6b7169203331"] == [
        ("/v1/tts", "tts-gateway")
    ]
    names = tree(spans, "b7ad6b7169203331")
    assert sorted(set(names["//v1/tts"])) == ["admission", "encode", "segment"]
    segments = [span for span in spans if span.name == "segment" and span.service == "tts-gateway"]
    assert sorted(span.attributes["tts.index"] for span in segments) == list(range(len(segments)))
    assert len(segments) >= 1
    for segment in segments:
        below = tree(spans, segment.id)
        assert below[""] == ["queue", "try"]
        assert below["/try"] == ["segment"]  # the worker's
        assert below["/try/segment"] == ["queue", "prefill", "synthesis"]
    # Nothing begins before what it is a part of, but for the drift between two processes' clocks.
    by_id = {span.id: span for span in spans}
    for span in spans:
        if span.parent in by_id:
            assert span.began >= by_id[span.parent].began - 5_000_000, span.name
        assert span.ended >= span.began
    [request] = [span for span in spans if span.name == "/v1/tts"]
    assert request.attributes["tts.outcome"] == "ok"
    assert not any(span.failed for span in spans)
    assert f"trace_id={TRACE}" in gateway.log_text()
    assert not any("sentence" in str(span.attributes) for span in spans)


async def test_a_failover_shows_as_a_try_that_failed_and_one_that_did_not(
    cluster: Cluster, collector: Collector
) -> None:
    await cluster.start_gateway("--trace-endpoint", collector.url)
    await cluster.start_workers(2)  # workers that do not trace break nothing
    assert (await cluster.speak("A text that fails once. {tone:fail-after=2}", format="pcm")).status == 200
    assert cluster.gateway is not None
    assert await cluster.gateway.stop() == 0
    tries = sorted((span for span in collector.spans if span.name == "try"), key=lambda span: span.began)
    assert [span.failed for span in tries] == [True, False]
    assert tries[0].attributes["tts.worker"] != tries[1].attributes["tts.worker"]
    assert tries[1].attributes["tts.resumed_at_sample"] > 0
    [segment] = [span for span in collector.spans if span.name == "segment"]
    assert segment.attributes["tts.tries"] == 2


@pytest.mark.filterwarnings("default::aiohttp.web_exceptions.NotAppKeyWarning")
async def test_in_one_process_the_spans_are_those_of_the_sdk(tmp_path: Path) -> None:
    exporter = InMemorySpanExporter()
    tracer = OpenTelemetry("both", "1", SimpleSpanProcessor(exporter))
    free = Address("127.0.0.1", 0)
    async with Gateway(GatewayConfig(listen=free, internal_listen=free), tracer=tracer).running() as gateway:
        internal = gateway.addresses["internal"]
        settings = worker_config(gateways=(GatewayAddress(internal.host, internal.port),))
        worker = Worker(settings, build_model(settings), tracer=tracer)
        await worker.start()
        stopped = asyncio.create_task(worker.wait_stopped())
        async with aiohttp.ClientSession(f"http://{gateway.addresses['public']}") as http:

            async def ready() -> bool:
                async with http.get("/readyz") as answer:
                    return answer.status == 200

            await until(ready, "the worker to be ready")
            async with http.post("/v1/tts", json={"text": TEXT}, headers={"traceparent": CALLERS}) as answer:
                await answer.read()
        worker.request_stop()
        assert await stopped == 0
    names = {span.name for span in exporter.get_finished_spans() if span.context.trace_id == int(TRACE, 16)}  # type: ignore[union-attr]
    assert names == {"/v1/tts", "admission", "segment", "queue", "try", "prefill", "synthesis", "encode"}


async def test_a_collector_that_is_away_delays_neither_speech_nor_the_end(cluster: Cluster) -> None:
    gateway = await cluster.start_gateway("--trace-endpoint", "http://127.0.0.1:9")  # nobody listens on discard
    await cluster.start_workers(1, "--trace-endpoint", "http://127.0.0.1:9")
    assert (await cluster.speak(TEXT)).status == 200
    [worker] = cluster.workers.values()
    assert await worker.stop() == 0
    assert await gateway.stop() == 0


async def test_an_endpoint_without_the_extra_is_refused_and_no_endpoint_needs_none(
    cluster: Cluster, tmp_path: Path
) -> None:
    # What an import finds where the extra is not installed.
    package = tmp_path / "without" / "opentelemetry"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("raise ModuleNotFoundError(\"No module named 'opentelemetry'\")\n")
    cluster.environment = {"PYTHONPATH": str(package.parent)}
    for command in ("tts-gateway", "tts-worker"):
        refused = await cluster.start(command, command, "--trace-endpoint", "http://127.0.0.1:4318")
        assert await refused.process.wait() == 2
        assert "install chatterbox-gateway[tracing]" in refused.log_text()
        assert "Traceback" not in refused.log_text()
    await cluster.start_gateway()
    await cluster.start_workers(1)
    assert (await cluster.speak(TEXT)).status == 200
