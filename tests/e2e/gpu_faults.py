"""What can be wrong with a GPU, and what is then told: to whoever is on call, on the page, in `top` and `status`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tests.e2e.cluster import Cluster
from tests.fakes.gpus import FakeGpus


@dataclass(frozen=True)
class GpuFault:
    """`figures` are the driver's, as FakeGpus.set_gpu takes them; the trouble begins with `words`."""

    name: str
    figures: dict[str, object]
    words: str
    alert: str
    summary: str  # of the alert
    # The driver reports it and never takes it back: it is told until the worker is started anew.
    stays: bool = False

    @property
    def taken_back(self) -> dict[str, object]:
        return dict.fromkeys(self.figures)

    def is_all_of(self, troubles: list[str]) -> bool:
        """Is this what is wrong, and nothing else?"""
        return len(troubles) == 1 and troubles[0].startswith(self.words)


LOST = GpuFault("lost", {"error": 15}, "cuda:0 is lost", "TTSGpuLost", "GPU {gpu} of worker {worker} is gone.")
FAULTS = (
    LOST,
    GpuFault(
        "memory", {"total_mib": 24576, "used_mib": 23347}, "memory 95% full", "TTSGpuMemoryNearFull",
        "GPU {gpu} of worker {worker} has 95% of its memory in use.",
    ),
    GpuFault("hot", {"temperature": 91}, "91 °C: too hot", "TTSGpuHot", "GPU {gpu} of worker {worker} is at 91 °C."),
    GpuFault(
        "throttled", {"throttle": 0x40}, "slowed down: hardware thermal", "TTSGpuThrottled",
        "GPU {gpu} of worker {worker} slows itself down (hardware_thermal).",
    ),
    GpuFault(
        "xid", {"xid": "1:79"}, "Xid 79: it has fallen off the bus", "TTSGpuXid",
        "The driver reports an error (Xid) of GPU {gpu} of worker {worker}.", stays=True,
    ),
)  # fmt: skip


def others(but: GpuFault) -> list[GpuFault]:
    return [fault for fault in FAULTS if fault is not but]


async def start_on_gpu(fleet: Cluster, gpus: FakeGpus, gpu: int, *options: str) -> None:
    """Start the worker `w<gpu>` on this GPU alone, as the units do."""
    fleet.environment = gpus.environment | {"CUDA_DEVICE_ORDER": "PCI_BUS_ID", "CUDA_VISIBLE_DEVICES": str(gpu)}
    await fleet.start_worker("--device", "cuda:0", *options, name=f"w{gpu}")


async def mend(faults: Sequence[GpuFault], fleet: Cluster, gpus: FakeGpus, gpu: int) -> None:
    """Take faults of one GPU back, and start its worker anew where that is what it takes."""
    for fault in faults:
        gpus.set_gpu(gpu, **fault.taken_back)
    if any(fault.stays for fault in faults):
        await fleet.workers[f"w{gpu}"].stop()
        await start_on_gpu(fleet, gpus, gpu)
