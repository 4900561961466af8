"""AMD's GPUs, by AMD SMI: the package `amdsmi` (extra `amd`) and the library of that name, which comes with ROCm."""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Callable
from typing import Any

from worker.gpu.reader import Card, Lost, Process, Unavailable, share_out

_MHZ = 1e6
_MIB = 1 << 20
# What is active in `amdsmi_get_violation_status`, by the names of wire.gpu.THROTTLE_REASONS.
_REASONS = {
    "active_ppt_pwr": "power_cap",
    "active_socket_thrm": "software_thermal",
    "active_vr_thrm": "software_thermal",
    "active_hbm_thrm": "software_thermal",
    "active_prochot_thrm": "hardware_thermal",
}


class AmdReader:
    """Implements `Reader`. A figure that a card does not have is an error or the text "N/A"; both count as not told."""

    visible: tuple[str, ...] = ("ROCR_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "CUDA_VISIBLE_DEVICES")
    order: str | None = None

    def __init__(self) -> None:
        self._smi: Any = None
        self._handles: dict[str, Any] = {}

    def open(self) -> None:
        try:
            # Without its library the import itself fails, with a KeyError, and prints to standard output.
            with contextlib.redirect_stdout(io.StringIO()):
                import amdsmi
        except Exception as error:  # boundary: another's package, which raises what it likes
            raise Unavailable(f"AMD SMI: {type(error).__name__}: {error}") from None
        try:
            amdsmi.amdsmi_init()
        except amdsmi.AmdSmiException as error:
            raise Unavailable(f"AMD SMI: {_told(error)}") from None
        self._smi = amdsmi

    def close(self) -> None:
        smi, self._smi = self._smi, None
        self._handles.clear()
        if smi is not None:
            with contextlib.suppress(smi.AmdSmiException):
                smi.amdsmi_shut_down()

    def cards(self) -> list[Card]:
        smi = self._smi
        cards = []
        try:
            for index, handle in enumerate(smi.amdsmi_get_processor_handles()):
                uuid = smi.amdsmi_get_gpu_device_uuid(handle)
                about = self._ask(smi.amdsmi_get_gpu_asic_info, handle) or {}
                # ROCm's own name for a GPU is made of its serial number.
                serial = str(about.get("asic_serial", "")).removeprefix("0x").lower()
                names = (uuid, f"GPU-{serial}") if serial not in ("", "n/a") else (uuid,)
                self._handles[uuid] = handle
                cards.append(Card(index, names, str(about.get("market_name", ""))))
        except smi.AmdSmiException as error:
            raise Unavailable(f"AMD SMI: {_told(error)}") from None
        return cards

    def read(self, uuid: str) -> dict[str, Any]:
        smi = self._smi
        if (handle := self._handles.get(uuid)) is None:
            raise Unavailable(f"AMD SMI lists no {uuid}")
        try:
            memory = smi.amdsmi_get_gpu_vram_usage(handle)  # every card has it; one that does not answer is gone
            hottest, current, critical = (
                smi.AmdSmiTemperatureType.HOTSPOT,
                smi.AmdSmiTemperatureMetric.CURRENT,
                smi.AmdSmiTemperatureMetric.CRITICAL,
            )
            clock = self._ask(smi.amdsmi_get_clock_info, handle, smi.AmdSmiClkType.GFX) or {}
            power = self._ask(smi.amdsmi_get_power_info, handle) or {}
            errors = self._ask(smi.amdsmi_get_gpu_total_ecc_count, handle) or {}
            activity = self._ask(smi.amdsmi_get_gpu_activity, handle) or {}
            watts = [_number(power.get(name)) for name in ("current_socket_power", "average_socket_power")]
            figures = {
                "memory_total_bytes": memory["vram_total"] * _MIB,
                "memory_used_bytes": memory["vram_used"] * _MIB,
                "utilization_ratio": _number(activity.get("gfx_activity"), 0.01),
                "temperature_celsius": self._ask(smi.amdsmi_get_temp_metric, handle, hottest, current),
                "temperature_limit_celsius": self._ask(smi.amdsmi_get_temp_metric, handle, hottest, critical),
                "power_watts": next((one for one in watts if one), None),
                "clock_hertz": _number(clock.get("clk"), _MHZ),
                "clock_limit_hertz": _number(clock.get("max_clk"), _MHZ),
                "throttled_by": self._throttled_by(handle),
                "ecc_corrected_errors": errors.get("correctable_count"),
                "ecc_uncorrected_errors": errors.get("uncorrectable_count"),
            }
            if (processes := self._ask(smi.amdsmi_get_gpu_process_list, handle)) is not None:
                seen = [Process(one["pid"], one["memory_usage"]["vram_mem"]) for one in processes]
                figures |= share_out(seen, os.getpid())
        except smi.AmdSmiException as error:
            raise Lost(f"AMD SMI: {_told(error)}") from None
        return {name: figure for name, figure in figures.items() if figure is not None}

    def xids(self, uuid: str) -> list[int]:
        return []  # NVIDIA's word; AMD's driver reports to the kernel's log alone

    def _ask(self, query: Callable[..., Any], *arguments: Any) -> Any:
        """Return what the query answers, or None where this card does not know it."""
        try:
            return query(*arguments)
        except self._smi.AmdSmiException:
            return None

    def _throttled_by(self, handle: Any) -> tuple[str, ...] | None:
        status = self._ask(self._smi.amdsmi_get_violation_status, handle)
        if status is None:
            return None
        return tuple(dict.fromkeys(reason for name, reason in _REASONS.items() if status.get(name) is True))


def _number(value: object, factor: float = 1.0) -> float | None:
    return value * factor if isinstance(value, int | float) else None


def _told(error: Exception) -> str:
    return " ".join(str(error).split())
