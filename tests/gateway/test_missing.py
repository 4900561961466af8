"""A worker that vanishes is missed; one that says goodbye is not."""

from gateway.missing import MOST, REMEMBER_SECONDS, Loss
from tests.gateway.builders import pool, replica, status
from wire.link import WorkerState


def ids(losses: tuple[Loss, ...]) -> list[str]:
    return [loss.replica.id for loss in losses]


def test_a_worker_whose_link_breaks_is_missed_until_one_of_its_name_is_back():
    worker = replica("w0")
    fleet = pool(worker)
    assert fleet.missing == ()
    fleet.lose(worker, "silent for 3 s")
    assert ids(fleet.missing) == ["w0"]
    assert fleet.missing[0].reason == "silent for 3 s"
    fleet.add(replica("w0", epoch="2"))
    assert fleet.missing == ()


def test_a_worker_that_failed_is_missed_too():
    worker = replica("w0")
    fleet = pool(worker)
    fleet.update(worker, status(worker, WorkerState.FAILED))
    fleet.lose(worker, "the link was closed")
    assert ids(fleet.missing) == ["w0"]


def test_whoever_was_being_taken_out_is_not_missed():
    stopped, drained = replica("stopped"), replica("drained")
    fleet = pool(stopped, drained)
    fleet.update(stopped, status(stopped, WorkerState.STOPPED))
    fleet.update(drained, status(drained, WorkerState.DRAINING))
    fleet.lose(stopped, "the link was closed")
    fleet.lose(drained, "silent for 3 s")
    assert fleet.missing == ()


def test_nobody_is_missed_for_ever():
    now = [0.0]
    worker = replica("w0")
    fleet = pool(worker, clock=lambda: now[0])
    fleet.lose(worker, "silent for 3 s")
    now[0] = REMEMBER_SECONDS - 1
    assert ids(fleet.missing) == ["w0"]
    now[0] = REMEMBER_SECONDS
    assert fleet.missing == ()


def test_new_names_without_end_fill_nothing():
    fleet = pool()
    for number in range(3 * MOST):
        worker = replica(f"w{number}")
        fleet.add(worker)
        fleet.lose(worker, "silent for 3 s")
    assert ids(fleet.missing) == [f"w{number}" for number in range(2 * MOST, 3 * MOST)]
