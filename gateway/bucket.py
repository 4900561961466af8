"""A token bucket: so much at once, and so much a second in the long run. Pure: the clock is passed in."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass


@dataclass(eq=False, slots=True)
class Bucket:
    """`level` is what may be taken at the instant `at`; below 0 it is owed, and paid for with time."""

    level: float
    at: float

    def fill(self, capacity: float, per_second: float, now: float) -> None:
        """Let in what has flowed since the last time. The measures are passed each time, since they may change."""
        self.level = min(capacity, self.level + max(0.0, now - self.at) * per_second)
        self.at = now


class Rate:
    """A bucket for each of many: `burst` at once, then `per_second`."""

    def __init__(self, burst: float, per_second: float) -> None:
        self._burst = burst
        self._per_second = per_second
        self._buckets: dict[Hashable, Bucket] = {}

    def wait_seconds(self, who: Hashable, now: float) -> float:
        """Take one for `who` and return 0, or take nothing and return how long until there is one."""
        bucket = self._buckets.setdefault(who, Bucket(self._burst, now))
        bucket.fill(self._burst, self._per_second, now)
        if bucket.level < 1.0:
            return (1.0 - bucket.level) / self._per_second
        bucket.level -= 1.0
        return 0.0

    def forget(self, now: float) -> None:
        """Drop the buckets that are full: the table must not grow with everybody who ever called."""
        for who, bucket in list(self._buckets.items()):
            bucket.fill(self._burst, self._per_second, now)
            if bucket.level >= self._burst:
                del self._buckets[who]

    def __len__(self) -> int:
        return len(self._buckets)
