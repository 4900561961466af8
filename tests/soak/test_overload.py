"""R5 and R6: more work than the fleet can do, and one caller who wants all of it."""

import asyncio
import bisect
import contextlib
import random
import statistics
import time
from collections import Counter
from dataclasses import dataclass, field

import aiohttp
import pytest

from tests.e2e.cluster import Cluster
from tests.soak.conftest import Scale
from tests.soak.load import arrive, say

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(3600)]

WORKERS, SLOTS, REALTIME_FACTOR = 2, 2, 0.06
PACE = ("--tone-realtime-factor", str(REALTIME_FACTOR), "--slots", str(SLOTS))
# What the fleet speaks in a second when it never pauses: the tone model speaks 15 characters a second of audio.
CHARACTERS_PER_SECOND = WORKERS * SLOTS * 15 / REALTIME_FACTOR


@dataclass
class Callers:
    """Clients with addresses of their own on the loopback network, and when each of their requests got what."""

    cluster: Cluster
    completed: list[tuple[float, int]] = field(default_factory=list)  # instant, characters
    refused: list[tuple[float, float, float]] = field(default_factory=list)  # instant, seconds it took, Retry-After
    seconds: dict[str, list[float]] = field(default_factory=dict)  # by address: request to last byte
    statuses: Counter[int] = field(default_factory=Counter)
    sessions: dict[str, aiohttp.ClientSession] = field(default_factory=dict)

    async def ask(self, address: str, text: str) -> None:
        session = self.sessions.get(address)
        if session is None:
            connector = aiohttp.TCPConnector(local_addr=(address, 0), limit=0)
            session = self.sessions[address] = aiohttp.ClientSession(connector=connector, trust_env=False)
        begin = time.monotonic()
        async with session.post(self.cluster.url + "/v1/tts", json={"text": text, "format": "pcm"}) as response:
            await response.read()
            end = time.monotonic()
            self.statuses[response.status] += 1
            if response.status == 200:
                self.completed.append((end, len(text)))
                self.seconds.setdefault(address, []).append(end - begin)
            else:
                self.refused.append((end, end - begin, float(response.headers["Retry-After"])))

    async def close(self) -> None:
        for session in self.sessions.values():
            await session.close()


def text_of(chance: random.Random, longest: int) -> str:
    length = min(longest, max(20, round(chance.lognormvariate(4.4, 0.7))))
    return ("All that is asked for is spoken in the end. " * 20)[: length - 1].strip() + "."


async def test_under_twice_the_load_the_fleet_stays_busy_and_refusals_are_quick_and_true(
    cluster: Cluster, scale: Scale
):
    await cluster.start_gateway("--max-queue-seconds", "8", "--queue-timeout", "60")
    await cluster.start_workers(WORKERS, *PACE)
    chance = random.Random(1)
    callers = Callers(cluster)
    seconds = scale.of(15, 120)
    texts = [text_of(chance, 400) for _ in range(10_000)]
    mean = statistics.fmean(map(len, texts))
    per_second = 2 * CHARACTERS_PER_SECOND / mean
    waiting: list[tuple[float, int]] = []

    async def look() -> None:
        while True:
            waiting.append((time.monotonic(), (await cluster.health())["queue"]["characters"]))
            await asyncio.sleep(0.25)

    async def one(n: int) -> None:
        await callers.ask(f"127.0.1.{1 + n % 12}", texts[n % len(texts)])

    looking = asyncio.create_task(look())
    begin = time.monotonic()
    await arrive(int(per_second * seconds), per_second, one)
    looking.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await looking
    await cluster.wait_idle()
    await callers.close()

    # Goodput from the first request to the last answer: the queue keeps the fleet busy all that time, and every request
    # that was let in counts where it ended, not where the clock cut it.
    spoken = sum(characters for _, characters in callers.completed)
    goodput = spoken / (max(when for when, _ in callers.completed) - begin) / CHARACTERS_PER_SECOND
    quick = statistics.quantiles([took for _, took, _ in callers.refused], n=100)[98]
    errors = [told / truth - 1 for told, truth in _told_and_true(callers, waiting, until=begin + seconds)]
    say(f"2x overload for {seconds} s: {dict(callers.statuses)}, goodput {goodput:.3f} of capacity")
    say(
        f"refusals p99 {1000 * quick:.1f} ms; Retry-After off by {statistics.median(errors):+.0%} in the median, "
        f"{_share_within(errors, 0.3):.0%} within 30 % of {len(errors)}"
    )
    assert set(callers.statuses) <= {200, 429, 503}
    assert callers.refused
    assert goodput > 0.95 if scale.is_full else goodput > 0.5
    if scale.is_full:
        assert quick < 0.05
        assert abs(statistics.median(errors)) < 0.3


def _told_and_true(callers: Callers, waiting: list[tuple[float, int]], until: float) -> list[tuple[float, float]]:
    """For each refusal: the Retry-After that was told, and how long the fleet took to speak what waited then."""
    completed = sorted(callers.completed)
    times = [when for when, _ in completed]
    pairs = []
    for when, _, told in callers.refused:
        place = bisect.bisect(waiting, (when, 0)) - 1
        if place < 0 or when > until:
            continue
        rest = waiting[place][1]
        for end, characters in completed[bisect.bisect(times, when) :]:
            rest -= characters
            if rest <= 0:
                pairs.append((told, max(end - when, 0.5)))
                break
    return pairs


def _share_within(errors: list[float], bound: float) -> float:
    return sum(abs(error) <= bound for error in errors) / len(errors)


async def test_a_caller_who_floods_does_not_make_the_others_wait(cluster: Cluster, scale: Scale):
    await cluster.start_gateway()
    await cluster.start_workers(WORKERS, *PACE)
    chance = random.Random(2)
    texts = [text_of(chance, 400) for _ in range(5_000)]
    mean = statistics.fmean(map(len, texts))
    # Ten callers who together keep the fleet busy for 30 % of the time; the flood alone is 1.5 times what it can do.
    polite_per_second = 0.3 * CHARACTERS_PER_SECOND / mean
    p95s: dict[bool, list[float]] = {False: [], True: []}
    for turn in range(scale.of(4, 8)):
        flooded = turn % 2 == 1
        callers = Callers(cluster)

        async def polite(n: int, callers: Callers = callers) -> None:
            await callers.ask(f"127.0.2.{1 + n % 10}", texts[n % len(texts)])

        async def flood(n: int, callers: Callers = callers) -> None:
            await callers.ask("127.0.3.1", texts[-1 - n % len(texts)])

        seconds = scale.of(12, 30)
        loads = [arrive(int(polite_per_second * seconds), polite_per_second, polite)]
        if flooded:
            loads.append(arrive(int(5 * polite_per_second * seconds), 5 * polite_per_second, flood))
        await asyncio.gather(*loads)
        await cluster.wait_idle()
        await callers.close()
        taken = sorted(s for address, many in callers.seconds.items() if address != "127.0.3.1" for s in many)
        p95s[flooded].append(taken[int(0.95 * len(taken))])
        kind = "flooded" if flooded else "calm"
        say(f"{kind}: p95 {p95s[flooded][-1]:.2f} s of {len(taken)}, {dict(callers.statuses)}")
        assert len(taken) == int(polite_per_second * seconds), "a polite caller was refused"
    calm, noisy = statistics.median(p95s[False]), statistics.median(p95s[True])
    say(f"one caller floods 50 times: p95 of the others {calm:.2f} -> {noisy:.2f} s ({noisy / calm - 1:+.0%})")
    if scale.is_full:
        assert noisy <= 1.2 * calm
