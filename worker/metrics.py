"""What Prometheus sees of a worker. A registry of its own, so that two workers fit in one process and one test."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from wire.link import WorkerState

# From one decode step to the longest segment that anybody waits for.
_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
_BATCH = (1, 2, 4, 8, 16, 32, 64, 128, 256)

OUTCOMES = ("done", "failed", "cancelled", "refused")
STAGES = ("queue", "prefill", "step")


class Metrics:
    """The series of one worker. Safe to write from the engine thread and the event loop at the same time."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self.decode_step_seconds = Histogram(
            "tts_worker_decode_step_seconds",
            "Duration of one step of the model.",
            buckets=_SECONDS,
            registry=self._registry,
        )
        self.batch_size = Histogram(
            "tts_worker_batch_size", "Sequences in one step of the model.", buckets=_BATCH, registry=self._registry
        )
        self.segment_seconds = Histogram(
            "tts_worker_segment_seconds",
            "From the arrival of a segment to its last sample, for segments that were spoken to the end.",
            buckets=_SECONDS,
            registry=self._registry,
        )
        self.audio_seconds = Counter(
            "tts_worker_audio_seconds_total", "Seconds of audio spoken.", registry=self._registry
        )
        self.characters = Counter(
            "tts_worker_characters_total", "Characters of the segments that were begun.", registry=self._registry
        )
        self.model_loaded = Gauge(
            "tts_worker_model_loaded", "1 while the model is in memory.", ["model"], registry=self._registry
        )
        self._stage_seconds = Counter(
            "tts_worker_stage_seconds_total", "Seconds spent in a stage.", ["stage"], registry=self._registry
        )
        self._segments = Counter(
            "tts_worker_segments_total", "Segments that came to an end.", ["outcome"], registry=self._registry
        )
        self._in_flight = Gauge("tts_worker_in_flight", "Segments that the engine holds now.", registry=self._registry)
        self._slots = Gauge("tts_worker_slots", "Segments that may be held at once.", registry=self._registry)
        self._state = Gauge(
            "tts_worker_state", "1 for the state of the worker, 0 for all others.", ["state"], registry=self._registry
        )
        # A series that exists from the start can be alerted on before the first failure.
        for outcome in OUTCOMES:
            self._segments.labels(outcome)
        for stage in STAGES:
            self._stage_seconds.labels(stage)

    def observe(self, *, slots: int, in_flight: Callable[[], int], state: Callable[[], WorkerState]) -> None:
        """Read these figures at each scrape, where they live."""
        self._slots.set(slots)
        self._in_flight.set_function(in_flight)
        for candidate in WorkerState:
            self._state.labels(candidate.value).set_function(partial(_is, state, candidate))

    def count_segment(self, outcome: str) -> None:
        """Count a segment that ended in one of `OUTCOMES`."""
        self._segments.labels(outcome).inc()

    def spend(self, stage: str, seconds: float) -> None:
        """Add to the time spent in one of `STAGES`."""
        self._stage_seconds.labels(stage).inc(seconds)

    def expose(self) -> bytes:
        """Return all series in Prometheus' text format."""
        return generate_latest(self._registry)


def _is(state: Callable[[], WorkerState], candidate: WorkerState) -> float:
    return float(state() is candidate)
