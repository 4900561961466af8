"""What is told to people: every event of note becomes metrics, a span and, for who is on call, a log line."""

from __future__ import annotations

import logging
from contextlib import AbstractContextManager

from gateway.assembler import SegmentAudio
from gateway.journey import Journey, Outcome
from gateway.live import Live
from gateway.metrics import Metrics
from gateway.replica import Replica
from wire.logs import fields
from wire.segment import SegmentRequest
from wire.tracing import NO_TRACER, Tracer

log = logging.getLogger("gateway")


class Observer:
    """Hears from pool, dispatch and api; keeps nothing itself."""

    def __init__(self, metrics: Metrics, live: Live, tracer: Tracer = NO_TRACER) -> None:
        self._metrics = metrics
        self._live = live
        self._tracer = tracer

    # -- the pool

    def joined(self, replica: Replica) -> None:
        log.info(
            "worker joined",
            extra=fields(
                {
                    "worker": replica.id,
                    "state": replica.state,
                    "address": f"{replica.host}:{replica.port}",
                    "models": ",".join(replica.models),
                    "device": replica.device,
                    "slots": replica.slots,
                }
            ),
        )

    def changed(self, replica: Replica, before: str, reason: str) -> None:
        log.info(
            "worker state",
            extra=fields({"worker": replica.id, "before": before, "after": replica.state, "reason": reason}),
        )

    def lost(self, replica: Replica, reason: str) -> None:
        log.warning(
            "worker lost", extra=fields({"worker": replica.id, "in_flight": replica.in_flight, "reason": reason})
        )

    def ejected(self, replica: Replica, reason: str, pause_seconds: float) -> None:
        self._metrics.ejections.labels(reason).inc()
        log.warning(
            "worker ejected", extra=fields({"worker": replica.id, "reason": reason, "pause_seconds": pause_seconds})
        )

    # -- dispatch

    def waited(self, seconds: float) -> None:
        self._metrics.queue_wait.observe(seconds)

    def preempted(self) -> None:
        self._metrics.preemptions.inc()

    def speaking(
        self, replica: Replica, request: SegmentRequest, audio: SegmentAudio, sample_rate: int
    ) -> AbstractContextManager[None]:
        return self._live.speaking(replica, request, audio, sample_rate)

    def segment_done(self, replica: Replica, *, seconds: float, predicted_seconds: float, audio_seconds: float) -> None:
        self._metrics.segment(
            replica.id, seconds=seconds, predicted_seconds=predicted_seconds, audio_seconds=audio_seconds
        )

    def retried(self, replica: Replica, request_id: str, *, mid_stream: bool, reason: str, detail: str) -> None:
        self._metrics.retries.labels("mid_stream" if mid_stream else "before_audio", reason).inc()
        if mid_stream:
            self._metrics.failovers.inc()
        log.warning(
            "segment failed",
            extra=fields(
                {
                    "request_id": request_id,
                    "worker": replica.id,
                    "mid_stream": mid_stream,
                    "reason": reason,
                    "detail": detail,
                }
            ),
        )

    # -- the api

    def request_started(self, journey: Journey) -> None:
        self._live.request_started(journey)
        self._metrics.requests_in_progress.inc()
        journey.span = self._tracer.begin(journey.endpoint, journey.traceparent, journey.received)

    def request_done(self, journey: Journey) -> None:
        self._live.request_done(journey)
        metrics = self._metrics
        metrics.requests_in_progress.dec()
        outcome = journey.outcome or Outcome.FAILED
        metrics.request(journey, outcome)
        match outcome:
            case Outcome.OK:
                metrics.characters.inc(journey.characters)
            case Outcome.REFUSED:
                metrics.rejected.labels(journey.error_code).inc()
            case Outcome.CANCELLED:
                metrics.cancelled.labels(_stage(journey)).inc()
            case Outcome.FAILED:
                pass
        journey.trace()
        log.info("request", extra=fields(journey.log_fields()))


def _stage(journey: Journey) -> str:
    """How far a request was when its caller left."""
    if journey.first_audio is not None:
        return "streaming"
    return "before_audio" if journey.planned is not None else "parsing"
