"""What can be seen of a worker's GPU: by the driver, and by the torch that is to compute on it."""

from __future__ import annotations

import json
import queue
import subprocess
import sys
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from host.facts import name_of
from worker.gpu.amd import AmdReader
from worker.gpu.nvidia import NvidiaReader
from worker.gpu.reader import Card, Lost, Reader, Unavailable
from worker.gpu.visible import find_card

# A driver that hangs does not come back; torch reads a gigabyte of libraries from a slow disk.
DRIVER_SECONDS = 10.0
TORCH_SECONDS = 180.0
# In a process of its own: what torch does at its import, and to whom, is not for this one.
_ASK_TORCH = """
import json, torch
print(json.dumps({"version": torch.__version__, "cuda": torch.version.cuda or "", "hip": torch.version.hip or "",
                  "codes": torch.cuda.get_arch_list(), "is_available": torch.cuda.is_available()}))
"""


@dataclass(frozen=True, slots=True)
class Holder:
    """A process on the GPU. `memory_bytes` is None where the driver does not tell."""

    pid: int
    name: str
    memory_bytes: int | None


@dataclass(frozen=True, slots=True)
class Device:
    """The GPU as its driver tells it; what it does not tell is None. `trouble` is why there is nothing to tell."""

    name: str = ""
    index: int | None = None
    vendor: str = "nvidia"
    driver: str = ""
    driver_cuda: tuple[int, int] | None = None  # the newest CUDA that the driver speaks
    capability: tuple[int, int] | None = None
    total_bytes: int | None = None
    free_bytes: int | None = None
    holders: tuple[Holder, ...] = ()
    trouble: str = ""


@dataclass(frozen=True, slots=True)
class Torch:
    """The installed torch. `codes` are the GPUs that it has code for, like sm_90 or compute_120."""

    version: str = ""
    cuda: tuple[int, int] | None = None  # None: built for no CUDA
    codes: tuple[str, ...] = ()
    is_available: bool = False
    trouble: str = ""


def look(device: str, environment: Mapping[str, str]) -> Device:
    """Ask the driver; waits at most `DRIVER_SECONDS` for it."""
    answers: queue.SimpleQueue[Device] = queue.SimpleQueue()
    # A daemon: a call that hangs in the driver cannot be ended.
    threading.Thread(target=lambda: answers.put(_look(device, environment)), daemon=True).start()
    try:
        return answers.get(timeout=DRIVER_SECONDS)
    except queue.Empty:
        return Device(trouble=f"the driver has not answered for {DRIVER_SECONDS:g} s")


def ask_torch(environment: Mapping[str, str]) -> Torch:
    """Import torch as the worker would, and ask it what it has code for; takes seconds."""
    try:
        ran = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", _ASK_TORCH],
            env=dict(environment), capture_output=True, text=True, timeout=TORCH_SECONDS,
        )  # fmt: skip
        told = json.loads(ran.stdout.strip().splitlines()[-1]) if ran.returncode == 0 else None
    except (OSError, subprocess.SubprocessError, ValueError, IndexError) as error:
        return Torch(trouble=f"{type(error).__name__}: {error}")
    if told is None:
        return Torch(trouble=(ran.stderr.strip().splitlines() or [f"it ended with {ran.returncode}"])[-1])
    return Torch(told["version"], _pair(told["cuda"]), tuple(told["codes"]), told["is_available"])


def _look(device: str, environment: Mapping[str, str]) -> Device:
    reasons = []
    for reader in (NvidiaReader(), AmdReader()):
        try:
            reader.open()
        except Unavailable as error:
            reasons.append(str(error))
            continue
        try:
            card = find_card(device, reader.cards(), reader, environment)
            return _nvidia(card) if isinstance(reader, NvidiaReader) else _other(card, reader)
        except (Unavailable, Lost) as error:
            return Device(trouble=str(error))
        finally:
            reader.close()
    return Device(trouble="; ".join(reasons))


def _nvidia(card: Card) -> Device:
    import pynvml

    def ask(query: Any, *arguments: Any) -> Any:
        try:
            return query(*arguments)
        except pynvml.NVMLError as error:
            if error.value == pynvml.NVML_ERROR_GPU_IS_LOST:
                raise Lost(f"{card.model or card.uuid or 'it'} is lost: NVML: {error}") from None
            return None

    handle = ask(pynvml.nvmlDeviceGetHandleByUUID, card.uuid)
    if handle is None:
        raise Lost(f"NVML has no GPU of the name {card.uuid or '(lost)'}")
    memory = ask(pynvml.nvmlDeviceGetMemoryInfo, handle)
    speaks = ask(pynvml.nvmlSystemGetCudaDriverVersion)
    return Device(
        name=card.model,
        index=card.index,
        driver=ask(pynvml.nvmlSystemGetDriverVersion) or "",
        driver_cuda=divmod(speaks // 10, 100) if speaks else None,  # 12040 is 12.4
        capability=ask(pynvml.nvmlDeviceGetCudaComputeCapability, handle),
        total_bytes=memory and memory.total,
        free_bytes=memory and memory.total - memory.used,
        holders=tuple(
            Holder(one.pid, name_of(one.pid), one.usedGpuMemory)
            for one in ask(pynvml.nvmlDeviceGetComputeRunningProcesses, handle) or []
        ),
    )


def _other(card: Card, reader: Reader) -> Device:
    figures = reader.read(card.uuid)
    total, used = figures.get("memory_total_bytes"), figures.get("memory_used_bytes")
    free = total - used if total is not None and used is not None else None
    return Device(name=card.model, index=card.index, vendor="amd", total_bytes=total, free_bytes=free)


def _pair(version: str) -> tuple[int, int] | None:
    parts = version.split(".")
    return (int(parts[0]), int(parts[1])) if len(parts) >= 2 and all(part.isdecimal() for part in parts[:2]) else None
