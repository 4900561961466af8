"""What Prometheus sees. Names are fixed: dashboards and alerts rely on them."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import product

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Summary, disable_created_metrics
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from gateway.journey import Journey, Outcome
from gateway.pool import Pool
from wire.errors import TRAITS, ErrorCode

# Speech takes from milliseconds (a refusal) to ten minutes (a chapter): default buckets end at ten seconds.
BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.2, 0.35, 0.5, 0.75, 1, 1.5, 2.5, 4, 6, 10, 15, 25, 40, 60, 120, 300, 600)
# By worker, so there are many of them.
SEGMENT_BUCKETS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 60, 120, 300, 600)
RTF_BUCKETS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 0.85, 1, 1.25, 1.5, 2, 3, 5, 10)
RATIO_BUCKETS = (0.1, 0.2, 0.33, 0.5, 0.67, 0.8, 0.9, 1, 1.1, 1.25, 1.5, 2, 3, 5, 10)
LAG_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1, 2.5)

WORKER_STATES = (
    "starting", "loading", "warming", "ready", "asleep", "unloaded", "draining", "stopped", "failed", "ejected",
    "probation", "gone",
)  # fmt: skip
# Label values that are known from the start begin with 0: of a series that is born with its first event, rate() and
# increase() never see that event. What is not listed here appears with its first event, and is bounded all the same.
ENDPOINTS = ("/v1/tts", "/v1/tts/stream", "/v1/audio/speech")
STAGES = ("parsing", "before_audio", "streaming")
PHASES = ("before_audio", "mid_stream")
FAULTS = ("unreachable", "cut", "lost", "stalled", "bad_frames", "wrong_rate", "endless", "error")
EJECTIONS = ("slow", *FAULTS)
_NEVER_SEEN_BY_CLIENTS = (ErrorCode.WORKER_FULL, ErrorCode.WORKER_NOT_READY, ErrorCode.LINK_REFUSED)
REFUSALS = tuple(
    str(code)
    for code, traits in TRAITS.items()
    if (traits.status < 500 or traits.type == "overloaded_error") and code not in _NEVER_SEEN_BY_CLIENTS
)
# Worker names are made by whoever starts workers. Histograms by worker are kept for as many as any fleet has; beyond
# that, those of the worker that spoke longest ago go.
MOST_WORKERS = 256


@dataclass(frozen=True, slots=True)
class _EndpointSeries:
    """What is counted at the end of each request. To find a series by its labels takes longer than to count."""

    outcomes: Mapping[Outcome, Counter]
    duration: Histogram
    first_audio: Histogram


class Metrics:
    """One registry an application: two gateways fit in one process."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        disable_created_metrics()  # type: ignore[no-untyped-call]  # a line more for each series, which nobody reads

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"tts_{name}", text, labels, registry=self.registry)

        def histogram(name: str, text: str, *labels: str, buckets: tuple[float, ...] = BUCKETS) -> Histogram:
            return Histogram(f"tts_{name}", text, labels, buckets=buckets, registry=self.registry)

        self._requests = counter("requests", "Speech requests by how they ended.", "endpoint", "outcome")
        self.requests_in_progress = Gauge(
            "tts_requests_in_progress", "Speech requests being answered.", registry=self.registry
        )
        self._request_duration = histogram("request_duration_seconds", "Request received to answer ended.", "endpoint")
        self._first_audio = histogram(
            "time_to_first_audio_seconds", "Request received to first audio byte sent.", "endpoint"
        )
        self.queue_wait = histogram("queue_wait_seconds", "Time a segment waited for its first slot.")
        self.audio_seconds = counter("audio_seconds", "Seconds of audio sent to clients.")
        self.characters = counter("characters", "Characters of text in requests that were answered whole.")
        self.real_time_factor = histogram(
            "real_time_factor", "Seconds of work per second of audio, by segment.", buckets=RTF_BUCKETS
        )
        self._segment_duration = histogram(
            "segment_duration_seconds", "Lease to last sample of a segment.", "worker", buckets=SEGMENT_BUCKETS
        )
        # Sum and count are enough to lay beside the actual ones; another histogram by worker would double the scrape.
        self._segment_predicted = Summary(
            "tts_segment_duration_predicted_seconds",
            "What the gateway expected a segment to take.",
            ["worker"],
            registry=self.registry,
        )
        self._prediction_ratio = histogram(
            "segment_prediction_ratio",
            "Seconds that a segment took for each second that was expected; 1 is a perfect guess.",
            buckets=RATIO_BUCKETS,
        )
        self._endpoints: dict[str, _EndpointSeries] = {}
        # By who spoke longest ago.
        self._workers: OrderedDict[str, tuple[Histogram, Summary]] = OrderedDict()
        self.retries = counter("retries", "Segments given to another worker.", "phase", "reason")
        self.failovers = counter("failovers", "Segments that another worker took over after audio was sent.")
        self.preemptions = counter(
            "preemptions", "Segments that gave way to a caller with a better right, for a while."
        )
        self.ejections = counter("ejections", "Workers put aside because they failed.", "reason")
        self.stall_seconds = counter(
            "stall_seconds", "Seconds that listeners waited in mid-stream for audio not yet made."
        )
        self.cancelled = counter("cancelled", "Requests whose caller left, by how far they were.", "stage")
        self.rejected = counter("rejected", "Requests refused, by error code.", "reason")
        self.event_loop_lag = histogram(
            "event_loop_lag_seconds", "How late the event loop runs what is due.", buckets=LAG_BUCKETS
        )
        self._begin_with_zero()

    def _begin_with_zero(self) -> None:
        for endpoint in ENDPOINTS:
            self._endpoint(endpoint)
        for phase, fault in product(PHASES, FAULTS):
            self.retries.labels(phase, fault)
        for metric, values in ((self.ejections, EJECTIONS), (self.cancelled, STAGES), (self.rejected, REFUSALS)):
            for value in values:
                metric.labels(value)

    def _endpoint(self, endpoint: str) -> _EndpointSeries:
        series = self._endpoints.get(endpoint)
        if series is None:
            series = self._endpoints[endpoint] = _EndpointSeries(
                {outcome: self._requests.labels(endpoint, outcome) for outcome in Outcome},
                self._request_duration.labels(endpoint),
                self._first_audio.labels(endpoint),
            )
        return series

    def request(self, journey: Journey, outcome: Outcome) -> None:
        """Count a request that has ended."""
        series = self._endpoint(journey.endpoint)
        series.outcomes[outcome].inc()
        series.duration.observe(journey.duration_seconds)
        if journey.first_audio_seconds is not None:
            series.first_audio.observe(journey.first_audio_seconds)
        self.audio_seconds.inc(journey.audio_seconds)
        if journey.stall_seconds:
            self.stall_seconds.inc(journey.stall_seconds)

    def segment(self, worker: str, *, seconds: float, predicted_seconds: float, audio_seconds: float) -> None:
        """Count a segment that a worker spoke to its end, and how well its time was foreseen."""
        if worker not in self._workers:
            self._workers[worker] = self._segment_duration.labels(worker), self._segment_predicted.labels(worker)
            if len(self._workers) > MOST_WORKERS:
                idle, _ = self._workers.popitem(last=False)
                self._segment_duration.remove(idle)
                self._segment_predicted.remove(idle)
        self._workers.move_to_end(worker)
        duration, predicted = self._workers[worker]
        duration.observe(seconds)
        predicted.observe(predicted_seconds)
        if predicted_seconds > 0:
            self._prediction_ratio.observe(seconds / predicted_seconds)
        if audio_seconds:
            self.real_time_factor.observe(seconds / audio_seconds)

    def watch(self, pool: Pool) -> None:
        """Report the pool's state at each scrape, read from the pool itself: a gauge kept beside it could drift."""
        self.registry.register(_PoolCollector(pool))

    def scrape(self, accept: str) -> tuple[bytes, str]:
        """Return the exposition and its content type, in the format that the scraper accepts.

        Prometheus accepts both and prefers OpenMetrics, which takes twice the time and says no more; so that is for
        those who accept nothing else.
        """
        encode, content_type = choose_encoder("" if "text/plain" in accept else accept)
        return encode(self.registry), content_type


