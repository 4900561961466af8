"""What Prometheus reads of a real fleet: valid, bounded, and telling the sick GPU."""

from __future__ import annotations

import asyncio
import re
import secrets
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio

from gateway.metrics import ENDPOINTS
from tests.e2e.cluster import Cluster, until
from tests.fakes.gpus import FakeGpus
from wire.gpu import GpuState

pytestmark = [pytest.mark.e2e, pytest.mark.asyncio(loop_scope="module")]

TEXT = "One sentence of a text. And another one, so that there are segments. Here is a third."
GIB = 1 << 30


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def gpus(tmp_path_factory: pytest.TempPathFactory) -> FakeGpus:
    return FakeGpus(tmp_path_factory.mktemp("driver"), 2)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def fleet(gpus: FakeGpus, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Cluster]:
    """A worker for each of two pretended GPUs, as the units start them."""
    async with Cluster(tmp_path_factory.mktemp("metrics")) as made:
        await made.start_gateway()
        for index in ("0", "1"):
            made.environment = gpus.environment | {"CUDA_DEVICE_ORDER": "PCI_BUS_ID", "CUDA_VISIBLE_DEVICES": index}
            await made.start_worker("--device", "cuda:0", "--tone-realtime-factor", "0.01", name=f"w{index}")
        await made.wait_ready(2)
        yield made


async def scrape(cluster: Cluster, url: str) -> str:
    async with cluster.session.get(f"{url}/metrics") as response:
        assert response.status == 200
        return await response.text()


async def worker_url(cluster: Cluster, worker: str) -> str:
    [address] = [one["address"] for one in await cluster.listed() if one["id"] == worker]
    return f"http://{address}"


def series(text: str) -> set[str]:
    """Return the name and labels of every series."""
    return {line.rpartition(" ")[0] for line in text.splitlines() if line and not line.startswith("#")}


async def wait_listed(cluster: Cluster, worker: str, **wanted: object) -> dict[str, Any]:
    """Wait until `/admin/workers` says this of the worker's GPU; return all that it says of it."""

    async def listed() -> dict[str, Any] | None:
        [gpu] = next(one["gpus"] for one in await cluster.listed() if one["id"] == worker) or [{}]
        return gpu if all(gpu.get(name) == value for name, value in wanted.items()) else None

    gpu: dict[str, Any] = await until(listed, f"{worker}'s GPU to show {wanted}")
    return gpu


async def wait_sample(cluster: Cluster, worker: str, series: str, value: float) -> None:
    """Wait until the worker's own metrics have this value of `tts_worker_gpu_` and what follows it."""
    url = await worker_url(cluster, worker)

    async def seen() -> bool:
        found = re.search(rf"^tts_worker_gpu_{re.escape(series)} (\S+)$", await scrape(cluster, url), re.MULTILINE)
        return found is not None and float(found[1]) == value

    await until(seen, f"{worker} to expose {series} {value:g}")


async def promtool(exposition: str) -> tuple[int | None, str]:
    """Return the exit code of `promtool check metrics` and its complaints."""
    pipe = asyncio.subprocess.PIPE
    running = await asyncio.create_subprocess_exec(
        "promtool", "check", "metrics", stdin=pipe, stdout=pipe, stderr=asyncio.subprocess.STDOUT
    )
    complaints, _ = await running.communicate(exposition.encode())
    return running.returncode, complaints.decode()


async def test_promtool_finds_nothing_to_complain_of_under_load(fleet: Cluster) -> None:
    texts = [fleet.speak(TEXT, format=format_) for format_ in ("wav", "mp3", "opus", "flac") for _ in range(5)]
    bad = [fleet.speak(""), fleet.speak("x", voice="nobody"), fleet.post("/v1/audio/speech", {"input": 7})]
    speaking = asyncio.gather(*texts, *bad)
    urls = [fleet.internal_url, await worker_url(fleet, "w0"), await worker_url(fleet, "w1")]
    while True:
        for url in urls:
            exposition = await scrape(fleet, url)
            assert await promtool(exposition) == (0, "")
        if speaking.done():  # once more after the last request
            break
        await asyncio.wait([speaking], timeout=0.2)
    assert [answer.status for answer in await speaking] == [200] * 20 + [422, 404, 422]
    assert await fleet.metric("tts_requests_total", outcome="ok") >= 20
    assert await fleet.metric("tts_segment_prediction_ratio_count") >= 20
    text = await scrape(fleet, await worker_url(fleet, "w0"))
    for name in ("tokens_total", 'stage_seconds_total{stage="vocode"}', "decode_step_seconds_sum"):
        found = re.search(rf"^tts_worker_{re.escape(name)} (\S+)$", text, re.MULTILINE)
        assert found, name
        assert float(found[1]) > 0


