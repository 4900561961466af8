"""What a worker knows of the accelerators that it runs on: one `Gpu` each, in every `status`. See docs/wire.md."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

MAX_GPUS = 16
# Why the clocks are lower than they could be. `power_cap` is ordinary under full load; the others want a look.
THROTTLE_REASONS = (
    "power_cap", "power_brake", "software_thermal", "hardware_thermal", "hardware_slowdown", "sync_boost",
)  # fmt: skip


class GpuState(StrEnum):
    """Can its figures be had, and if not, what is the matter with it."""

    OK = "ok"
    LOST = "lost"  # the driver says that it is gone; mostly only a restart of the machine brings it back
    SILENT = "silent"  # the driver does not answer; the figures are the last ones
    UNREADABLE = "unreadable"  # no driver library, or it is not clear which GPU it is; `detail` says what to do


@dataclass(frozen=True, slots=True)
class Gpu:
    """One accelerator; a figure that it does not tell is None.

    `device` is the worker's name for it (cuda:0), `index` and `uuid` the driver's. `own` is the worker's process,
    `other` are all other processes on the same GPU. Ratios go from 0 to 1; clocks are those of the shaders. The limit
    of temperature is where the hardware slows down by itself. ECC errors count since the driver was loaded, Xids (its
    reports of trouble) since the worker started.
    """

    device: str
    state: GpuState
    detail: str = ""
    index: int | None = None
    uuid: str = ""
    name: str = ""
    age_seconds: float = 0.0
    memory_total_bytes: int | None = None
    memory_used_bytes: int | None = None
    memory_own_bytes: int | None = None
    memory_other_bytes: int | None = None
    other_processes: int | None = None
    utilization_ratio: float | None = None
    temperature_celsius: float | None = None
    temperature_limit_celsius: float | None = None
    power_watts: float | None = None
    power_limit_watts: float | None = None
    clock_hertz: float | None = None
    clock_limit_hertz: float | None = None
    fan_ratio: float | None = None
    throttled_by: tuple[str, ...] | None = None
    ecc_corrected_errors: int | None = None
    ecc_uncorrected_errors: int | None = None
    xid_errors: int = 0
    xid_last: int | None = None

    @classmethod
    def from_json(cls, body: Any) -> Gpu:
        """Read one; fields that are not known here are ignored, and a figure that is not finite is left out.

        Raises:
            ValueError, TypeError, OverflowError, KeyError: a field that cannot be.
        """
        if not isinstance(body, Mapping):
            raise ValueError(f"a gpu is an object, not {type(body).__name__}")
        reasons = body.get("throttled_by")
        figures: dict[str, Any] = {name: _count(body.get(name)) for name in _COUNTS}
        figures |= {name: _figure(body.get(name)) for name in _FIGURES}
        return cls(
            device=str(body["device"])[:64],
            state=GpuState(body["state"]),
            detail=str(body.get("detail", ""))[:500],
            uuid=str(body.get("uuid", ""))[:96],
            name=str(body.get("name", ""))[:96],
            age_seconds=_figure(body.get("age_seconds")) or 0.0,
            throttled_by=None if reasons is None else tuple(name for name in THROTTLE_REASONS if name in list(reasons)),
            xid_errors=_count(body.get("xid_errors")) or 0,
            **figures,
        )


_COUNTS = (
    "memory_total_bytes", "memory_used_bytes", "memory_own_bytes", "memory_other_bytes", "other_processes",
    "ecc_corrected_errors", "ecc_uncorrected_errors", "xid_last", "index",
)  # fmt: skip
_FIGURES = (
    "utilization_ratio", "temperature_celsius", "temperature_limit_celsius", "power_watts", "power_limit_watts",
    "clock_hertz", "clock_limit_hertz", "fan_ratio",
)  # fmt: skip


def _figure(value: Any) -> float | None:
    # NaN would make the gateway's own JSON unreadable to browsers.
    return None if value is None or not math.isfinite(figure := float(value)) else figure


def _count(value: Any) -> int | None:
    figure = _figure(value)
    if figure is not None and figure < 0:
        raise ValueError(f"{figure:g} is no count")
    return None if figure is None else int(value)
