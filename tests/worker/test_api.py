"""The data listener of a real worker: what it answers, what it refuses, and that every slot comes back."""

import asyncio
import json
from typing import Any

import aiohttp
import pytest

from tests.worker.harness import config, eventually, running, segment
from wire.errors import TRAITS, ErrorCode
from wire.frames import FrameType
from wire.headers import SEGMENT_CONTENT_TYPE, SEGMENTS_PATH
from wire.link import Command
from wire.segment import Resume
from worker.api import MAX_BODY_BYTES
from worker.config import ToneOptions
from worker.models.tone import decode


async def test_a_segment_comes_back_as_frames_in_their_order() -> None:
    async with running(config()) as (_, client):
        answer = await client.speak(segment("Nine chars", voice="bass"))
        assert (answer.status, answer.content_type) == (200, SEGMENT_CONTENT_TYPE)
        assert answer.kinds == "MACACACD"
        assert answer.frames[0].json() == {"sample_rate": 24000, "model": "tone", "voice": "bass", "seed": 7}
        assert decode(answer.pcm) == "Nine chars"


async def test_the_done_frame_tells_the_timings() -> None:
    async with running(config()) as (_, client):
        done = (await client.speak(segment("x" * 15))).frames[-1].json()
        assert set(done) == {"audio_seconds", "queue_seconds", "first_chunk_seconds", "synthesis_seconds", "samples"}
        assert done["audio_seconds"] == 1.0
        assert done["samples"] == 24_000
        assert 0 <= done["queue_seconds"] <= done["first_chunk_seconds"]


async def test_chunks_are_written_while_the_rest_is_still_being_spoken() -> None:
    async with (
        running(config(ToneOptions(stall_after_chunks=2))) as (_, client),
        client.speaking(segment("a text of several chunks")) as frames,
    ):
        kinds = [(await anext(frames)).type for _ in range(5)]
        assert kinds == [FrameType.META] + [FrameType.AUDIO, FrameType.CHECKPOINT] * 2


