"""Which arrangement of two devices is recommended, on staged balances of the two stages."""

import pytest

from bench.arrangement import Arrangement, Outcome, advise, ideal_split_gain


def staged(token: float, sound: float, *, lost: float = 0.0) -> dict[Arrangement, Outcome]:
    """What two ideal devices do when a second of audio takes `token` and `sound` seconds of the stages; the split
    loses a share of its pace to waiting."""
    paces = {
        Arrangement.ONE: (1 / (token + sound), 4e9),
        Arrangement.PARALLEL: (2 / (token + sound), 4e9),
        Arrangement.SPLIT: ((1 - lost) / max(token, sound), 2.5e9),
    }
    return {
        arrangement: Outcome(pace, 0.5, size, decode_seconds=10 * token, vocode_seconds=10 * sound)
        for arrangement, (pace, size) in paces.items()
    }


def test_with_a_heavy_token_stage_two_workers_are_recommended() -> None:
    advice = advise(staged(0.8, 0.2))
    assert advice.choice is Arrangement.PARALLEL
    assert "token stage takes 80%" in advice.reason
    assert "1.25 times" in advice.reason
    assert "device of the sound stage idles 75%" in advice.reason


def test_with_a_heavy_sound_stage_two_workers_are_recommended_and_what_would_help_a_split() -> None:
    advice = advise(staged(0.3, 0.7))
    assert advice.choice is Arrangement.PARALLEL
    assert "sound stage takes 70%" in advice.reason
    assert "stronger device" in advice.reason


def test_with_even_stages_the_split_is_recommended_for_its_memory() -> None:
    advice = advise(staged(0.5, 0.5, lost=0.03))
    assert advice.choice is Arrangement.SPLIT
    assert "tokens 50% of the time" in advice.reason
    assert "38% less" in advice.reason


def test_even_stages_do_not_help_a_split_that_loses_its_time_between_them() -> None:
    advice = advise(staged(0.5, 0.5, lost=0.3))
    assert advice.choice is Arrangement.PARALLEL
    assert "waiting between them" in advice.reason


def test_a_second_device_that_brings_nothing_is_left_for_something_else() -> None:
    outcome = Outcome(1.0, 0.5)
    advice = advise(dict.fromkeys(Arrangement, outcome))
    assert advice.choice is Arrangement.ONE
    assert "1.00" in advice.reason


def test_a_split_is_advised_on_its_pace_where_the_stages_are_not_told() -> None:
    paces = {Arrangement.ONE: 1.0, Arrangement.PARALLEL: 1.8, Arrangement.SPLIT: 1.4}
    advice = advise({arrangement: Outcome(pace, 0.5) for arrangement, pace in paces.items()})
    assert advice.choice is Arrangement.PARALLEL
    assert "not known" in advice.reason


@pytest.mark.parametrize(("share", "gain"), [(0.5, 2.0), (0.8, 1.25), (0.2, 1.25), (1.0, 1.0)])
def test_a_split_is_at_best_as_fast_as_its_slower_stage(share: float, gain: float) -> None:
    assert ideal_split_gain(share) == pytest.approx(gain)
