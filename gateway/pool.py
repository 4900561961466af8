"""The replicas behind the gateway, the line of segments waiting for them, and the leases between the two."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Iterator
from random import Random
from typing import Protocol

from gateway import admission, balancer, ejection
from gateway.admission import Backlog
from gateway.balancer import Policy
from gateway.known import Known
from gateway.lease import InLine, Lease, Waiter, Wanted
from gateway.missing import Loss, Missing
from gateway.pace import Pace
from gateway.queue import Entry, QueueOrder, Standing, WaitingLine
from gateway.replica import Event, Health, Replica
from gateway.work import Admitted, WaitingWork
from wire.errors import ErrorCode, TtsError
from wire.link import Status, WorkerState


class Observer(Protocol):
    """Who wants to know what happens in the pool: metrics and the log."""

    def joined(self, replica: Replica) -> None: ...
    def changed(self, replica: Replica, before: str, reason: str) -> None: ...
    def lost(self, replica: Replica, reason: str) -> None: ...
    def ejected(self, replica: Replica, reason: str, pause_seconds: float) -> None: ...


class Pool:
    """All mutable state is the replicas, the lines and the counts of waiting work. It changes only in methods that do
    not await, on the loop's thread, so no lock is needed."""

    def __init__(
        self,
        *,
        policy: Policy,
        order: QueueOrder,
        patience_seconds: float,
        max_queue_seconds: float,
        observer: Observer,
        random: Random,
        clock: Callable[[], float],
    ) -> None:
        self._policy = policy
        self._order = order
        self._patience_seconds = patience_seconds
        self._max_queue_seconds = max_queue_seconds
        self._observer = observer
        self._random = random
        self._clock = clock
        self._replicas: dict[str, Replica] = {}
        self._lines: dict[str, WaitingLine[Waiter]] = {}
        self._work = WaitingWork()
        self._leases: set[Lease] = set()
        self._turns = 0
        self.known = Known()
        self._missing = Missing()

    # -- what the registry tells ------------------------------------------------------------------------------------

    def add(self, replica: Replica) -> None:
        """Take in a worker that said hello.

        Raises:
            TtsError: `link_refused`, when a worker of that id is linked already.
        """
        if replica.id in self._replicas:
            other = self._replicas[replica.id]
            raise TtsError(
                ErrorCode.LINK_REFUSED,
                f"A worker {replica.id!r} is linked already, from {other.host}:{other.port} (epoch {other.epoch}). "
                "Give each worker its own --id or --index.",
                param="worker",
            )
        self._replicas[replica.id] = replica
        self._missing.back(replica.id)
        replica.pace = Pace.expected_from(self.known.pace_of(replica))
        self.known.learn(replica, self._replicas.values())
        self._observer.joined(replica)
        self._assign_waiting()

    def update(self, replica: Replica, status: Status) -> None:
        """Take in what a worker says of itself."""
        before = replica.state
        replica.take_status(status, self._clock())
        self.known.learn(replica, self._replicas.values())
        if replica.state != before:
            self._observer.changed(replica, before, status.detail or "its own report")
        self._assign_waiting()

    def mark_draining(self, replica: Replica) -> None:
        """Give the worker nothing more from this instant; its own report, a moment later, will say the same."""
        before = replica.state
        if replica.reported is WorkerState.READY:
            replica.reported = WorkerState.DRAINING
            self._observer.changed(replica, before, "ordered to drain")

    def lose(self, replica: Replica, reason: str) -> None:
        """Forget a worker whose link is gone; what runs on it fails over at once."""
        if self._replicas.get(replica.id) is not replica:
            return
        del self._replicas[replica.id]
        replica.handle(Event.LOST)
        self._missing.lost(Loss(replica, reason, self._clock()))
        self._observer.lost(replica, reason)
        for callback in list(replica.on_gone):
            callback()

    # -- what requests ask ------------------------------------------------------------------------------------------

    @property
    def replicas(self) -> tuple[Replica, ...]:
        return tuple(self._replicas.values())

    @property
    def missing(self) -> tuple[Loss, ...]:
        """Workers that went without a farewell and are not back."""
        return self._missing.listed(self._clock())

    @property
    def waiting(self) -> int:
        """Segments that wait for a slot."""
        return sum(len(line) for line in self._lines.values())

    def lines(self) -> list[list[InLine]]:
        """Return who waits, each model's line in the order in which it would be served now."""
        now = self._clock()
        return [
            [
                InLine(entry.item.wanted.request_id, entry.characters, now - entry.standing.unserved_since)
                for entry in line.in_order(now)
            ]
            for line in self._lines.values()
            if len(line)
        ]

    @property
    def in_flight(self) -> int:
        return sum(replica.in_flight for replica in self._replicas.values())

    def slots(self, model: str) -> int:
        """Slots that may be leased now for this model, taken or not."""
        return sum(replica.limit for replica in self._replicas.values() if model in replica.models)

    def backlog(self, model: str | None = None) -> Backlog:
        """Return the work that waits for a model, or for all of them."""
        speed = sum(
            replica.limit / replica.pace.seconds_per_character
            for replica in self._replicas.values()
            if model is None or model in replica.models
        )
        waiting = self._work.by_model.total() if model is None else self._work.by_model[model]
        return Backlog(waiting, speed)

    async def wait_for_models(self, timeout_seconds: float) -> None:
        """Wait until any worker has ever joined.

        Raises:
            TtsError: `no_worker`, when none did in time.
        """
        if self.known.has_anyone:
            return
        try:
            async with asyncio.timeout(timeout_seconds):
                await self.known.wait_for_anyone()
        except TimeoutError:
            raise self._no_worker("any model", timeout_seconds) from None

    @contextlib.contextmanager
    def admit(
        self, model: str, caller: str, characters: int, *, caller_queued_seconds: float = 0.0
    ) -> Iterator[Admitted]:
        """Count a request's characters as waiting work for the length of the block, less what it brings to slots.

        Raises:
            TtsError: `overloaded` or `rate_limited`.
        """
        admission.admit(
            self.backlog(model),
            self._work.by_caller[caller],
            max_queue_seconds=self._max_queue_seconds,
            caller_queued_seconds=caller_queued_seconds,
        )
        with self._work.counting(model, caller, characters) as admitted:
            yield admitted

    def started(self, admitted: Admitted, characters: int) -> None:
        """Take characters out of the waiting work: their segment has its slot for the first time."""
        self._work.started(admitted, characters)

    def request_grew(self, admitted: Admitted, standing: Standing, characters: int) -> None:
        """Count so many characters more of a request whose text is still arriving."""
        self._work.grew(admitted, characters)
        self._line(admitted.model).grew(standing, characters)

    def request_spoken(self, model: str, standing: Standing, characters: int) -> None:
        """Let what waits of a request move up: so many characters of it are spoken."""
        self._line(model).spoken(standing, characters)

    @contextlib.asynccontextmanager
    async def lease(self, wanted: Wanted, *, wait_seconds: float) -> AsyncIterator[Lease]:
        """Hold one slot of one replica for the length of the block.

        The slot is given back exactly once however the block ends: normally, by an error, or because the client left.
        A caller who was lately served far less than another one need not wait for it: that one is preempted.

        Raises:
            TtsError: `queue_timeout` or `no_worker`, when no slot came free within `wait_seconds`.
        """
        lease = await self._acquire(wanted, wait_seconds)
        try:
            yield lease
        finally:
            self._release(lease)

    def spoke(self, replica: Replica, *, characters: int, seconds: float, audio_seconds: float) -> None:
        """A whole segment came from this replica."""
        replica.pace.observe(characters, seconds, audio_seconds)
        self.known.observe(replica, characters, seconds, audio_seconds)
        replica.segments_spoken += 1
        replica.consecutive_failures = 0
        replica.ejections = 0
        before = replica.state
        replica.handle(Event.SPOKE)
        if replica.state != before:
            self._observer.changed(replica, before, "spoke a segment")
        if ejection.is_too_slow(replica, self._replicas.values()):
            self._eject(replica, "slow")
            replica.pace = Pace.expected_from(replica.pace)  # what it does after the pause is judged afresh
        self._assign_waiting()

    def failed(self, replica: Replica, reason: str, *, fatal: bool = False) -> None:
        """A segment failed on this replica; the third in a row, or a `fatal` one (it hung), ejects it for a while.

        The last one that is sound is kept, unless it hangs: when every worker fails, it is rather the requests.
        """
        replica.consecutive_failures += 1
        replica.doubt()
        if fatal or (ejection.failed_too_often(replica) and ejection.has_stand_in(replica, self._replicas.values())):
            self._eject(replica, reason)

    def _eject(self, replica: Replica, reason: str) -> None:
        if replica.health in (Health.EJECTED, Health.GONE):
            return
        pause = ejection.pause_seconds(replica.ejections)
        replica.ejections += 1
        replica.ejected_because, replica.ejected_until = reason, self._clock() + pause
        before = replica.state
        replica.handle(Event.EJECT)
        self._observer.changed(replica, before, reason)
        self._observer.ejected(replica, reason, pause)
        asyncio.get_running_loop().call_later(pause, self._pause_over, replica)

    def _pause_over(self, replica: Replica) -> None:
        before = replica.state
        replica.handle(Event.PAUSE_OVER)
        if replica.state != before:
            self._observer.changed(replica, before, "its pause is over")
            self._assign_waiting()

    # -- the line ---------------------------------------------------------------------------------------------------

    async def _acquire(self, wanted: Wanted, wait_seconds: float) -> Lease:
        waiter = Waiter(wanted, asyncio.get_running_loop().create_future())
        line = self._line(wanted.model)
        waiter.entry = entry = line.add(
            waiter, wanted.standing, characters=wanted.characters, is_first=wanted.is_first, now=self._clock()
        )
        self._assign_waiting()
        if not waiter.future.done():
            self._preempt_for(waiter, line)
        try:
            async with asyncio.timeout(max(0.0, wait_seconds)):
                return await waiter.future
        except TimeoutError:
            self._abandon(line, entry)
            if not any(wanted.model in replica.models for replica in self._replicas.values()):
                raise self._no_worker(f"model {wanted.model!r}", wait_seconds) from None
            raise TtsError(
                ErrorCode.QUEUE_TIMEOUT,
                f"No worker came free within {wait_seconds:.1f} s. Try again later (--queue-timeout).",
                retry_after_seconds=max(1.0, min(self.backlog(wanted.model).seconds, 600.0)),
            ) from None
        except asyncio.CancelledError:
            self._abandon(line, entry)
            raise

    def _line(self, model: str) -> WaitingLine[Waiter]:
        if (line := self._lines.get(model)) is None:
            line = self._lines[model] = WaitingLine(self._order, patience_seconds=self._patience_seconds)
        return line

    def _no_worker(self, what: str, waited_seconds: float) -> TtsError:
        return TtsError(
            ErrorCode.NO_WORKER,
            f"No worker serves {what} now (waited {waited_seconds:.1f} s). See GET /health; start one with tts-worker.",
            retry_after_seconds=5.0,
        )

    def _assign_waiting(self) -> None:
        """Give free slots to those who wait, in the line's order."""
        now = self._clock()
        for model, line in self._lines.items():
            while len(line) and any(replica.can_take(model) for replica in self._replicas.values()):
                taken = line.take(now, self._place)
                if taken is None:
                    break
                waiter, replica = taken
                self._grant(waiter, replica)
            if len(line):
                for replica in balancer.to_wake(self._replicas.values(), model=model, waiting=len(line)):
                    self._wake(replica)

    def _wake(self, replica: Replica) -> None:
        """Have a sleeping worker load; its own report, a moment later, will say that it does."""
        before = replica.state
        replica.reported = WorkerState.LOADING
        self._observer.changed(replica, before, "a segment waits for its model")
        replica.wake()

    def _grant(self, waiter: Waiter, replica: Replica) -> None:
        lease = Lease(replica, waiter.wanted)
        self._leases.add(lease)
        self._turns += 1
        replica.turn = self._turns
        replica.in_flight += 1
        waiter.future.set_result(lease)

    def _preempt_for(self, waiter: Waiter, line: WaitingLine[Waiter]) -> None:
        """Ask a holder who has a lesser right to its slot for it; of several the one whose end is furthest.

        The order of the line decides who gets the next free slot, but a flood leaves none free: whoever comes then
        would wait for a segment of it to end, at every segment of his own. Nothing is lost by giving way: the segment
        goes on later, at the next sample.
        """
        wanted, now = waiter.wanted, self._clock()
        candidates = [
            lease
            for lease in self._leases
            if lease.on_preempt is not None
            and lease.heir is None
            and lease.wanted.may_be_preempted
            and lease.wanted.model == wanted.model
            and lease.replica.key not in wanted.tried
            and line.yields(lease.wanted.standing, wanted.standing, now)
        ]
        if candidates:
            victim = max(candidates, key=lambda lease: lease.wanted.standing.unspoken_characters)
            victim.heir = waiter
            assert victim.on_preempt is not None
            victim.on_preempt()

    def _place(self, waiter: Waiter) -> Replica | None:
        if waiter.future.done():  # cancelled, but its task has not run yet: it leaves the line by itself
            return None
        wanted = waiter.wanted
        tried = wanted.tried
        if tried and not any(
            replica.limit > 0 and wanted.model in replica.models and replica.key not in tried
            for replica in self._replicas.values()
        ):
            # Nobody is left who has not failed it. A worker that failed may do better the second time; the number of
            # tries is bounded where they are made.
            tried = frozenset()
        return balancer.choose(
            self._replicas.values(),
            policy=self._policy,
            model=wanted.model,
            voice=wanted.voice,
            tried=tried,
            random=self._random,
        )

    def _abandon(self, line: WaitingLine[Waiter], entry: Entry[Waiter]) -> None:
        line.discard(entry)
        future = entry.item.future
        if future.done() and not future.cancelled():
            # A slot was assigned in the same turn of the loop that ended the wait. Nobody else knows of it, so nobody
            # else will give it back.
            self._release(future.result())

    def _release(self, lease: Lease) -> None:
        replica, heir = lease.replica, lease.heir
        self._leases.remove(lease)  # a KeyError here is a slot that was given back twice
        replica.in_flight -= 1
        assert replica.in_flight >= 0, f"more given back than taken: {replica!r}"
        if heir is not None and not heir.future.done() and replica.can_take(heir.wanted.model):
            assert heir.entry is not None
            self._lines[heir.wanted.model].serve(heir.entry, self._clock())
            self._grant(heir, replica)
        self._assign_waiting()

    def __repr__(self) -> str:
        return f"<Pool {list(self._replicas.values())} waiting={self.waiting}>"
