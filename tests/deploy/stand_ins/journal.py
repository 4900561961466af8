"""Where stand-ins write what happened to them, one line an event, for the test to read."""

from __future__ import annotations

import os


def note(*words: object) -> None:
    """Append one line in one write: lines of several processes do not mix, and their order is the order of events."""
    with open(os.environ["STAND_IN_JOURNAL"], "a") as journal:
        journal.write(" ".join(str(word) for word in words) + "\n")
