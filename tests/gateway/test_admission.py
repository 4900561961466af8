import pytest

from gateway.admission import CALLER_SHARE, Backlog, admit
from wire.errors import ErrorCode, TtsError


def test_a_line_with_room_lets_in():
    admit(Backlog(1000, 100.0), 0, max_queue_seconds=10.0)


def test_a_full_house_refuses_and_tells_how_long_the_work_ahead_takes():
    with pytest.raises(TtsError) as refused:
        admit(Backlog(3000, 100.0), 0, max_queue_seconds=10.0)
    assert refused.value.code is ErrorCode.OVERLOADED
    assert refused.value.status == 503
    assert refused.value.retry_after_seconds == pytest.approx(30.0)


def test_a_caller_over_its_share_is_refused_while_others_are_let_in():
    over = int(CALLER_SHARE * 10 * 100) + 1
    with pytest.raises(TtsError) as refused:
        admit(Backlog(900, 100.0), over, max_queue_seconds=10.0)
    assert refused.value.code is ErrorCode.RATE_LIMITED
    assert refused.value.status == 429
    assert refused.value.retry_after_seconds == pytest.approx(over / 100)
    admit(Backlog(900, 100.0), 10, max_queue_seconds=10.0)


def test_a_fleet_that_is_away_is_waited_for_not_refused():
    admit(Backlog(3000, 0.0), 3000, max_queue_seconds=10.0)


def test_the_backlog_is_work_over_speed():
    assert Backlog(3000, 100.0).seconds == 30.0
    assert Backlog(0, 0.0).seconds == 0.0
    assert Backlog(1, 0.0).seconds == float("inf")


def test_a_key_may_make_a_callers_share_smaller_and_never_larger():
    admit(Backlog(900, 100.0), 200, max_queue_seconds=10.0, caller_queued_seconds=2.0)
    with pytest.raises(TtsError) as refused:
        admit(Backlog(900, 100.0), 201, max_queue_seconds=10.0, caller_queued_seconds=2.0)
    assert (refused.value.code, refused.value.param) == (ErrorCode.RATE_LIMITED, "queued_seconds")
    with pytest.raises(TtsError):
        admit(Backlog(900, 100.0), 501, max_queue_seconds=10.0, caller_queued_seconds=1000.0)
