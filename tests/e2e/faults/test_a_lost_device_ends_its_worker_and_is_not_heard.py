"""A device is lost in mid-segment: its process ends, to be started anew, and the listener hears the whole text."""

import pytest

from tests.e2e.cluster import Cluster
from worker.models.tone import decode

pytestmark = pytest.mark.e2e

TEXT = "This sentence is under way when the device of the worker that speaks it is lost, and nobody can hear it."


async def test_the_whole_text_is_heard_and_the_process_ends(cluster: Cluster):
    await cluster.start_gateway("--segments", "whole")
    sick = await cluster.start_worker("--tone-lose-device-after-chunks", "3")
    await cluster.wait_ready(1)
    # Alone, so that it is the one that speaks first.
    async with cluster.streaming(TEXT, format="pcm") as response:
        heard = bytearray(await response.content.readexactly(3200))
        await cluster.start_worker()
        heard += await response.content.read()
    assert decode(bytes(heard)).replace(" ", "") == TEXT.replace(" ", "")
    assert await sick.process.wait() == 1
    assert "DeviceLost: as staged, after 3 chunks" in sick.log_text()
    assert await cluster.metric("tts_failovers_total") >= 1
    await cluster.wait_idle()
    assert [worker["id"] for worker in await cluster.listed()] == ["w1"]
