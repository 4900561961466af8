import pytest

from gateway import words
from gateway.replica import Event
from tests.gateway.builders import replica, sleeper, status
from wire.gpu import Gpu, GpuState
from wire.link import WorkerState


def test_every_state_has_words():
    for state in WorkerState:
        assert words.state(replica(state=state), 0.0)


def test_a_sleeping_worker_says_what_wakes_it():
    assert words.state(sleeper()[0], 0.0) == "asleep: its model is unloaded until a request comes"


@pytest.mark.parametrize(
    ("ready", "asleep", "said"),
    [
        (0, 1, "The worker sleeps until a request comes. Nothing waits."),
        (0, 2, "All 2 workers sleep until a request comes. Nothing waits."),
        (1, 2, "1 of 3 workers is ready, 2 asleep. Nothing waits."),
    ],
)
def test_a_fleet_that_sleeps_is_no_trouble(ready: int, asleep: int, said: str):
    fleet = [replica(f"r{n}") for n in range(ready)] + [sleeper(f"s{n}")[0] for n in range(asleep)]
    assert words.summary(fleet, 0, 0) == said


def test_an_ejected_worker_says_why_and_until_when():
    one = replica()
    one.handle(Event.EJECT)
    one.ejected_because, one.ejected_until = "stalled", 12.0
    assert words.state(one, 4.0) == "put aside: it went silent in mid-segment; tried again in 8 s"
    one.handle(Event.PAUSE_OVER)
    assert words.state(one, 12.0) == "on probation: one segment at a time until one is spoken"


def test_a_draining_worker_says_what_is_left():
    one = replica()
    one.take_status(status(one, WorkerState.DRAINING, in_flight=2), 0.0)
    assert words.state(one, 0.0) == "draining: finishes 2 segments, gets nothing new"
    one.take_status(status(one, WorkerState.DRAINING), 0.0)
    assert words.state(one, 0.0) == "drained: gets nothing new"


def test_a_worker_that_drains_says_so_even_on_probation():
    one = replica()
    one.handle(Event.EJECT)
    one.handle(Event.PAUSE_OVER)
    one.take_status(status(one, WorkerState.DRAINING), 0.0)
    assert words.state(one, 0.0) == "drained: gets nothing new"


@pytest.mark.parametrize(
    ("ready", "others", "lost", "waiting", "said"),
    [
        (0, 0, 0, 0, "No worker has registered yet. Start one with tts-worker."),
        (1, 0, 0, 0, "The worker is ready. Nothing waits."),
        (4, 0, 0, 1, "All 4 workers are ready. 1 segment waits."),
        (1, 1, 0, 2, "1 of 2 workers is ready. 2 segments wait."),
        (2, 0, 1, 0, "2 of 3 workers are ready. Nothing waits."),
        (0, 2, 0, 9, "No worker is ready. 9 segments wait."),
    ],
)
def test_the_fleet_in_a_sentence(ready: int, others: int, lost: int, waiting: int, said: str):
    fleet = [replica(f"r{n}") for n in range(ready)]
    fleet += [replica(f"o{n}", state=WorkerState.LOADING) for n in range(others)]
    assert words.summary(fleet, waiting, lost) == said


@pytest.mark.parametrize(("seconds", "said"), [(0.4, "0 s"), (99, "99 s"), (600, "10 min"), (7300, "2 h")])
def test_durations_are_as_long_as_people_say_them(seconds: float, said: str):
    assert words.duration(seconds) == said


def gpu(**figures: object) -> Gpu:
    return Gpu("cuda:0", GpuState.OK, **figures)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("figures", "said"),
    [
        ({}, []),
        ({"temperature_celsius": 87.0, "memory_used_bytes": 94, "memory_total_bytes": 100}, []),
        ({"throttled_by": ("power_cap",)}, []),
        ({"temperature_celsius": 90.0}, ["90 °C: too hot"]),
        ({"memory_used_bytes": 95, "memory_total_bytes": 100}, ["memory 95% full"]),
        ({"xid_errors": 1, "xid_last": 79}, ["Xid 79: it has fallen off the bus"]),
        ({"xid_errors": 3, "xid_last": 7}, ["Xid 7: see the driver's log, 3 such reports"]),
        ({"throttled_by": ("power_cap", "hardware_thermal")}, ["slowed down: hardware thermal"]),
        ({"ecc_uncorrected_errors": 1}, ["1 memory error that could not be corrected"]),
    ],
)
def test_what_is_wrong_with_a_gpu_is_said_and_nothing_else(figures: dict[str, object], said: list[str]):
    assert words.troubles(gpu(**figures)) == said


def test_a_gpu_that_is_lost_says_so_first():
    lost = Gpu("cuda:1", GpuState.LOST, detail="the driver cannot reach it", temperature_celsius=99.0)
    assert words.troubles(lost)[0] == "cuda:1 is lost: the driver cannot reach it"
