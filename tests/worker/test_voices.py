"""A worker and the voices of clips: fetched from a real gateway's routes, checked, computed once, kept in memory."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import numpy as np
import pytest
from aiohttp import web

from tests.clips import RATE, clip, tone, wav
from tests.worker.harness import Client, config, running, segment
from wire.errors import ErrorCode
from wire.headers import CLIP_PATH, PREPARED_PATH
from worker.config import Address, ToneOptions
from worker.models.base import Clip
from worker.models.tone import ToneModel, decode, heard_pitch_hz, pitch_hz
from worker.voices import read_clip

TOKEN = "a-token"
SILENT = wav(tone(2.0, amplitude=0))


@dataclass
class Clips:
    """A gateway's routes for workers, as it might serve them badly."""

    content: dict[str, bytes] = field(default_factory=dict)  # what is sent for a hash, right or wrong
    prepared: dict[str, bytes] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    port: int = 0

    @property
    def address(self) -> Address:
        return Address("127.0.0.1", self.port)

    def add(self, clip_: bytes) -> str:
        sha256 = hashlib.sha256(clip_).hexdigest()
        self.content[sha256] = clip_
        return sha256

    async def _clip(self, request: web.Request) -> web.Response:
        return self._give(request, self.content)

    async def _prepared(self, request: web.Request) -> web.Response:
        sha256 = request.match_info["sha256"]
        if request.method == "PUT":
            self.prepared[sha256] = await request.read()
        if request.method == "GET" and sha256 in self.prepared:
            return self._give(request, self.prepared)
        return self._give(request, {sha256: b""} if sha256 in self.content else {}, status=204)

    def _give(self, request: web.Request, stock: dict[str, bytes], status: int = 200) -> web.Response:
        self.asked.append(f"{request.method} {request.path.split('/')[2]}")
        assert request.headers["Authorization"] == f"Bearer {TOKEN}"
        content = stock.get(request.match_info["sha256"])
        return web.Response(status=404) if content is None else web.Response(status=status, body=content or None)


@asynccontextmanager
async def clips() -> AsyncIterator[Clips]:
    served = Clips()
    app = web.Application(client_max_size=1 << 24)
    app.router.add_get(CLIP_PATH, served._clip)
    app.router.add_route("*", PREPARED_PATH, served._prepared)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    served.port = runner.addresses[0][1]
    try:
        yield served
    finally:
        await runner.cleanup()


BEARER = {"Authorization": f"Bearer {TOKEN}"}


async def heard(client: Client, sha256: str) -> int:
    answer = await client.speak(segment("Hello.", voice="anna", voice_sha256=sha256), BEARER)
    assert answer.status == 200, answer.error
    assert decode(answer.pcm) == "Hello."
    return heard_pitch_hz(answer.pcm)


async def test_a_voice_is_fetched_computed_and_given_back_once() -> None:
    async with clips() as gateway:
        sha256 = gateway.add(clip(440, 2.0))
        async with running(config(gateways=(gateway.address,), token=TOKEN)) as (_, client):
            assert [await heard(client, sha256) for _ in range(3)] == [440] * 3
            assert gateway.asked == ["GET prepared", "GET clips", "PUT prepared"]
            for source, count in (("memory", 2), ("gateway", 0), ("computed", 1)):
                assert await client.metric(f'tts_worker_voices_total{{source="{source}"}}') == count


async def test_what_another_worker_computed_is_used_as_it_is() -> None:
    async with clips() as gateway:
        sha256 = gateway.add(clip(440, 2.0))
        gateway.prepared[sha256] = b'{"pitch_hz": 555}'
        async with running(config(gateways=(gateway.address,), token=TOKEN)) as (_, client):
            assert await heard(client, sha256) == 555
            assert gateway.asked == ["GET prepared"]


async def test_segments_that_come_together_wait_for_one_computation() -> None:
    async with clips() as gateway:
        sha256 = gateway.add(clip(440, 2.0))
        slow = ToneOptions(prepare_seconds=0.2)
        async with running(config(slow, gateways=(gateway.address,), token=TOKEN)) as (_, client):
            assert await asyncio.gather(*(heard(client, sha256) for _ in range(4))) == [440] * 4
            assert gateway.asked.count("GET clips") == 1


async def test_a_caller_who_hangs_up_does_not_take_the_voice_with_him() -> None:
    async with clips() as gateway:
        sha256 = gateway.add(clip(440, 2.0))
        slow = ToneOptions(prepare_seconds=0.3)
        async with running(config(slow, gateways=(gateway.address,), token=TOKEN)) as (_, client):
            leaving = asyncio.create_task(heard(client, sha256))
            await client.wait_health(lambda health: health["slots_held"] == 1)
            leaving.cancel()
            await client.wait_health(lambda health: health["slots_held"] == 0)
            assert await heard(client, sha256) == 440
            assert gateway.asked.count("GET clips") == 1


