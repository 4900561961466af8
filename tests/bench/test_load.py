"""The real command against a service on a real socket."""

import asyncio
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.bench.waiting import until
from tests.fakes.speech_server import Script, SpeechServer
from wire.errors import ErrorCode

PNG = b"\x89PNG\r\n"


class Done(NamedTuple):
    code: int
    out: str
    err: str


async def start(*arguments: object, **environment: str) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "bench",
        *map(str, arguments),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env=os.environ | environment,
    )


async def bench(*arguments: object, **environment: str) -> Done:
    """Run the command to its end."""
    process = await start(*arguments, **environment)
    try:
        async with asyncio.timeout(120):
            out, err = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
    assert process.returncode is not None
    return Done(process.returncode, out.decode(), err.decode())


def read(path: Path) -> dict[str, Any]:
    report = json.loads(path.read_text())
    assert isinstance(report, dict)
    return report


async def test_a_run_writes_its_report_its_table_and_its_plot(tmp_path: Path) -> None:
    report_at, plot_at = tmp_path / "a.json", tmp_path / "a.png"
    async with SpeechServer(Script(first_byte_seconds=0.2)) as server:
        done = await bench(
            *("load", "--url", server.url, "--rate", 40, "--requests", 40, "--seed", 5, "--label", "the [first]"),
            *("--json", report_at, "--plot", plot_at, "--watch-pid", os.getpid(), "--token", "secret"),
            *("--alone-per-character", 0.001, "--fail-on-error"),
        )
    assert done.code == 0, done.err
    assert "the [first]" in done.out
    assert "40 of 40 ok" in done.out
    assert plot_at.read_bytes().startswith(PNG)
    report = read(report_at)
    figures = report["figures"]
    assert figures["requests"] == {"sent": 40, "ok": 40, "failed": 0, "capped": 0}
    assert figures["groups"]["all"]["ttfa_seconds"]["p50"] >= 0.2
    assert figures["groups"]["all"]["audio_seconds"] == pytest.approx(40 * 0.5)
    assert figures["groups"]["all"]["slowdown"]["count"] == 40
    assert (report["seed"], report["label"], report["trace"]["requests"]) == (5, "the [first]", 40)
    assert report["host"]["cores"] == os.cpu_count()
    assert report["options"]["rate"] == 40
    assert "secret" not in report_at.read_text()
    assert report["processes"][0]["pid"] == os.getpid()
    assert {len(column) for column in report["samples"].values()} == {40}
    assert {received.headers["Authorization"] for received in server.requests} == {"Bearer secret"}


async def test_two_services_get_the_same_trace_and_are_compared(tmp_path: Path) -> None:
    trace_at, plot_at, ratios_at = tmp_path / "trace.jsonl", tmp_path / "both.png", tmp_path / "both.json"
    reports = [tmp_path / "a.json", tmp_path / "b.json"]
    async with SpeechServer() as fast, SpeechServer(Script(first_byte_seconds=1.0)) as slow:
        first = await bench(
            *("load", "--url", fast.url, "--rate", 20, "--requests", 20, "--characters", 60, "--label", "fast"),
            *("--trace-out", trace_at, "--json", reports[0], "--quiet"),
        )
        second = await bench(
            *("load", "--url", slow.url, "--trace-in", trace_at, "--label", "slow", "--json", reports[1]),
            "--quiet",
        )
    assert first == second == Done(0, "", "")
    assert [received.body for received in fast.requests] == [received.body for received in slow.requests]
    assert read(reports[0])["trace"] == read(reports[1])["trace"]
    assert {len(received.text) for received in fast.requests} == {60}

    compared = await bench("compare", *reports, "--plot", plot_at, "--json", ratios_at)
    assert compared.code == 0, compared.err
    assert "slow ÷ fast" in compared.out
    assert "different traces" not in compared.out
    assert plot_at.read_bytes().startswith(PNG)
    ttfa = read(ratios_at)["figures"]["groups.all.ttfa_seconds.p50"]
    assert ttfa["ratios"] == [pytest.approx(ttfa["values"][1] / ttfa["values"][0])]
    assert ttfa["ratios"][0] > 1
    assert read(ratios_at)["figures"]["requests.failed"]["ratios"] == [None]


async def test_errors_are_reported_and_fail_the_command_only_when_asked(tmp_path: Path) -> None:
    def script(text: str) -> Script:
        if text.startswith("busy"):
            return Script(refuse=ErrorCode.OVERLOADED, retry_after_seconds=1)
        return Script(cut_after_chunks=1) if text.startswith("cut") else Script()

    texts_at, report_at = tmp_path / "texts.txt", tmp_path / "a.json"
    texts_at.write_text("busy now\ncut off\n\nspoken well\n")
    options = ("load", "--rate", 100, "--requests", 60, "--texts", texts_at, "--json", report_at)
    async with SpeechServer(script) as server:
        lenient = await bench(*options, "--url", server.url)
        strict = await bench(*options, "--url", server.url, "--fail-on-error", "--quiet")
    assert (lenient.code, strict.code) == (0, 1), lenient.err
    errors = {(error["kind"], error["status"], error["code"]) for error in read(report_at)["figures"]["errors"]}
    assert errors == {("refused", 503, "overloaded"), ("truncated", 200, "ClientPayloadError")}
    assert "refused 503 overloaded" in lenient.out
    requests = read(report_at)["figures"]["requests"]
    assert requests["ok"] + requests["failed"] == requests["sent"] == 60
    sent = [received.text for received in server.requests[:60]]
    assert requests["ok"] == sent.count("spoken well")


