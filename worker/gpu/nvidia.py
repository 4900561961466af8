"""NVIDIA's GPUs, by NVML."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from typing import Any

from worker.gpu.reader import Card, Lost, Process, Unavailable, share_out

_MHZ = 1e6
# NVML's bits, by the names of wire.gpu.THROTTLE_REASONS. An idle GPU and clocks set by hand are no throttling.
_REASONS = {
    0x04: "power_cap",
    0x08: "hardware_slowdown",
    0x10: "sync_boost",
    0x20: "software_thermal",
    0x40: "hardware_thermal",
    0x80: "power_brake",
}


class NvidiaReader:
    """Implements `Reader`. The library is loaded by `open`, not by the import: most workers have no such GPU."""

    visible: tuple[str, ...] = ("CUDA_VISIBLE_DEVICES",)
    order: str | None = "CUDA_DEVICE_ORDER"

    def __init__(self) -> None:
        self._nvml: Any = None
        self._handles: dict[str, Any] = {}
        self._event_sets: dict[str, Any] = {}

    def open(self) -> None:
        import pynvml

        try:
            pynvml.nvmlInit()
        except pynvml.NVMLError as error:
            raise Unavailable(f"NVML: {error}") from None
        self._nvml = pynvml

    def close(self) -> None:
        nvml, self._nvml = self._nvml, None
        self._handles.clear()
        self._event_sets.clear()  # the shutdown frees them
        if nvml is not None:
            with contextlib.suppress(nvml.NVMLError):  # a driver that has gone cannot be asked to end, either
                nvml.nvmlShutdown()

    def cards(self) -> list[Card]:
        nvml = self._nvml
        try:
            return [self._card(index) for index in range(nvml.nvmlDeviceGetCount())]
        except nvml.NVMLError as error:
            raise Unavailable(f"NVML: {error}") from None

    def _card(self, index: int) -> Card:
        nvml = self._nvml
        try:
            handle = nvml.nvmlDeviceGetHandleByIndex(index)
            return Card(index, (nvml.nvmlDeviceGetUUID(handle),), nvml.nvmlDeviceGetName(handle))
        except nvml.NVMLError:
            # One that is lost keeps its number, and does not take the others with it. `read` will find it lost.
            return Card(index, ("",), "")

    def read(self, uuid: str) -> dict[str, Any]:
        nvml = self._nvml
        try:
            handle = self._handle(uuid)
            # Used: what this figure and the total leave is what can be had. The newer call counts the reserve apart.
            memory = self._ask(nvml.nvmlDeviceGetMemoryInfo, handle)
            rates = self._ask(nvml.nvmlDeviceGetUtilizationRates, handle)
            figures = {
                "name": self._ask(nvml.nvmlDeviceGetName, handle),
                "memory_total_bytes": memory and memory.total,
                "memory_used_bytes": memory and memory.used,
                "utilization_ratio": rates and rates.gpu / 100,
                "temperature_celsius": self._ask(nvml.nvmlDeviceGetTemperature, handle, nvml.NVML_TEMPERATURE_GPU),
                "temperature_limit_celsius": self._ask(
                    nvml.nvmlDeviceGetTemperatureThreshold, handle, nvml.NVML_TEMPERATURE_THRESHOLD_SLOWDOWN
                ),
                "power_watts": _scaled(self._ask(nvml.nvmlDeviceGetPowerUsage, handle), 1e-3),
                "power_limit_watts": _scaled(self._ask(nvml.nvmlDeviceGetEnforcedPowerLimit, handle), 1e-3),
                "clock_hertz": _scaled(self._ask(nvml.nvmlDeviceGetClockInfo, handle, nvml.NVML_CLOCK_SM), _MHZ),
                "clock_limit_hertz": _scaled(
                    self._ask(nvml.nvmlDeviceGetMaxClockInfo, handle, nvml.NVML_CLOCK_SM), _MHZ
                ),
                "fan_ratio": _scaled(self._ask(nvml.nvmlDeviceGetFanSpeed, handle), 0.01),
                "throttled_by": self._throttled_by(handle),
                "ecc_corrected_errors": self._ecc(handle, nvml.NVML_MEMORY_ERROR_TYPE_CORRECTED),
                "ecc_uncorrected_errors": self._ecc(handle, nvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED),
            }
            figures |= self._processes(handle)
        except nvml.NVMLError as error:
            self._handles.pop(uuid, None)
            if error.value in (nvml.NVML_ERROR_GPU_IS_LOST, nvml.NVML_ERROR_RESET_REQUIRED):
                raise Lost(f"NVML: {error}") from None
            if error.value == nvml.NVML_ERROR_NOT_FOUND:
                raise Lost("NVML lists it no longer") from None
            raise Unavailable(f"NVML: {error}") from None
        return {name: figure for name, figure in figures.items() if figure is not None}

    def xids(self, uuid: str) -> list[int]:
        nvml = self._nvml
        codes: list[int] = []
        try:
            if uuid not in self._event_sets:
                self._event_sets[uuid] = None  # one try: where events are not supported, they never are
                event_set = nvml.nvmlEventSetCreate()
                nvml.nvmlDeviceRegisterEvents(self._handle(uuid), nvml.nvmlEventTypeXidCriticalError, event_set)
                self._event_sets[uuid] = event_set
            while self._event_sets[uuid] is not None:
                codes.append(int(nvml.nvmlEventSetWait(self._event_sets[uuid], 0).eventData))
        except nvml.NVMLError as error:
            if error.value != nvml.NVML_ERROR_TIMEOUT:  # that one means: no more have come
                self._event_sets[uuid] = None
        return codes

    def _handle(self, uuid: str) -> Any:
        if uuid not in self._handles:
            self._handles[uuid] = self._nvml.nvmlDeviceGetHandleByUUID(uuid)
        return self._handles[uuid]

    def _ask(self, query: Callable[..., Any], *arguments: Any) -> Any:
        """Return what the query answers, or None where this GPU, this driver or this user may not ask it."""
        nvml = self._nvml
        try:
            return query(*arguments)
        except nvml.NVMLError as error:
            if error.value in (
                nvml.NVML_ERROR_NOT_SUPPORTED,
                nvml.NVML_ERROR_FUNCTION_NOT_FOUND,
                nvml.NVML_ERROR_NO_PERMISSION,
                nvml.NVML_ERROR_NO_DATA,
                nvml.NVML_ERROR_INVALID_ARGUMENT,
            ):
                return None
            raise

    def _throttled_by(self, handle: Any) -> tuple[str, ...] | None:
        bits = self._ask(self._nvml.nvmlDeviceGetCurrentClocksEventReasons, handle)
        if bits is None:  # drivers before 535 have it by its first name
            bits = self._ask(self._nvml.nvmlDeviceGetCurrentClocksThrottleReasons, handle)
        return None if bits is None else tuple(name for bit, name in _REASONS.items() if bits & bit)

    def _ecc(self, handle: Any, kind: int) -> int | None:
        nvml = self._nvml
        count: int | None = self._ask(nvml.nvmlDeviceGetTotalEccErrors, handle, kind, nvml.NVML_VOLATILE_ECC)
        return count

    def _processes(self, handle: Any) -> dict[str, Any]:
        nvml = self._nvml
        computing = self._ask(nvml.nvmlDeviceGetComputeRunningProcesses, handle)
        if computing is None:
            return {}
        drawing = self._ask(nvml.nvmlDeviceGetGraphicsRunningProcesses, handle) or []
        return share_out([Process(one.pid, one.usedGpuMemory) for one in [*drawing, *computing]], os.getpid())


def _scaled(value: float | None, factor: float) -> float | None:
    return None if value is None else value * factor
