"""The worker's heart-beat to systemd. It beats while the engine gets on, so that a hung device stops it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

from host.systemd import Systemd
from wire.link import WorkerState


@dataclass(frozen=True, slots=True)
class Vitals:
    """How the worker is at one moment."""

    about: str  # what it speaks with, for people
    state: WorkerState
    reason: str
    steps: int
    in_flight: int
    links_up: int
    links: int


def gets_on(before: Vitals, now: Vitals) -> bool:
    """Say whether the engine did, or had nothing to do.

    Work that arrived between the two looks has not had its chance yet. Loading has no steps to count; it holds nobody
    up, since no gateway gives work to a worker that loads, and at a start systemd bounds it by TimeoutStartSec.
    """
    if now.state in (WorkerState.STARTING, WorkerState.LOADING, WorkerState.WARMING):
        return True
    return now.in_flight == 0 or before.in_flight == 0 or now.steps != before.steps


def in_words(vitals: Vitals) -> str:
    """Return the line for `systemctl status`. It names no figure that changes with every segment."""
    reason = f" ({vitals.reason})" if vitals.reason else ""
    if vitals.state is not WorkerState.READY:
        return f"{vitals.state}{reason}: {vitals.about}"
    if not vitals.links:
        return f"ready: {vitals.about}; it has no gateway to register with"
    if not vitals.links_up:
        return f"ready: {vitals.about}; no gateway answers, so nobody gives it work"
    return f"ready: {vitals.about}; linked to {vitals.links_up} of {vitals.links} gateways"


async def beat(systemd: Systemd, look: Callable[[], Vitals]) -> None:
    """Tell systemd for ever: that the model is warm, once; what the worker does; and that it gets on."""
    before = look()
    is_told = False
    while True:
        now = look()
        systemd.status(in_words(now))
        if now.state is WorkerState.READY and not is_told:
            systemd.ready()
            is_told = True
        if gets_on(before, now):
            systemd.beat()
            before = now
        await asyncio.sleep(systemd.beat_seconds)
