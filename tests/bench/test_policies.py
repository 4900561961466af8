"""What the policies are compared by, and one short run of all three services as real processes."""

import asyncio
import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

from bench.fleet import Fleet, FleetError
from bench.ratios import FIGURES, markdown, rows, spread, summarize_runs
from bench.scenario import Scenario, Work, loaded_trace, offered_load, stretched
from bench.section import check_section, write_section
from bench.services import nginx_config, scaled_times, variant
from bench.speedup import Spoken, speedups
from bench.trace import Pattern
from bench.whole_text import WholeTextModel
from gateway.config import Config
from tests.bench.waiting import until
from wire.segment import SegmentRequest
from worker.config import ToneOptions

WORK = Work(realtime_factor=0.025, overhead_seconds=0.03)


# -- work and load


@pytest.mark.parametrize(
    ("characters", "piece_characters", "pieces"),
    [(1, 250, 1), (250, 250, 1), (251, 250, 2), (1000, 250, 4), (4096, 0, 1)],
)
def test_a_text_costs_its_characters_and_the_fixed_work_of_each_piece(
    characters: int, piece_characters: int, pieces: int
) -> None:
    work = WORK._replace(piece_characters=piece_characters)
    assert work.seconds(characters) == pytest.approx(pieces * 0.03 + characters * 0.025 / 15)


@pytest.mark.parametrize(
    ("scenario", "capacity"),
    [("homogeneous", 4), ("one-slow", 3.5), ("failing", 3), ("hanging", 3), ("bursts", 4)],
)
def test_capacity_counts_the_workers_that_answer_by_their_speed(scenario: str, capacity: float) -> None:
    assert Scenario(scenario).capacity(4) == capacity


@pytest.mark.parametrize("scenario", list(Scenario))
@pytest.mark.parametrize("load", [0.5, 0.85])
def test_a_trace_offers_the_load_that_was_asked_for(scenario: Scenario, load: float) -> None:
    trace = loaded_trace(scenario, WORK, workers=4, load=load, duration_seconds=200, seed=3)
    available = scenario.capacity(4) * 200
    assert offered_load(trace, WORK, available_seconds=available) == pytest.approx(load, abs=0.01)
    times = [arrival.at_seconds for arrival in trace]
    assert times == sorted(times)
    assert 0 <= times[0] < times[-1] < 200
    assert trace == loaded_trace(scenario, WORK, workers=4, load=load, duration_seconds=200, seed=3)
    assert trace != loaded_trace(scenario, WORK, workers=4, load=load, duration_seconds=200, seed=4)


def test_a_trace_that_holds_not_one_text_is_empty() -> None:
    assert loaded_trace(Scenario.HOMOGENEOUS, WORK, workers=2, load=0.01, duration_seconds=0.1, seed=1) == []


def test_instants_are_stretched_to_the_duration() -> None:
    assert stretched(Pattern.UNIFORM, 4, 10, seed=1) == pytest.approx([0, 2.5, 5, 7.5])


@pytest.mark.parametrize("characters", [1, 4, 5, 247, 248, 249, 250, 251, 252, 253, 499, 500, 501, 750, 760])
@pytest.mark.parametrize("piece_characters", [250, 100, 0])
def test_a_whole_text_worker_does_the_work_that_the_load_is_reckoned_by(characters: int, piece_characters: int) -> None:
    overhead = 0.001
    model = WholeTextModel(ToneOptions(realtime_factor=0.0, overhead_seconds=overhead), piece_characters)
    assert model.info().max_segment_characters >= characters
    state = model.prefill(SegmentRequest("r", 0, "a" * characters, "tone", "alto", seed=1))
    began = state.due - overhead
    while not model.step([state])[0].finished:
        pass
    reckoned = Work(realtime_factor=1e-9, overhead_seconds=overhead, piece_characters=piece_characters)
    assert state.due - began == pytest.approx(reckoned.seconds(characters), abs=1e-6)


# -- what stands in front


def test_the_configuration_of_nginx_is_what_people_write() -> None:
    config = nginx_config(8088, ["127.0.0.1:9001", "127.0.0.1:9002"])
    assert config.count("server 127.0.0.1:900") == 2
    for line in ("least_conn;", "proxy_buffering off;", "listen 127.0.0.1:8088;", "worker_processes 1;"):
        assert line in config
    assert "proxy_next_upstream" not in config  # nginx's own default
    assert config.index("least_conn;") < config.index("keepalive 64;")  # nginx wants the method first


def test_a_variant_is_the_default_gateway_with_other_options() -> None:
    service = variant("wider", ["--look-ahead", "16"])
    assert service.name == "wider"
    assert service.gateway_options == ("--look-ahead", "16")
    assert service.worker_options == ("--slots", "1")
    assert not service.takes_whole_texts


