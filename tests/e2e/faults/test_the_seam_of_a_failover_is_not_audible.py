"""SIGKILL in mid-stream with a real voice: the recogniser hears the whole text, and no sample of it differs."""

import asyncio

import pytest

from tests.e2e.cluster import Cluster

pytestmark = pytest.mark.e2e

TEXT = (
    "The river rose after the long rain, and the people of the village carried sand to the bank through the night. "
    "In the morning the water stood still, the sun came out, and the children ran down to see the broken bridge."
)
RATE = 24_000


async def test_the_whole_text_is_heard_and_the_seam_is_no_seam(cluster: Cluster, ears):
    from tests.e2e.ears import word_error_rate

    await cluster.start_gateway("--segments", "whole")
    await cluster.start_workers(2, model="embedded")
    undisturbed = await cluster.speak(TEXT, format="pcm", seed=11)
    heard = bytearray()
    async with cluster.streaming(TEXT, format="pcm", seed=11) as response:
        heard += await response.content.readexactly(2 * RATE // 5)
        busy = next((worker["id"] for worker in await cluster.listed() if worker["in_flight"]), None)
        if busy is not None:
            await cluster.workers[busy].kill()
        heard += await response.content.read()
    assert word_error_rate(TEXT, ears.hear(bytes(heard), pcm_rate=RATE)) <= 0.1
    assert bytes(heard) == undisturbed.body, "the seam is exact: not a sample differs from an undisturbed speech"
    assert await cluster.metric("tts_failovers_total") >= 1


async def test_it_is_heard_whole_when_every_worker_in_turn_is_killed(cluster: Cluster, ears):
    from tests.e2e.ears import word_error_rate

    await cluster.start_gateway()
    await cluster.start_workers(3, model="embedded")
    text = f"{TEXT} {TEXT}"

    async def killer() -> None:
        for name in list(cluster.workers):
            await cluster.workers[name].kill()
            await cluster.start_worker(model="embedded", name=name)
            await cluster.wait_ready(3)

    killing = asyncio.create_task(killer())
    answers = []
    while not killing.done():
        answers.append(await cluster.speak(text, format="pcm", seed=3))
    await killing
    assert {answer.status for answer in answers} == {200}
    assert len({answer.body for answer in answers}) == 1
    assert word_error_rate(text, ears.hear(answers[0].body, pcm_rate=RATE)) <= 0.1
