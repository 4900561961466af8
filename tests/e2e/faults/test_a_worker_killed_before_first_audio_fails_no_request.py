"""SIGKILL of one of three workers under load: whoever had not heard anything yet is served by another, unaware."""

import asyncio
import random
from collections import Counter

import pytest

from tests.e2e.cluster import Answer, Cluster
from worker.models.tone import decode

pytestmark = pytest.mark.e2e

REQUESTS = 1000
PER_SECOND = 50


async def test_none_of_a_thousand_requests_fails(cluster: Cluster):
    await cluster.start_gateway()
    # Each request is some 0.13 s of work, most of it before its first audio, so that each worker has two at any time.
    # At half of that the one that is killed was sometimes idle, and there was nothing to try again.
    workers = await cluster.start_workers(3, "--tone-realtime-factor", "0.01", "--tone-overhead-seconds", "0.1")
    chance = random.Random(7)
    texts = [f"Request number {n} says {chance.random()}." for n in range(REQUESTS)]
    loop = asyncio.get_running_loop()
    begin = loop.time()

    async def one(n: int, text: str) -> Answer:
        await asyncio.sleep(begin + n / PER_SECOND - loop.time())  # open loop: arrivals do not wait for answers
        if n == REQUESTS // 3:
            await workers[0].kill()
        return await cluster.speak(text, format="pcm")

    answers = await asyncio.gather(*(one(n, text) for n, text in enumerate(texts)))
    assert Counter(answer.status for answer in answers) == {200: REQUESTS}
    wrong = [text for text, answer in zip(texts, answers, strict=True) if decode(answer.body) != text]
    assert wrong == []
    assert await cluster.metric("tts_retries_total") > 0
    await cluster.wait_idle()