def test_a_scaled_gateway_has_its_times_as_many_times_shorter() -> None:
    options = dict(zip(scaled_times(10)[::2], scaled_times(10)[1::2], strict=True))
    assert options["--queue-patience"] == "3"
    default = Config()
    for flag, value in zip(scaled_times(1)[::2], scaled_times(1)[1::2], strict=True):
        assert getattr(default, flag.removeprefix("--").replace("-", "_")) == float(value)


# -- ratios


def a_run(service: str, round_: int, ttfa: float | None, *, failed: int = 0) -> dict[str, Any]:
    times = None if ttfa is None else {"mean": ttfa, "p50": ttfa, "p95": ttfa, "p99": ttfa}
    group = {
        "ttfa_seconds": times,
        "completion_seconds": times,
        "slowdown": times,
        "stalled_requests": 1,
        "ok": 20 - failed,
    }
    return {
        "scenario": "homogeneous",
        "service": service,
        "trace": {"requests": 20, "digest": f"trace-{round_}"},
        "load": {"carried": None},
        "figures": {
            "requests": {"failed": failed, "sent": 20},
            "send_lag_seconds": None,
            "groups": {"all": group, "short": group, "long": group | {"completion_seconds": None}},
        },
    }


def test_a_spread_is_over_what_is_known() -> None:
    assert spread([3.0, None, 1.0, 10.0]) == (3.0, 1.0, 10.0)
    assert spread([None]) is None


def test_ratios_are_of_runs_of_the_same_trace() -> None:
    runs = [
        a_run(service, round_, seconds, failed=failed)
        for round_, (theirs, ours) in enumerate([(10.0, 1.0), (2.0, 1.0), (20.0, 5.0)])
        for service, seconds, failed in (("nginx", theirs, 1), ("default", ours, 0))
    ]
    summary = summarize_runs(runs)["homogeneous"]
    assert summary["rounds"] == 3
    assert summary["requests"] == 60
    assert summary["services"]["nginx"]["ttfa_p95"] == {"median": 10.0, "low": 2.0, "high": 20.0}
    assert summary["services"]["nginx"]["failed_percent"]["median"] == 5
    assert summary["ratios"]["default/nginx"]["ttfa_p95"] == {"median": 0.25, "low": 0.1, "high": 0.5}
    assert summary["ratios"]["default/nginx"]["long_p99"] is None
    assert "failed_percent" not in summary["ratios"]["default/nginx"]


def test_a_service_that_failed_most_of_its_requests_is_not_compared() -> None:
    summary = summarize_runs([a_run("nginx", 0, 0.1, failed=15), a_run("default", 0, 1.0)])["homogeneous"]
    assert summary["services"]["nginx"]["ttfa_p95"]["median"] == 0.1
    assert summary["ratios"]["default/nginx"]["ttfa_p95"] is None


def test_tables_leave_out_what_nobody_measured_and_have_a_cell_for_all_else() -> None:
    runs = [a_run("nginx", 0, 10.0), a_run("default", 0, None)]
    heads, cells = rows(summarize_runs(runs)["homogeneous"])
    assert heads == ["figure", "nginx", "default", "default ÷ nginx"]
    assert {len(row) for row in cells} == {4}
    titles = [row[0] for row in cells]
    assert "TTFA p95, s" in titles
    assert "long texts p99, s" not in titles
    assert len(titles) < len(FIGURES)
    assert "| TTFA p95, s | 10 | – |  |" in markdown({"summary": summarize_runs(runs)})


def test_speed_ups_are_of_the_same_text_in_the_same_round() -> None:
    spoken = [
        Spoken(0, 0, 1, 10.0, 0.1),
        Spoken(0, 1, 1, 20.0, 0.1),
        Spoken(0, 0, 2, 5.0, 0.1),
        Spoken(0, 1, 2, 12.5, 0.1),
    ]
    assert speedups(spoken, 2) == (1.8, 1.6, 2.0)
    assert speedups(spoken, 4) is None


def test_a_section_is_replaced_and_all_else_left(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- one: written by tts-bench -->\nold\n<!-- end of one -->\nafter\n")
    check_section(page, "one")
    for _ in range(2):
        write_section(page, "one", "| new |")
    assert page.read_text() == ("before\n<!-- one: written by tts-bench -->\n\n| new |\n\n<!-- end of one -->\nafter\n")


# -- the command


async def bench(*arguments: object) -> tuple[int, str, str]:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "bench", *map(str, arguments)),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        async with asyncio.timeout(180):
            out, err = await process.communicate()
    finally:
        if process.returncode is None:
            process.terminate()
            await process.wait()
    assert process.returncode is not None
    return process.returncode, out.decode(), err.decode()


