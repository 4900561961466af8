"""R2: how long a listener waits when the worker that speaks to him dies: no longer than for the first words."""

import statistics
import time

import pytest

from tests.e2e.cluster import Cluster
from tests.soak.conftest import Scale
from tests.soak.load import say

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(1800)]

TEXT = (
    "The river rose after the long rain, and the people of the village carried sand to the bank through the night. "
    "In the morning the water stood still, the sun came out, and the children ran down to see the broken bridge."
)
RATE = 24_000


async def test_the_gap_in_delivery_is_as_short_as_the_wait_for_the_first_words(cluster: Cluster, scale: Scale):
    """Between the kill and the next audio lie the detection (a closed link) and a first chunk of another worker."""
    await cluster.start_gateway("--segments", "whole")
    await cluster.start_workers(2, model="embedded")
    undisturbed = (await cluster.speak(TEXT, format="pcm", seed=11)).body
    first_chunks: list[float] = []
    gaps: list[float] = []
    while len(gaps) < scale.of(2, 20):
        first_chunks.append(await _first_chunk_seconds(cluster))
        await cluster.wait_idle()
        gap, heard = await _gap_seconds(cluster)
        assert heard == undisturbed
        if gap is not None:
            gaps.append(gap)
    first, gap = statistics.median(first_chunks), statistics.median(gaps)
    say(
        f"{len(gaps)} kills in mid-stream: gap median {gap:.3f} s, longest {max(gaps):.3f} s; first chunk of an "
        f"undisturbed speech median {first:.3f} s, longest {max(first_chunks):.3f} s; ratio of medians "
        f"{gap / first:.2f}"
    )
    assert await cluster.metric("tts_failovers_total") >= len(gaps)


async def _first_chunk_seconds(cluster: Cluster) -> float:
    begin = time.monotonic()
    async with cluster.streaming(TEXT, format="pcm", seed=11) as response:
        await response.content.readany()
        return time.monotonic() - begin


async def _gap_seconds(cluster: Cluster) -> tuple[float | None, bytes]:
    """Kill the worker that speaks once some of it was heard; return the longest wait after it, None if it had all been
    spoken by then, and what was heard. The worker is replaced."""
    heard = bytearray()
    waits: list[float] = []
    async with cluster.streaming(TEXT, format="pcm", seed=11) as response:
        heard += await response.content.readexactly(2 * RATE // 10)
        busy = next((worker["id"] for worker in await cluster.listed() if worker["in_flight"]), None)
        before = await cluster.metric("tts_failovers_total")
        if busy is not None:
            await cluster.workers[busy].kill()
        last = time.monotonic()
        async for piece in response.content.iter_any():
            waits.append(time.monotonic() - last)
            last = time.monotonic()
            heard += piece
    if busy is not None:
        await cluster.start_worker(model="embedded", name=busy)
        await cluster.wait_ready(2)
    was_failover = await cluster.metric("tts_failovers_total") > before
    return (max(waits) if was_failover else None), bytes(heard)
