"""What people are told about workers, in sentences. Pure."""

from __future__ import annotations

from collections.abc import Collection

from gateway.replica import Health, Replica
from wire.gpu import Gpu, GpuState
from wire.link import WorkerState

HOT_CELSIUS = 87
FULL_RATIO = 0.94

_REPORTED = {
    WorkerState.STARTING: "starting",
    WorkerState.LOADING: "loading its model",
    WorkerState.WARMING: "warming up",
    WorkerState.UNLOADED: "its model is unloaded",
    WorkerState.STOPPED: "stopped",
    WorkerState.FAILED: "failed",
}
_FAULTS = {
    "bad_frames": "what it sent could not be read",
    "cut": "its answers broke off",
    "error": "it answered with errors",
    "slow": "far slower than the others",
    "stalled": "it went silent in mid-segment",
    "unreachable": "it could not be reached",
    "wrong_rate": "it spoke at another sample rate than announced",
}

# NVIDIA's list of Xid errors has some 150; these are what a failing card says.
_XIDS = {
    31: "a program read memory that is not its own",
    48: "a memory error that could not be corrected",
    62: "its own processor stopped",
    63: "it set a bad row of memory aside",
    64: "it could not set a bad row of memory aside",
    74: "an error of NVLink",
    79: "it has fallen off the bus",
    94: "a memory error, contained",
    95: "a memory error, not contained",
    119: "its system processor does not answer",
}


def state(replica: Replica, now: float) -> str:
    """Return one line about a worker that is linked: what it does and, if it gets nothing, why not."""
    if replica.state == Health.EJECTED:
        fault = _FAULTS.get(replica.ejected_because, replica.ejected_because or "it failed")
        return f"put aside: {fault}; tried again in {max(0.0, replica.ejected_until - now):.0f} s"
    if replica.state == Health.PROBATION:
        return "on probation: one segment at a time until one is spoken"
    if replica.reported is WorkerState.DRAINING:
        left = max(replica.in_flight, replica.reported_in_flight)
        return f"draining: finishes {count(left, 'segment')}, gets nothing new" if left else "drained: gets nothing new"
    if replica.is_asleep:
        return "asleep: its model is unloaded until a request comes"
    if replica.reported is WorkerState.READY:
        return "speaking" if replica.in_flight else "ready"
    return _REPORTED[replica.reported]


def gone(reason: str, seconds: float) -> str:
    """Return one line about a worker whose link is gone."""
    return f"gone for {duration(seconds)}: {reason}"


def summary(replicas: Collection[Replica], waiting: int, lost: int) -> str:
    """Return the fleet in one or two sentences: the first thing to read at night."""
    ready = sum(replica.limit > 0 for replica in replicas)
    asleep = sum(replica.is_asleep for replica in replicas)
    everybody = len(replicas) + lost
    if not everybody:
        return "No worker has registered yet. Start one with tts-worker."
    if ready == everybody:
        workers = "The worker is ready." if everybody == 1 else f"All {everybody} workers are ready."
    elif asleep == everybody:
        workers = (
            f"{'The worker sleeps' if everybody == 1 else f'All {everybody} workers sleep'} until a request comes."
        )
    elif ready + asleep == 0:
        workers = "No worker is ready."
    else:
        sleepers = f", {asleep} asleep" if asleep else ""
        workers = f"{ready} of {everybody} workers {'is' if ready == 1 else 'are'} ready{sleepers}."
    return f"{workers} {'Nothing waits' if not waiting else count(waiting, 'segment') + verb(waiting, ' wait')}."


def troubles(gpu: Gpu) -> list[str]:
    """Return what is wrong with a GPU, worst first; mostly nothing. The bounds are those of the alerts."""
    told: list[str] = []
    if gpu.state is not GpuState.OK:
        told.append(f"{gpu.device} is {gpu.state}{f': {gpu.detail}' if gpu.detail else ''}")
    if gpu.xid_errors:
        about = _XIDS.get(gpu.xid_last or 0, "see the driver's log")
        told.append(f"Xid {gpu.xid_last}: {about}{f', {gpu.xid_errors} such reports' if gpu.xid_errors > 1 else ''}")
    if gpu.ecc_uncorrected_errors:
        told.append(f"{count(gpu.ecc_uncorrected_errors, 'memory error')} that could not be corrected")
    if gpu.temperature_celsius is not None and gpu.temperature_celsius > HOT_CELSIUS:
        told.append(f"{gpu.temperature_celsius:.0f} °C: too hot")
    slowed = [reason.replace("_", " ") for reason in gpu.throttled_by or () if reason != "power_cap"]
    if slowed:
        told.append(f"slowed down: {', '.join(slowed)}")
    if gpu.memory_used_bytes is not None and gpu.memory_total_bytes:
        used = gpu.memory_used_bytes / gpu.memory_total_bytes
        if used > FULL_RATIO:
            told.append(f"memory {used:.0%} full")
    return told


def count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def verb(number: int, plural: str) -> str:
    return f"{plural}s" if number == 1 else plural


def duration(seconds: float) -> str:
    """Return `12 s`, `3 min`, `2 h`."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.0f} h"
