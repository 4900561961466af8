"""Every order of joins, losses, reports, requests, hang-ups, failures and ends that hypothesis can think of."""

import asyncio
from collections import Counter

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, multiple, precondition, rule

from gateway.lease import Lease, Wanted
from gateway.queue import Priority, Standing
from gateway.replica import Health, Replica
from tests.gateway.builders import pool, replica, status
from wire.link import WorkerState

NAMES = ("a", "b", "c")


class Segment:
    """One segment's task: it waits for a slot and holds it until told to end, or asked to give way."""

    def __init__(self, machine: "PoolMachine", wanted: Wanted) -> None:
        self.wanted = wanted
        self.lease: Lease | None = None
        self.ends = asyncio.Event()
        self.task = machine.loop.create_task(self._run(machine))

    async def _run(self, machine: "PoolMachine") -> None:
        async with machine.pool.lease(self.wanted, wait_seconds=1e6) as lease:
            self.lease = lease
            lease.on_preempt = self.ends.set
            try:
                await self.ends.wait()
            finally:
                lease.on_preempt = None
                self.lease = None


class PoolMachine(RuleBasedStateMachine):
    segments = Bundle("segments")

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.now = 0.0
        self.pool = pool(clock=lambda: self.now)
        self.all_segments: list[Segment] = []
        self.all_replicas: list[Replica] = []
        self.epoch = 0

    def turn(self, times: int = 6) -> None:
        async def pass_turns() -> None:
            for _ in range(times):
                await asyncio.sleep(0)

        self.loop.run_until_complete(pass_turns())

    def linked(self, name: str) -> Replica | None:
        return next((one for one in self.pool.replicas if one.id == name), None)

    @rule(name=st.sampled_from(NAMES), slots=st.integers(1, 3))
    def join(self, name: str, slots: int) -> None:
        if self.linked(name) is None:
            self.epoch += 1
            fresh = replica(name, slots=slots, epoch=str(self.epoch))
            self.all_replicas.append(fresh)
            self.pool.add(fresh)
            self.turn()

    @rule(name=st.sampled_from(NAMES))
    def lose(self, name: str) -> None:
        if (one := self.linked(name)) is not None:
            self.pool.lose(one, "killed")
            self.turn()

    @rule(
        name=st.sampled_from(NAMES),
        state=st.sampled_from([WorkerState.READY, WorkerState.DRAINING, WorkerState.LOADING]),
    )
    def report(self, name: str, state: WorkerState) -> None:
        if (one := self.linked(name)) is not None:
            self.pool.update(one, status(one, state))
            self.turn()

    @rule(name=st.sampled_from(NAMES), fatal=st.booleans())
    def fail(self, name: str, fatal: bool) -> None:
        if (one := self.linked(name)) is not None:

            async def failed() -> None:
                self.pool.failed(one, "error", fatal=fatal)

            self.loop.run_until_complete(failed())

    @rule(name=st.sampled_from(NAMES))
    def succeed(self, name: str) -> None:
        if (one := self.linked(name)) is not None:
            self.pool.spoke(one, characters=100, seconds=1.0, audio_seconds=7.0)
            self.turn()

    @rule(
        target=segments,
        unspoken=st.integers(1, 900),
        caller=st.sampled_from("xyz"),
        characters=st.integers(1, 2000),
        tried=st.sets(st.sampled_from(NAMES), max_size=2),
        priority=st.sampled_from(list(Priority)),
        how_many=st.integers(1, 4),
    )
    def ask(self, unspoken, caller, characters, tried, priority, how_many):
        keys = frozenset(one.key for name in tried if (one := self.linked(name)) is not None)
        standing = Standing(caller, priority, unspoken)
        wanted = Wanted("tone", "alto", standing, characters, tried=keys)
        made = [Segment(self, wanted) for _ in range(how_many)]
        self.all_segments += made
        self.turn()
        return multiple(*made)

    @rule(segment=consumes(segments))
    def hang_up(self, segment: Segment) -> None:
        segment.task.cancel()
        self.turn()

    @precondition(lambda self: self.pool.waiting and self.pool.in_flight)
    @rule(which=st.integers(0, 20))
    def a_slot_comes_free_and_its_next_holder_hangs_up_in_the_same_turn(self, which: int) -> None:
        holders = [segment for segment in self.all_segments if segment.lease is not None]

        async def both() -> None:
            holders[which % len(holders)].ends.set()
            await asyncio.sleep(0)  # the holder has given its slot back, and somebody was handed it who has not run yet
            for segment in self.all_segments:
                if segment.lease is None:
                    segment.task.cancel()

        self.loop.run_until_complete(both())
        self.turn()

    @rule(segment=consumes(segments))
    def end(self, segment: Segment) -> None:
        segment.ends.set()
        self.turn()

    @rule(seconds=st.floats(0, 60))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds

    @invariant()
    def what_is_counted_is_what_is_held(self) -> None:
        held = Counter(s.lease.replica.key for s in self.all_segments if s.lease is not None)
        assert {one.key: one.in_flight for one in self.all_replicas if one.in_flight} == dict(held)

    @invariant()
    def nobody_is_given_more_than_there_is(self) -> None:
        assert all(one.in_flight <= one.slots for one in self.all_replicas)

    @invariant()
    def those_who_wait_are_those_who_wait(self) -> None:
        waiting = [s for s in self.all_segments if s.lease is None and not s.task.done()]
        assert self.pool.waiting == len(waiting)

    @invariant()
    def nobody_waits_while_there_is_a_slot_for_him(self) -> None:
        free = [one for one in self.pool.replicas if one.can_take("tone")]
        for segment in self.all_segments:
            if segment.lease is None and not segment.task.done():
                assert not [one for one in free if one.key not in segment.wanted.tried], (segment.wanted, free)

    @invariant()
    def what_is_gone_stays_gone(self) -> None:
        linked = set(map(id, self.pool.replicas))
        assert all(one.health is Health.GONE for one in self.all_replicas if id(one) not in linked)

    @precondition(lambda self: self.all_segments)
    @rule()
    def everybody_leaves(self) -> None:
        for segment in self.all_segments:
            segment.task.cancel()
        self.turn()
        assert self.pool.waiting == self.pool.in_flight == 0
        self.all_segments = [segment for segment in self.all_segments if not segment.task.done()]
        assert not self.all_segments

    def teardown(self) -> None:
        async def everybody_ends() -> None:
            for segment in self.all_segments:
                segment.task.cancel()
            await asyncio.gather(*(segment.task for segment in self.all_segments), return_exceptions=True)

        self.loop.run_until_complete(everybody_ends())
        self.loop.close()
        assert all(one.in_flight == 0 for one in self.all_replicas)


TestPool = PoolMachine.TestCase
TestPool.settings = settings(max_examples=300, stateful_step_count=40)
