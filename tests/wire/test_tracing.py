"""Spans as OpenTelemetry's own SDK has them, and nothing of it where nobody asked."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from wire.tracing import NO_SPAN, NO_TRACER, OpenTelemetry, open_tracer

CALLERS = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@pytest.fixture
def exporter() -> InMemorySpanExporter:
    return InMemorySpanExporter()


@pytest.fixture
def tracer(exporter: InMemorySpanExporter) -> Iterator[OpenTelemetry]:
    made = OpenTelemetry("test", "instance-1", SimpleSpanProcessor(exporter))
    yield made
    made.close()


def by_name(exporter: InMemorySpanExporter) -> dict[str, ReadableSpan]:
    return {span.name: span for span in exporter.get_finished_spans()}


def test_the_callers_trace_goes_on(tracer: OpenTelemetry, exporter: InMemorySpanExporter) -> None:
    span = tracer.begin("request", CALLERS)
    assert span.trace_id == "0af7651916cd43dd8448eb211c80319c"
    assert re.fullmatch(r"00-0af7651916cd43dd8448eb211c80319c-[0-9a-f]{16}-01", span.traceparent)
    span.end()
    [ended] = exporter.get_finished_spans()
    assert ended.parent is not None
    assert f"{ended.parent.span_id:016x}" == "b7ad6b7169203331"


@pytest.mark.parametrize(
    "header", ["", "nonsense", "00-0-0-01", CALLERS[:-1], f"00-{'0' * 32}-{'1' * 16}-01", "é" * 55]
)
def test_a_header_that_is_none_begins_a_trace_of_our_own(
    tracer: OpenTelemetry, exporter: InMemorySpanExporter, header: str
) -> None:
    tracer.begin("request", header).end()
    [ended] = exporter.get_finished_spans()
    assert ended.parent is None


def test_a_caller_who_does_not_sample_is_not_sampled(tracer: OpenTelemetry, exporter: InMemorySpanExporter) -> None:
    span = tracer.begin("request", CALLERS[:-2] + "00")
    assert span.begin("segment").traceparent.endswith("-00")
    span.end()
    assert exporter.get_finished_spans() == ()


def test_what_is_told_afterwards_lies_where_it_was(tracer: OpenTelemetry, exporter: InMemorySpanExporter) -> None:
    now = time.monotonic()
    span = tracer.begin("request", at=now - 10)
    segment = span.begin("segment", at=now - 8)
    segment.part("queue", now - 8, now - 5, {"depth": 3})
    segment.end({"worker": "w0"}, error="cut", at=now - 1)
    span.end(at=now)
    spans = by_name(exporter)
    request, queue, ended = spans["request"], spans["queue"], spans["segment"]
    assert queue.parent is not None
    assert queue.parent.span_id == ended.context.span_id  # type: ignore[union-attr]

    def since_begin(nanoseconds: int | None) -> float:
        assert nanoseconds is not None
        assert request.start_time is not None
        return (nanoseconds - request.start_time) / 1e9

    for nanoseconds, seconds in (
        (ended.start_time, 2), (queue.start_time, 2), (queue.end_time, 5), (ended.end_time, 9), (request.end_time, 10),
    ):  # fmt: skip
        assert since_begin(nanoseconds) == pytest.approx(seconds, abs=0.01)
    assert queue.attributes == {"tts.depth": 3}
    assert ended.attributes == {"tts.worker": "w0"}
    assert (ended.status.is_ok, ended.status.description) == (False, "cut")
    assert request.resource.attributes["service.name"] == "test"


def test_without_an_endpoint_nothing_happens_and_nothing_is_imported() -> None:
    assert open_tracer("test", "", "") is NO_TRACER
    assert NO_TRACER.begin("request", CALLERS) is NO_SPAN
    assert NO_SPAN.begin("segment").traceparent == ""
    code = (
        "import sys, gateway.app, worker.app; from wire.tracing import open_tracer; open_tracer('a', 'b', ''); "
        "sys.exit(any(name.startswith('opentelemetry') for name in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
