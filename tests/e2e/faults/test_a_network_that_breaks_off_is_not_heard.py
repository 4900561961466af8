"""Between gateway and worker lies a network. Whatever it does to an answer, the listener gets all of it."""

import pytest

from tests.e2e.cluster import Cluster, free_port
from tests.fakes.fault_proxy import Fault, FaultProxy
from worker.models.tone import decode

pytestmark = pytest.mark.e2e

TEXT = "The network breaks off in the middle of this sentence, and whoever listens does not notice anything of it."
# Behind the HTTP headers and the first chunks, in the midst of an audio frame.
MID_STREAM = 30_001


async def behind_a_proxy(cluster: Cluster, proxy: FaultProxy) -> None:
    """One worker that is reached through the proxy, and, once that one has been met, a healthy one."""
    await cluster.start_gateway("--stall-timeout", "0.5", "--segments", "whole")
    port = proxy.target_port
    await cluster.start_worker("--announce-port", str(proxy.port), name="far", port=port)
    await cluster.wait_ready(1)


@pytest.mark.parametrize("fault", [Fault.RESET, Fault.TRUNCATE, Fault.HALF_CLOSE, Fault.BLACK_HOLE])
@pytest.mark.parametrize("after_bytes", [0, 150, MID_STREAM], ids=["at_once", "in_the_headers", "in_mid_stream"])
async def test_the_text_is_whole_whatever_the_network_does(cluster: Cluster, fault: Fault, after_bytes: int):
    proxy = FaultProxy(target_port=free_port(), fault=fault, after_bytes=after_bytes)
    async with proxy.running():
        await behind_a_proxy(cluster, proxy)
        await cluster.start_worker(name="near")
        await cluster.wait_ready(2)
        for n in range(8):  # enough of them that the lot falls on the far worker
            answer = await cluster.speak(f"{n} {TEXT}", format="pcm")
            assert answer.status == 200
            assert decode(answer.body) == f"{n} {TEXT}"
        assert proxy.struck > 0
        assert await cluster.metric("tts_retries_total") >= proxy.struck
        await cluster.wait_idle()


async def test_a_slow_network_is_no_fault(cluster: Cluster):
    proxy = FaultProxy(target_port=free_port(), delay_seconds=0.01, trickle_bytes_per_second=2_000_000)
    async with proxy.running():
        await behind_a_proxy(cluster, proxy)
        answer = await cluster.speak(TEXT, format="pcm")
        assert decode(answer.body) == TEXT
        assert proxy.connections > 0
        assert await cluster.metric("tts_retries_total") == 0
