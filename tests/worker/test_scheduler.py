"""The scheduler by itself: no loop, thread, clock or model."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from worker.scheduler import ImpossibleEvent, Scheduler, StepPlan


def test_sequences_join_in_the_order_in_which_they_came() -> None:
    scheduler = Scheduler(2)
    for key in (1, 2, 3):
        scheduler.submit(key)
    assert scheduler.plan_step() == StepPlan(leaves=(), joins=(1, 2), running=(1, 2))


def test_a_place_that_comes_free_is_filled_in_the_next_step() -> None:
    scheduler = Scheduler(2)
    for key in (1, 2, 3):
        scheduler.submit(key)
    scheduler.plan_step()
    scheduler.finish(1)
    assert scheduler.plan_step() == StepPlan(leaves=(), joins=(3,), running=(2, 3))


def test_a_running_sequence_that_is_cancelled_leaves_and_its_place_is_filled_at_once() -> None:
    scheduler = Scheduler(1)
    scheduler.submit(1)
    scheduler.submit(2)
    scheduler.plan_step()
    scheduler.cancel(1)
    assert scheduler.plan_step() == StepPlan(leaves=(1,), joins=(2,), running=(2,))


def test_places_that_are_added_are_filled_and_who_runs_in_one_that_is_taken_away_runs_on() -> None:
    scheduler = Scheduler(1)
    for key in (1, 2, 3):
        scheduler.submit(key)
    scheduler.plan_step()
    scheduler.resize(2)
    assert scheduler.plan_step().running == (1, 2)
    scheduler.resize(1)
    assert scheduler.plan_step().running == (1, 2)
    scheduler.finish(1)
    assert scheduler.plan_step() == StepPlan(leaves=(), joins=(), running=(2,))


def test_a_waiting_sequence_that_is_cancelled_leaves_without_having_run() -> None:
    scheduler = Scheduler(1)
    scheduler.submit(1)
    scheduler.submit(2)
    scheduler.plan_step()
    scheduler.cancel(2)
    assert scheduler.plan_step() == StepPlan(leaves=(2,), joins=(), running=(1,))


def test_a_departure_is_work_that_keeps_the_scheduler_from_being_idle() -> None:
    scheduler = Scheduler(1)
    scheduler.submit(1)
    scheduler.cancel(1)
    assert not scheduler.is_idle
    scheduler.plan_step()
    assert scheduler.is_idle


@pytest.mark.parametrize("event", ["submit", "cancel", "finish"])
def test_an_event_for_a_sequence_that_left_is_a_bug(event: str) -> None:
    scheduler = Scheduler(1)
    scheduler.submit(1)
    if event != "submit":
        scheduler.plan_step()
        scheduler.finish(1)
    with pytest.raises(ImpossibleEvent):
        getattr(scheduler, event)(1)


def test_a_waiting_sequence_cannot_finish() -> None:
    scheduler = Scheduler(1)
    scheduler.submit(1)
    with pytest.raises(ImpossibleEvent):
        scheduler.finish(1)


def test_a_batch_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="runs nothing"):
        Scheduler(0)


@given(batch=st.integers(1, 5), lengths=st.lists(st.integers(1, 6), max_size=30))
def test_nobody_starves(batch: int, lengths: list[int]) -> None:
    """Every sequence gets all its steps, in a number of steps that a single place would need at most."""
    scheduler = Scheduler(batch)
    left = dict(enumerate(lengths))
    for key in left:
        scheduler.submit(key)
    for _ in range(sum(lengths)):
        for key in scheduler.plan_step().running:
            left[key] -= 1
            if not left[key]:
                scheduler.finish(key)
    assert set(left.values()) <= {0}
    assert scheduler.is_idle


class Books(RuleBasedStateMachine):
    """Any order of events; a second set of books, kept in the plainest way, must agree with the scheduler's."""

    @initialize(batch=st.integers(1, 4))
    def open(self, batch: int) -> None:
        self.batch = batch
        self.scheduler = Scheduler(batch)
        self.next_key = 0
        self.waiting: list[int] = []
        self.running: list[int] = []
        self.leaving: list[int] = []

    @rule()
    def submit(self) -> None:
        self.scheduler.submit(self.next_key)
        self.waiting.append(self.next_key)
        self.next_key += 1

    @precondition(lambda self: self.waiting or self.running)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        key = data.draw(st.sampled_from(self.waiting + self.running))
        self.scheduler.cancel(key)
        (self.waiting if key in self.waiting else self.running).remove(key)
        self.leaving.append(key)

    @precondition(lambda self: self.running)
    @rule(data=st.data())
    def finish(self, data: st.DataObject) -> None:
        key = data.draw(st.sampled_from(self.running))
        self.scheduler.finish(key)
        self.running.remove(key)

    @rule()
    def plan(self) -> None:
        plan = self.scheduler.plan_step()
        free = self.batch - len(self.running)
        assert plan.leaves == tuple(self.leaving), "each departure is named once"
        assert plan.joins == tuple(self.waiting[:free]), "free places go to the head of the line, at once"
        self.running += self.waiting[:free]
        del self.waiting[:free]
        self.leaving.clear()
        assert plan.running == tuple(self.running)
        assert len(plan.running) <= self.batch

    @invariant()
    def idle_means_empty(self) -> None:
        if hasattr(self, "scheduler"):
            assert self.scheduler.is_idle == (not (self.waiting or self.running or self.leaving))


TestBooks = Books.TestCase
TestBooks.settings = settings(max_examples=60, stateful_step_count=40)
