import pytest

from gateway.pace import PRIOR_SECONDS_PER_CHARACTER, Pace


def test_before_anything_was_learned_the_prior_is_predicted():
    assert Pace().predict_seconds(100) == pytest.approx(100 * PRIOR_SECONDS_PER_CHARACTER)


def test_a_pace_is_learned_within_a_few_segments():
    pace = Pace()
    for _ in range(30):
        pace.observe(200, seconds=10.0, audio_seconds=14.0)
    assert pace.seconds_per_character == pytest.approx(0.05, rel=0.05)
    assert pace.audio_seconds_per_character == pytest.approx(0.07, rel=0.05)


def test_short_segments_with_a_fixed_cost_weigh_by_their_length():
    pace = Pace()
    for _ in range(50):
        pace.observe(10, seconds=1.0, audio_seconds=0.7)
        pace.observe(250, seconds=2.5, audio_seconds=17.0)
    assert pace.seconds_per_character == pytest.approx(3.5 / 260, rel=0.1)


def test_a_slowed_down_worker_is_noticed_within_some_twenty_segments():
    pace = Pace()
    for _ in range(50):
        pace.observe(100, seconds=1.0, audio_seconds=7.0)
    for _ in range(20):
        pace.observe(100, seconds=4.0, audio_seconds=7.0)
    assert pace.seconds_per_character > 0.035


def test_patience_grows_with_the_text_and_never_falls_below_its_floor():
    pace = Pace()
    assert pace.stall_seconds(10, floor=5.0) == 5.0
    assert pace.stall_seconds(10_000, floor=5.0) == pytest.approx(3 * pace.predict_seconds(10_000))
