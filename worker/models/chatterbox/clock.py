"""What the stages spend of the time, and how much of it two of them spend at once."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager


class StageClock:
    """Totals in seconds since the start. Any thread may work or read; the books are kept under one lock."""

    def __init__(self, stages: Iterable[str], clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._at_work = 0
        self._changed = clock()
        self._seconds = dict.fromkeys(stages, 0.0)
        self._busy_seconds = 0.0
        self._overlap_seconds = 0.0

    @contextmanager
    def at_work(self, stage: str) -> Iterator[None]:
        """Count the block's time for the stage, and for the overlap where another stage is at work as well."""
        began = self._change(+1)
        try:
            yield
        finally:
            ended = self._change(-1)
            with self._lock:
                self._seconds[stage] += ended - began

    def read(self) -> tuple[dict[str, float], float, float]:
        """Return the seconds of each stage, of work that has ended; those in which any was at work; and two or more."""
        with self._lock:
            return dict(self._seconds), self._busy_seconds, self._overlap_seconds

    def _change(self, by: int) -> float:
        with self._lock:
            now = self._clock()
            if self._at_work > 0:
                self._busy_seconds += now - self._changed
            if self._at_work > 1:
                self._overlap_seconds += now - self._changed
            self._at_work += by
            self._changed = now
        return now