async def test_a_service_that_is_not_there_makes_a_report_too(tmp_path: Path) -> None:
    async with SpeechServer() as server:
        pass
    done = await bench("load", "--url", server.url, "--rate", 50, "--requests", 5, "--calibrate", 2,
        "--plot", tmp_path / "a.png")  # fmt: skip
    assert done.code == 0, done.err
    assert "5 × unreachable" in done.out
    assert "no request of --calibrate succeeded" in done.out


async def test_a_worker_is_asked_directly_with_the_fleets_token(tmp_path: Path) -> None:
    report_at = tmp_path / "a.json"
    async with SpeechServer() as server:
        done = await bench(
            *("load", "--api", "segments", "--url", server.url, "--model", "m", "--voice", "v", "--characters", 100),
            *("--rate", 50, "--requests", 10, "--json", report_at, "--fail-on-error"),
            TTS_WORKER_TOKEN="of the fleet",
        )
    assert done.code == 0, done.err
    assert {received.path for received in server.requests} == {"/v1/segments"}
    assert {received.headers["Authorization"] for received in server.requests} == {"Bearer of the fleet"}
    assert read(report_at)["options"]["api"] == "segments"


async def test_slowdown_is_against_requests_that_ran_alone(tmp_path: Path) -> None:
    report_at = tmp_path / "a.json"
    async with SpeechServer(Script(first_byte_seconds=0.2, per_character_seconds=0.005)) as server:
        done = await bench(
            *("load", "--url", server.url, "--rate", 30, "--requests", 30, "--longest", 200),
            *("--calibrate", 4, "--json", report_at),
        )
        assert done.code == 0, done.err
        assert len(server.requests) == 34
    report = read(report_at)
    # The service is exact to the loop's delay, and loaded it is as fast as alone.
    assert report["alone"]["per_character_seconds"] == pytest.approx(0.005, rel=0.5)
    assert 0.5 < report["figures"]["groups"]["all"]["slowdown"]["p50"] < 2


async def test_compressed_answers_have_a_length_when_decoded(tmp_path: Path) -> None:
    report_at = tmp_path / "a.json"
    options = ("load", "--rate", 50, "--requests", 4, "--format", "mp3", "--json", report_at)
    async with SpeechServer(Script(chunks=4, chunk_audio_seconds=0.5)) as server:
        assert (await bench(*options, "--url", server.url)).code == 0
        group = read(report_at)["figures"]["groups"]["all"]
        assert (group["ok"], group["audio_seconds"], group["stalls"]) == (4, 0, None)
        assert (await bench(*options, "--url", server.url, "--decode")).code == 0
    group = read(report_at)["figures"]["groups"]["all"]
    assert group["audio_seconds"] == pytest.approx(4 * 2.0, rel=0.1)
    assert group["completion_per_audio_second"]["count"] == 4


async def test_what_is_no_recording_is_malformed_when_decoded(tmp_path: Path) -> None:
    report_at = tmp_path / "a.json"
    async with SpeechServer(Script(format="pcm")) as server:
        done = await bench("load", "--url", server.url, "--rate", 9, "--requests", 2, "--format", "flac", "--decode",
            "--json", report_at)  # fmt: skip
    assert done.code == 0, done.err
    assert read(report_at)["figures"]["errors"] == [
        {"kind": "malformed", "status": 200, "code": "does_not_decode", "count": 2}
    ]


async def test_an_interrupted_run_reports_what_there_is(tmp_path: Path) -> None:
    report_at = tmp_path / "a.json"
    async with SpeechServer(lambda text: Script(first_byte_seconds=0 if text == "quick" else 60)) as server:
        texts_at = tmp_path / "texts.txt"
        texts_at.write_text("quick\nslow\n")
        process = await start("load", "--url", server.url, "--rate", 50, "--duration", 600, "--texts", texts_at,
            "--json", report_at)  # fmt: skip
        try:
            # With so many answered, some were read to their end over there.
            await until(lambda: server.in_flight and server.answered >= 10)
            process.send_signal(signal.SIGINT)
            async with asyncio.timeout(60):
                out, err = await process.communicate()
        finally:
            if process.returncode is None:
                process.kill()
    assert process.returncode == 130, err
    assert b"interrupted" in out
    report = read(report_at)
    assert report["interrupted"] is True
    assert {error["kind"] for error in report["figures"]["errors"]} == {"cancelled"}
    assert report["figures"]["requests"]["ok"] > 0
