"""What Prometheus sees of a worker. A registry of its own, so that two workers fit in one process and one test."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from wire.link import WorkerState
from worker.figures import ModelFigures

# From one decode step to the longest segment that anybody waits for.
_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
_LAG_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1, 2.5)
_BATCH = (1, 2, 4, 8, 16, 32, 64, 128, 256)

OUTCOMES = ("done", "failed", "cancelled", "refused")
VOICE_SOURCES = ("memory", "gateway", "computed")
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
        self.event_loop_lag = Histogram(
            "tts_worker_event_loop_lag_seconds",
            "How late the event loop runs what is due.",
            buckets=_LAG_SECONDS,
            registry=self._registry,
        )
        # Written by the engine thread alone. The stages of the model are counted by the model.
        self._stage_seconds = dict.fromkeys(STAGES, 0.0)
        self._voices = Counter(
            "tts_worker_voices_total",
            "Prepared voices of uploaded clips, by where they came from.",
            ["source"],
            registry=self._registry,
        )
        self._segments = Counter(
            "tts_worker_segments_total", "Segments that came to an end.", ["outcome"], registry=self._registry
        )
        # Not worker_in_flight and so on: the gateway has series of those names, and a sum would count both.
        self._in_flight = Gauge(
            "tts_worker_engine_in_flight", "Segments that the engine holds now.", registry=self._registry
        )
        self._slots = Gauge("tts_worker_engine_slots", "Segments that may be held at once.", registry=self._registry)
        self._state = Gauge(
            "tts_worker_lifecycle_state",
            "1 for the state of the worker, 0 for all others.",
            ["state"],
            registry=self._registry,
        )
        # A series that exists from the start can be alerted on before the first failure.
        for outcome in OUTCOMES:
            self._segments.labels(outcome)
        for source in VOICE_SOURCES:
            self._voices.labels(source)

    def observe(
        self,
        *,
        slots: Callable[[], int],
        in_flight: Callable[[], int],
        state: Callable[[], WorkerState],
        model: str,
        figures: Callable[[], ModelFigures],
    ) -> None:
        """Read these figures at each scrape, where they live."""
        self.model_loaded.labels(model)
        self.register(_ModelSeries(figures, self._stage_seconds))
        self._slots.set_function(slots)
        self._in_flight.set_function(in_flight)
        for candidate in WorkerState:
            self._state.labels(candidate.value).set_function(partial(_is, state, candidate))

    def count_segment(self, outcome: str) -> None:
        """Count a segment that ended in one of `OUTCOMES`."""
        self._segments.labels(outcome).inc()

    def count_voice(self, source: str) -> None:
        """Count a prepared voice that came from one of `VOICE_SOURCES`."""
        self._voices.labels(source).inc()

    def spend(self, stage: str, seconds: float) -> None:
        """Add to the time spent in one of `STAGES`; for the engine thread."""
        self._stage_seconds[stage] += seconds

    def register(self, series: Collector) -> None:
        """Expose what this collector gives at each scrape."""
        self._registry.register(series)

    def expose(self) -> bytes:
        """Return all series in Prometheus' text format."""
        return generate_latest(self._registry)


class _ModelSeries(Collector):
    def __init__(self, figures: Callable[[], ModelFigures], engine_stages: dict[str, float]) -> None:
        self._figures = figures
        self._engine_stages = engine_stages

    def describe(self) -> Iterable[Metric]:
        return []

    def collect(self) -> Iterator[Metric]:
        figures = self._figures()
        stages = CounterMetricFamily(
            "tts_worker_stage_seconds",
            "Seconds spent in a stage: those of the engine, and within its steps those of the model.",
            labels=("stage",),
        )
        for stage, seconds in (self._engine_stages | dict(figures.stage_seconds)).items():
            stages.add_metric((stage,), seconds)
        guards = CounterMetricFamily(
            "tts_worker_guards", "Times that the model had to be kept from a failure of its own.", labels=("guard",)
        )
        for guard, count in figures.guards.items():
            guards.add_metric((guard,), count)
        yield from (stages, guards)
        yield GaugeMetricFamily(
            "tts_worker_stage_overlap_ratio",
            "Of the time in which a stage of the model was at work since the start, the share in which two were.",
            value=figures.overlap_seconds / figures.busy_seconds if figures.busy_seconds else 0.0,
        )
        cache = "tts_worker_conditionals_cache"
        for name, text, value in (
            (
                "tts_worker_stage_overlap_seconds",
                "Seconds in which two stages of the model were at work at once.",
                figures.overlap_seconds,
            ),
            ("tts_worker_tokens", "Tokens that the model made; what a token is depends on the model.", figures.tokens),
            (f"{cache}_hits", "Voices whose conditionals were in memory.", figures.conditionals_hits),
            (f"{cache}_misses", "Voices whose conditionals were not in memory.", figures.conditionals_misses),
            (f"{cache}_evictions", "Conditionals that made room for others.", figures.conditionals_evictions),
        ):
            yield CounterMetricFamily(name, text, value=value)


def _is(state: Callable[[], WorkerState], candidate: WorkerState) -> float:
    return float(state() is candidate)
