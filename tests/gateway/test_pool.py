import asyncio
import contextlib
import random
from dataclasses import replace

import pytest

from gateway.ejection import FAILURES_TO_EJECT
from gateway.lease import Wanted
from gateway.pool import Pool
from gateway.queue import Standing
from gateway.replica import Health, Replica
from tests.gateway.builders import Heard, pool, replica, sleeper, status
from wire.errors import ErrorCode, TtsError
from wire.link import WorkerState


def wanted(rank: int = 100, tried: frozenset = frozenset(), caller: str = "", preemptible: bool = True) -> Wanted:
    return Wanted(
        "tone",
        "alto",
        Standing(caller, unspoken_characters=rank),
        100,
        tried=tried,
        may_be_preempted=preemptible,
    )


class Holder:
    """A task that leases a slot and holds it until told to let go."""

    def __init__(self, of: Pool, what: Wanted, wait_seconds: float = 60.0) -> None:
        self.replica: Replica | None = None
        self.was_preempted = False
        self._let_go = asyncio.Event()
        self._has_it = asyncio.Event()
        self.task = asyncio.create_task(self._hold(of, what, wait_seconds))

    async def _hold(self, of: Pool, what: Wanted, wait_seconds: float) -> None:
        async with of.lease(what, wait_seconds=wait_seconds) as self.lease:
            self.replica = self.lease.replica
            self.lease.on_preempt = self.preempt
            self._has_it.set()
            await self._let_go.wait()

    def preempt(self) -> None:
        self.was_preempted = True
        self._let_go.set()

    async def has_it(self) -> Replica:
        await self._has_it.wait()
        assert self.replica is not None
        return self.replica

    async def let_go(self) -> None:
        self._let_go.set()
        await self.task


async def turns(count: int = 3) -> None:
    """Let every task that can run do so; no clock is involved."""
    for _ in range(count):
        await asyncio.sleep(0)


async def test_a_lease_takes_a_slot_and_gives_it_back():
    one = replica(slots=2)
    fleet = pool(one)
    async with fleet.lease(wanted(), wait_seconds=1) as leased:
        assert leased.replica is one
        assert one.in_flight == 1
    assert one.in_flight == 0


@pytest.mark.parametrize("error", [ValueError, asyncio.CancelledError])
async def test_a_lease_is_given_back_whatever_ends_it(error: type[BaseException]):
    one = replica()
    fleet = pool(one)
    with pytest.raises(error):
        async with fleet.lease(wanted(), wait_seconds=1):
            raise error
    assert repr(fleet) == "<Pool [<Replica w ready 0/1>] waiting=0>"


async def test_waiting_segments_are_served_shortest_first():
    fleet = pool(replica())
    holder = Holder(fleet, wanted())
    await holder.has_it()
    long, short = Holder(fleet, wanted(rank=900)), Holder(fleet, wanted(rank=10))
    await turns()
    assert fleet.waiting == 2
    await holder.let_go()
    await short.has_it()
    assert long.replica is None
    await short.let_go()
    await long.has_it()
    await long.let_go()


async def test_a_wait_that_expires_leaves_no_trace():
    fleet = pool(replica())
    holder = Holder(fleet, wanted())
    await holder.has_it()
    with pytest.raises(TtsError) as refused:
        async with fleet.lease(wanted(), wait_seconds=0):
            pass
    assert refused.value.code is ErrorCode.QUEUE_TIMEOUT
    assert fleet.waiting == 0
    await holder.let_go()
    assert fleet.in_flight == 0


async def test_with_no_worker_of_the_model_the_wait_ends_with_that_reason():
    with pytest.raises(TtsError) as refused:
        async with pool().lease(wanted(), wait_seconds=0):
            pass
    assert refused.value.code is ErrorCode.NO_WORKER


async def test_a_slot_assigned_to_a_segment_cancelled_in_the_same_turn_is_given_back():
    fleet = pool(replica())
    holder = Holder(fleet, wanted())
    await holder.has_it()
    waiter = Holder(fleet, wanted())
    await turns()
    holder._let_go.set()
    await turns(1)
    waiter.task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await waiter.task
    assert fleet.in_flight == 0
    assert fleet.waiting == 0


async def test_a_worker_that_joins_is_given_what_waits():
    fleet = pool()
    waiter = Holder(fleet, wanted())
    await turns()
    late = replica("late")
    fleet.add(late)
    assert await waiter.has_it() is late
    await waiter.let_go()


