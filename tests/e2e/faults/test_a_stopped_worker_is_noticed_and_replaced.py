"""SIGSTOP: the process is there, its connections are open, and nothing comes. Silence is what gives it away."""

import signal

import pytest

from tests.e2e.cluster import Cluster, until
from worker.models.tone import decode

pytestmark = pytest.mark.e2e

TEXT = "A process that was stopped does not say that it was stopped, so somebody has to notice. " * 3


async def test_what_it_was_speaking_is_spoken_on_by_another(cluster: Cluster):
    await cluster.start_gateway()
    await cluster.start_workers(2, "--tone-realtime-factor", "0.05")
    async with cluster.streaming(TEXT, format="pcm") as response:
        heard = bytearray(await response.content.readexactly(3200))
        busy = next(worker["id"] for worker in await cluster.listed() if worker["in_flight"])
        cluster.workers[busy].signal(signal.SIGSTOP)
        heard += await response.content.read()
    assert decode(bytes(heard)).replace(" ", "") == TEXT.replace(" ", "")
    await cluster.wait_ready(1)
    cluster.workers[busy].signal(signal.SIGCONT)
    await cluster.wait_ready(2)
    await cluster.wait_idle()


async def test_an_idle_one_is_gone_from_the_list_before_a_request_meets_it(cluster: Cluster):
    await cluster.start_gateway()
    [worker] = await cluster.start_workers(1)
    worker.signal(signal.SIGSTOP)

    async def gone() -> bool:
        return await cluster.listed() == []

    await until(gone, "the stopped worker to be given up")
    assert "silent for 3 s" in cluster.gateway.log_text()
    worker.signal(signal.SIGCONT)
