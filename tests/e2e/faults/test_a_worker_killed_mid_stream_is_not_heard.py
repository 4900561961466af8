"""A worker dies while it is being listened to; another continues at the very next sample."""

import pytest

from tests.e2e.cluster import Cluster
from worker.models.tone import decode

pytestmark = pytest.mark.e2e

TEXT = "This sentence is under way when the worker that speaks it is killed, and nobody can hear it."


@pytest.mark.parametrize("fault", ["exit-after", "fail-after", "stall-after"])
async def test_the_listener_gets_the_whole_text(cluster: Cluster, fault: str):
    await cluster.start_gateway("--stall-timeout", "0.5")
    # Slow enough that the chunks before the fault have left the worker when it comes: of a segment of which nothing has
    # come the next worker knows nothing either, and has the fault as well.
    await cluster.start_workers(2, "--tone-realtime-factor", "0.3")
    text = f"{{tone:{fault}=3}} {TEXT}"
    answer = await cluster.speak(text, format="pcm")
    assert answer.status == 200
    assert (
        decode(answer.body) == decode((await cluster.speak(text, format="pcm")).body) if fault != "exit-after" else True
    )
    assert decode(answer.body).replace(" ", "") == text.replace(" ", "")
    assert await cluster.metric("tts_failovers_total") >= 1
    await cluster.wait_idle()


async def test_the_audio_is_bit_for_bit_that_of_an_undisturbed_worker(cluster: Cluster):
    await cluster.start_gateway()
    workers = await cluster.start_workers(2, model="embedded")
    text = "The birch canoe slid on the smooth planks, and the hogs were fed chopped corn and garbage. " * 8
    undisturbed = await cluster.speak(text, format="pcm", seed=5)
    assert undisturbed.status == 200
    heard = bytearray()
    async with cluster.streaming(text, format="pcm", seed=5) as response:
        heard += await response.content.readexactly(48_000)
        await workers[0].kill()
        heard += await response.content.read()
    assert bytes(heard) == undisturbed.body


async def test_a_killed_process_in_mid_stream_with_the_link_up_until_then(cluster: Cluster):
    await cluster.start_gateway()
    workers = await cluster.start_workers(2, "--tone-realtime-factor", "0.05")
    async with cluster.streaming(TEXT * 3, format="pcm") as response:
        heard = bytearray(await response.content.readexactly(3200))
        busy = next(worker["id"] for worker in await cluster.listed() if worker["in_flight"])
        await cluster.workers[busy].kill()
        heard += await response.content.read()
    assert decode(bytes(heard)).replace(" ", "") == (TEXT * 3).replace(" ", "")
    assert sum(worker.is_running for worker in workers) == 1
