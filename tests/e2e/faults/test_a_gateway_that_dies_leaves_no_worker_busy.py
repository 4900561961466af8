"""The gateway itself is killed in mid-stream: the listener can tell, the workers stop, and find the next gateway."""

import aiohttp
import pytest

from tests.e2e.cluster import Cluster, until
from worker.models.tone import decode

pytestmark = pytest.mark.e2e

TEXT = "This goes on for a good while, and the gateway is killed before the end of it was spoken. " * 20


async def test_workers_fall_idle_and_serve_the_gateway_that_comes_after_it(cluster: Cluster):
    gateway = await cluster.start_gateway()
    await cluster.start_workers(2, "--tone-realtime-factor", "0.5")
    workers = [f"http://{worker['address']}/health" for worker in await cluster.listed()]
    public, internal = (int(url.rpartition(":")[2]) for url in (cluster.url, cluster.internal_url))

    async def busy_slots() -> int:
        total = 0
        for url in workers:
            async with cluster.session.get(url) as response:
                total += (await response.json())["in_flight"]
        return total

    async with cluster.streaming(TEXT, format="pcm") as response:
        await response.content.readexactly(30_000)
        assert await busy_slots() > 0
        await gateway.kill()
        with pytest.raises(aiohttp.ClientError):  # cut, not ended: nobody takes this for the whole
            await response.content.read()

    async def idle() -> bool:
        return await busy_slots() == 0

    await until(idle, "the workers to stop speaking to nobody")
    await cluster.start_gateway(public_port=public, internal_port=internal)
    await cluster.wait_ready(2)
    answer = await cluster.speak("After it.", format="pcm")
    assert decode(answer.body) == "After it."
