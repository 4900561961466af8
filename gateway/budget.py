"""How many second tries the fleet may afford. Pure: the clock is passed in."""

from __future__ import annotations

from dataclasses import dataclass

# Finagle's figures, for a small fleet: a fifth of the traffic, and a floor so that a quiet fleet may retry at all.
_PER_FIRST_TRY = 0.2
_PER_SECOND = 2.0
_MOST = 50.0


@dataclass(slots=True)
class RetryBudget:
    """A bucket of tries: first tries and time fill it, second tries empty it.

    While a whole fleet fails, retrying everything at once would multiply its load just then. A try that finds the
    bucket empty is not refused but waits for its turn: its request has a deadline of its own. One writer: the
    dispatcher.
    """

    tries: float = _MOST
    filled_at: float = 0.0

    def first_try(self) -> None:
        self.tries = min(_MOST, self.tries + _PER_FIRST_TRY)

    def take(self, now: float) -> float:
        """Take one try out; return the seconds to wait before it may be made: 0 while there are any."""
        if self.filled_at:
            self.tries = min(_MOST, self.tries + max(0.0, now - self.filled_at) * _PER_SECOND)
        self.filled_at = now
        self.tries -= 1
        return max(0.0, -self.tries / _PER_SECOND)
