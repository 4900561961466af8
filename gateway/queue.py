"""The order in which waiting segments get a slot. Pure: the clock is passed in."""

from __future__ import annotations

import heapq
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import IntEnum, StrEnum
from itertools import count
from typing import Any, Generic, TypeVar

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


@dataclass(eq=False, slots=True)
class Standing:
    """What decides about a request's place in the line, for all of its segments. Only the line changes it."""

    caller: str = ""
    priority: Priority = Priority.INTERACTIVE
    unspoken_characters: int = 0
    places: dict[Entry[Any], None] = field(default_factory=dict, repr=False)  # those that wait, oldest first
    unserved_since: float = 0.0  # instant since which some of it waits and none of it was given a slot


@dataclass(eq=False, slots=True)
class Entry(Generic[T]):
    """A segment's place in the line. `characters` are its own, charged to its caller when it is served."""

    item: T
    standing: Standing
    characters: int
    is_first: bool
    number: int
    key: tuple[int, int, int] = (0, 0, 0)
    waiting: bool = True


@dataclass(eq=False, slots=True)
class _Caller(Generic[T]):
    """One caller's waiting segments, by key."""

    # A place that was left, or that got a better key, stays in here until it surfaces.
    entries: list[tuple[tuple[int, int, int], Entry[T]]] = field(default_factory=list)

    def head(self) -> Entry[T] | None:
        while self.entries and not (self.entries[0][1].waiting and self.entries[0][1].key == self.entries[0][0]):
            heapq.heappop(self.entries)
        return self.entries[0][1] if self.entries else None


class WaitingLine(Generic[T]):
    """Waiting segments of one model. Who goes next, in this order of concerns:

    1. A request of which nothing was served for longer than `patience_seconds` gets every other turn. Shortest-first
       alone starves long texts. But a long text always has segments that wait long: ageing these, and not their
       request, gave half of all turns to long texts, and the first word of others came ten times later (simulated at
       load 0.85: 95th percentile 53 s against 5 s).
    2. Interactive before batch.
    3. Callers who were lately served less, by levels that double (gateway.fairness). A single caller is not affected,
       and between callers of like habits the next rule decides.
    4. The smallest rank; equals in order of arrival. A rank falls as its request is spoken, also while it waits.

    First-come-first-served, where chosen, knows none of these.
    """

    def __init__(self, order: QueueOrder, *, patience_seconds: float) -> None:
        self._order = order
        self._patience = patience_seconds
        self._callers: dict[str, _Caller[T]] = {}
        # By the instant since which nothing of a request was served; an item that is not true any more is passed over.
        self._by_age: list[tuple[float, int, Standing]] = []
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

    def add(self, item: T, standing: Standing, *, characters: int, is_first: bool, now: float) -> Entry[T]:
        """Return the item's new place in the line."""
        entry = Entry(item, standing, characters, is_first, next(self._numbers))
        entry.key = self._key(entry)
        if not standing.places:
            self._unserved(standing, now)
        standing.places[entry] = None
        caller = "" if self._order is QueueOrder.FCFS else standing.caller
        heapq.heappush(self._callers.setdefault(caller, _Caller()).entries, (entry.key, entry))
        self._waiting += 1
        return entry

    def spoken(self, standing: Standing, characters: int) -> None:
        """Note that so many characters of a request were spoken: what waits of it moves up."""
        self.grew(standing, -characters)

    def grew(self, standing: Standing, characters: int) -> None:
        """Note that so many characters more of a request are to be spoken: what waits of it moves down."""
        standing.unspoken_characters += characters
        for entry in standing.places:
            key = self._key(entry)
            if key != entry.key:
                entry.key = key
                heapq.heappush(self._callers[standing.caller].entries, (key, entry))

    def _key(self, entry: Entry[T]) -> tuple[int, int, int]:
        if self._order is QueueOrder.FCFS:
            return (0, 0, entry.number)
        standing = entry.standing
        worth = rank(is_first=entry.is_first, unspoken_characters=standing.unspoken_characters)
        return (standing.priority, worth, entry.number)

    def _unserved(self, standing: Standing, since: float) -> None:
        standing.unserved_since = since
        heapq.heappush(self._by_age, (since, next(self._numbers), standing))

    def discard(self, entry: Entry[T]) -> None:
        """Take the entry out, wherever it stands; one that already left is left alone."""
        if entry.waiting:
            entry.waiting = False
            del entry.standing.places[entry]
            self._waiting -= 1

    def in_order(self, now: float) -> list[Entry[T]]:
        """Return who waits, in the order in which they are served if nobody else comes and nobody's patience ends.

        For people who look: it costs a sort of the whole line, which `take` never does.
        """
        waiting: list[tuple[int, int, int, int, Entry[T]]] = []
        for name, caller in self._callers.items():
            level = self._usage.level(name, now)
            for key, entry in caller.entries:
                if entry.waiting and entry.key == key:
                    priority, rank_, number = key
                    waiting.append((priority, level, rank_, number, entry))
        return [entry for *_, entry in sorted(waiting, key=lambda place: place[:4])]

    def take(self, now: float, place: Callable[[T], Place | None]) -> tuple[T, Place] | None:
        """Remove and return the first item for which `place` finds a place, with that place; None if none has one."""
        if (oldest := self._oldest()) is not None and now - oldest.standing.unserved_since > self._patience:
            goes_next = self._aged_goes_next
            self._aged_goes_next = not goes_next
            if goes_next and (found := place(oldest.item)) is not None:
                return self.serve(oldest, now), found
        return self._take_by_key(now, place)

    def _oldest(self) -> Entry[T] | None:
        """Return the first place of the request of which nothing was served for the longest time."""
        while self._by_age and self._order is not QueueOrder.FCFS:
            since, _, standing = self._by_age[0]
            if standing.places and standing.unserved_since == since:
                return next(iter(standing.places))
            heapq.heappop(self._by_age)
        return None

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
        if entry.standing.places:
            self._unserved(entry.standing, now)
        self._usage.charge(entry.standing.caller, entry.characters, now)
        self._served += 1
        if self._served % _FORGET_EVERY == 0:
            self._usage.forget(now)
        return entry.item
