"""Replicas, pools and observers for tests of the gateway's own decisions: real objects, nothing patched."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field

from gateway.balancer import Policy
from gateway.pool import Pool
from gateway.queue import QueueOrder
from gateway.replica import Replica
from wire.link import Hello, ModelInfo, Status, WorkerState

TONE = ModelInfo("tone", 24000, ("alto", "tenor"), ("en",), parameters=("speed",))


def replica(name: str = "w", *, slots: int = 1, state: WorkerState = WorkerState.READY, epoch: str = "1") -> Replica:
    hello = Hello(name, epoch, 8100, slots, "cpu", (TONE,), state)
    return Replica.from_hello(hello, host="127.0.0.1", now=0.0)


def sleeper(name: str = "w", *, slots: int = 1) -> tuple[Replica, list[str]]:
    """Return a worker that has given its memory back and loads on demand, and what it was woken with."""
    one = replica(name, slots=slots, state=WorkerState.UNLOADED)
    one.loads_on_demand = True
    woken: list[str] = []
    one.wake = lambda: woken.append(name)
    return one, woken


def status(of: Replica, state: WorkerState = WorkerState.READY, **changes: object) -> Status:
    figures: dict[str, object] = {"in_flight": 0, "steps": 0, "slots": of.slots} | changes
    return Status(state, **figures)  # type: ignore[arg-type]


@dataclass
class Heard:
    """An observer of the pool that remembers what it was told."""

    ejections: list[tuple[str, str]] = field(default_factory=list)
    losses: list[str] = field(default_factory=list)

    def joined(self, replica: Replica) -> None: ...
    def changed(self, replica: Replica, before: str, reason: str) -> None: ...

    def lost(self, replica: Replica, reason: str) -> None:
        self.losses.append(replica.id)

    def ejected(self, replica: Replica, reason: str, pause_seconds: float) -> None:
        self.ejections.append((replica.id, reason))


def pool(
    *members: Replica,
    policy: Policy = Policy.LEAST_CONNECTIONS,
    order: QueueOrder = QueueOrder.SHORTEST_FIRST,
    patience_seconds: float = 30.0,
    max_queue_seconds: float = 300.0,
    heard: Heard | None = None,
    seed: int = 0,
    clock: Callable[[], float] = lambda: 0.0,
) -> Pool:
    made = Pool(
        policy=policy,
        order=order,
        patience_seconds=patience_seconds,
        max_queue_seconds=max_queue_seconds,
        observer=heard or Heard(),
        random=random.Random(seed),
        clock=clock,
    )
    for member in members:
        made.add(member)
    return made
