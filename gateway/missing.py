"""Workers whose link broke without a farewell. A series that merely ends alarms nobody, so they are shown as down."""

from __future__ import annotations

from dataclasses import dataclass

from gateway.replica import Replica
from wire.link import WorkerState

# Whoever took a machine out on purpose without a drain need not look at it for longer than a day.
REMEMBER_SECONDS = 24 * 3600.0
# Ids are the workers' own choice: one that restarts under a new id each time must not fill metrics or memory.
MOST = 64

_ON_ITS_WAY_OUT = (WorkerState.DRAINING, WorkerState.STOPPED)


@dataclass(frozen=True, slots=True)
class Loss:
    """A worker as it last was, why its link ended, and when, by the pool's clock."""

    replica: Replica
    reason: str
    at: float


class Missing:
    """Fed by the pool, which alone writes it."""

    def __init__(self) -> None:
        self._losses: dict[str, Loss] = {}  # by worker id, in the order of their loss

    def lost(self, loss: Loss) -> None:
        """Note a lost worker, unless it said that it was going; the oldest loss makes room."""
        if loss.replica.reported in _ON_ITS_WAY_OUT:
            return
        self._losses.pop(loss.replica.id, None)
        self._losses[loss.replica.id] = loss
        if len(self._losses) > MOST:
            del self._losses[next(iter(self._losses))]

    def back(self, worker: str) -> None:
        """Forget the loss of a worker of this id: it has joined again."""
        self._losses.pop(worker, None)

    def listed(self, now: float) -> tuple[Loss, ...]:
        """Return the losses that still count at `now`, the oldest first."""
        return tuple(loss for loss in self._losses.values() if now - loss.at < REMEMBER_SECONDS)
