"""Which sequences join, run and leave in the next step. Knows keys and places; no model, thread, loop or clock."""

from __future__ import annotations

from collections import deque
from typing import NamedTuple


class ImpossibleEvent(Exception):
    """The engine reported something that cannot happen; its books and the scheduler's disagree."""


class StepPlan(NamedTuple):
    """What the engine does next, in this order: let `leaves` go, start `joins`, step `running` (joins included)."""

    leaves: tuple[int, ...]
    joins: tuple[int, ...]
    running: tuple[int, ...]


class Scheduler:
    """First come, first served, into a batch of at most `batch` places.

    A key is in one place from `submit` until it is named in `leaves` or given to `finish`: waiting, running or leaving.
    One writer: the engine thread.
    """

    def __init__(self, batch: int) -> None:
        self.resize(batch)
        self._waiting: deque[int] = deque()
        self._running: dict[int, None] = {}  # a set that keeps the order in which they joined
        self._leaving: list[int] = []

    def __repr__(self) -> str:
        return f"<Scheduler waiting={len(self._waiting)} running={len(self._running)}/{self._batch}>"

    def resize(self, batch: int) -> None:
        """Fill so many places from the next plan on; what runs beyond them runs on."""
        if batch < 1:
            raise ValueError(f"a batch of {batch} runs nothing")
        self._batch = batch

    @property
    def is_idle(self) -> bool:
        """The next plan would be empty."""
        return not (self._waiting or self._running or self._leaving)

    def submit(self, key: int) -> None:
        """Put `key` at the end of the line.

        Raises:
            ImpossibleEvent: it is here already.
        """
        if key in self._running or key in self._waiting or key in self._leaving:
            raise ImpossibleEvent(f"{key} was submitted twice")
        self._waiting.append(key)

    def cancel(self, key: int) -> None:
        """Take `key` out; the next plan names it in `leaves`, so that the engine can free what it holds.

        Raises:
            ImpossibleEvent: it neither waits nor runs.
        """
        if key in self._running:
            del self._running[key]
        elif key in self._waiting:
            self._waiting.remove(key)
        else:
            raise ImpossibleEvent(f"{key} was cancelled and is neither waiting nor running")
        self._leaving.append(key)

    def finish(self, key: int) -> None:
        """Forget a running `key`: it has said all it has to say, or failed.

        Raises:
            ImpossibleEvent: it does not run.
        """
        if key not in self._running:
            raise ImpossibleEvent(f"{key} finished and was not running")
        del self._running[key]

    def plan_step(self) -> StepPlan:
        """Fill the free places from the head of the line and say what the next step is."""
        leaves, self._leaving = tuple(self._leaving), []
        free = max(0, self._batch - len(self._running))
        joins = tuple(self._waiting.popleft() for _ in range(min(free, len(self._waiting))))
        self._running.update(dict.fromkeys(joins))
        return StepPlan(leaves, joins, tuple(self._running))
