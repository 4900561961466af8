"""A text on which every worker fails is its sender's trouble, not everybody's."""

import asyncio

import pytest

from tests.e2e.cluster import Cluster
from worker.models.tone import decode

pytestmark = pytest.mark.e2e


async def test_others_are_served_while_somebody_sends_it_again_and_again(cluster: Cluster):
    await cluster.start_gateway()
    await cluster.start_workers(3)

    async def poison() -> int:
        return (await cluster.speak("{tone:reject} is what every worker fails on.", stream=False)).status

    poisoned = [asyncio.create_task(poison()) for _ in range(12)]
    for n in range(20):
        answer = await cluster.speak(f"Sentence {n} is spoken all the same.", format="pcm")
        assert answer.status == 200
        assert decode(answer.body) == f"Sentence {n} is spoken all the same."
    assert set(await asyncio.gather(*poisoned)) == {502}
    await cluster.wait_idle()
