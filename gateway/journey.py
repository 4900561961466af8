"""A request's own clock: what happened to it and when. Its log line, response headers and metrics are this object."""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import StrEnum

from gateway.dispatch import SegmentJourney
from gateway.keys import NO_LIMITS, Limits
from wire.tracing import NO_SPAN, Attribute, Span


class Outcome(StrEnum):
    """How a request ended, as the `outcome` label of metrics."""

    OK = "ok"
    REFUSED = "refused"  # the caller's fault, or no room: an error status, nothing spoken
    FAILED = "failed"  # our fault
    CANCELLED = "cancelled"  # the caller left


@dataclass(slots=True)
class Encoding:
    """When the codec was first and last at work, and for how long in all."""

    began: float | None = None
    ended: float = 0.0
    seconds: float = 0.0

    @contextmanager
    def working(self) -> Iterator[None]:
        """The codec works for the length of the block."""
        began = time.monotonic()
        if self.began is None:
            self.began = began
        try:
            yield
        finally:
            self.ended = time.monotonic()
            self.seconds += self.ended - began


@dataclass(slots=True)
class Journey:
    """Instants are `time.monotonic()`; None until it happened."""

    endpoint: str
    caller: str = ""  # who asks, as far as fair shares go: the id of a key, or an address
    limits: Limits = NO_LIMITS
    request_id: str = field(default_factory=lambda: secrets.token_hex(8))
    received: float = field(default_factory=time.monotonic)
    traceparent: str = ""  # the caller's, as sent
    span: Span = NO_SPAN
    planned: float | None = None
    first_audio: float | None = None
    finished: float | None = None
    model: str = ""
    voice: str = ""
    format: str = ""
    characters: int = 0
    segments: dict[int, SegmentJourney] = field(default_factory=dict)  # by index; those that were begun
    segments_planned: int = 0
    plan: tuple[int, ...] = ()  # their lengths in characters
    encoding: Encoding = field(default_factory=Encoding)
    audio_seconds: float = 0.0
    bytes_sent: int = 0
    heard_until: float = 0.0  # instant at which a client who plays as it comes has heard all that was sent
    stall_seconds: float = 0.0
    outcome: Outcome | None = None
    error_code: str = ""

    def say(self, lengths: list[int]) -> None:
        """Note the lengths of segments that are to be spoken, in characters."""
        if self.planned is None:
            self.planned = time.monotonic()
        self.plan += tuple(lengths)
        self.segments_planned += len(lengths)

    def audio_sent(self, data: bytes, seconds: float) -> None:
        """Note that `data`, and with it `seconds` more of audio, went to the client.

        The first such call is the time to first audio. From then on the client is taken to listen: whenever all that
        was sent has been heard before more comes, that is a stall.
        """
        now = time.monotonic()
        if self.first_audio is None:
            self.first_audio = self.heard_until = now
        self.stall_seconds += max(0.0, now - self.heard_until)
        self.heard_until = max(now, self.heard_until) + seconds
        self.bytes_sent += len(data)

    @contextmanager
    def segment(self, index: int, characters: int) -> Iterator[SegmentJourney]:
        """Follow one segment for the length of the block."""
        of = SegmentJourney(characters, span=self.span.begin("segment"))
        self.segments[index] = of
        try:
            yield of
        finally:
            workers = ",".join(of.workers)
            of.span.end({"index": index, "characters": characters, "tries": of.tries, "workers": workers})

    def trace(self) -> None:
        """Tell the trace of the parts that nobody followed, and end it. Never the text."""
        if self.span is NO_SPAN:
            return
        if self.planned is not None:
            self.span.part("admission", self.received, self.planned)
        if (codec := self.encoding).began is not None:
            about: dict[str, Attribute] = {"busy_seconds": codec.seconds, "format": self.format}
            self.span.part("encode", codec.began, codec.ended, about)
        self.span.end(self.log_fields(), error=self.error_code if self.outcome is Outcome.FAILED else "")

    def finish(self, outcome: Outcome, error_code: str = "") -> None:
        """Note the end; only the first call counts."""
        if self.outcome is None:
            self.outcome, self.error_code, self.finished = outcome, error_code, time.monotonic()

    @property
    def duration_seconds(self) -> float:
        return (self.finished if self.finished is not None else time.monotonic()) - self.received

    @property
    def first_audio_seconds(self) -> float | None:
        return None if self.first_audio is None else self.first_audio - self.received

    @property
    def queue_wait_seconds(self) -> float | None:
        """How long the first segment waited for its slot; later segments wait while others are heard."""
        first = self.segments.get(0)
        return first.waited_seconds if first is not None and first.workers else None

    @property
    def real_time_factor(self) -> float | None:
        """Seconds from request to end per second of audio: below 1 is faster than real time."""
        return self.duration_seconds / self.audio_seconds if self.audio_seconds else None

    def log_fields(self) -> dict[str, Attribute]:
        """Return the fields of the request's log line. Never the text."""
        workers = sorted({worker for segment in self.segments.values() for worker in segment.workers})
        fields: dict[str, Attribute | None] = {
            "request_id": self.request_id,
            "trace_id": self.span.trace_id,
            "endpoint": self.endpoint,
            "caller": self.caller,
            "outcome": str(self.outcome or ""),
            "error": self.error_code,
            "model": self.model,
            "voice": self.voice,
            "format": self.format,
            "characters": self.characters,
            "segments": self.segments_planned,
            "workers": ",".join(workers),
            "retries": sum(max(0, segment.tries - 1) for segment in self.segments.values()),
            "queue_wait_seconds": _rounded(self.queue_wait_seconds),
            "first_audio_seconds": _rounded(self.first_audio_seconds),
            "duration_seconds": _rounded(self.duration_seconds),
            "audio_seconds": _rounded(self.audio_seconds),
            "stall_seconds": _rounded(self.stall_seconds) or None,
            "real_time_factor": _rounded(self.real_time_factor),
        }
        return {name: value for name, value in fields.items() if value is not None and value != ""}


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)
