import pytest

from gateway.fairness import HALF_LIFE_SECONDS, LIGHT_CHARACTERS, Usage


def test_what_was_served_fades_by_half_in_a_half_life():
    usage = Usage()
    usage.charge("a", 1000, now=0.0)
    assert usage.of("a", now=HALF_LIFE_SECONDS) == pytest.approx(500)
    usage.charge("a", 100, now=HALF_LIFE_SECONDS)
    assert usage.of("a", now=2 * HALF_LIFE_SECONDS) == pytest.approx(300)


def test_a_caller_who_had_much_more_yields_to_one_who_had_little():
    usage = Usage()
    usage.charge("flooder", 40_000, now=0.0)
    usage.charge("guest", 1_000, now=0.0)
    assert usage.yields("flooder", "guest", now=1.0)
    assert usage.yields("flooder", "newcomer", now=1.0)
    assert not usage.yields("guest", "flooder", now=1.0)


def test_callers_of_like_habits_do_not_yield_to_each_other():
    usage = Usage()
    usage.charge("a", 3_000, now=0.0)
    usage.charge("b", 1_600, now=0.0)
    assert not usage.yields("a", "b", now=0.0)
    assert not usage.yields("a", "a", now=0.0)
    usage.charge("c", LIGHT_CHARACTERS, now=0.0)
    assert not usage.yields("c", "newcomer", now=0.0)


def test_a_level_is_a_doubling():
    usage = Usage()
    usage.charge("a", LIGHT_CHARACTERS - 1, now=0.0)
    assert usage.level("a", now=0.0) == usage.level("newcomer", now=0.0) == 0
    for level in (1, 2, 3, 4):
        usage = Usage()
        usage.charge("a", LIGHT_CHARACTERS * 2 ** (level - 1), now=0.0)
        assert usage.level("a", now=0.0) == level


def test_callers_are_forgotten_in_time():
    usage = Usage()
    for n in range(1000):
        usage.charge(f"caller {n}", 500, now=0.0)
    usage.forget(now=20 * HALF_LIFE_SECONDS)
    assert len(usage) == 0
