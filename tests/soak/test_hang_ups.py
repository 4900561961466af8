"""R3: thousands of random hang-ups at all stages, and everything is back where it was."""

import asyncio
import contextlib
import random
import time

import aiohttp
import pytest

from tests.e2e.cluster import Cluster, until
from tests.soak.conftest import Scale
from tests.soak.load import Watch, arrive, say

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(3600)]

LONG = "This goes on for quite a while, so that there is time to hang up in the middle of it. " * 20
ROUTES = ("/v1/tts", "/v1/audio/speech")
FORMATS = ("pcm", "pcm", "pcm", "wav", "mp3", "opus", "flac", "aac")


async def test_after_thousands_of_hang_ups_at_all_stages_nothing_runs_on(cluster: Cluster, scale: Scale):
    count = scale.of(600, 10_000)
    gateway = await cluster.start_gateway()
    workers = await cluster.start_workers(3, "--tone-realtime-factor", "0.02", "--slots", "2")
    watch = Watch.of(gateway, *workers)
    chance = random.Random(17)

    async def hang_up(_: int) -> None:
        body = {
            "text": LONG[: chance.randint(5, len(LONG))],
            "format": chance.choice(FORMATS),
            "stream": chance.random() < 0.8,
        }
        route = chance.choice(ROUTES)
        if route == "/v1/audio/speech":
            body = {
                "input": body["text"],
                "response_format": body["format"],
                "stream_format": chance.choice(["audio", "sse"]),
            }
        async with aiohttp.ClientSession(trust_env=False) as session:
            # A short answer may have been heard to its end before so many bytes came.
            with contextlib.suppress(TimeoutError, aiohttp.ClientError, asyncio.IncompleteReadError):
                async with asyncio.timeout(chance.random() ** 2 * 1.2):
                    async with session.post(cluster.url + route, json=body) as response:
                        if chance.random() < 0.5:
                            await response.content.readexactly(chance.randint(1, 200_000))
                            response.close()
                        else:
                            await response.read()

    # A first wave fills pools, caches and thread stacks; the count starts after it.
    await arrive(100, 40.0, hang_up)
    await cluster.wait_idle()
    before = watch.look()
    await arrive(count, 40.0, hang_up)
    ended = time.monotonic()
    await cluster.wait_idle()
    idle_seconds = time.monotonic() - ended

    async def nobody_served() -> bool:  # a handler ends a moment after its slots are back
        return await cluster.metric("tts_requests_in_progress") == 0

    await until(nobody_served, "the last request to have ended")

    async def files_back() -> bool:
        return all(now[1] <= was[1] + 4 for now, was in zip(watch.look().values(), before.values(), strict=True))

    await until(files_back, "open files to be back where they were")
    after = watch.look()
    stages = {
        stage: await cluster.metric("tts_cancelled_total", stage=stage)
        for stage in ("parsing", "before_audio", "streaming")
    }
    say(f"{count} hang-ups; idle again after {idle_seconds:.2f} s; cancelled {stages}")
    say(f"open files before {[f for _, f in before.values()]} after {[f for _, f in after.values()]}")
    say(f"MiB before {[r >> 20 for r, _ in before.values()]} after {[r >> 20 for r, _ in after.values()]}")
    assert stages["before_audio"] > 0
    assert stages["streaming"] > 0
    assert (await cluster.speak("And it still speaks.", format="pcm")).status == 200
