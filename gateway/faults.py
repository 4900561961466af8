"""What may become of a try at a segment, besides speech."""

from __future__ import annotations


class WorkerFault(Exception):
    """This worker did not speak this segment whole; another one may. `reason` is a bounded label for metrics."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason


class WorkerRefused(Exception):
    """The worker had no free slot, or is not ready: no fault, and nothing was lost."""

    def __init__(self, detail: str, *, is_full: bool) -> None:
        super().__init__(detail)
        self.is_full = is_full


class Preempted(Exception):
    """The slot is wanted by a caller with a better right to it. The segment goes on later, where it stopped."""
