"""When nobody can finish a speech that was begun, the client must be able to tell."""

import json

import aiohttp
import pytest

from tests.e2e.cluster import Cluster

pytestmark = pytest.mark.e2e

TEXT = "This will be cut off in the middle, and whoever listens must be able to tell that. " * 4


async def broken_fleet(cluster: Cluster) -> None:
    await cluster.start_gateway("--max-tries", "2")
    await cluster.start_workers(2, "--tone-fail-after-chunks", "3")


@pytest.mark.parametrize("form", ["wav", "mp3", "opus", "flac", "aac", "pcm"])
async def test_a_stream_that_cannot_be_finished_ends_with_an_error_of_the_transfer(cluster: Cluster, form: str):
    await broken_fleet(cluster)
    async with cluster.session.post(cluster.url + "/v1/tts", json={"text": TEXT, "format": form}) as response:
        if response.status == 200:
            with pytest.raises(aiohttp.ClientPayloadError):
                await response.read()
        else:
            assert response.status == 502
    assert await cluster.metric("tts_requests_total", outcome="failed") == 1


async def test_a_stream_of_events_says_so_before_it_breaks_off(cluster: Cluster):
    await broken_fleet(cluster)
    body = {"input": TEXT, "response_format": "pcm", "stream_format": "sse"}
    events = []
    async with cluster.session.post(cluster.url + "/v1/audio/speech", json=body) as response:
        assert response.status == 200
        broken_off = False
        try:
            async for line in response.content:
                if line.startswith(b"data: "):
                    events.append(line.removeprefix(b"data: ").strip())
        except aiohttp.ClientPayloadError:
            broken_off = True
    assert broken_off
    assert b"[DONE]" not in events
    assert json.loads(events[-1])["error"]["code"] == "worker_failed"


async def test_an_answer_that_is_not_streamed_is_a_502(cluster: Cluster):
    await broken_fleet(cluster)
    answer = await cluster.speak(TEXT, stream=False)
    assert (answer.status, answer.error["code"]) == (502, "worker_failed")
    await cluster.wait_idle()
