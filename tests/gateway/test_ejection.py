import pytest

from gateway.ejection import (
    FAILURES_TO_EJECT,
    LONGEST_PAUSE_SECONDS,
    failed_too_often,
    has_stand_in,
    is_too_slow,
    pause_seconds,
)
from gateway.replica import Event, Replica
from tests.gateway.builders import replica
from wire.link import WorkerState


def at_pace(name: str, seconds: float) -> Replica:
    one = replica(name)
    for _ in range(40):
        one.pace.observe(100, seconds=seconds, audio_seconds=7)
    return one


def test_a_few_failures_in_a_row_are_enough_and_one_less_is_not():
    one = replica()
    one.consecutive_failures = FAILURES_TO_EJECT - 1
    assert not failed_too_often(one)
    one.consecutive_failures = FAILURES_TO_EJECT
    assert failed_too_often(one)


def test_on_probation_one_failure_is_enough():
    one = replica()
    one.handle(Event.EJECT)
    one.handle(Event.PAUSE_OVER)
    one.consecutive_failures = 1
    assert failed_too_often(one)


@pytest.mark.parametrize(("times_slower", "too_slow"), [(1, False), (3, False), (4.5, False), (6, True)])
def test_a_pace_far_off_that_of_the_fellows_is_an_illness(times_slower: float, too_slow: bool):
    fleet = [at_pace("a", 1.0), at_pace("b", 1.2), at_pace("c", 1.1 * times_slower)]
    assert is_too_slow(fleet[2], fleet) is too_slow


def test_nobody_is_too_slow_alone_or_among_strangers_or_before_he_is_known():
    slow = at_pace("slow", 50.0)
    assert not is_too_slow(slow, [slow])
    assert not is_too_slow(slow, [slow, replica("new")])
    newcomer = replica("newcomer")
    newcomer.pace.observe(100, seconds=50, audio_seconds=7)
    assert not is_too_slow(newcomer, [newcomer, at_pace("a", 1.0)])


def test_pauses_double_up_to_a_minute():
    assert [pause_seconds(n) for n in range(7)] == [2, 4, 8, 16, 32, LONGEST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS]


def test_only_a_replica_that_takes_segments_stands_in_for_another():
    sick, well, away = replica("sick"), replica("well"), replica("away", state=WorkerState.DRAINING)
    assert has_stand_in(sick, [sick, well])
    assert not has_stand_in(sick, [sick, away])
    assert not has_stand_in(sick, [sick])
