"""The roofline, the ratios of an engine contest and its options: without torch."""

import argparse
import math
from pathlib import Path
from typing import Any

import pytest

from bench import engine
from bench.engine_plot import draw_engine
from bench.engine_report import build_report, lines, markdown, tables
from bench.errors import OptionError
from bench.roofline import Rates, SoundModel, TokenModel, best_seconds

# Chatterbox as published: the layers without their tables, and the head.
PUBLISHED = TokenModel(weights=503_387_136 - 8 * 1024 + 8194 * 1024, layers=30, width=1024, rows=2, bytes_a_number=2)
H200 = Rates(bytes_per_second=4.3e12, flops_per_second=790e12)
SOUND = SoundModel(steps=10, rows=2)


@pytest.mark.parametrize(("batch", "milliseconds"), [(1, 0.251), (8, 0.339), (64, 1.05)])
def test_a_step_of_the_published_model_takes_what_the_study_computed(batch: int, milliseconds: float) -> None:
    assert PUBLISHED.step_seconds(batch, 221, H200) * 1e3 == pytest.approx(milliseconds, rel=0.01)


def test_a_step_reads_the_weights_once_and_the_past_of_each_request() -> None:
    assert PUBLISHED.step_bytes(1, 0) == pytest.approx(1.0235e9, rel=1e-3)
    assert PUBLISHED.step_bytes(3, 100) - PUBLISHED.step_bytes(3, 99) == 3 * 245_760
    assert PUBLISHED.step_flops(1, 0) == pytest.approx(2.047e9, rel=1e-3)


def test_a_step_is_bound_by_arithmetic_where_that_takes_longer() -> None:
    slow = Rates(bytes_per_second=1e15, flops_per_second=1e12)
    assert PUBLISHED.step_seconds(4, 10, slow) == PUBLISHED.step_flops(4, 10) / 1e12


@pytest.mark.parametrize(("prompt", "audio", "teraflops"), [(10, 1, 2.22), (10, 10, 5.32), (3, 5, 1.61)])
def test_the_sound_of_an_utterance_costs_what_the_study_counted(prompt: float, audio: float, teraflops: float) -> None:
    assert SOUND.flops(prompt, audio) / 1e12 == pytest.approx(teraflops, rel=0.03)


def test_one_request_alone_takes_its_reading_its_steps_and_its_sound() -> None:
    best = best_seconds(PUBLISHED, SOUND, prompt_seconds=10, positions=96, lengths=[250], rates=H200)
    # CHATTERBOX.md: 0.0070 s a second of audio on this card, without the reading.
    assert best - PUBLISHED.prefill_seconds(96, H200) == pytest.approx(0.070, rel=0.02)


def test_requests_that_end_leave_the_batch() -> None:
    rates = Rates(bytes_per_second=1.0, flops_per_second=math.inf)
    model = TokenModel(weights=100, layers=1, width=1, rows=1, bytes_a_number=1)
    best = best_seconds(model, SOUND, prompt_seconds=0, positions=5, lengths=[3, 7], rates=rates)
    # Each reading and each of the seven steps reads the weights once, whoever is in it; and a key and a value of each
    # position of who is: two of 6.5 positions for three steps, then one of 10.
    assert best == (2 + 7) * 100 + 3 * 2 * 2 * 6.5 + 4 * 2 * 10


def measured(**changes: Any) -> dict[str, Any]:
    """What two turns of one and two at once would have given."""
    one = {"audio_seconds": 2.0, "seconds": 4.0, "stages": {"decode": 3.0, "vocode": 1.0}}
    ours = one | {"stages": {"read": 0.1, "decode": 1.0, "prepare": 0.0}, "peak_bytes": None}
    whole = {
        "upstream": [one, one | {"seconds": 2.0}],
        "ours": {
            "1": [ours | {"slowest_first_audio_seconds": 3.0}] * 2,
            "2": [ours | {"audio_seconds": 4.0, "slowest_first_audio_seconds": 5.0}] * 2,
        },
    }
    step = {"operations": 1259.0, "waits": 1.0}
    return {
        "device": "cpu, 2 threads",
        "token_dtype": "float32",
        "rates": {"bytes_per_second": 2e10, "flops_per_second": 1e11},
        "equal": {"texts": 3, "equal": 3, "tokens": 90},
        "decode": {"upstream": [10.0, 20.0], "ours": {"1": [10.0, 10.0], "2": [40.0, 20.0]}, "peak_bytes": {}},
        "best_tokens_per_second": {"1": 100.0, "2": 160.0},
        "steps": {"upstream": step, "ours": {"1": step, "2": step | {"waits": 0.0}}},
        "whole": whole,
        "memory": {"rss_bytes": 1e9},
        **changes,
    }


def test_ratios_are_of_the_same_turn_and_tell_their_spread() -> None:
    summary = build_report(measured())["summary"]
    assert summary["tokens_per_second"]["2"]["ratio"] == {"median": 2.5, "low": 1.0, "high": 4.0}
    assert summary["tokens_per_second"]["2"]["of_best"] == 0.1875
    assert summary["audio_seconds_per_second"]["2"]["ratio"] == {"median": 1.5, "low": 1.0, "high": 2.0}
    assert summary["audio_seconds_per_second"]["2"]["of_best"] is None  # known for the published size alone
    assert summary["upstream"]["stage_shares"] == {"decode": 1.0, "vocode": pytest.approx(1 / 3)}


def test_the_table_tells_each_batch_beside_upstream() -> None:
    report = build_report(measured())
    token, whole, step = tables(report)
    assert token[2][1] == ["2", "15", "30", "2.50 (1.00–4.00)", "160", "0.19"]
    assert whole[2][1][3:] == ["1.50 (1.00–2.00)", "–", "–", "5"]
    assert step[2][2] == ["ours, 2 at once", "1259", "0"]
    assert any("3 of 3 texts" in line for line in lines(report))
    assert "| 2 | 15 | 30 |" in markdown(report)


def test_of_tokens_alone_nothing_is_told_of_sound() -> None:
    report = build_report(measured(whole={"upstream": [], "ours": {}}))
    assert report["summary"]["upstream"]["audio_seconds_per_second"] is None
    assert [title for title, *_ in tables(report)] == ["Token stage", "One step of the token stage"]
    assert not any("stages" in line for line in lines(report))
    assert "audio" not in markdown(report)


def test_a_picture_is_drawn(tmp_path: Path) -> None:
    draw_engine(build_report(measured(best_audio_seconds_per_second={"1": 5.0, "2": 9.0})), tmp_path / "engine.png")
    assert (tmp_path / "engine.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("given", "named"),
    [
        (["--batch", "one"], "--batch"),
        (["--batch", "0,1"], "--batch"),
        (["--batch", "2,2"], "--batch"),
        (["--tokens", "5"], "--tokens"),
        (["--tokens", "900"], "--tokens"),
        (["--turns", "0"], "--turns"),
        (["--rounds", "0"], "--rounds"),
        (["--check", "3"], "--check"),
        (["--json", "nowhere/a.json"], "--json"),
        (["--plot", "a.txt"], "--plot"),
        (["--markdown", "nowhere.md"], "--markdown"),
    ],
)
def test_an_impossible_option_is_named(given: list[str], named: str) -> None:
    parser = argparse.ArgumentParser()
    engine.add_arguments(parser)
    with pytest.raises(OptionError, match=named):
        engine.read_options(parser.parse_args(given))
