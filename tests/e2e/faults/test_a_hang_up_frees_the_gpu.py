"""Whoever hangs up is not spoken to any more: queued segments vanish, running ones stop within one chunk."""

import asyncio
import contextlib
import json
import random
import socket
from urllib.parse import urlsplit

import aiohttp
import psutil
import pytest

from tests.e2e.cluster import Cluster, until

pytestmark = pytest.mark.e2e

LONG = "This goes on for quite a while, so that there is time to hang up in the middle of it. " * 20


async def slow_fleet(cluster: Cluster, workers: int = 2) -> None:
    await cluster.start_gateway()
    # A chunk of four characters every 0.13 s: hours of work, if nobody stopped it.
    await cluster.start_workers(workers, "--tone-realtime-factor", "0.5", "--slots", "1")


async def test_in_mid_stream(cluster: Cluster):
    await slow_fleet(cluster)
    async with cluster.streaming(LONG, format="pcm") as response:
        await response.content.readexactly(3200)
        assert (await cluster.health())["queue"]["characters"] > 0
    await cluster.wait_idle()
    assert await cluster.metric("tts_cancelled_total", stage="streaming") == 1


async def test_while_queued_and_before_the_first_audio(cluster: Cluster):
    await slow_fleet(cluster, workers=1)
    async with cluster.streaming(LONG, format="pcm"):
        waiting = asyncio.create_task(cluster.speak(LONG))

        async def queued() -> bool:
            return (await cluster.health())["queue"]["characters"] > 2 * len(LONG) - 700

        await until(queued, "the second request to wait")
        waiting.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await waiting

        async def left() -> bool:
            return await cluster.metric("tts_cancelled_total", stage="before_audio") == 1

        await until(left, "the second request to leave the line")
    await cluster.wait_idle()


async def test_when_the_answer_was_not_to_be_streamed(cluster: Cluster):
    await slow_fleet(cluster)
    whole = asyncio.create_task(cluster.speak(LONG, stream=False))

    async def running() -> bool:
        return any(worker["reported_in_flight"] for worker in await cluster.listed())

    await until(running, "the request to run")
    whole.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await whole
    await cluster.wait_idle()


async def test_when_the_audio_comes_as_events(cluster: Cluster):
    await slow_fleet(cluster)
    body = {"input": LONG, "response_format": "pcm", "stream_format": "sse"}
    async with cluster.session.post(cluster.url + "/v1/audio/speech", json=body) as response:
        assert b"speech.audio.delta" in await response.content.readline()
        response.close()
    await cluster.wait_idle()


async def test_a_caller_who_closes_only_his_sending_side_is_still_answered_or_freed(cluster: Cluster):
    """Half-close: a client that has said all may shut down its sending side. aiohttp takes that for a hang-up; what
    matters is that nothing runs on behind it."""
    await slow_fleet(cluster)
    address = urlsplit(cluster.url)
    reader, writer = await asyncio.open_connection(address.hostname, address.port)
    body = json.dumps({"text": LONG, "format": "pcm"}).encode()
    writer.write(
        b"POST /v1/tts HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        b"Content-Length: " + str(len(body)).encode() + b"\r\n\r\n" + body
    )
    await reader.readuntil(b"\r\n\r\n")
    writer.get_extra_info("socket").shutdown(socket.SHUT_WR)
    await cluster.wait_idle()
    writer.close()


async def test_after_hundreds_of_random_hang_ups_everything_is_back_where_it_was(cluster: Cluster):
    await cluster.start_gateway()
    await cluster.start_workers(2, "--tone-realtime-factor", "0.02")
    chance = random.Random(3)
    assert (await cluster.speak("Warm up.")).status == 200
    await cluster.wait_idle()
    processes = [psutil.Process(cluster.gateway.pid), *(psutil.Process(w.pid) for w in cluster.workers.values())]
    before = [process.num_threads() for process in processes]

    async def hang_up_somewhere() -> None:
        form = chance.choice(["pcm", "wav", "mp3", "opus", "flac", "aac"])
        async with aiohttp.ClientSession() as session:
            with contextlib.suppress(TimeoutError, aiohttp.ClientError):
                async with asyncio.timeout(chance.random() ** 2 * 0.6):
                    async with session.post(
                        cluster.url + "/v1/tts",
                        json={"text": LONG[: chance.randint(5, 1700)], "format": form, "stream": chance.random() < 0.8},
                    ) as response:
                        await response.read()

    lanes = asyncio.Semaphore(20)

    async def one() -> None:
        async with lanes:
            await hang_up_somewhere()

    await asyncio.gather(*(one() for _ in range(400)))
    await cluster.wait_idle()
    assert await cluster.metric("tts_requests_in_progress") == 0
    assert await cluster.metric("tts_cancelled_total") > 100

    async def connections_closed() -> bool:
        established = [c for p in processes for c in p.net_connections("tcp") if c.status == psutil.CONN_CLOSE_WAIT]
        return not established

    await until(connections_closed, "no connection to be left half open")
    cpus = psutil.cpu_count() or 1
    assert all(p.num_threads() <= n + 2 * cpus for p, n in zip(processes, before, strict=True))
    assert (await cluster.speak("And it still speaks.", format="pcm")).status == 200
