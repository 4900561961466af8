import pytest

from gateway.replica import TRANSITIONS, Event, Health
from tests.gateway.builders import replica, sleeper, status
from wire.link import WorkerState


def test_every_health_answers_every_event():
    assert set(TRANSITIONS) == set(Health)
    for row in TRANSITIONS.values():
        assert set(row) == set(Event)


def test_nothing_brings_back_a_replica_that_is_gone():
    assert set(TRANSITIONS[Health.GONE].values()) == {Health.GONE}


def test_only_a_pause_or_a_success_ends_an_ejection():
    ways_out = {event for event, after in TRANSITIONS[Health.EJECTED].items() if after is not Health.EJECTED}
    assert ways_out == {Event.PAUSE_OVER, Event.SPOKE, Event.LOST}


def test_a_replica_takes_work_only_while_its_worker_reports_ready():
    one = replica(slots=2)
    for state in WorkerState:
        one.take_status(status(one, state), now=1.0)
        assert one.limit == (2 if state is WorkerState.READY else 0)


def test_a_worker_that_loads_on_demand_is_asleep_while_it_is_unloaded_and_can_still_speak():
    one, _ = sleeper(slots=2)
    assert (one.state, one.limit, one.can_speak) == ("asleep", 0, True)
    one.handle(Event.EJECT)
    assert not one.can_speak
    ordered = replica(state=WorkerState.UNLOADED)
    assert (ordered.state, ordered.can_speak) == ("unloaded", False)


def test_a_replica_on_probation_takes_one_segment_and_then_twice_as_many_with_each_success():
    one = replica(slots=4)
    one.handle(Event.EJECT)
    assert one.limit == 0
    one.handle(Event.PAUSE_OVER)
    assert one.limit == 1
    one.in_flight = 1
    assert not one.can_take("tone")
    one.handle(Event.SPOKE)
    assert one.limit == 2
    one.handle(Event.SPOKE)
    assert one.limit == 4


def test_a_replica_cannot_take_a_model_that_it_does_not_serve():
    assert replica().can_take("tone")
    assert not replica().can_take("embedded")


def test_its_state_in_one_word_is_the_gateways_judgement_of_a_worker_that_would_speak():
    one = replica()
    assert one.state == "ready"
    one.handle(Event.EJECT)
    assert one.state == "ejected"
    asleep, _ = sleeper()
    asleep.handle(Event.EJECT)
    assert asleep.state == "ejected"


@pytest.mark.parametrize("judged", [(Event.EJECT,), (Event.EJECT, Event.PAUSE_OVER)])
@pytest.mark.parametrize("reported", [state for state in WorkerState if state is not WorkerState.READY])
def test_a_worker_that_wants_nothing_says_so_whatever_the_gateway_thinks_of_it(
    judged: tuple[Event, ...], reported: WorkerState
):
    """An operator who drained a worker on probation looked in vain for `draining`, and alerts counted it as able."""
    one = replica()
    for event in judged:
        one.handle(event)
    one.take_status(status(one, reported), now=1.0)
    assert one.state == reported
    one.handle(Event.LOST)
    assert one.state == "gone"
