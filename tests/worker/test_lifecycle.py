"""The table of the process's states: every cell, and who hears of a change."""

import pytest

from wire.link import WorkerState
from worker.lifecycle import TRANSITIONS, Event, IllegalTransition, Lifecycle

# How to get into each state by legal events alone.
PATHS: dict[WorkerState, list[Event]] = {
    WorkerState.STARTING: [],
    WorkerState.LOADING: [Event.LOAD],
    WorkerState.WARMING: [Event.LOAD, Event.LOADED],
    WorkerState.READY: [Event.LOAD, Event.LOADED, Event.WARMED],
    WorkerState.UNLOADED: [Event.LOAD, Event.LOADED, Event.WARMED, Event.UNLOAD],
    WorkerState.DRAINING: [Event.LOAD, Event.LOADED, Event.WARMED, Event.DRAIN],
    WorkerState.STOPPED: [Event.STOP],
    WorkerState.FAILED: [Event.FAIL],
}


def in_state(state: WorkerState) -> Lifecycle:
    lifecycle = Lifecycle()
    for event in PATHS[state]:
        lifecycle.handle(event)
    assert lifecycle.state is state
    return lifecycle


@pytest.mark.parametrize("state", WorkerState)
@pytest.mark.parametrize("event", Event)
def test_every_state_answers_every_event(state: WorkerState, event: Event) -> None:
    lifecycle = in_state(state)
    expected = TRANSITIONS[state].get(event)
    if expected is None:
        with pytest.raises(IllegalTransition, match=f"{state} cannot {event}"):
            lifecycle.handle(event)
        assert lifecycle.state is state
    else:
        lifecycle.handle(event)
        assert lifecycle.state is expected


def test_the_table_has_a_row_for_every_state() -> None:
    assert set(TRANSITIONS) == set(WorkerState)


def test_anything_that_lives_can_fail_and_nothing_leaves_the_end() -> None:
    ends = {WorkerState.STOPPED, WorkerState.FAILED}
    for state in WorkerState:
        assert TRANSITIONS[state] == {} if state in ends else TRANSITIONS[state][Event.FAIL] is WorkerState.FAILED


def test_a_ready_worker_cannot_stop_without_draining() -> None:
    assert Event.STOP not in TRANSITIONS[WorkerState.READY]


@pytest.mark.parametrize("state", WorkerState)
def test_only_a_ready_worker_takes_segments(state: WorkerState) -> None:
    assert in_state(state).takes_segments == (state is WorkerState.READY)


def test_listeners_hear_of_changes_and_not_of_repeated_orders() -> None:
    lifecycle = in_state(WorkerState.READY)
    heard: list[WorkerState] = []
    lifecycle.on_change(lambda: heard.append(lifecycle.state))
    for event in (Event.DRAIN, Event.DRAIN, Event.UNDRAIN, Event.UNDRAIN):
        lifecycle.handle(event)
    assert heard == [WorkerState.DRAINING, WorkerState.READY]


def test_the_reason_is_that_of_the_last_change() -> None:
    lifecycle = in_state(WorkerState.LOADING)
    lifecycle.handle(Event.FAIL, "no such file")
    assert lifecycle.reason == "no such file"
