"""A worker that fails in 20 ms is always the least loaded one. It must not eat the traffic."""

import asyncio
from collections import Counter

import pytest

from tests.e2e.cluster import Cluster

pytestmark = pytest.mark.e2e


async def speak_many(cluster: Cluster, count: int) -> Counter[int]:
    lanes = asyncio.Semaphore(12)

    async def one(n: int) -> int:
        async with lanes:
            return (await cluster.speak(f"Sentence number {n} of many.", format="pcm")).status

    return Counter(await asyncio.gather(*(one(n) for n in range(count))))


@pytest.mark.parametrize(
    ("fault", "reason"),
    [("--tone-reject", "error"), ("--tone-stall-after-chunks=0", "stalled")],
    ids=["fails", "hangs"],
)
async def test_at_most_five_segments_meet_it_and_no_request_fails(cluster: Cluster, fault: str, reason: str):
    await cluster.start_gateway("--stall-timeout", "0.5")
    await cluster.start_workers(3, "--tone-realtime-factor", "0.01")
    await cluster.start_worker(fault, name="hole")
    await cluster.wait_ready(4)
    assert await speak_many(cluster, 300) == {200: 300}
    touched = await cluster.metric("tts_retries_total", reason=reason)
    outages = await cluster.metric("tts_ejections_total", reason=reason)
    assert outages >= 1
    # After each pause one segment is risked again.
    assert touched <= 5 + (outages - 1)
    assert next(worker for worker in await cluster.listed() if worker["id"] == "hole")["segments_spoken"] == 0
    await cluster.wait_idle()


async def test_a_worker_that_recovers_is_used_again(cluster: Cluster):
    await cluster.start_gateway()
    await cluster.start_worker("--tone-fail-first-segments", "4", name="ill")
    await cluster.start_worker(name="well")
    await cluster.wait_ready(2)

    async def reinstated() -> bool:
        assert set(await speak_many(cluster, 20)) == {200}
        ill = next(worker for worker in await cluster.listed() if worker["id"] == "ill")
        return ill["segments_spoken"] > 0 and ill["state"] == "ready"

    from tests.e2e.cluster import until

    await until(reinstated, "the worker to be trusted again")
    assert await cluster.metric("tts_ejections_total") >= 1
