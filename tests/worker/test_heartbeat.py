"""When the worker's heart beats, and what it says of itself."""

from dataclasses import replace

import pytest

from wire.link import WorkerState
from worker.heartbeat import Vitals, gets_on, in_words

CALM = Vitals("tone on cpu, 4 slots", WorkerState.READY, reason="", steps=7, in_flight=0, links_up=1, links=1)
BUSY = replace(CALM, in_flight=2)


@pytest.mark.parametrize(
    ("before", "now", "beats"),
    [
        (CALM, CALM, True),  # nothing to do
        (BUSY, replace(BUSY, steps=8), True),
        (BUSY, BUSY, False),  # it hangs
        (CALM, BUSY, True),  # work has just come
        (BUSY, CALM, True),  # it was the last
        (BUSY, replace(BUSY, state=WorkerState.DRAINING), False),
        (replace(CALM, state=WorkerState.LOADING, in_flight=1), replace(CALM, state=WorkerState.LOADING), True),
        (BUSY, replace(BUSY, state=WorkerState.WARMING), True),
        (BUSY, replace(BUSY, links_up=0), False),  # whatever else may change
    ],
)
def test_it_beats_while_the_engine_gets_on(before: Vitals, now: Vitals, beats: bool) -> None:
    assert gets_on(before, now) is beats


@pytest.mark.parametrize(
    ("vitals", "words"),
    [
        (CALM, "ready: tone on cpu, 4 slots; linked to 1 of 1 gateways"),
        (replace(CALM, links_up=0), "ready: tone on cpu, 4 slots; no gateway answers, so nobody gives it work"),
        (replace(CALM, links=0, links_up=0), "ready: tone on cpu, 4 slots; it has no gateway to register with"),
        (replace(CALM, state=WorkerState.LOADING), "loading: tone on cpu, 4 slots"),
        (replace(CALM, state=WorkerState.FAILED, reason="no memory"), "failed (no memory): tone on cpu, 4 slots"),
    ],
)
def test_the_status_is_in_words(vitals: Vitals, words: str) -> None:
    assert in_words(vitals) == words
