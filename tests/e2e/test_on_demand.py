"""A worker that gives its model's memory back when nobody wants it, and loads again for whoever comes."""

import asyncio
from pathlib import Path

import pytest

from tests.e2e.cluster import Cluster, until
from worker.models.tone import decode

pytestmark = pytest.mark.e2e


async def wait_asleep(cluster: Cluster, count: int) -> None:
    async def asleep() -> bool:
        return sum(worker["state"] == "asleep" for worker in await cluster.listed()) == count

    await until(asleep, f"{count} workers to be asleep")


async def test_a_request_for_a_sleeping_model_loads_it_and_is_spoken(tmp_path: Path):
    async with Cluster(tmp_path) as cluster:
        await cluster.start_gateway()
        internal = cluster.internal_url.removeprefix("http://")
        for _ in range(2):
            await cluster.start_worker("--unload-after", "0.2", "--slots", "1", "--tone-load-seconds", "0.1")
        await wait_asleep(cluster, 2)
        assert await cluster.metric("tts_worker_state", state="asleep") == 2
        async with cluster.session.get(f"{cluster.url}/readyz") as ready:
            assert ready.status == 200
        status = await cluster.start("status", "tts-gateway", "status", "--internal", internal)
        assert await status.process.wait() == 0
        assert "All 2 workers sleep until a request comes. Nothing waits." in status.log_text()
        assert status.log_text().count("asleep: its model is unloaded") == 2
        answer = await cluster.speak("Good morning.", format="pcm")
        assert decode(answer.body) == "Good morning."
        await wait_asleep(cluster, 2)


async def test_requests_that_race_with_the_unloading_are_all_heard_whole(tmp_path: Path):
    async with Cluster(tmp_path) as cluster:
        await cluster.start_gateway()
        # So impatient that it unloads between two of them, and often in the instant in which the next one comes.
        worker = await cluster.start_worker("--unload-after", "0.01", "--slots", "2")
        for number in range(40):
            if number % 4 == 3:  # on a fast machine the next one is there before it is out of patience

                async def was_unloaded(times: int = number // 4 + 1) -> bool:
                    return worker.log_text().count("state=unloaded") >= times

                await until(was_unloaded, "the model to be unloaded")
            texts = [f"This is number {number}{letter}." for letter in "ab"]
            answers = await asyncio.gather(*(cluster.speak(text, format="pcm") for text in texts))
            assert [decode(answer.body) for answer in answers] == texts
        assert await cluster.metric("tts_retries_total") == 0
        log = worker.log_text()
        assert log.count("state=unloaded") > 5
        assert log.count("state=loading") <= log.count("state=unloaded") + 1