async def test_a_worker_that_becomes_ready_is_given_what_waits():
    one = replica(state=WorkerState.LOADING)
    fleet = pool(one)
    waiter = Holder(fleet, wanted())
    await turns()
    assert waiter.replica is None
    fleet.update(one, status(one, WorkerState.READY))
    await waiter.has_it()
    await waiter.let_go()


async def test_a_segment_that_waits_wakes_as_many_workers_as_there_is_work_for():
    (one, first), (two, second), (three, third) = (sleeper(name, slots=2) for name in ("a", "b", "c"))
    fleet = pool(one, two, three)
    holders = [Holder(fleet, wanted()) for _ in range(3)]
    await turns()
    assert (first, second, third) == (["a"], ["b"], [])
    assert [member.state for member in fleet.replicas] == ["loading", "loading", "asleep"]
    fleet.update(one, status(one))
    fleet.update(two, status(two))
    await asyncio.gather(*(holder.has_it() for holder in holders))
    assert (first, second, third) == (["a"], ["b"], [])
    for holder in holders:
        await holder.let_go()


async def test_a_worker_that_missed_the_order_is_woken_again_by_its_next_report():
    one, woken = sleeper()
    fleet = pool(one)
    holder = Holder(fleet, wanted())
    await turns()
    fleet.update(one, status(one, WorkerState.UNLOADED))
    assert woken == ["w", "w"]
    fleet.update(one, status(one))
    await holder.has_it()
    await holder.let_go()


async def test_nobody_is_woken_while_there_is_a_free_slot_or_by_another_models_segment():
    one, woken = sleeper("asleep")
    fleet = pool(one, replica("awake"))
    async with fleet.lease(wanted(), wait_seconds=1):
        assert woken == []
        with contextlib.suppress(TtsError):
            async with fleet.lease(replace(wanted(), model="another"), wait_seconds=0):
                pass
    assert woken == []


async def test_a_draining_worker_finishes_what_it_has_and_gets_nothing_more():
    one = replica(slots=2)
    fleet = pool(one)
    holder = Holder(fleet, wanted())
    await holder.has_it()
    fleet.mark_draining(one)
    waiter = Holder(fleet, wanted())
    await turns()
    assert waiter.replica is None
    assert one.in_flight == 1
    fleet.update(one, status(one, WorkerState.READY))
    await waiter.has_it()
    await waiter.let_go()
    await holder.let_go()


async def test_a_second_worker_of_the_same_name_is_refused():
    fleet = pool(replica("w", epoch="1"))
    with pytest.raises(TtsError) as refused:
        fleet.add(replica("w", epoch="2"))
    assert refused.value.code is ErrorCode.LINK_REFUSED
    assert "--id" in refused.value.message


async def test_a_lost_worker_is_forgotten_and_those_who_run_on_it_are_told():
    one = replica()
    heard = Heard()
    fleet = pool(one, heard=heard)
    told = []
    one.on_gone.add(lambda: told.append(one.id))
    fleet.lose(one, "the link was closed")
    fleet.lose(one, "again")
    assert told == heard.losses == ["w"]
    assert fleet.replicas == ()
    assert one.health is Health.GONE


async def test_a_segment_waits_for_a_worker_that_it_has_not_tried():
    bad, good = replica("bad"), replica("good")
    fleet = pool(bad, good)
    holder = Holder(fleet, wanted(tried=frozenset({bad.key})))
    assert await holder.has_it() is good
    second = Holder(fleet, wanted(tried=frozenset({bad.key})))
    await turns()
    assert second.replica is None
    await holder.let_go()
    assert await second.has_it() is good
    await second.let_go()


async def test_a_tried_worker_is_tried_again_when_no_other_could_ever_take_the_segment():
    bad = replica("bad")
    fleet = pool(bad, replica("draining", state=WorkerState.DRAINING))
    holder = Holder(fleet, wanted(tried=frozenset({bad.key})))
    assert await holder.has_it() is bad
    await holder.let_go()


async def test_failures_in_a_row_eject_a_worker():
    one, heard = replica(), Heard()
    fleet = pool(one, replica("other"), heard=heard)
    for _ in range(FAILURES_TO_EJECT - 1):
        fleet.failed(one, "error")
    assert one.health is Health.SOUND
    fleet.spoke(one, characters=10, seconds=1, audio_seconds=1)
    for _ in range(FAILURES_TO_EJECT):
        fleet.failed(one, "error")
    assert one.health is Health.EJECTED
    assert heard.ejections == [("w", "error")]


