"""Closed-loop load and what it tells, pure; and one short table of real processes."""

import argparse
import asyncio
import json
from pathlib import Path

import pytest

from bench import connections, split
from bench.__main__ import main
from bench.arrangement import Arrangement
from bench.closed import speak_all
from bench.connections import row_of
from bench.errors import OptionError
from bench.gpu_load import GpuLoad
from bench.journey import Journey, Problem, ProblemKind
from bench.speakers import Speaker


async def test_each_connection_asks_for_the_next_text_when_its_last_is_answered() -> None:
    under_way, most, answered = 0, 0, []

    async def speak(journey: Journey, text: str) -> None:
        nonlocal under_way, most
        under_way += 1
        most = max(most, under_way)
        for _ in range(1 + 3 * (text == "long")):
            await asyncio.sleep(0)
        answered.append(text)
        under_way -= 1

    texts = ["long", "a", "b", "c"]
    journeys = await speak_all(speak, texts, 2, lambda: 0.0)
    assert most == 2
    # One connection is held by the long one, and the other answers the rest.
    assert answered[:2] == ["a", "b"]
    assert [journey.index for journey in journeys] == [0, 1, 2, 3]


def journey(index: int, *, first: float, end: float, stalls: int = 0, ok: bool = True) -> Journey:
    made = Journey(index, 60, due_at=0.0, sent_at=0.0, first_audio_at=first, finished_at=end, audio_seconds=4.0)
    made.stalls, made.stall_seconds = stalls, 0.1 * stalls
    made.problem = None if ok else Problem(ProblemKind.TRUNCATED)
    return made


def test_a_row_tells_of_those_that_were_answered_and_counts_the_others() -> None:
    load = GpuLoad()
    for share in (0.0, 1.0):
        load.note("GPU-a", {"utilization_ratio": share, "memory_used_bytes": 5})
        load.note("GPU-idle", {"utilization_ratio": 0.0})
    row = row_of(
        30,
        [journey(0, first=1, end=2), journey(1, first=3, end=4, stalls=2), journey(2, first=9, end=9, ok=False)],
        4.0,
        load,
    )
    assert (row["requests"], row["failed"]) == (3, 1)
    assert row["ttfa_seconds"]["p50"] == 2
    assert row["underrun_share"] == 0.5
    assert row["audio_seconds_per_second"] == 2.0
    assert row["gpu_load"] == 0.5  # of the one that did anything
    assert row_of(1, [journey(0, first=1, end=2)], 4.0, GpuLoad())["gpu_load"] is None


@pytest.mark.parametrize(
    ("module", "given", "named"),
    [
        (connections, ["--connections", "few"], "--connections"),
        (connections, ["--connections", "0"], "--connections"),
        (connections, ["--each", "0"], "--each"),
        (connections, ["--characters", "900"], "--characters"),
        (connections, ["--checkpoint", "/"], "--checkpoint"),
        (connections, ["--url", "http://127.0.0.1:1", "--checkpoint", "/"], "--checkpoint"),
        (split, ["--devices", "cpu"], "--devices"),
        (split, ["--devices", "cpu,cpu,cpu"], "--devices"),
        (split, ["--turns", "0"], "--turns"),
        (split, ["--model", "tone"], "--model"),
        (split, ["--json", "nowhere/a.json"], "--json"),
    ],
)
def test_an_impossible_option_is_named(module: object, given: list[str], named: str) -> None:
    assert module in (connections, split)
    parser = argparse.ArgumentParser()
    module.add_arguments(parser)  # type: ignore[attr-defined]
    with pytest.raises(OptionError, match=named):
        module.read_options(parser.parse_args(given))  # type: ignore[attr-defined]


def test_an_arrangement_is_started_with_its_devices() -> None:
    speaker = Speaker("chatterbox", None, "tiny", 60, ())
    options = split.Options(("cuda:0", "cuda:1"), speaker, slots=4, requests=1, connections=1, turns=1, seed=1)
    slots = ("--slots", "4")
    assert options.places(Arrangement.ONE) == [("--device", "cuda:0", *slots)]
    assert options.places(Arrangement.PARALLEL) == [("--device", "cuda:0", *slots), ("--device", "cuda:1", *slots)]
    assert options.places(Arrangement.SPLIT) == [("--split", "cuda:0,cuda:1", *slots)]


def test_overlap_is_the_share_of_the_busy_time_in_which_both_stages_worked() -> None:
    assert split.overlap_ratio({"decode": 6.0, "vocode": 6.0, "overlap": 4.0}) == 0.5
    assert split.overlap_ratio({"decode": 5.0, "vocode": 5.0, "overlap": 5.0}) == 1.0
    assert split.overlap_ratio({"decode": 0.0, "vocode": 0.0, "overlap": 0.0}) == 0.0
    assert split.overlap_ratio({"decode": 6.0, "vocode": 6.0}) is None


def turn(pace: float, **changes: object) -> dict[str, object]:
    stages = {"decode": 6.0, "vocode": 4.0}
    return {
        "audio_seconds_per_second": pace,
        "ttfa_p50_seconds": 0.4,
        "ttfa_p95_seconds": 0.5,
        "stage_seconds": stages,
        "overlap_ratio": None,
        "device_bytes": 2e9,
        **changes,
    }


def test_a_split_report_tells_ratios_of_the_same_turn_and_the_advice() -> None:
    speaker = Speaker("chatterbox", None, "tiny", 60, ())
    options = split.Options(("cpu", "cpu"), speaker, slots=4, requests=1, connections=1, turns=2, seed=1)
    turns = {
        Arrangement.ONE: [turn(1.0), turn(2.0)],
        Arrangement.PARALLEL: [turn(2.0), turn(4.0)],
        Arrangement.SPLIT: [turn(1.5, overlap_ratio=0.8), turn(3.2, overlap_ratio=0.9)],
    }
    report = split.build_report(options, turns)
    assert report["gains"]["split"] == {"median": 1.55, "low": 1.5, "high": 1.6}
    assert report["advice"]["choice"] == "parallel"
    table = split.markdown(report)
    assert "| one worker, a stage a device | 2.35 | 1.55 (1.50–1.60) | 0.4 | 0.5 | 60% | 0.85 | 2.00 |" in table
    assert "advice: two workers, a device each." in table


@pytest.mark.e2e
def test_a_table_of_connections_is_measured_on_real_processes(tmp_path: Path) -> None:
    where, page = tmp_path / "a.json", tmp_path / "page.md"
    page.write_text("<!-- connections: written by tts-bench --><!-- end of connections -->\n")
    options = ["--connections", "1,3", "--each", "2", "--json", str(where), "--markdown", str(page)]
    assert main(["connections", *options]) == 0
    rows = json.loads(where.read_text())["rows"]
    assert [(row["connections"], row["requests"], row["failed"]) for row in rows] == [(1, 2, 0), (3, 6, 0)]
    assert all(row["ttfa_seconds"]["p50"] > 0 for row in rows)
    assert "| 3 |" in page.read_text()