async def test_another_worker_continues_where_the_first_one_died() -> None:
    text = "The first half and the second half."
    async with running(config()) as (_, first), running(config()) as (_, second):
        half = await first.speak(segment("{tone:fail-after=4}" + text))
        assert half.kinds == "MACACACACE"
        resume = Resume(half.checkpoints[-1], len(half.pcm) // 2)
        rest = await second.speak(segment("{tone:fail-after=4}" + text, resume=resume))
        assert decode(half.pcm + rest.pcm) == "{tone:fail-after=4}" + text
        assert rest.frames[-1].json()["samples"] == len(rest.pcm) // 2


async def test_a_model_that_fails_ends_the_answer_with_an_error_frame() -> None:
    async with running(config()) as (_, client):
        answer = await client.speak(segment("{tone:fail-after=1}"))
        assert answer.kinds == "MACE"
        assert answer.frames[-1].json()["error"]["code"] == "segment_failed"
        refused = await client.speak(segment("{tone:nonsense}"))
        assert refused.kinds == "ME"
        assert refused.frames[-1].json()["error"]["param"] == "text"


REFUSALS: list[tuple[ErrorCode, str | None, Any]] = [
    (ErrorCode.INVALID_BODY, None, b"not json"),
    (ErrorCode.INVALID_BODY, None, b"\xff\xfe"),
    (ErrorCode.INVALID_BODY, None, b"[" * 50_000),
    (ErrorCode.INVALID_BODY, None, [1, 2]),
    (ErrorCode.INVALID_VALUE, "text", segment().to_json() | {"text": ""}),
    (ErrorCode.INVALID_VALUE, "speed", segment().to_json() | {"speed": 9}),
    (ErrorCode.INVALID_VALUE, "seed", segment().to_json() | {"seed": -1}),
    (ErrorCode.TEXT_TOO_LONG, "text", segment("x" * 281).to_json()),
    (ErrorCode.MODEL_NOT_FOUND, "model", segment(model="parrot").to_json()),
    (ErrorCode.VOICE_NOT_FOUND, "voice", segment(voice="soprano").to_json()),
    (ErrorCode.BODY_TOO_LARGE, None, b" " * (MAX_BODY_BYTES + 1)),
]


@pytest.mark.parametrize(("code", "param", "body"), REFUSALS)
async def test_a_wrong_request_is_refused_with_its_code_and_field(
    code: ErrorCode, param: str | None, body: Any
) -> None:
    async with running(config()) as (_, client):
        answer = await client.post(body)
        assert answer.error is not None
        assert answer.status == TRAITS[code].status
        assert (answer.error["code"], answer.error["param"]) == (code, param)
        assert answer.error["message"]
        assert (await client.health())["slots_held"] == 0


async def test_a_path_or_method_that_does_not_exist_is_refused_in_the_same_envelope() -> None:
    async with running(config()) as (_, client):
        status, text = await client.get("/v2/segments")
        assert (status, json.loads(text)["error"]["code"]) == (404, "not_found")
        async with client.http.get(client.base + SEGMENTS_PATH) as response:
            assert (response.status, response.headers["Allow"]) == (405, "POST")
            assert (await response.json())["error"]["code"] == "method_not_allowed"


async def test_a_full_worker_says_so_at_once() -> None:
    async with running(config(ToneOptions(stall_after_chunks=1), slots=2, batch=2)) as (_, client):
        async with client.speaking(segment()) as one, client.speaking(segment()) as other:
            await anext(one)
            await anext(other)
            answer = await client.speak(segment())
            assert answer.error is not None
            assert (answer.status, answer.error["code"]) == (429, "worker_full")
        await client.wait_health(lambda health: health["slots_held"] == 0 and health["in_flight"] == 0)
        async with client.speaking(segment()) as again:
            assert (await anext(again)).type is FrameType.META


async def test_slots_beyond_the_batch_wait_in_line_inside_the_worker() -> None:
    async with running(config(ToneOptions(realtime_factor=0.02), slots=8, batch=1)) as (_, client):
        answers = await asyncio.gather(*(client.speak(segment(f"number {i}")) for i in range(8)))
        assert sorted(decode(answer.pcm) for answer in answers) == [f"number {i}" for i in range(8)]
        assert await client.metric('tts_worker_batch_size_bucket{le="1.0"}') == await client.metric(
            "tts_worker_batch_size_count"
        )


async def test_a_caller_who_hangs_up_frees_the_slot_and_the_model() -> None:
    async with running(config(ToneOptions(stall_after_chunks=1))) as (_, client):
        async with client.speaking(segment()) as frames:
            await anext(frames)
            assert (await client.health())["in_flight"] == 1
        await client.wait_health(lambda health: health["in_flight"] == 0 and health["slots_held"] == 0)
        assert await client.metric('tts_worker_segments_total{outcome="cancelled"}') == 1


async def test_the_fleets_token_is_asked_for_where_there_is_one() -> None:
    async with running(config(token="s3cret")) as (_, client):
        for headers in (
            {},
            {"Authorization": "Bearer wrong"},
            {"Authorization": "s3cret"},
            {"Authorization": "Bearer é"},
        ):
            answer = await client.speak(segment(), headers)
            assert (answer.status, answer.error and answer.error["code"]) == (401, "unauthorized")
        assert (await client.speak(segment(), {"Authorization": "Bearer s3cret"})).status == 200


async def test_a_call_that_is_meant_for_the_process_before_is_not_answered() -> None:
    async with running(config()) as (_, client):
        epoch = (await client.health())["epoch"]
        answer = await client.speak(segment(), {"X-TTS-Epoch": "of-yesterday"})
        assert (answer.status, answer.error and answer.error["code"]) == (503, "wrong_worker")
        assert "another process had this port" in (answer.error or {})["message"]
        assert (await client.speak(segment(), {"X-TTS-Epoch": epoch})).status == 200
        assert (await client.speak(segment())).status == 200


async def test_a_worker_that_still_loads_is_alive_and_not_ready() -> None:
    async with running(config()) as (worker, client):
        # The unload and the load go through the same code as those that a gateway orders.
        worker._obey(Command.UNLOAD)
        await client.wait_health(lambda health: health["state"] == "unloaded")
        assert await client.get("/livez") == (200, "ok\n")
        assert await client.get("/readyz") == (503, "unloaded\n")
        answer = await client.speak(segment())
        assert (answer.status, answer.error and answer.error["code"]) == (503, "worker_not_ready")
        await eventually(lambda: worker.report()["in_flight"] == 0)
        worker._obey(Command.LOAD)
        await client.wait_health(lambda health: health["state"] == "ready")
        assert (await client.speak(segment())).kinds[-1] == "D"


async def test_health_describes_the_worker() -> None:
    async with running(config(id="worker-7")) as (_, client):
        health = await client.health()
        assert (health["id"], health["state"], health["model"], health["device"]) == (
            "worker-7",
            "ready",
            "tone",
            "cpu",
        )
        assert health["slots"] == 4
        assert health["versions"]["chatterbox-gateway"]
        assert await client.get("/readyz") == (200, "ready\n")


async def test_two_workers_in_one_process_share_nothing() -> None:
    async with running(config()) as (_, one), running(config()) as (_, other):
        await one.speak(segment())
        assert await one.metric('tts_worker_segments_total{outcome="done"}') == 1
        assert await other.metric('tts_worker_segments_total{outcome="done"}') == 0
        assert (await one.health())["epoch"] != (await other.health())["epoch"]


async def test_metrics_tell_what_happened() -> None:
    async with running(config()) as (_, client):
        await client.speak(segment("x" * 30))
        await client.speak(segment("{tone:reject}"))
        await client.speak(segment(voice="soprano"))
        for outcome, count in {"done": 1, "failed": 1, "refused": 1, "cancelled": 0}.items():
            assert await client.metric(f'tts_worker_segments_total{{outcome="{outcome}"}}') == count
        assert await client.metric("tts_worker_audio_seconds_total") == pytest.approx(2)
        assert await client.metric("tts_worker_characters_total") == 30 + len("{tone:reject}")
        assert await client.metric("tts_worker_engine_slots") == 4
        assert await client.metric('tts_worker_lifecycle_state{state="ready"}') == 1
        assert await client.metric('tts_worker_lifecycle_state{state="draining"}') == 0
        assert await client.metric('tts_worker_model_loaded{model="tone"}') == 1
        assert await client.metric("tts_worker_decode_step_seconds_count") > 0
        assert await client.metric('tts_worker_segment_seconds_bucket{le="600.0"}') == 1


async def test_a_gateway_that_reads_slowly_holds_up_nobody_else() -> None:
    async with running(config()) as (worker, client):
        reader, writer = await asyncio.open_connection("127.0.0.1", worker.port, limit=1024)
        body = json.dumps(segment("z" * 280).to_json()).encode()
        head = f"POST {SEGMENTS_PATH} HTTP/1.1\r\nHost: w\r\nContent-Length: {len(body)}\r\n\r\n"
        writer.write(head.encode() + body)
        await reader.read(1)
        # 900 kB wait in the worker and in the sockets; everybody else is served as ever.
        answers = await asyncio.gather(*(client.speak(segment(f"quick {i}")) for i in range(3)))
        assert [decode(answer.pcm) for answer in answers] == [f"quick {i}" for i in range(3)]
        writer.close()
        await writer.wait_closed()
        await client.wait_health(lambda health: health["slots_held"] == 0)


async def test_random_hang_ups_leave_nothing_held() -> None:
    async with running(config(ToneOptions(realtime_factor=0.01), slots=6, batch=2)) as (_, client):

        async def one(i: int) -> None:
            try:
                async with asyncio.timeout(0.002 * (i % 17)):
                    await client.speak(segment("w" * (4 + 7 * (i % 30))))
            except (TimeoutError, aiohttp.ClientError):
                pass

        await asyncio.gather(*(one(i) for i in range(80)))
        await client.wait_health(lambda health: health["slots_held"] == 0 and health["in_flight"] == 0)
        assert (await client.speak(segment("still here"))).kinds[-1] == "D"
