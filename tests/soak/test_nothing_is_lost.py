"""R1: whatever happens to the workers, every text is spoken whole, once, in order, to everybody who asked."""

import asyncio
import contextlib
import random

import aiohttp
import pytest

from tests.e2e.cluster import Cluster
from tests.soak.conftest import Scale
from tests.soak.load import Chaos, Tally, arrive, say
from worker.models.tone import Undecodable, decode

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(5400)]

WORDS = [
    *("the", "birch", "canoe", "slid", "on", "smooth", "planks", "while", "a", "rod", "is", "used", "to", "catch"),
    *("pink", "salmon", "near", "the", "quiet", "river", "bank"),
]
PACE = ("--tone-realtime-factor", "0.01")


def text_of(chance: random.Random, words: int) -> str:
    sentences = []
    while words > 0:
        length = min(words, chance.randint(4, 14))
        sentences.append(" ".join(chance.choices(WORDS, k=length)).capitalize() + ".")
        words -= length
    return " ".join(sentences)


async def test_while_workers_are_killed_stopped_and_restarted_at_random(cluster: Cluster, scale: Scale):
    short, long = scale.of(4_000, 100_000), scale.of(60, 1_000)
    per_second = 80.0
    # One caller asks for everything, while half of the fleet is away: how much may wait is another test's subject.
    await cluster.start_gateway("--max-queue-seconds", "86400", "--queue-timeout", "600")
    await cluster.start_workers(4, *PACE)
    chaos = Chaos(cluster, 11, *PACE)
    chaos_task = asyncio.create_task(chaos.run())
    tally = Tally()
    chance = random.Random(5)
    texts = [text_of(chance, chance.randint(2, 14)) for _ in range(short)]
    for n in range(long):
        texts[(n + 1) * (short // (long + 1))] = text_of(chance, chance.randint(250, 500))

    async def one(n: int) -> None:
        text = texts[n]
        try:
            answer = await cluster.speak(text, format="pcm")
        except aiohttp.ClientError as error:
            tally.note("cut", f"{type(error).__name__} {text[:40]!r}")
            return
        if answer.status != 200:
            tally.note(f"status {answer.status}", answer.body.decode()[:200])
            return
        try:
            same = decode(answer.body).replace(" ", "") == text.replace(" ", "")
        except Undecodable as error:
            tally.note("undecodable", str(error))
            return
        tally.note("whole" if same else "wrong", "" if same else text[:60])

    seconds = await arrive(short, per_second, one)
    chaos_task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await chaos_task
    say(f"{short} requests, {long} of them long, in {seconds:.0f} s; chaos {dict(chaos.done)}; {dict(tally.counts)}")
    say(
        f"retries before audio {await cluster.metric('tts_retries_total', phase='before_audio'):.0f}, "
        f"failovers in mid-stream {await cluster.metric('tts_failovers_total'):.0f}"
    )
    assert tally.counts == {"whole": short}, tally.examples
    assert await cluster.metric("tts_failovers_total") > 0
    assert all(chaos.done[kind] for kind in ("SIGKILL", "SIGSTOP", "restart"))
    await cluster.wait_idle()
