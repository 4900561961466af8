"""What those who look are shown: what runs where, how fast, who is gone, and nothing that is not theirs to see."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from gateway.assembler import SegmentAudio
from gateway.dispatch import Preempted, WorkerFault, WorkerRefused
from gateway.journey import Journey, Outcome
from gateway.live import KEPT_SECONDS, Live
from tests.gateway.builders import pool, replica, status
from wire.gpu import Gpu, GpuState
from wire.segment import SegmentRequest

PAGE = "page-0123456789abcdef"
SECOND = bytes(48_000)  # of sound


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class House:
    def __init__(self) -> None:
        self.clock = Clock()
        self.live = Live("1.0", self.clock)
        self.worker = replica("w", slots=2)
        self.pool = pool(self.worker, clock=self.clock)
        self.audio = SegmentAudio()

    def speaking(self, request_id: str = "theirs", index: int = 0) -> Any:
        request = SegmentRequest(request_id, index, "Do not show this.", "tone", "alto", seed=1)
        return self.live.speaking(self.worker, request, self.audio, 24_000)

    def runs(self) -> list[dict[str, Any]]:
        seen = self.live.snapshot(self.pool)
        return [dict(zip(seen["run_fields"], row, strict=True)) for row in seen["runs"]]

    def pass_seconds(self, seconds: int) -> None:
        for _ in range(seconds):
            self.clock.now += 1
            self.live.tick()


@pytest.fixture
def house() -> House:
    return House()


def test_a_run_is_seen_while_it_runs_and_when_it_has_ended(house: House):
    with house.speaking(index=3):
        house.audio.write(SECOND)
        house.clock.now += 0.5
        [run] = house.runs()
        assert (run["worker"], run["index"], run["characters"], run["ended"]) == ("w", 3, 17, None)
        assert run["audio_seconds"] == 1.0
    [run] = house.runs()
    assert (run["started"], run["ended"], run["end"]) == (100.0, 100.5, "spoken")


@pytest.mark.parametrize(
    ("error", "end"),
    [
        (Preempted(), "moved"),
        (WorkerFault("cut", "it broke off"), "failed"),
        (asyncio.CancelledError(), "cancelled"),
    ],
)
def test_a_run_says_how_it_ended(house: House, error: BaseException, end: str):
    with pytest.raises(type(error)), house.speaking():
        raise error
    assert [run["end"] for run in house.runs()] == [end]


def test_a_worker_that_was_full_has_run_nothing(house: House):
    with pytest.raises(WorkerRefused), house.speaking():
        raise WorkerRefused("full", is_full=True)
    assert house.runs() == []


def test_runs_that_ended_long_ago_are_in_the_history_only_and_then_nowhere(house: House):
    with house.speaking():
        pass
    house.clock.now += 10
    assert house.runs() == []
    assert len(house.live.history(house.pool)["runs"]) == 1
    house.clock.now += KEPT_SECONDS
    assert house.live.history(house.pool)["runs"] == []


def test_sound_that_nobody_came_to_hear_is_not_kept(house: House):
    with house.speaking():
        house.audio.write(SECOND)
    assert all(run.audio is None for run in house.live._ended)


def test_speed_is_seconds_of_sound_in_a_second_also_of_what_still_runs(house: House):
    with house.speaking():
        house.audio.write(SECOND * 3)
        house.pass_seconds(1)
        assert house.live.snapshot(house.pool)["workers"][0]["speed"] == 3.0
        house.audio.write(SECOND)
    house.pass_seconds(1)
    house.pass_seconds(1)
    [worker] = house.live.history(house.pool)["workers"]
    assert (worker["speeds"], worker["speed"]) == ([3.0, 1.0, 0.0], 1.33)


def test_a_segment_taken_over_counts_only_what_the_second_worker_made(house: House):
    house.audio.write(SECOND)
    with house.speaking():
        house.audio.write(SECOND)
    assert [run["audio_seconds"] for run in house.runs()] == [1.0]


def test_a_page_finds_its_own_request_and_others_are_only_numbers(house: House):
    journeys = [Journey("/v1/tts", "10.0.0.1", request_id=name) for name in ("patient-4711", PAGE)]
    for journey in journeys:
        journey.plan = (10, 20)
        house.live.request_started(journey)
    with house.speaking("patient-4711"), house.speaking(PAGE):
        assert [run["request"] for run in house.runs()] == ["#1", PAGE]
        seen = house.live.snapshot(house.pool)
    assert seen["requests"] == [{"request": PAGE, "plan": (10, 20)}]
    text = json.dumps(seen)
    assert not any(secret in text for secret in ("4711", "10.0.0.1", "Do not show", "127.0.0.1"))


@pytest.mark.parametrize("name", ["page-", "page-0123456789ABCDEF", PAGE + "0", "x" + PAGE, PAGE + "\n"])
def test_an_id_that_no_page_makes_is_not_shown(house: House, name: str):
    house.live.request_started(Journey("/v1/tts", request_id=name))
    with house.speaking(name):
        assert [run["request"] for run in house.runs()] == ["#1"]


def test_two_callers_with_one_id_do_not_disturb_each_other(house: House):
    first, second = (Journey("/v1/tts", request_id="same") for _ in range(2))
    house.live.request_started(first)
    house.live.request_started(second)
    house.live.request_done(first)
    assert house.live.snapshot(house.pool)["traffic"]["requests_in_progress"] == 1
    house.live.request_done(second)
    assert house.live.snapshot(house.pool)["traffic"]["requests_in_progress"] == 0


def test_the_last_minute_is_counted_and_then_forgotten(house: House):
    for outcome, waited in ((Outcome.OK, 0.2), (Outcome.OK, 0.4), (Outcome.REFUSED, None)):
        journey = Journey("/v1/tts")
        house.live.request_started(journey)
        if waited is not None:
            journey.first_audio = journey.received + waited
        journey.finish(outcome)
        house.live.request_done(journey)
    house.pass_seconds(1)
    seen = house.live.snapshot(house.pool)["traffic"]
    assert seen["last_minute"] == {"ok": 2, "refused": 1, "failed": 0, "cancelled": 0}
    assert (seen["first_audio_p50_seconds"], seen["first_audio_p95_seconds"]) == (0.2, 0.4)
    assert seen["requests_per_second"] == 3.0
    house.pass_seconds(KEPT_SECONDS)
    seen = house.live.snapshot(house.pool)["traffic"]
    assert sum(seen["last_minute"].values()) == 0
    assert seen["first_audio_p50_seconds"] is None


def test_a_worker_that_is_gone_is_told_of_until_it_is_back(house: House):
    house.pool.lose(house.worker, "the link was closed")
    house.pass_seconds(12)
    seen = house.live.snapshot(house.pool)
    assert seen["gone"] == [{"id": "w", "words": "gone for 12 s: the link was closed"}]
    assert seen["summary"] == "No worker is ready. Nothing waits."
    house.pool.add(replica("w"))
    assert house.live.snapshot(house.pool)["gone"] == []


async def test_who_waits_for_a_tick_is_woken_by_it_and_by_the_end(house: House):
    looking = asyncio.create_task(house.live.wait_tick())
    await asyncio.sleep(0)
    house.live.tick()
    await looking
    looking = asyncio.create_task(house.live.wait_tick())
    await asyncio.sleep(0)
    house.live.close()
    await looking
    await house.live.wait_tick()


def test_a_gpu_is_shown_without_its_serial_number_and_with_what_is_wrong(house: House):
    hot = Gpu("cuda:0", GpuState.OK, uuid="GPU-4711", name="RTX 3090", temperature_celsius=90.0)
    house.worker.take_status(status(house.worker, gpus=(hot,)), 0.0)
    [seen] = house.live.snapshot(house.pool)["workers"]
    assert seen["gpus"][0]["name"] == "RTX 3090"
    assert seen["gpus"][0]["memory_used_bytes"] is None
    assert seen["troubles"] == ["90 °C: too hot"]
    assert "4711" not in json.dumps(seen)


def test_what_is_kept_is_bounded(house: House):
    for _ in range(5_000):
        with house.speaking():
            pass
    house.pass_seconds(KEPT_SECONDS + 1)
    assert house.live._workers == {}
    assert len(house.live.history(house.pool)["runs"]) <= 2_000
    assert len(house.live.snapshot(house.pool)["runs"]) <= 300
