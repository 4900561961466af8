"""The command itself, as a process: signals, exit codes, and hanging up where aiohttp's test server would differ."""

import asyncio
import json
import signal
from pathlib import Path

import pytest

from tests.worker.harness import eventually, gateway, process, segment, start
from wire.frames import FrameReader, FrameType
from wire.headers import SEGMENTS_PATH
from worker.models.tone import decode


async def test_the_command_speaks() -> None:
    async with process() as worker:
        assert decode((await worker.client.speak(segment("Hello, process."))).pcm) == "Hello, process."


async def test_hanging_up_frees_the_slot_within_a_chunk() -> None:
    async with process("--tone-realtime-factor", "1", "--slots", "1") as worker:
        async with worker.client.speaking(segment("x" * 280)) as frames:
            async for frame in frames:
                if frame.type is FrameType.AUDIO:
                    break
        health = await worker.client.wait_health(lambda health: health["slots_held"] == 0 and health["in_flight"] == 0)
        # The whole segment takes 18 s; what counts is that it was not spoken to its end before the slot came back.
        assert await worker.client.metric("tts_worker_audio_seconds_total") < 280 / 15
        assert await worker.client.metric('tts_worker_segments_total{outcome="cancelled"}') == 1
        assert health["state"] == "ready"


async def test_hanging_up_while_waiting_in_line_leaves_no_trace() -> None:
    async with process("--tone-stall-after-chunks", "1", "--slots", "2", "--batch", "1") as worker:
        async with worker.client.speaking(segment()) as running:
            await anext(running)
            async with worker.client.speaking(segment()) as waiting:
                assert (await anext(waiting)).type is FrameType.META
                await worker.client.wait_health(lambda health: health["in_flight"] == 2)
            await worker.client.wait_health(lambda health: health["in_flight"] == 1 and health["slots_held"] == 1)
        await worker.client.wait_health(lambda health: health["in_flight"] == 0 and health["slots_held"] == 0)


async def test_a_saturated_worker_still_answers_its_health_check() -> None:
    async with process("--slots", "16", "--batch", "16") as worker:
        talk = [asyncio.create_task(worker.client.speak(segment("t" * 280))) for _ in range(16)]
        answers = 0
        while not all(task.done() for task in talk):
            async with asyncio.timeout(5):
                assert await worker.client.get("/livez") == (200, "ok\n")
            answers += 1
        assert answers > 0
        assert all(task.result().kinds[-1] == "D" for task in talk)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_finishes_what_is_held_takes_nothing_new_and_exits_with_0(number: signal.Signals) -> None:
    async with process("--tone-realtime-factor", "0.1") as worker:
        speaking = asyncio.create_task(worker.client.speak(segment("the last words " * 10)))
        await worker.client.wait_health(lambda health: health["in_flight"] == 1)
        worker.signal(number)
        await worker.client.wait_health(lambda health: health["state"] == "draining")
        refused = await worker.client.speak(segment())
        assert (refused.status, refused.error and refused.error["code"]) == (503, "worker_not_ready")
        assert decode((await speaking).pcm) == "the last words " * 10
        assert await worker.wait_exit() == 0


async def test_a_second_signal_stops_at_once_and_tells_who_was_being_served() -> None:
    async with process("--tone-stall-after-chunks", "1", "--drain-timeout", "3600") as worker:
        speaking = asyncio.create_task(worker.client.speak(segment("never ends")))
        await worker.client.wait_health(lambda health: health["in_flight"] == 1)
        worker.signal(signal.SIGTERM)
        await worker.client.wait_health(lambda health: health["state"] == "draining")
        worker.signal(signal.SIGTERM)
        answer = await speaking
        assert answer.kinds[-1] == "E"
        assert answer.frames[-1].json()["error"]["code"] == "worker_not_ready"
        assert await worker.wait_exit() == 0


async def test_draining_ends_at_its_timeout() -> None:
    async with process("--tone-stall-after-chunks", "1", "--drain-timeout", "0.2") as worker:
        speaking = asyncio.create_task(worker.client.speak(segment("never ends")))
        await worker.client.wait_health(lambda health: health["in_flight"] == 1)
        worker.signal(signal.SIGTERM)
        assert (await speaking).kinds[-1] == "E"
        assert await worker.wait_exit() == 0
        assert "slots_held=1" in worker.read_log()


