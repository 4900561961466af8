"""How long a worker may be silent, and what else ends a try before its last frame."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from gateway.faults import Preempted, WorkerFault
from gateway.lease import Lease
from gateway.replica import Health
from wire.link import WorkerState

DRAINED_GRACE_SECONDS = 1.0


@asynccontextmanager
async def patience(lease: Lease, stall_seconds: float, first_seconds: float = 0.0) -> AsyncIterator[Callable[[], None]]:
    """Bound the silence of a worker inside the block, and end it at once when the worker's link is lost or the slot is
    wanted back. The first silence may last `first_seconds`, if that is longer.

    Yields a function to call at each sign of progress.

    Raises:
        WorkerFault: `stalled` or `lost`.
        Preempted: the slot is wanted back.
    """
    loop = asyncio.get_running_loop()
    replica = lease.replica
    ended: Exception | None = None
    if replica.health is Health.GONE:
        raise WorkerFault("lost", f"{replica.id}: its link is gone")
    try:
        async with asyncio.timeout(max(stall_seconds, first_seconds)) as limit:

            def progress() -> None:
                if ended is None:
                    limit.reschedule(loop.time() + stall_seconds)

            def end(reason: Exception, grace_seconds: float = 0.0) -> None:
                nonlocal ended
                ended = ended or reason
                limit.reschedule(loop.time() + grace_seconds)

            def gone() -> None:
                # A worker that drained closes its link when its last byte is written, which may not be read here yet.
                grace = DRAINED_GRACE_SECONDS if replica.reported is WorkerState.DRAINING else 0.0
                end(WorkerFault("lost", f"{replica.id}: its link was lost"), grace)

            replica.on_gone.add(gone)
            lease.on_preempt = lambda: end(Preempted())
            try:
                yield progress
            finally:
                lease.on_preempt = None
                replica.on_gone.discard(gone)
    except TimeoutError:
        if ended is not None:
            raise ended from None
        raise WorkerFault("stalled", f"{replica.id}: no sign of progress for {stall_seconds:.1f} s") from None
