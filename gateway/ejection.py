"""When is a replica sick, and for how long is it put aside? Pure.

Success rates say nothing in a fleet of two to eight workers; what counts is failures in a row, a hang, and a pace far
off that of its fellows.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable

from gateway.replica import Health, Replica

FAILURES_TO_EJECT = 3
# A card of an older generation is two or three times slower and welcome; a throttled or shared one is worse.
OUTLIER_FACTOR = 5.0
FIRST_PAUSE_SECONDS = 2.0
LONGEST_PAUSE_SECONDS = 60.0


def failed_too_often(replica: Replica) -> bool:
    """Some failures in a row, with no success between; one is enough while it is on probation."""
    return replica.health is Health.PROBATION or replica.consecutive_failures >= FAILURES_TO_EJECT


def has_stand_in(replica: Replica, fleet: Iterable[Replica]) -> bool:
    """Another replica takes segments of the same models: the fleet can do without this one."""
    return any(
        other is not replica and other.limit > 0 and other.models.keys() >= replica.models.keys() for other in fleet
    )


def is_too_slow(replica: Replica, fleet: Iterable[Replica]) -> bool:
    """Far slower per character than its fellows of the same models. Latency as such says nothing: a long paragraph
    makes a healthy GPU look slow."""
    fellows = [
        other.pace.seconds_per_character
        for other in fleet
        if other is not replica and other.models.keys() == replica.models.keys() and other.pace.is_learned
    ]
    if not fellows or not replica.pace.is_learned:
        return False
    return replica.pace.seconds_per_character > OUTLIER_FACTOR * statistics.median(fellows)


def pause_seconds(ejections: int) -> float:
    """How long the next ejection lasts, after so many in a row: twice as long each time, up to a minute."""
    return float(min(FIRST_PAUSE_SECONDS * 2**ejections, LONGEST_PAUSE_SECONDS))