async def test_no_id_or_name_that_a_caller_makes_up_becomes_a_series(fleet: Cluster) -> None:
    async def flood(count: int) -> None:
        async def one(n: int) -> None:
            name = secrets.token_hex(8)
            body = {"text": f"Word {name}.", "format": "pcm"}
            odd = [{"voice": name}, {"model": name}, {name: name}, {"format": name}, {"language": name}, {}, {}, {}][
                n % 8
            ]
            headers = {"X-Request-Id": name, "User-Agent": name, "Authorization": f"Bearer {name}"}
            path = ["/v1/tts", f"/v1/{name}", "/v1/audio/speech"][n % 3]
            async with fleet.session.post(fleet.url + path, json=body | odd, headers=headers) as response:
                await response.read()

        await asyncio.gather(*(one(n) for n in range(count)))

    urls = [fleet.internal_url, await worker_url(fleet, "w0"), await worker_url(fleet, "w1")]
    await flood(48)
    before = [series(await scrape(fleet, url)) for url in urls]
    await flood(192)
    after = [series(await scrape(fleet, url)) for url in urls]
    assert [new - old for new, old in zip(after, before, strict=True)] == [set(), set(), set()]
    labelled = re.findall(r'endpoint="([^"]*)"', await scrape(fleet, fleet.internal_url))
    assert set(labelled) <= set(ENDPOINTS)


async def test_the_sick_gpu_is_told_apart_in_metrics_and_in_the_list_of_workers(fleet: Cluster, gpus: FakeGpus) -> None:
    await wait_listed(fleet, "w0", state=GpuState.OK, index=0)
    await wait_listed(fleet, "w1", state=GpuState.OK, index=1)
    used = (24576 * 95 // 100) << 20
    gpus.set_gpu(0, used_mib=used >> 20)
    gpu = await wait_listed(fleet, "w0", memory_used_bytes=used)
    assert used / gpu["memory_total_bytes"] == pytest.approx(0.95, abs=1e-3)
    await wait_sample(fleet, "w0", 'memory_bytes{gpu="0",kind="used"}', used)
    gpus.set_gpu(1, temperature=90, throttle=0x40)
    gpu = await wait_listed(fleet, "w1", temperature_celsius=90, throttled_by=["hardware_thermal"])
    assert gpu["temperature_limit_celsius"] == 95
    await wait_sample(fleet, "w1", 'temperature_celsius{gpu="1"}', 90)
    await wait_sample(fleet, "w1", 'throttled{gpu="1",reason="hardware_thermal"}', 1)
    gpus.set_gpu(0, xid="1:79")
    await wait_listed(fleet, "w0", state=GpuState.OK, xid_errors=1, xid_last=79)
    gpus.set_gpu(0, error=15)
    lost = await wait_listed(fleet, "w0", state=GpuState.LOST, xid_last=79)
    assert (lost["detail"], lost["uuid"]) == ("NVML: GPU is lost", "GPU-00000000-0000-0000-0000-000000000000")
    for series_, value in (('xid_errors_total{gpu="0"}', 1), ('xid_last{gpu="0"}', 79), ('up{gpu="0"}', 0)):
        await wait_sample(fleet, "w0", series_, value)
    # The other worker's is as well as before, and its series say so.
    assert (await wait_listed(fleet, "w1", state=GpuState.OK))["xid_errors"] == 0
    assert await fleet.metric("tts_worker_up") == 2
    health = await fleet.health()
    assert [worker["gpus"][0]["state"] for worker in health["workers"]] == ["lost", "ok"]