async def test_a_hang_ejects_a_worker_at_once():
    one = replica()
    fleet = pool(one)
    fleet.failed(one, "stalled", fatal=True)
    assert one.health is Health.EJECTED


async def test_a_request_counts_as_backlog_until_its_segments_have_slots():
    fleet = pool(replica())
    with fleet.admit("tone", "me", 1000) as admitted:
        assert fleet.backlog("tone").waiting_characters == 1000
        fleet.started(admitted, 250)
        assert fleet.backlog().waiting_characters == 750
    assert fleet.backlog().waiting_characters == 0


async def test_a_request_whose_text_is_still_arriving_counts_as_it_grows():
    fleet = pool(replica(slots=1))
    with fleet.admit("tone", "me", 0) as admitted:
        standing = Standing("me")
        fleet.request_grew(admitted, standing, 300)
        assert (fleet.backlog("tone").waiting_characters, standing.unspoken_characters) == (300, 300)
        fleet.started(admitted, 200)
        fleet.request_spoken("tone", standing, 200)
        fleet.request_grew(admitted, standing, 50)
        assert (fleet.backlog("tone").waiting_characters, standing.unspoken_characters) == (150, 150)
    assert fleet.backlog().waiting_characters == 0


async def test_a_full_line_is_refused_at_once():
    fleet = pool(replica(), max_queue_seconds=1.0)
    with fleet.admit("tone", "you", 100_000), pytest.raises(TtsError) as refused, fleet.admit("tone", "me", 1):
        pass
    assert refused.value.code is ErrorCode.OVERLOADED
    assert refused.value.retry_after_seconds > 1
    with fleet.admit("tone", "me", 1):
        pass


async def test_waiting_for_the_first_worker_ever_ends_when_it_joins():
    fleet = pool()
    waiting = asyncio.create_task(fleet.wait_for_models(60))
    await turns()
    assert not waiting.done()
    fleet.add(replica())
    await waiting


@pytest.mark.parametrize("seed", range(200))
async def test_slots_always_come_back(seed: int):
    """Random leases, cancels, expiries, losses, drains and joins: at rest, nothing is held and nobody waits."""
    chance = random.Random(seed)
    members = [replica(f"w{n}", slots=chance.randint(1, 3)) for n in range(3)]
    fleet = pool(*members, seed=seed)
    holders: list[Holder] = []
    for step in range(60):
        match chance.randrange(8):
            case 0 | 1 | 2:
                tried = frozenset({chance.choice(members).key}) if chance.random() < 0.3 else frozenset()
                patience = 0.0 if chance.random() < 0.1 else 60.0
                who = chance.choice(["", "a", "b", "b", "b", "b", "b"])
                holders.append(Holder(fleet, wanted(chance.randint(1, 500), tried, who), patience))
            case 3 if holders:
                chance.choice(holders).task.cancel()
            case 4 if holders:
                chance.choice(holders)._let_go.set()
            case 5:
                fleet.failed(chance.choice(members), "error", fatal=chance.random() < 0.3)
            case 6:
                victim = chance.choice(members)
                fleet.lose(victim, "killed")
                fresh = replica(victim.id, slots=2, epoch=f"e{step}")
                members[members.index(victim)] = fresh
                fleet.add(fresh)
            case 7:
                one = chance.choice(members)
                fleet.update(one, status(one, chance.choice([WorkerState.READY, WorkerState.DRAINING])))
        if chance.random() < 0.7:
            await turns(chance.randrange(3))
        assert all(member.in_flight <= member.slots for member in members)
    for holder in holders:
        holder.task.cancel()
    await asyncio.gather(*(holder.task for holder in holders), return_exceptions=True)
    assert fleet.waiting == 0
    assert all(member.in_flight == 0 for member in members)
    assert fleet.backlog().waiting_characters == 0


async def test_one_failure_is_enough_to_risk_no_more_than_one_segment_at_a_time():
    one = replica(slots=8)
    fleet = pool(one)
    fleet.failed(one, "error")
    assert one.limit == 1
    for trusted in (2, 4, 8, 8):
        fleet.spoke(one, characters=10, seconds=1, audio_seconds=1)
        assert one.limit == trusted


async def test_a_worker_far_slower_per_character_than_its_fellows_is_ejected():
    members = [replica(f"w{n}") for n in range(3)]
    heard = Heard()
    fleet = pool(*members, heard=heard)
    for _ in range(12):
        for member, seconds in zip(members, (1.0, 1.2, 9.0), strict=True):
            fleet.spoke(member, characters=100, seconds=seconds, audio_seconds=7)
    assert set(heard.ejections) == {("w2", "slow")}


