"""GPUs under a worker: which one `cuda:0` is, what is told of it, and that a driver in trouble troubles nobody else."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.fakes.gpus import FakeGpus, amd_library
from tests.worker.harness import Process, eventually, gateway, process, segment
from wire.frames import FrameType
from worker.gpu.amd import AmdReader
from worker.gpu.nvidia import NvidiaReader
from worker.gpu.reader import Card, Reader, Unavailable, share_out
from worker.gpu.reader import Process as GpuProcess
from worker.gpu.visible import find_card, is_gpu
from worker.gpu.watch import GpuWatch
from worker.models.tone import decode

ALIKE = [Card(n, (f"GPU-{n}{n}", f"alias-{n}"), "RTX 3090") for n in range(3)]
MIXED = [Card(0, ("GPU-a0",), "GTX 1080"), Card(1, ("GPU-a1",), "RTX 4090")]
BUS = {"CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
GIB = 1 << 30


# ── Which GPU ────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("device", "environment", "index"),
    [
        ("cuda", {}, 0),
        ("cuda:0", {}, 0),
        ("cuda:2", {}, 2),
        ("cuda:0", {"CUDA_VISIBLE_DEVICES": "1"}, 1),
        ("cuda:1", {"CUDA_VISIBLE_DEVICES": "2,0"}, 0),
        ("cuda:1", {"CUDA_VISIBLE_DEVICES": " 2 , 1 "}, 1),
        ("cuda:0", {"CUDA_VISIBLE_DEVICES": "GPU-22"}, 2),
        ("cuda:0", {"CUDA_VISIBLE_DEVICES": "GPU-1"}, 1),
        ("cuda:0", {"CUDA_VISIBLE_DEVICES": "alias-1"}, 1),
        ("cuda:1", {"CUDA_VISIBLE_DEVICES": "GPU-2,1"}, 1),
    ],
)
def test_a_device_is_found_as_cuda_would_find_it(device: str, environment: Mapping[str, str], index: int) -> None:
    assert find_card(device, ALIKE, NvidiaReader(), environment).index == index


def test_a_slice_of_a_gpu_is_known_by_its_own_name() -> None:
    assert find_card("cuda:0", ALIKE, NvidiaReader(), {"CUDA_VISIBLE_DEVICES": "MIG-7"}).uuid == "MIG-7"


@pytest.mark.parametrize(
    ("device", "visible"),
    [("cuda:3", None), ("cuda:0", ""), ("cuda:0", "-1"), ("cuda:0", "7"), ("cuda:0", "GPU-"), ("cuda:1", "0,9,1")],
)
def test_a_device_that_cuda_would_not_find_is_not_found(device: str, visible: str | None) -> None:
    environment = {} if visible is None else {"CUDA_VISIBLE_DEVICES": visible}
    with pytest.raises(Unavailable, match=f"{device} is not among"):
        find_card(device, ALIKE, NvidiaReader(), environment)


@pytest.mark.parametrize("environment", [{}, {"CUDA_VISIBLE_DEVICES": "1"}, {"CUDA_VISIBLE_DEVICES": "GPU-a0, 1"}])
def test_numbers_that_cuda_gives_by_guessing_are_not_guessed_at(environment: dict[str, str]) -> None:
    with pytest.raises(Unavailable, match="set CUDA_DEVICE_ORDER=PCI_BUS_ID"):
        find_card("cuda:0", MIXED, NvidiaReader(), environment)
    assert find_card("cuda:0", MIXED, NvidiaReader(), environment | BUS).index is not None


def test_a_uuid_is_clear_whatever_the_order() -> None:
    assert find_card("cuda:0", MIXED, NvidiaReader(), {"CUDA_VISIBLE_DEVICES": "GPU-a1"}).index == 1


def test_rocms_two_variables_apply_one_after_the_other() -> None:
    environment = {"ROCR_VISIBLE_DEVICES": "2,1", "HIP_VISIBLE_DEVICES": "1"}
    assert find_card("cuda:0", ALIKE, AmdReader(), environment).index == 1


@pytest.mark.parametrize(
    ("device", "expected"), [("cuda", True), ("cuda:11", True), ("cpu", False), ("mps", False), ("cuda:x", False)]
)
def test_a_driver_is_asked_only_about_gpus(device: str, expected: bool) -> None:
    assert is_gpu(device) is expected
    assert [gpu.device for gpu in GpuWatch((device,), {}).latest()] == [device] * expected


def test_processes_are_ours_or_others_and_each_counts_once() -> None:
    ours, drawing, other = GpuProcess(7, 100), GpuProcess(8, 5), GpuProcess(9, 50)
    assert share_out([ours, drawing, other, drawing], 7) == {
        "other_processes": 2,
        "memory_own_bytes": 100,
        "memory_other_bytes": 55,
    }
    assert share_out([other], 7) == {"other_processes": 1, "memory_other_bytes": 50}
    assert share_out([ours, GpuProcess(9, None)], 7) == {"other_processes": 1, "memory_own_bytes": 100}


# ── A worker on a GPU ────────────────────────────────────────────────────────────────────────────────────────────────


async def gpu_of(worker: Process) -> dict[str, Any]:
    [gpu] = (await worker.client.health())["gpus"]
    return dict(gpu)


async def wait_gpu(worker: Process, **wanted: object) -> dict[str, Any]:
    def as_wanted(health: dict[str, Any]) -> bool:
        [gpu] = health["gpus"]
        return all(gpu[name] == value for name, value in wanted.items())

    [gpu] = (await worker.client.wait_health(as_wanted))["gpus"]
    return dict(gpu)


def on(gpus: FakeGpus, **variables: str) -> dict[str, str]:
    return gpus.environment | {"CUDA_DEVICE_ORDER": "PCI_BUS_ID"} | variables


async def test_the_figures_are_those_of_the_gpu_that_the_worker_sees_not_of_the_same_number(tmp_path: Path) -> None:
    gpus = FakeGpus(tmp_path, 2)
    gpus.set_gpu(0, temperature=30, name="the wrong one")
    gpus.set_gpu(1, temperature=71, used_mib=12288, utilization=93, power_watts=280, throttle=0x24, ecc=3, fan=80)
    async with process("--device", "cuda:0", environment=on(gpus, CUDA_VISIBLE_DEVICES="1")) as worker:
        gpus.set_gpu(1, processes=f"{worker.child.pid}:{4 * GIB},{os.getpid()}:{2 * GIB}")
        gpu = await wait_gpu(worker, state="ok", other_processes=1)
        metrics = (await worker.client.get("/metrics"))[1]
    assert 0 <= gpu.pop("age_seconds") < 5
    assert gpu == {
        "device": "cuda:0",
        "state": "ok",
        "detail": "",
        "index": 1,
        "uuid": "GPU-00000000-0000-0000-0000-000000000001",
        "name": "NVIDIA GeForce RTX 3090",
        "memory_total_bytes": 24 * GIB,
        "memory_used_bytes": 12 * GIB,
        "memory_own_bytes": 4 * GIB,
        "memory_other_bytes": 2 * GIB,
        "other_processes": 1,
        "utilization_ratio": 0.93,
        "temperature_celsius": 71,
        "temperature_limit_celsius": 95,
        "power_watts": 280,
        "power_limit_watts": 350,
        "clock_hertz": 1.695e9,
        "clock_limit_hertz": 2.1e9,
        "fan_ratio": 0.8,
        "throttled_by": ["power_cap", "software_thermal"],
        "ecc_corrected_errors": 0,
        "ecc_uncorrected_errors": 3,
        "xid_errors": 0,
        "xid_last": None,
    }
    for line in (
        'memory_bytes{gpu="1",kind="used"} 1.2884901888e+010',
        'memory_bytes{gpu="1",kind="other_processes"} 2.147483648e+09',
        'utilization_ratio{gpu="1"} 0.93',
        'temperature_celsius{gpu="1"} 71.0',
        'power_watts{gpu="1"} 280.0',
        'throttled{gpu="1",reason="software_thermal"} 1.0',
        'throttled{gpu="1",reason="hardware_thermal"} 0.0',
        'ecc_errors_total{gpu="1",kind="uncorrected"} 3.0',
        'xid_errors_total{gpu="1"} 0.0',
        'up{gpu="1"} 1.0',
        'info{gpu="1",name="NVIDIA GeForce RTX 3090",uuid="GPU-00000000-0000-0000-0000-000000000001"} 1.0',
    ):
        assert f"\ntts_worker_gpu_{line}\n" in metrics.replace("e+10", "e+010")
    assert "xid_last{" not in metrics


async def test_an_xid_is_counted_and_a_lost_gpu_is_said_to_be_lost(tmp_path: Path) -> None:
    gpus = FakeGpus(tmp_path, 2)
    gpus.set_gpu(0, xid="1:13")  # an old one, from before the worker
    async with process("--device", "cuda:0", environment=on(gpus)) as worker:
        await wait_gpu(worker, state="ok", xid_errors=0)
        gpus.set_gpu(0, xid="2:79")
        await wait_gpu(worker, xid_errors=1, xid_last=79)
        gpus.set_gpu(0, error=15)
        lost = await wait_gpu(worker, state="lost")
        assert lost["detail"] == "NVML: GPU is lost"
        assert (lost["index"], lost["uuid"][-1], lost["temperature_celsius"]) == (0, "0", None)
        assert (lost["xid_errors"], lost["xid_last"]) == (1, 79)
        assert await worker.client.metric('tts_worker_gpu_xid_errors_total{gpu="0"}') == 1
        assert await worker.client.metric('tts_worker_gpu_xid_last{gpu="0"}') == 79
        assert await worker.client.metric('tts_worker_gpu_up{gpu="0"}') == 0
        assert await worker.client.metric('tts_worker_gpu_state{gpu="0",state="lost"}') == 1
        assert "\ntts_worker_gpu_temperature_celsius{" not in (await worker.client.get("/metrics"))[1]
        await eventually(lambda: re.search(r"ERROR worker.gpu gpu=cuda:0 uuid=GPU-\S+ xid=79", worker.read_log()))
        assert re.search(r"WARNING worker.gpu gpu=cuda:0 .* state=lost", worker.read_log())
        gpus.set_gpu(0, error=None)
        await wait_gpu(worker, state="ok", xid_errors=1)


async def test_a_gpu_that_falls_off_the_bus_does_not_lend_its_number_to_the_next(tmp_path: Path) -> None:
    gpus = FakeGpus(tmp_path, 2)
    gpus.set_gpu(1, temperature=55)
    async with process("--device", "cuda:1", environment=on(gpus)) as worker:
        await wait_gpu(worker, state="ok", temperature_celsius=55)
        gpus.set(count=1)
        await wait_gpu(worker, state="lost", index=1)


async def test_a_lost_gpu_keeps_its_number_for_a_worker_that_starts_later(tmp_path: Path) -> None:
    gpus = FakeGpus(tmp_path, 2)
    gpus.set_gpu(0, error=15)
    async with process("--device", "cuda:0", environment=on(gpus)) as worker:
        await wait_gpu(worker, state="lost", index=0)
    async with process("--device", "cuda:1", environment=on(gpus)) as worker:
        await wait_gpu(worker, state="ok", index=1)


async def test_a_driver_that_hangs_holds_up_neither_the_loop_nor_the_engine_nor_the_end(tmp_path: Path) -> None:
    gpus = FakeGpus(tmp_path)
    async with process("--device", "cuda:0", environment=on(gpus)) as worker:
        await wait_gpu(worker, state="ok")
        gpus.set(hang=1)
        silent = await wait_gpu(worker, state="silent")
        assert re.fullmatch(r"the driver has not answered for \d+ s", silent["detail"])
        assert silent["temperature_celsius"] == 40  # the last one, and said to be old
        assert silent["age_seconds"] >= 3
        assert await worker.client.metric('tts_worker_gpu_up{gpu="0"}') == 0
        assert await worker.client.metric('tts_worker_gpu_age_seconds{gpu="0"}') >= 3
        assert decode((await worker.client.speak(segment("Still here."))).pcm) == "Still here."
        # The loop was never late by a second: every observation since the start lies below that.
        count = await worker.client.metric("tts_worker_event_loop_lag_seconds_count")
        assert await worker.client.metric('tts_worker_event_loop_lag_seconds_bucket{le="1.0"}') >= count - 1
        gpus.set(hang=None)
        await wait_gpu(worker, state="ok")
        gpus.set(hang=1)
        await wait_gpu(worker, state="silent")
        worker.signal(signal.SIGTERM)
        assert await worker.wait_exit() == 0


async def test_a_driver_that_hangs_from_the_start_does_not_keep_the_worker_from_speaking(tmp_path: Path) -> None:
    gpus = FakeGpus(tmp_path)
    gpus.set(hang=1)
    async with process("--device", "cuda:0", environment=on(gpus)) as worker:
        assert (await gpu_of(worker))["detail"] == "not read yet"
        await wait_gpu(worker, state="silent", index=None)
        assert await worker.client.metric('tts_worker_gpu_up{gpu="cuda:0"}') == 0
        assert (await worker.client.speak(segment())).kinds[-1] == "D"


@pytest.mark.parametrize(
    ("breakage", "detail"), [({"init_error": 9}, "NVML: Driver Not Loaded"), ({"count": 0}, "not among the 0 GPUs")]
)
async def test_a_driver_that_is_not_there_is_a_sentence(
    tmp_path: Path, breakage: dict[str, object], detail: str
) -> None:
    gpus = FakeGpus(tmp_path)
    gpus.set(**breakage)
    async with process("--device", "cuda:0", environment=on(gpus)) as worker:

        def told(health: dict[str, Any]) -> bool:
            return detail in health["gpus"][0]["detail"]

        [gpu] = (await worker.client.wait_health(told))["gpus"]
        assert gpu["state"] == "unreadable"
        assert (await worker.client.speak(segment())).kinds[-1] == "D"


async def test_the_figures_travel_on_the_link(tmp_path: Path) -> None:
    gpus = FakeGpus(tmp_path)
    gpus.set_gpu(0, temperature=90)
    async with gateway() as peer:
        options = ("--device", "cuda:0", "--gateways", f"127.0.0.1:{peer.port}")
        async with process(*options, environment=on(gpus)):
            await eventually(lambda: peer.statuses and peer.statuses[-1].gpus[0].temperature_celsius == 90)
            [gpu] = peer.statuses[-1].gpus
            assert (gpu.device, gpu.state, gpu.memory_total_bytes) == ("cuda:0", "ok", 24 * GIB)


async def test_a_worker_on_the_cpu_has_no_gpus() -> None:
    async with process() as worker:
        assert (await worker.client.health())["gpus"] == []
        assert "gpu" not in (await worker.client.get("/metrics"))[1]


def test_amds_package_without_its_library_is_a_sentence_and_prints_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    reader: Reader = AmdReader()
    with pytest.raises(Unavailable, match=r"AMD SMI: .*libamd_smi\.so"):
        reader.open()
    reader.close()
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("visible", [{"HIP_VISIBLE_DEVICES": "1"}, {"ROCR_VISIBLE_DEVICES": "GPU-000000000000abc1"}])
async def test_an_amd_gpu_is_read_by_amds_own_package(tmp_path: Path, visible: dict[str, str]) -> None:
    async with process("--device", "cuda:0", environment=amd_library(tmp_path) | visible) as worker:
        gpu = await wait_gpu(worker, state="ok")
        pid = worker.child.pid
    assert pid
    gpu.pop("age_seconds")
    told = {name: figure for name, figure in gpu.items() if figure is not None}
    assert told == {
        "device": "cuda:0",
        "state": "ok",
        "detail": "",
        "index": 1,
        "uuid": "01ff74a1-0000-1000-8000-000000000000",
        "name": "AMD Instinct MI300X",
        "memory_total_bytes": 196592 << 20,
        "memory_used_bytes": 150000 << 20,
        "memory_own_bytes": 5000,
        "memory_other_bytes": 700,
        "other_processes": 1,
        "utilization_ratio": 0.87,
        "temperature_celsius": 64,
        "temperature_limit_celsius": 110,
        "power_watts": 612,
        "clock_hertz": 1.9e9,
        "clock_limit_hertz": 2.1e9,
        "xid_errors": 0,
    }


async def test_an_amd_gpu_that_answers_no_more_is_lost(tmp_path: Path) -> None:
    environment = amd_library(tmp_path) | {"HIP_VISIBLE_DEVICES": "1", "FAKE_AMD_SMI_GONE": "1"}
    async with process("--device", "cuda:0", environment=environment) as worker:
        assert "NOT_FOUND" in (await wait_gpu(worker, state="lost"))["detail"]


async def test_a_process_whose_gpu_memory_has_grown_too_large_finishes_what_it_speaks_and_ends(tmp_path: Path) -> None:
    gpus = FakeGpus(tmp_path)
    options = ("--device", "cuda:0", "--max-gpu-memory-mb", "4096", "--tone-realtime-factor", "1")
    async with process(*options, environment=on(gpus)) as worker:
        # Somebody else on the same GPU is nobody's reason to end.
        gpus.set_gpu(0, processes=f"{worker.child.pid}:{4 * GIB},{os.getpid()}:{9 * GIB}")
        await wait_gpu(worker, memory_own_bytes=4 * GIB, other_processes=1)
        async with worker.client.speaking(segment("x" * 80)) as frames:
            assert (await anext(frames)).type is FrameType.META
            gpus.set_gpu(0, processes=f"{worker.child.pid}:{4 * GIB + 1}")
            await eventually(lambda: "state=draining" in worker.read_log(), "the drain")
            kinds = [frame.type async for frame in frames]
        assert kinds[-1] is FrameType.DONE
        assert await worker.wait_exit() == 0
        assert "on cuda:0 exceeds --max-gpu-memory-mb: draining, to be started anew" in worker.read_log()
