import math
import re
import statistics
from itertools import islice, pairwise
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.prose import prose
from bench.trace import (
    Arrival,
    Pattern,
    TraceError,
    arrival_times,
    digest,
    fixed_texts,
    from_lines,
    listed_texts,
    make_trace,
    standard_length,
    standard_texts,
    to_lines,
)


@given(st.integers(1, 5000), st.integers())
def test_a_text_has_exactly_the_length_that_was_asked_for(characters: int, seed: int) -> None:
    text = prose(Random(seed), characters)
    assert len(text) == characters
    assert "  " not in text
    assert text == text.strip()
    assert characters == 1 or text[-1] in ".?!"


def test_sentences_have_a_natural_length_and_commas() -> None:
    text = prose(Random(1), 50_000)
    words = [len(sentence.split()) for sentence in re.split(r"[.?!] ", text)]
    assert 8 <= statistics.mean(words) <= 18
    assert max(words) <= 40
    assert all(sentence[0].isupper() for sentence in re.split(r"[.?!] ", text))
    assert 0.2 < text.count(",") / len(words) < 2


@pytest.mark.parametrize("pattern", Pattern)
def test_a_seed_gives_the_same_trace_and_another_seed_another(pattern: Pattern) -> None:
    def trace(seed: int) -> list[Arrival]:
        return make_trace(arrival_times(pattern, 5, seed), standard_texts(seed), requests=50)

    assert trace(7) == trace(7)
    assert trace(7) != trace(8)
    assert digest(trace(7)) == digest(trace(7)) != digest(trace(8))


def test_another_rate_leaves_the_texts_as_they_are() -> None:
    slow, fast = (make_trace(arrival_times(Pattern.POISSON, r, 1), standard_texts(1), requests=30) for r in (1, 9))
    assert [arrival.text for arrival in slow] == [arrival.text for arrival in fast]
    assert slow[-1].at_seconds == pytest.approx(9 * fast[-1].at_seconds)


@pytest.mark.parametrize("pattern", Pattern)
def test_the_mean_rate_is_as_given(pattern: Pattern) -> None:
    times = list(islice(arrival_times(pattern, 40, 3), 400_000))
    assert times == sorted(times)
    assert len(times) / times[-1] == pytest.approx(40, rel=0.05)


def test_bursts_are_a_fifth_of_the_time_at_three_times_the_rate() -> None:
    rate = 200
    counts: dict[int, int] = {}
    for at in islice(arrival_times(Pattern.BURSTS, rate, 5), 1_000_000):
        counts[int(at)] = counts.get(int(at), 0) + 1
    # Most seconds lie wholly in one state: 100 or 600 arrivals, with nothing between that noise could reach.
    seconds = max(counts)
    busy = [count for count in counts.values() if count > 350]
    assert len(busy) / seconds == pytest.approx(0.2, abs=0.03)
    assert statistics.median(busy) == pytest.approx(3 * rate, rel=0.03)
    calm = [counts.get(second, 0) for second in range(seconds) if counts.get(second, 0) <= 350]
    assert statistics.median(calm) == pytest.approx(rate / 2, rel=0.03)


def test_poisson_gaps_are_exponential() -> None:
    times = list(islice(arrival_times(Pattern.POISSON, 10, 2), 100_000))
    gaps = [later - earlier for earlier, later in pairwise(times)]
    assert statistics.stdev(gaps) == pytest.approx(statistics.mean(gaps), rel=0.03)
    assert statistics.median(gaps) == pytest.approx(0.0693, rel=0.03)


def test_uniform_arrivals_are_equally_spaced_from_zero() -> None:
    assert list(islice(arrival_times(Pattern.UNIFORM, 4, 0), 4)) == [0, 0.25, 0.5, 0.75]


def test_the_mix_has_the_quantiles_of_its_two_halves() -> None:
    rng = Random(11)
    lengths = sorted(standard_length(rng) for _ in range(100_000))
    # Of the mixture's distribution function: 0.75·Φ(ln(x/70)/0.6) + 0.25·Φ(ln(x/500)/0.9).
    phi = statistics.NormalDist().cdf
    for quantile in (0.1, 0.5, 0.75, 0.9, 0.95):
        x = lengths[int(quantile * len(lengths))]
        exact = 0.75 * phi(math.log(x / 70) / 0.6) + 0.25 * phi(math.log(x / 500) / 0.9)
        assert exact == pytest.approx(quantile, abs=0.012)
    assert lengths[0] >= 4
    assert lengths[-1] == 4096


def test_the_mix_can_be_clipped() -> None:
    assert max(len(text) for text in islice(standard_texts(1, longest=120), 500)) == 120


def test_a_trace_ends_at_its_duration_or_its_number_whichever_is_first() -> None:
    def times() -> list[float]:
        return [0.0, 1.0, 2.0, 3.0]

    texts = ["a"] * 4
    assert len(make_trace(times(), texts, duration_seconds=2.0)) == 2
    assert len(make_trace(times(), texts, requests=3)) == 3
    assert len(make_trace(times(), texts, duration_seconds=2.5, requests=1)) == 1
    with pytest.raises(ValueError, match="without end"):
        make_trace(times(), texts)


def test_texts_of_one_length_differ() -> None:
    texts = list(islice(fixed_texts(1, 90), 20))
    assert {len(text) for text in texts} == {90}
    assert len(set(texts)) == 20


def test_listed_texts_are_drawn_from_the_list() -> None:
    assert set(islice(listed_texts(1, ["one", "two", "three"]), 60)) == {"one", "two", "three"}


@given(st.lists(st.tuples(st.floats(0, 1e6), st.text(min_size=1)), max_size=20))
def test_a_saved_trace_reads_back_exactly(pairs: list[tuple[float, str]]) -> None:
    trace = [Arrival(at, text) for at, text in sorted(pairs)]
    lines = list(to_lines(trace))
    assert all(line.count("\n") == 1 for line in lines)
    assert list(from_lines(lines)) == trace


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("nonsense", "line 2 is not"),
        ("[]", "line 2 is not"),
        ('{"at_seconds": 3}', "line 2 is not"),
        ('{"at_seconds": "x", "text": "a"}', "line 2 is not"),
        ('{"at_seconds": 3, "text": ""}', "line 2: text must be"),
        ('{"at_seconds": 3, "text": 5}', "line 2: text must be"),
        ('{"at_seconds": 0.5, "text": "a"}', "line 2: at_seconds is 0.5, after 1"),
        ('{"at_seconds": NaN, "text": "a"}', "line 2: at_seconds is nan"),
        ('{"at_seconds": Infinity, "text": "a"}', "line 2: at_seconds is inf"),
    ],
)
def test_a_bad_line_is_named(line: str, message: str) -> None:
    with pytest.raises(TraceError, match=message):
        list(from_lines(['{"at_seconds": 1, "text": "a"}', line]))
