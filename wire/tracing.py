"""Spans for OpenTelemetry, with the extra `tracing` and an endpoint; without the endpoint nothing is imported.

Most spans are told after the fact, from the clocks that requests and segments carry anyway. Instants are those of
`time.monotonic()`.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any, Protocol

HEADER = "traceparent"  # W3C Trace Context; its name is the same on the way in and on the way to a worker

Attribute = str | bool | int | float
NOTHING: Mapping[str, Attribute] = {}


class NoTracing(Exception):
    """The extra is not installed. A sentence for people."""


class Span(Protocol):
    """A piece of work that has begun."""

    @property
    def traceparent(self) -> str:
        """What to send to whom is called next, as the header `traceparent`; empty when nobody traces."""
        ...

    @property
    def trace_id(self) -> str:
        """32 hexadecimal digits, or empty."""
        ...

    def begin(self, name: str, at: float | None = None) -> Span:
        """Begin a part of this work, now or at an instant that is over."""
        ...

    def part(self, name: str, began: float, ended: float, attributes: Mapping[str, Attribute] = NOTHING) -> None:
        """Tell of a part of this work that is over."""
        ...

    def end(self, attributes: Mapping[str, Attribute] = NOTHING, *, error: str = "", at: float | None = None) -> None:
        """End this work; `error` says how it failed."""
        ...


class Tracer(Protocol):
    """Where spans go."""

    def begin(self, name: str, traceparent: str = "", at: float | None = None) -> Span:
        """Begin work for somebody else, as a part of theirs when they sent a valid `traceparent`."""
        ...

    def close(self) -> None:
        """Send what is left; blocks for at most a few seconds."""
        ...


class _NoSpan:
    traceparent = ""
    trace_id = ""

    def begin(self, name: str, at: float | None = None) -> Span:
        return self

    def part(self, name: str, began: float, ended: float, attributes: Mapping[str, Attribute] = NOTHING) -> None:
        pass

    def end(self, attributes: Mapping[str, Attribute] = NOTHING, *, error: str = "", at: float | None = None) -> None:
        pass


class _NoTracer:
    def begin(self, name: str, traceparent: str = "", at: float | None = None) -> Span:
        return NO_SPAN

    def close(self) -> None:
        pass


NO_SPAN: Span = _NoSpan()
NO_TRACER: Tracer = _NoTracer()


def open_tracer(service: str, instance: str, endpoint: str) -> Tracer:
    """Return a tracer that sends to `endpoint` (http://host:4318, as for OTEL_EXPORTER_OTLP_ENDPOINT), in a thread of
    its own; one that does nothing when the endpoint is empty. OpenTelemetry's own variables, such as
    OTEL_TRACES_SAMPLER, are heeded.

    Raises:
        NoTracing: the extra is not installed.
    """
    if not endpoint:
        return NO_TRACER
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as error:
        raise NoTracing(f"{error}; install chatterbox-gateway[tracing]") from None
    url = endpoint.rstrip("/").removesuffix("/v1/traces") + "/v1/traces"
    return OpenTelemetry(service, instance, BatchSpanProcessor(OTLPSpanExporter(url, timeout=_EXPORT_SECONDS)))


_EXPORT_SECONDS = 2


class OpenTelemetry:
    """A tracer on OpenTelemetry's SDK. Nothing global: two services fit in one process."""

    def __init__(self, service: str, instance: str, processor: Any) -> None:
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider

        resource = Resource.create({"service.name": service, "service.instance.id": instance})
        self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        self._provider.add_span_processor(processor)
        self._tracer = self._provider.get_tracer("chatterbox-gateway")

    def begin(self, name: str, traceparent: str = "", at: float | None = None) -> Span:
        from opentelemetry.trace import SpanKind
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        # A header that is not valid is no parent, and no error: the specification has it so.
        parent = TraceContextTextMapPropagator().extract({HEADER: traceparent})
        started = self._tracer.start_span(name, parent, SpanKind.SERVER, start_time=_wall_ns(at))
        return _OpenTelemetrySpan(self._tracer, started)

    def close(self) -> None:
        self._provider.shutdown()


class _OpenTelemetrySpan:
    def __init__(self, tracer: Any, span: Any) -> None:
        self._tracer = tracer
        self._span = span

    @property
    def traceparent(self) -> str:
        context = self._span.get_span_context()
        return f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}"

    @property
    def trace_id(self) -> str:
        return f"{self._span.get_span_context().trace_id:032x}"

    def begin(self, name: str, at: float | None = None) -> Span:
        return _OpenTelemetrySpan(self._tracer, self._start(name, at))

    def part(self, name: str, began: float, ended: float, attributes: Mapping[str, Attribute] = NOTHING) -> None:
        span = self._start(name, began)
        span.set_attributes(_named(attributes))
        span.end(_wall_ns(ended))

    def end(self, attributes: Mapping[str, Attribute] = NOTHING, *, error: str = "", at: float | None = None) -> None:
        from opentelemetry.trace import Status, StatusCode

        self._span.set_attributes(_named(attributes))
        if error:
            self._span.set_status(Status(StatusCode.ERROR, error))
        self._span.end(_wall_ns(at))

    def _start(self, name: str, at: float | None) -> Any:
        from opentelemetry.trace import set_span_in_context

        return self._tracer.start_span(name, set_span_in_context(self._span), start_time=_wall_ns(at))


def _named(attributes: Mapping[str, Attribute]) -> dict[str, Attribute]:
    return {f"tts.{name}": value for name, value in attributes.items()}


def _wall_ns(instant: float | None) -> int:
    """Return the wall clock's nanoseconds of an instant; the present one for None."""
    now = time.time_ns()
    return now if instant is None else now - int((time.monotonic() - instant) * 1e9)
