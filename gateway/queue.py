"""The order in which waiting segments get a slot. Pure: the clock is passed in."""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import IntEnum, StrEnum
from itertools import count
from typing import Generic, TypeVar

from gateway.fairness import Usage

T = TypeVar("T")
Place = TypeVar("Place")

_FORGET_EVERY = 1000


class QueueOrder(StrEnum):
    SHORTEST_FIRST = "shortest-first"
    FCFS = "fcfs"


class Priority(IntEnum):
    """Batch work gets what interactive work leaves, and its turn when it has waited too long."""

    INTERACTIVE = 0
    BATCH = 1


# The first segment of a text counts as no longer than this, so that a long text is heard before it is short.
FIRST_CHARACTERS = 800


def rank(*, is_first: bool, unspoken_characters: int) -> int:
    """Return the rank of a segment of a request of which so many characters are not spoken yet, this segment included.

    Shortest remaining text first is the best order for the mean time to completion. What counts is the whole request,
    for each of its segments: ranked by what follows *them*, the last segments of a long text would look like short
    work, and overtake others and their own forerunners.
    """
    return min(unspoken_characters, FIRST_CHARACTERS) if is_first else unspoken_characters


@dataclass(frozen=True, slots=True)
class Standing:
    """What decides about a segment's place in the line. `characters` are its own, charged to its caller when served."""

    rank: int
    characters: int
    caller: str = ""
    priority: Priority = Priority.INTERACTIVE


@dataclass(eq=False, slots=True)
class Entry(Generic[T]):
    """A place in the line."""

    item: T
    standing: Standing
    entered: float
    number: int
    waiting: bool = True

    @property
    def key(self) -> tuple[int, int, int]:
        return (self.standing.priority, self.standing.rank, self.number)


@dataclass(eq=False, slots=True)
class _Caller(Generic[T]):
    """One caller's waiting segments, by key."""

    entries: list[tuple[tuple[int, int, int], Entry[T]]] = field(default_factory=list)

    def head(self) -> Entry[T] | None:
        while self.entries and not self.entries[0][1].waiting:
            heapq.heappop(self.entries)
        return self.entries[0][1] if self.entries else None


class WaitingLine(Generic[T]):
    """Waiting segments of one model. Who goes next, in this order of concerns:

    1. One that has waited longer than `patience_seconds` gets every other turn. Shortest-first alone starves long
       texts; ageing every rank all the time doubled the 99th percentile of time to first audio in simulation. So age
       counts only past a bound, and takes at most half of the turns.
    2. Interactive before batch.
    3. Callers who were lately served less, by levels that double (gateway.fairness). A single caller is not affected,
       and between callers of like habits the next rule decides.
    4. The smallest rank; equals in order of arrival.

    First-come-first-served, where chosen, knows none of these.
    """

    def __init__(self, order: QueueOrder, *, patience_seconds: float) -> None:
        self._order = order
        self._patience = patience_seconds
        # Both hold every waiting entry; an entry that left stays in them, marked, until it surfaces.
        self._callers: dict[str, _Caller[T]] = {}
        self._by_age: deque[Entry[T]] = deque()
        self._numbers = count()
        self._waiting = 0
        self._usage = Usage()
        self._aged_goes_next = True
        self._served = 0

    def __len__(self) -> int:
        return self._waiting

    def yields(self, holder: Standing, other: Standing, now: float) -> bool:
        """A segment with the standing `holder` gives its slot up for one with the standing `other`."""
        if self._order is QueueOrder.FCFS:
            return False
        return holder.priority > other.priority or self._usage.yields(holder.caller, other.caller, now)

    def add(self, item: T, standing: Standing, now: float) -> Entry[T]:
        if self._order is QueueOrder.FCFS:
            standing = Standing(rank=0, characters=standing.characters)
        entry = Entry(item, standing, now, next(self._numbers))
        caller = self._callers.setdefault(standing.caller, _Caller())
        heapq.heappush(caller.entries, (entry.key, entry))
        self._by_age.append(entry)
        self._waiting += 1
        return entry

    def discard(self, entry: Entry[T]) -> None:
        """Take the entry out, wherever it stands; one that already left is left alone."""
        if entry.waiting:
            entry.waiting = False
            self._waiting -= 1

    def take(self, now: float, place: Callable[[T], Place | None]) -> tuple[T, Place] | None:
        """Remove and return the first item for which `place` finds a place, with that place; None if none has one."""
        while self._by_age and not self._by_age[0].waiting:
            self._by_age.popleft()
        if self._by_age and now - self._by_age[0].entered > self._patience:
            oldest, goes_next = self._by_age[0], self._aged_goes_next
            self._aged_goes_next = not goes_next
            if goes_next and (found := place(oldest.item)) is not None:
                return self.serve(oldest, now), found
        return self._take_by_key(now, place)

    def _take_by_key(self, now: float, place: Callable[[T], Place | None]) -> tuple[T, Place] | None:
        heads = self._heads(now)
        passed: list[tuple[_Caller[T], Entry[T]]] = []
        try:
            while heads:
                _, level, _, _, caller = heapq.heappop(heads)
                entry = caller.head()
                assert entry is not None
                if (found := place(entry.item)) is not None:
                    return self.serve(entry, now), found
                heapq.heappop(caller.entries)
                passed.append((caller, entry))
                if (following := caller.head()) is not None:
                    priority, rank_, number = following.key
                    heapq.heappush(heads, (priority, level, rank_, number, caller))
        finally:
            for caller, entry in passed:
                heapq.heappush(caller.entries, (entry.key, entry))
        return None

    def _heads(self, now: float) -> list[tuple[int, int, int, int, _Caller[T]]]:
        """Return every caller's first entry, ordered by what the class says; forget callers of whom nobody waits."""
        heads: list[tuple[int, int, int, int, _Caller[T]]] = []
        for name, caller in list(self._callers.items()):
            if (head := caller.head()) is not None:
                priority, rank_, number = head.key
                heads.append((priority, self._usage.level(name, now), rank_, number, caller))
            else:
                del self._callers[name]
        heapq.heapify(heads)
        return heads

    def serve(self, entry: Entry[T], now: float) -> T:
        """Take a waiting entry out because it got a slot, and charge its caller; return its item."""
        self.discard(entry)
        self._usage.charge(entry.standing.caller, entry.standing.characters, now)
        self._served += 1
        if self._served % _FORGET_EVERY == 0:
            self._usage.forget(now)
        return entry.item
