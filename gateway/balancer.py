"""Which of the replicas that can take a segment gets it. Pure: no loop, no clock; randomness is passed in."""

from __future__ import annotations

from collections.abc import Iterable
from enum import StrEnum
from random import Random

from gateway.replica import Replica
from wire.link import WorkerState


class Policy(StrEnum):
    LEAST_CONNECTIONS = "least-connections"
    ROUND_ROBIN = "round-robin"
    RANDOM = "random"


def to_wake(replicas: Iterable[Replica], *, model: str, waiting: int) -> list[Replica]:
    """Return the sleeping replicas that are to load, so that each of the `waiting` segments of a model has a slot to
    come, those of replicas that are loading already counted."""
    serving = [replica for replica in replicas if model in replica.models]
    coming = sum(r.slots for r in serving if r.reported in (WorkerState.LOADING, WorkerState.WARMING))
    chosen = []
    for replica in serving:
        if replica.is_asleep and coming < waiting:
            chosen.append(replica)
            coming += replica.slots
    return chosen


def choose(
    replicas: Iterable[Replica],
    *,
    policy: Policy,
    model: str,
    voice: str,
    tried: frozenset[tuple[str, str]],
    random: Random,
) -> Replica | None:
    """Return the replica for a segment, or None when none can take it now.

    Replicas in `tried` (keys of those that already failed this segment) are left out: a worker that fails in 20 ms
    looks like the least loaded one, and would draw every retry.

    Least connections counts leases per slot; among equals one that has the voice warm is preferred, and what is still
    equal is decided by lot (always taking the first sent 94 % of one fleet's traffic to one machine).
    """
    able = [replica for replica in replicas if replica.can_take(model) and replica.key not in tried]
    if not able:
        return None
    match policy:
        case Policy.LEAST_CONNECTIONS:
            return min(able, key=lambda r: (r.in_flight / r.slots, voice not in r.warm_voices, random.random()))
        case Policy.ROUND_ROBIN:
            return min(able, key=lambda r: (r.turn, r.id))
        case Policy.RANDOM:
            return random.choice(able)
