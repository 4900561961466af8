"""What a segment asks of the pool, and what it gets: a hold on one slot."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field

from gateway.queue import Entry, Standing
from gateway.replica import Replica


@dataclass(frozen=True, slots=True)
class Wanted:
    """What one segment needs of a replica, and its request's standing in the line."""

    model: str
    voice: str
    standing: Standing
    characters: int
    is_first: bool = False
    tried: frozenset[tuple[str, str]] = frozenset()
    may_be_preempted: bool = True
    request_id: str = ""


@dataclass(frozen=True, slots=True)
class InLine:
    """A waiting segment, for people who look at the line."""

    request_id: str
    characters: int
    waited_seconds: float


@dataclass(eq=False, slots=True)
class Lease:
    """A segment's hold on one slot. Made and ended by the pool only, inside `Pool.lease`.

    Its holder may set `on_preempt`: a function that makes it give the slot back soon, because somebody else has a
    better right to it. It is called at most once, and never after the lease has ended.
    """

    replica: Replica
    wanted: Wanted
    on_preempt: Callable[[], None] | None = None
    heir: Waiter | None = None  # who gets the slot when it comes back, once the holder was asked for it


@dataclass(eq=False, slots=True)
class Waiter:
    """A segment in the line, and where its lease will be put."""

    wanted: Wanted
    future: asyncio.Future[Lease] = field(repr=False)
    entry: Entry[Waiter] | None = field(default=None, repr=False)
