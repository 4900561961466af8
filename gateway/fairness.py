"""Who has had more than others, and lets them pass. Pure: the clock is passed in."""

from __future__ import annotations

import math

# What somebody had half a minute ago counts half.
HALF_LIFE_SECONDS = 30.0
# Less than this is nothing: who asks for a paragraph or two now and then is equal to whoever just came.
LIGHT_CHARACTERS = 500.0
# So many levels, each twice the one below, make a right to a slot that somebody holds already.
LEVELS_TO_PREEMPT = 2


class Usage:
    """Characters that each caller was lately served, fading with age. One writer: the waiting line that serves them."""

    def __init__(self) -> None:
        self._served: dict[str, tuple[float, float]] = {}  # characters, and the instant to which they have faded

    def charge(self, caller: str, characters: float, now: float) -> None:
        self._served[caller] = (self.of(caller, now) + characters, now)

    def of(self, caller: str, now: float) -> float:
        """Return the faded sum of what `caller` was served."""
        characters, when = self._served.get(caller, (0.0, now))
        return characters * math.pow(0.5, max(0.0, now - when) / HALF_LIFE_SECONDS)

    def level(self, caller: str, now: float) -> int:
        """Return 0 for a light caller, and one more for each doubling of what it was served.

        Lower levels go first. Levels, not amounts: between callers of like habits the shorter text is to decide.
        """
        return max(0, math.floor(math.log2(max(1.0, self.of(caller, now)) / LIGHT_CHARACTERS)) + 1)

    def yields(self, caller: str, other: str, now: float) -> bool:
        """`caller` has had so much more than `other` that it gives up a slot for it."""
        return self.level(caller, now) >= self.level(other, now) + LEVELS_TO_PREEMPT

    def forget(self, now: float) -> None:
        """Drop those of whom less than a character is left: the table must not grow with everybody who ever called."""
        for caller in [caller for caller in self._served if self.of(caller, now) < 1.0]:
            del self._served[caller]

    def __len__(self) -> int:
        return len(self._served)