async def test_a_signal_while_the_model_loads_is_obeyed() -> None:
    async with process("--tone-load-seconds", "3600", ready=False) as worker:
        await worker.client.wait_health(lambda health: health["state"] == "loading")
        assert (await worker.client.get("/livez"))[0] == 200
        assert (await worker.client.get("/readyz"))[0] == 503
        worker.signal(signal.SIGTERM)
        assert await worker.wait_exit() == 0


async def test_a_process_that_dies_cuts_the_answer_before_its_done_frame() -> None:
    async with process("--tone-exit-after-chunks", "2", "--host", "127.0.0.1") as worker:
        port = int(worker.client.base.rpartition(":")[2])
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        body = json.dumps(segment("a text that is longer than two chunks").to_json()).encode()
        writer.write(f"POST {SEGMENTS_PATH} HTTP/1.0\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body)
        answer = await reader.read()
        writer.close()
        assert await worker.wait_exit() == 70
        _, _, payload = answer.partition(b"\r\n\r\n")
        assert FrameType.DONE not in [frame.type for frame in FrameReader().feed(payload)]


async def test_a_hung_engine_shows_as_steps_that_stand_still_and_stops_all_the_same() -> None:
    async with process("--tone-hang-after-chunks", "1") as worker:
        async with worker.client.speaking(segment("hangs")) as frames:
            await anext(frames)
            await anext(frames)
            before = (await worker.client.health())["steps"]
            assert (await worker.client.get("/livez"))[0] == 200
            health = await worker.client.health()
            assert (health["steps"], health["in_flight"]) == (before, 1)
        worker.signal(signal.SIGTERM)
        worker.signal(signal.SIGTERM)
        assert await worker.wait_exit() == 0
        assert "engine=hung" in worker.read_log()


async def test_the_log_names_the_request_and_never_the_text() -> None:
    async with process() as worker:
        await worker.client.speak(segment("my secret diary", request_id="req-42"))
        await eventually(lambda: "request_id=req-42" in worker.read_log(), "the line of the segment")
        assert "outcome=done" in worker.read_log()
        assert "diary" not in worker.read_log()


async def test_an_undrain_does_not_take_back_a_stop() -> None:
    async with gateway() as peer:
        options = ("--tone-stall-after-chunks", "1", "--gateways", f"127.0.0.1:{peer.port}")
        async with process(*options) as worker, worker.client.speaking(segment("held")) as frames:
            await anext(frames)
            await eventually(lambda: peer.states[-1:] == ["ready"])
            worker.signal(signal.SIGTERM)
            await eventually(lambda: peer.states[-1] == "draining")
            await peer.sockets[-1].send_str('{"type":"order","command":"undrain"}')
            await eventually(lambda: "cannot undrain" in peer.statuses[-1].detail)
            assert peer.states[-1] == "draining"


async def test_a_port_that_is_taken_is_a_sentence_and_exit_code_1(tmp_path: Path) -> None:
    async with process() as worker:
        port = worker.client.base.rpartition(":")[2]
        log = tmp_path / "log"
        child = start("--model", "tone", "--gateways", "none", "--port", port, log=log)
        await eventually(lambda: child.poll() is not None, "exit")
        assert child.returncode == 1
        assert f"cannot listen on 127.0.0.1:{port}" in log.read_text()


async def test_uvloop_runs_the_same_worker() -> None:
    pytest.importorskip("uvloop")
    async with process("--uvloop", "--tone-realtime-factor", "0.05") as worker:
        async with worker.client.speaking(segment("x" * 280)) as frames:
            await anext(frames)
        await worker.client.wait_health(lambda health: health["slots_held"] == 0)
        worker.signal(signal.SIGTERM)
        assert await worker.wait_exit() == 0


async def test_a_process_that_has_grown_too_large_finishes_what_it_speaks_and_ends() -> None:
    # Any Python holds more than a megabyte, so the limit is passed from the start.
    async with process("--max-memory-mb", "1", "--tone-load-seconds", "0.2", ready=False) as worker:
        assert await worker.wait_exit() == 0
        assert "exceeds --max-memory-mb" in worker.read_log()
