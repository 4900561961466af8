"""R7: a million requests leave no trace in memory, open files or counters."""

import asyncio
import contextlib
import random

import pytest

from tests.e2e.cluster import Cluster, until
from tests.soak.conftest import Scale
from tests.soak.load import Tally, Watch, arrive, say

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(14_400)]

# What a process of this kind may drift by while being flat: allocator and page noise over minutes, not a leak.
MIB_PER_MILLION_REQUESTS = 64


async def test_memory_and_open_files_stay_flat(cluster: Cluster, scale: Scale):
    count, warm = scale.of(2_000, 1_000_000), scale.of(1_000, 20_000)
    gateway = await cluster.start_gateway()
    workers = await cluster.start_workers(2)
    watch = Watch.of(gateway, *workers)
    chance = random.Random(2)
    tally = Tally()
    lanes = asyncio.Semaphore(16)

    async def one(n: int) -> None:
        async with lanes:
            text = f"Request {n}." if chance.random() < 0.9 else f"Request {n} has a second sentence. " * 8
            answer = await cluster.speak(text, format=chance.choice(["pcm", "wav"]), stream=chance.random() < 0.9)
            tally.note(f"status {answer.status}")

    # Closed loop at the highest rate that is to be had: time is not what is measured here.
    await arrive(warm, 1e9, one, most_at_once=64)
    await cluster.wait_idle()
    before = watch.look()
    looking = asyncio.create_task(watch.run(every_seconds=scale.of(1, 10)))
    seconds = await arrive(count, 1e9, one, most_at_once=64)
    looking.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await looking
    await cluster.wait_idle()
    after = watch.look()
    say(f"{count} requests in {seconds:.0f} s ({count / seconds:.0f}/s): {dict(tally.counts)}")
    for name, (resident, files) in after.items():
        slope = watch.bytes_per_hour(name) / 3600 * seconds / count * 1e6 / 2**20
        say(
            f"{name}: {before[name][0] / 2**20:.1f} -> {resident / 2**20:.1f} MiB, slope {slope:+.1f} MiB per million "
            f"requests; files {before[name][1]} -> {files}"
        )
        assert files <= before[name][1] + 4
        if scale.is_full:
            assert slope < MIB_PER_MILLION_REQUESTS
            assert resident - before[name][0] < MIB_PER_MILLION_REQUESTS * 2**20
    assert tally.counts == {"status 200": warm + count}

    async def nobody_served() -> bool:  # a handler ends a moment after its caller has all of it
        return await cluster.metric("tts_requests_in_progress") == 0

    await until(nobody_served, "the last request to have ended")
    assert await cluster.metric("tts_worker_in_flight") == 0
    assert await cluster.metric("tts_queue_depth") == 0
