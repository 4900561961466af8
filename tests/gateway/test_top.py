"""What `tts-gateway top` draws, at every width."""

from __future__ import annotations

import io
from collections import deque
from typing import Any

import pytest
from rich.console import Console

from gateway.top import draw, gpu, spark

GPU = {
    "device": "cuda:0", "name": "RTX 3090", "utilization_ratio": 0.97, "memory_used_bytes": 18 * 2**30,
    "memory_total_bytes": 24 * 2**30, "temperature_celsius": 62.4, "power_watts": 310.2,
}  # fmt: skip


def worker(name: str, **changes: Any) -> dict[str, Any]:
    return {
        "id": name, "state": "ready", "words": "speaking", "troubles": [], "in_flight": 1, "slots": 4, "gpus": [],
        "models": ["tone"], "device": "cpu", "speed": 12.34, "segments_spoken": 7,
    } | changes  # fmt: skip


def snapshot(*workers: dict[str, Any], **changes: Any) -> dict[str, Any]:
    return {
        "version": "1.0",
        "uptime_seconds": 200.0,
        "summary": "All 2 workers are ready. Nothing waits.",
        "workers": list(workers),
        "gone": [],
        "traffic": {
            "requests_in_progress": 1,
            "requests_per_second": 3.25,
            "last_minute": {"ok": 7, "refused": 1, "failed": 0, "cancelled": 2},
            "first_audio_p50_seconds": 0.2,
            "first_audio_p95_seconds": None,
            "speed": 12.3,
        },
        "queue": {"segments": 0, "characters": 0, "seconds": 0.0, "requests": 0, "line": []},
        "requests": [],
        "run_fields": ["worker", "request", "index", "characters", "ended"],
        "runs": [["w0", "#12", 2, 180, None], ["w0", "#11", 0, 40, 3.5]],
    } | changes


def drawn(seen: dict[str, Any] | None, width: int = 160, trouble: str = "") -> str:
    console = Console(file=io.StringIO(), width=width, force_terminal=False)
    speeds = {"w0": deque([0.0, 1.0, 2.0])}
    console.print(draw(seen, "127.0.0.1:8081", trouble, speeds, width))
    text: str = console.file.getvalue()  # type: ignore[attr-defined]
    return text


def test_it_shows_workers_traffic_and_what_runs_now():
    text = drawn(snapshot(worker("w0"), worker("w1", in_flight=0, words="ready")))
    assert "up 3 min" in text
    assert "speaks 12.3× real time · 3.2 requests/s · first audio p50 0.20 s p95 –" in text
    assert "last minute 7 ok, 1 refused, 0 failed, 2 left" in text
    assert "●○○○ 1/4" in text
    assert "#12 segment 3 (180)" in text
    assert "#11" not in text, "that one has ended"
    assert "gpu" not in text, "no zeros where there is no GPU"


def test_it_shows_gpus_and_what_is_wrong_with_them():
    text = drawn(snapshot(worker("w0", gpus=[GPU], troubles=["90 °C: it slows down"])))
    assert "RTX 3090 97% 18.0/24 GiB 62 °C 310 W" in text
    assert "▲ 90 °C: it slows down" in text


def test_figures_that_a_gpu_does_not_tell_are_left_out():
    assert gpu({**GPU, "name": "", "utilization_ratio": None, "memory_used_bytes": None}) == "cuda:0 62 °C 310 W"


def test_a_worker_that_is_gone_stays_in_sight():
    assert "gone for 12 s" in drawn(snapshot(gone=[{"id": "w3", "words": "gone for 12 s: the link was closed"}]))


def test_what_waits_is_told_with_the_time_that_it_takes():
    queue = {"segments": 14, "characters": 900, "seconds": 12.0, "requests": 9, "line": []}
    assert "14 segments of 9 requests wait, about 12 s of work." in drawn(snapshot(worker("w0"), queue=queue))
    queue["seconds"] = None
    assert "no worker takes them" in drawn(snapshot(queue=queue))


@pytest.mark.parametrize("width", [40, 60, 80, 100, 119, 120, 200])
def test_no_line_is_wider_than_the_terminal(width: int):
    text = drawn(snapshot(worker("w0", gpus=[GPU], slots=64), worker("worker-with-a-long-name")), width)
    assert max(map(len, text.splitlines())) <= width
    assert "w0" in text


def test_before_the_first_answer_it_says_what_is_the_matter():
    assert "No gateway answers: refused." in drawn(None, trouble="No gateway answers: refused.")


def test_a_spark_is_as_high_as_its_figures():
    assert spark([], 20) == ""
    assert spark([0.0, 1.0, 8.0], 20) == " ▂█"
    assert len(spark([float(n) for n in range(60)], 20)) == 20