async def test_a_card_that_is_half_as_fast_is_not_ejected():
    members = [replica(f"w{n}") for n in range(2)]
    heard = Heard()
    fleet = pool(*members, heard=heard)
    for _ in range(50):
        for member, seconds in zip(members, (1.0, 2.5), strict=True):
            fleet.spoke(member, characters=100, seconds=seconds, audio_seconds=7)
    assert heard.ejections == []


async def test_a_restarted_worker_is_expected_to_be_as_fast_as_its_kind_was():
    one = replica()
    fleet = pool(one)
    for _ in range(50):
        fleet.spoke(one, characters=100, seconds=0.1, audio_seconds=7)
    fleet.lose(one, "killed")
    fresh = replica(epoch="2")
    fleet.add(fresh)
    assert fresh.pace.seconds_per_character == pytest.approx(0.001, rel=0.05)
    assert not fresh.pace.is_learned


def long(caller: str, rank: int = 900, preemptible: bool = True) -> Wanted:
    return Wanted("tone", "alto", Standing(caller, unspoken_characters=rank), 600, may_be_preempted=preemptible)


async def end(*holders: Holder) -> None:
    for holder in holders:
        holder._let_go.set()
    await asyncio.gather(*(holder.task for holder in holders))


async def test_a_newcomer_need_not_wait_for_a_caller_who_holds_everything():
    fleet = pool(replica(slots=4))
    flood = [Holder(fleet, long("flooder", rank=n)) for n in range(10)]
    await turns()
    guest = Holder(fleet, wanted(rank=999, caller="guest"))
    await guest.has_it()
    assert [holder.lease.wanted.standing.unspoken_characters for holder in flood if holder.was_preempted] == [3]
    await end(guest, *flood)
    assert fleet.in_flight == 0


async def test_nobody_is_preempted_for_a_caller_who_had_as_much():
    fleet = pool(replica(slots=4))
    holders = [Holder(fleet, long(caller)) for caller in "aabb"]
    await turns()
    more = Holder(fleet, long("a"))
    await turns()
    assert not any(holder.was_preempted for holder in holders)
    await end(*holders, more)


async def test_one_caller_alone_preempts_nothing_of_its_own():
    fleet = pool(replica(slots=2))
    holders = [Holder(fleet, long("only", rank=rank_)) for rank_ in (900, 800, 1)]
    await turns()
    assert not any(holder.was_preempted for holder in holders)
    await end(*holders)


async def test_a_segment_that_has_given_way_often_enough_is_left_alone():
    fleet = pool(replica(slots=2))
    holders = [Holder(fleet, long("a", preemptible=False)) for _ in range(2)]
    await turns()
    guest = Holder(fleet, wanted(caller="b"))
    await turns()
    assert guest.replica is None
    assert not any(holder.was_preempted for holder in holders)
    await end(*holders, guest)


async def test_a_slot_whose_heir_has_left_goes_to_the_next_in_line():
    fleet = pool(replica(slots=2))
    holders = [Holder(fleet, long("a")) for _ in range(2)]
    await turns()
    for holder in holders:
        holder.lease.on_preempt = lambda: None
    heir = Holder(fleet, wanted(caller="b"))
    await turns()
    heir.task.cancel()
    await asyncio.gather(heir.task, return_exceptions=True)
    next_in_line = Holder(fleet, long("a"))
    await turns()
    await end(*holders)
    await next_in_line.has_it()
    await next_in_line.let_go()
    assert fleet.in_flight == fleet.waiting == 0


async def test_the_plan_of_a_text_does_not_change_when_a_worker_restarts():
    members = [replica("a", slots=1), replica("b", slots=8)]
    fleet = pool(*members)
    assert fleet.known.parallelism("tone") == 3
    fleet.lose(members[1], "killed")
    assert fleet.known.parallelism("tone") == 3
    fleet.add(replica("b", slots=8, epoch="2"))
    fleet.add(replica("c", slots=8))
    assert fleet.known.parallelism("tone") == 5


async def test_the_last_sound_worker_is_kept_for_its_failures_but_not_for_a_hang():
    one, other = replica("one"), replica("other")
    fleet = pool(one, other)
    for _ in range(FAILURES_TO_EJECT):
        fleet.failed(one, "error")
        fleet.failed(other, "error")
    assert sorted([one.health, other.health]) == [Health.EJECTED, Health.SOUND]
    last = one if one.health is Health.SOUND else other
    fleet.failed(last, "stalled", fatal=True)
    assert last.health is Health.EJECTED