def has_nginx() -> bool:
    return shutil.which("nginx", path=f"{os.environ['PATH']}:/usr/local/sbin:/usr/sbin:/sbin") is not None


@pytest.mark.e2e
@pytest.mark.skipif(not has_nginx() and os.environ.get("CI") != "true", reason="nginx is not installed")
async def test_all_three_services_carry_a_short_trace(tmp_path: Path) -> None:
    report_at, plot_at, page = tmp_path / "a.json", tmp_path / "a.png", tmp_path / "page.md"
    page.write_text("<!-- policies: written by tts-bench --><!-- end of policies -->\n")
    common = ("policies", "--workers", 2, "--duration", 3, "--load", 0.6)
    code, out, err = await bench(
        *(*common, "--repeats", 1, "--scenario", "homogeneous"),
        *("--json", report_at, "--plot", plot_at, "--markdown", page),
    )
    assert code == 0, err
    assert "default ÷ nginx" in out
    report = json.loads(report_at.read_text())
    assert [run["service"] for run in report["runs"]] == ["nginx", "least-connections", "default"]
    assert len({run["trace"]["digest"] for run in report["runs"]}) == 1
    for run in report["runs"]:
        requests = run["figures"]["requests"]
        assert requests["failed"] == requests["capped"] == 0, run["figures"]["errors"]
        assert requests["ok"] == run["trace"]["requests"] > 5
        assert run["load"]["offered"] == pytest.approx(0.6, abs=0.2)
        # What the workers really did is what the load was reckoned by, and a little more where texts are cut.
        assert 0.8 < run["load"]["carried"] / run["load"]["offered"] < 1.4
        assert run["load"]["ejections"] == run["load"]["retries"] == 0
    assert set(report["summary"]["homogeneous"]["ratios"]) == {"default/nginx", "default/least-connections"}
    assert plot_at.read_bytes().startswith(b"\x89PNG\r\n")
    assert "TTFA p95" in page.read_text()

    code, out, err = await bench(*common, "--repeats", 0, "--add", report_at)
    assert code == 0, err
    assert "default ÷ nginx" in out
    code, _, err = await bench("policies", "--workers", 3, "--repeats", 0, "--add", report_at)
    assert code == 2
    assert "workers" in err


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("--policy-names", "nginx,best"), "--policy-names"),
        (("--variant", "default=--look-ahead 3"), "--variant"),
        (("--workers", 1), "--workers"),
        (("--load", 0), "--load"),
        (("--repeats", 0), "--repeats"),
        (("--markdown", "/dev/null"), "--markdown"),
    ],
)
async def test_bad_options_are_refused_before_anything_starts(arguments: tuple[object, ...], named: str) -> None:
    code, _, err = await bench("policies", *arguments)
    assert code == 2
    assert named in err


# -- the processes


@pytest.mark.e2e
async def test_a_process_that_ends_by_itself_ends_the_measurement(tmp_path: Path) -> None:
    async with Fleet(tmp_path) as fleet:
        await fleet.start("brief", sys.executable, "-c", "print('last words')")
        with pytest.raises(FleetError, match=r"brief ended with 0(.|\n)*last words"):
            await fleet.guard(asyncio.sleep(60))


@pytest.mark.e2e
async def test_leaving_a_fleet_ends_every_process_also_one_that_heeds_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bench.fleet._STOP_SECONDS", 0.5)
    deaf = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); time.sleep(60)"
    async with Fleet(tmp_path) as fleet:
        running = [await fleet.start(name, sys.executable, "-c", deaf) for name in ("one", "two")]
        await until(lambda: all("up" in one.log.read_text() for one in running))
    assert [one.process.returncode for one in running] == [-9, -9]


@pytest.mark.e2e
async def test_what_was_measured_before_an_interruption_is_kept(tmp_path: Path) -> None:
    report_at = tmp_path / "a.json"
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "bench", "policies", "--workers", "2", "--duration", "3", "--scenario", "homogeneous"),
        *("--policy-names", "default,least-connections", "--repeats", "3", "--json", str(report_at)),
        stderr=asyncio.subprocess.PIPE,
    )
    assert process.stderr is not None
    try:
        async with asyncio.timeout(120):
            assert b"default" in await process.stderr.readline()
            process.terminate()
            await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert process.returncode == 143
    report = json.loads(report_at.read_text())
    assert [run["service"] for run in report["runs"]] == ["default"]
    assert report["summary"]["homogeneous"]["rounds"] == 1