class _PoolCollector(Collector):
    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    def describe(self) -> Iterable[Metric]:
        return []

    def collect(self) -> Iterator[Metric]:
        backlog = self._pool.backlog()
        yield GaugeMetricFamily("tts_queue_depth", "Segments waiting for a slot.", value=self._pool.waiting)
        yield GaugeMetricFamily(
            "tts_backlog_seconds",
            "Estimated work waiting, divided by what the fleet does in a second.",
            value=backlog.seconds,
        )
        up = GaugeMetricFamily(
            "tts_worker_up",
            "1 while the worker's link is up, 0 when it broke without a farewell.",
            labels=("worker", "device", "model"),
        )
        state = GaugeMetricFamily(
            "tts_worker_state", "1 for the state that the worker is in.", labels=("worker", "state")
        )
        slots = GaugeMetricFamily("tts_worker_slots", "Segments the worker takes at once.", labels=("worker",))
        in_flight = GaugeMetricFamily("tts_worker_in_flight", "Slots leased now.", labels=("worker",))
        age = GaugeMetricFamily(
            "tts_worker_status_age_seconds", "Time since the worker's last report.", labels=("worker",)
        )
        now = time.monotonic()
        for replica in self._pool.replicas:
            up.add_metric((replica.id, replica.device, next(iter(replica.models), "")), 1)
            for name in WORKER_STATES:
                state.add_metric((replica.id, name), replica.state == name)
            slots.add_metric((replica.id,), replica.slots)
            in_flight.add_metric((replica.id,), replica.in_flight)
            age.add_metric((replica.id,), max(0.0, now - replica.status_at))
        for replica in (loss.replica for loss in self._pool.missing):
            up.add_metric((replica.id, replica.device, next(iter(replica.models), "")), 0)
            for name in WORKER_STATES:
                state.add_metric((replica.id, name), replica.state == name)
        yield from (up, state, slots, in_flight, age)
