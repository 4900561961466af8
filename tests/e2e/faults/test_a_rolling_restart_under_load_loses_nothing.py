"""Every worker is drained and started anew, one after another, while people listen."""

import asyncio
from collections import Counter

import pytest

from tests.e2e.cluster import Cluster, until
from worker.models.tone import decode

pytestmark = pytest.mark.e2e

PACE = ("--tone-realtime-factor", "0.02")


async def test_nobody_is_cut_off_and_nobody_is_refused(cluster: Cluster):
    await cluster.start_gateway()
    await cluster.start_workers(3, *PACE)
    outcomes: Counter[str] = Counter()
    stop = asyncio.Event()

    async def listener(n: int) -> None:
        turn = 0
        while not stop.is_set():
            turn += 1
            text = f"Listener {n} hears this for the time number {turn}, from beginning to end. " * (1 + n % 4)
            answer = await cluster.speak(text, format="pcm")
            whole = answer.status == 200 and decode(answer.body).replace(" ", "") == text.replace(" ", "")
            outcomes["whole" if whole else f"status {answer.status}"] += 1

    listeners = [asyncio.create_task(listener(n)) for n in range(12)]
    for name in list(cluster.workers):
        before = outcomes["whole"]
        assert await cluster.workers[name].stop() == 0
        await cluster.start_worker(*PACE, name=name)
        await cluster.wait_ready(3)

        async def served(before: int = before) -> bool:
            return outcomes["whole"] > before + 12

        await until(served, "requests to be served meanwhile")
    stop.set()
    await asyncio.gather(*listeners)
    assert set(outcomes) == {"whole"}, outcomes
    assert await cluster.metric("tts_failovers_total") == 0, "a drained worker finishes what it has"
    await cluster.wait_idle()