async def test_a_clip_that_is_not_what_its_hash_says_is_never_spoken() -> None:
    async with clips() as gateway:
        sha256 = gateway.add(clip(440, 2.0))
        gateway.content[sha256] = clip(441, 2.0)
        async with running(config(gateways=(gateway.address,), token=TOKEN)) as (_, client):
            answer = await client.speak(segment(voice="anna", voice_sha256=sha256), BEARER)
            assert (answer.status, answer.error and answer.error["code"]) == (500, "segment_failed")
            assert gateway.asked[-1] == "DELETE prepared"  # others need not wait for us
            gateway.content[sha256] = clip(440, 2.0)
            assert await heard(client, sha256) == 440


@pytest.mark.parametrize("content", [b"", b"RIFF" + bytes(100), wav(tone(1.0, channels=2))])
async def test_a_clip_that_is_none_fails_the_segment_and_not_the_worker(content: bytes) -> None:
    async with clips() as gateway:
        sha256 = gateway.add(content)
        async with running(config(gateways=(gateway.address,), token=TOKEN)) as (_, client):
            answer = await client.speak(segment(voice="anna", voice_sha256=sha256), BEARER)
            assert (answer.status, answer.error and answer.error["code"]) == (500, "segment_failed")
            assert (await client.speak(segment(), BEARER)).kinds.endswith("D")


async def test_a_clip_that_the_model_refuses_is_the_callers_own() -> None:
    async with clips() as gateway:
        sha256 = gateway.add(SILENT)
        async with running(config(gateways=(gateway.address,), token=TOKEN)) as (_, client):
            answer = await client.speak(segment(voice="anna", voice_sha256=sha256), BEARER)
            assert answer.error is not None
            assert (answer.status, answer.error["code"]) == (422, str(ErrorCode.UNUSABLE_CLIP))


async def test_the_gateway_that_has_the_clip_is_found_among_several() -> None:
    async with clips() as has_not, clips() as has:
        sha256 = has.add(clip(440, 2.0))
        away = Address("127.0.0.1", 1)
        async with running(config(gateways=(away, has_not.address, has.address), token=TOKEN)) as (_, client):
            assert await heard(client, sha256) == 440


async def test_a_voice_that_nobody_has_is_told_with_the_reasons() -> None:
    async with clips() as gateway, running(config(gateways=(gateway.address,), token=TOKEN)) as (_, client):
        answer = await client.speak(segment(voice="anna", voice_sha256="0" * 64), BEARER)
        assert answer.error is not None
        assert (answer.status, answer.error["code"]) == (500, "segment_failed")
        assert "HTTP 404" in answer.error["message"]
        assert await client.metric('tts_worker_segments_total{outcome="refused"}') == 1


async def test_the_least_lately_used_voice_goes_when_memory_is_full() -> None:
    async with clips() as gateway:
        hashes = [gateway.add(clip(hz, 2.0)) for hz in (300, 400, 500)]
        async with running(config(gateways=(gateway.address,), token=TOKEN)) as (worker, client):
            worker._voices._cache_bytes = 2 * len(b'{"pitch_hz": 300}')
            for sha256 in (hashes[0], hashes[1], hashes[0], hashes[2]):
                await heard(client, sha256)
            assert worker._voices.warm == (hashes[0], hashes[2])


def test_a_clip_is_read_as_samples_from_minus_one_to_one() -> None:
    read = read_clip(clip(440, 1.0))
    assert (read.sample_rate, read.seconds, read.samples.dtype) == (RATE, 1.0, np.float32)
    assert np.allclose(read.samples * 32_768, tone(1.0, hz=440)[0])


@pytest.mark.parametrize("hz", [60, 220, 440, 1_234])
def test_the_tone_model_hears_the_pitch_of_a_clip(hz: int) -> None:
    assert pitch_hz(read_clip(clip(hz, 3.0))) == hz
    assert ToneModel(ToneOptions()).prepare_voice(read_clip(clip(hz))) == f'{{"pitch_hz": {hz}}}'.encode()


def test_its_pitch_does_not_hang_on_the_rate_of_the_clip() -> None:
    samples = tone(2.0, hz=440, rate=16_000)[0].astype(np.float32) / 32_768
    assert pitch_hz(Clip(samples, 16_000)) == 440
