"""May this request join the line, or is the house full? Pure."""

from __future__ import annotations

import math
from dataclasses import dataclass

from wire.errors import ErrorCode, TtsError

# A single caller may fill half of the line; the other half is for everybody else.
CALLER_SHARE = 0.5


@dataclass(frozen=True, slots=True)
class Backlog:
    """Work that is admitted and has no slot yet, and what there is to do it with."""

    waiting_characters: int
    characters_per_second: float  # of all slots that are up; 0 when none is

    @property
    def seconds(self) -> float:
        """Time the fleet needs for what waits: infinite when something waits and nobody is there."""
        if self.waiting_characters == 0:
            return 0.0
        return self.waiting_characters / self.characters_per_second if self.characters_per_second else math.inf


def admit(
    backlog: Backlog, caller_characters: int, *, max_queue_seconds: float, caller_queued_seconds: float = 0.0
) -> None:
    """Return when there is room in the line for one more request of a caller of whom `caller_characters` wait already.

    A line is bounded in seconds of work, not in entries: forty greetings are a second, forty chapters an hour. While no
    worker is up there is nothing to measure it by, and the queue's patience is the only bound. `caller_queued_seconds`
    is the share that the caller's key allows, where that is smaller; 0: it says nothing.

    Raises:
        TtsError: `rate_limited` for a caller who fills more than its share, `overloaded` for a full house. Both tell
            the time in which the fleet speaks what waits now.
    """
    if not backlog.characters_per_second:
        return
    if backlog.seconds > max_queue_seconds:
        raise TtsError(
            ErrorCode.OVERLOADED,
            f"All workers are busy: {backlog.seconds:.0f} s of work are waiting, more than the {max_queue_seconds:g} s "
            "that may. Try again after the time in Retry-After.",
            retry_after_seconds=backlog.seconds,
        )
    own_seconds = caller_characters / backlog.characters_per_second
    share_seconds = min(CALLER_SHARE * max_queue_seconds, caller_queued_seconds or math.inf)
    if own_seconds > share_seconds:
        raise TtsError(
            ErrorCode.RATE_LIMITED,
            f"You have {own_seconds:.0f} s of work waiting here, more than your share of the line "
            f"({share_seconds:g} s). Try again after the time in Retry-After.",
            param="queued_seconds",
            retry_after_seconds=own_seconds,
        )
