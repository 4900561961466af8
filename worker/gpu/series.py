"""The figures of GPUs as Prometheus has them. What a GPU does not tell has no sample: 0 would be a figure."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from wire.gpu import THROTTLE_REASONS, Gpu, GpuState

# Metric, help, field of wire.gpu.Gpu.
_GAUGES = (
    ("utilization_ratio", "Share of the last moment in which the GPU computed anything.", "utilization_ratio"),
    ("temperature_celsius", "Temperature of the GPU.", "temperature_celsius"),
    ("temperature_limit_celsius", "Temperature at which the GPU slows down by itself.", "temperature_limit_celsius"),
    ("power_watts", "Power that the board draws.", "power_watts"),
    ("power_limit_watts", "Power that the board may draw.", "power_limit_watts"),
    ("clock_hertz", "Clock of the shaders.", "clock_hertz"),
    ("clock_limit_hertz", "Highest clock of the shaders.", "clock_limit_hertz"),
    ("fan_ratio", "Speed of the fan, of its highest.", "fan_ratio"),
    ("other_processes", "Processes on the GPU that are not this worker.", "other_processes"),
    ("age_seconds", "Time since the figures were read.", "age_seconds"),
    ("xid_last", "Code of the driver's last report of trouble (Xid).", "xid_last"),
)
_MEMORY = {
    "total": "memory_total_bytes",
    "used": "memory_used_bytes",
    "own": "memory_own_bytes",
    "other_processes": "memory_other_bytes",
}
_ECC = {"corrected": "ecc_corrected_errors", "uncorrected": "ecc_uncorrected_errors"}


class GpuSeries(Collector):
    """Reads `latest` at each scrape; it must not wait for a driver."""

    def __init__(self, latest: Callable[[], Sequence[Gpu]]) -> None:
        self._latest = latest

    def describe(self) -> Iterable[Metric]:
        return []

    def collect(self) -> Iterator[Metric]:
        if gpus := self._latest():
            yield from _families(gpus)


def _families(gpus: Sequence[Gpu]) -> Iterator[Metric]:
    by_label = {str(gpu.device if gpu.index is None else gpu.index): gpu for gpu in gpus}

    def gauge(name: str, text: str, *labels: str) -> GaugeMetricFamily:
        return GaugeMetricFamily(f"tts_worker_gpu_{name}", text, labels=("gpu", *labels))

    def counter(name: str, text: str, *labels: str) -> CounterMetricFamily:
        return CounterMetricFamily(f"tts_worker_gpu_{name}", text, labels=("gpu", *labels))

    info = gauge("info", "Which GPU the number stands for; always 1.", "uuid", "name")
    up = gauge("up", "1 while the driver tells the GPU's figures, 0 when it is lost, silent or unreadable.")
    state = gauge("state", "1 for the state that the GPU is in.", "state")
    memory = gauge("memory_bytes", "Memory: all of it, used, used by this worker, used by others.", "kind")
    throttled = gauge("throttled", "1 while the clock is held down for this reason.", "reason")
    ecc = counter("ecc_errors", "Errors of memory since the driver was loaded.", "kind")
    xid = counter("xid_errors", "Reports of trouble by the driver (Xid) since the worker started.")
    for label, gpu in by_label.items():
        info.add_metric((label, gpu.uuid, gpu.name), 1)
        up.add_metric((label,), gpu.state is GpuState.OK)
        for candidate in GpuState:
            state.add_metric((label, candidate), gpu.state is candidate)
        for kind, field in _MEMORY.items():
            _add(memory, (label, kind), getattr(gpu, field))
        if gpu.throttled_by is not None:
            for reason in THROTTLE_REASONS:
                throttled.add_metric((label, reason), reason in gpu.throttled_by)
        for kind, field in _ECC.items():
            _add(ecc, (label, kind), getattr(gpu, field))
        xid.add_metric((label,), gpu.xid_errors)
    yield from (info, up, state, memory, throttled, ecc, xid)
    for name, text, field in _GAUGES:
        family = gauge(name, text)
        for label, gpu in by_label.items():
            _add(family, (label,), getattr(gpu, field))
        yield family


def _add(family: GaugeMetricFamily | CounterMetricFamily, labels: Sequence[str], value: float | None) -> None:
    if value is not None:
        family.add_metric(labels, value)
