"""What is told of an uploaded voice: with which of the fleet's models it can be used, and why not with the others."""

from __future__ import annotations

import io
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np
import pytest

from gateway.app import Gateway
from gateway.config import Config, parse_address
from gateway.voices import clip as clip_module
from tests.clips import clip, tone, wav
from tests.gateway.builders import TONE, replica
from wire.link import ModelInfo

CHATTERBOX = ModelInfo("chatterbox", 24_000, ("default",), ("en",), cloning=True)
TURBO = replace(CHATTERBOX, id="chatterbox-turbo", min_clip_seconds=5.0)
EMBEDDED = ModelInfo("embedded", 24_000, ("heart",), ("en",))


@dataclass
class Site:
    gateway: Gateway
    session: aiohttp.ClientSession

    def join(self, *models: ModelInfo) -> None:
        """Let a worker with these models be known, as the registry would."""
        for model in models:
            one = replica(model.id)
            one.models = {model.id: model}
            self.gateway.pool.add(one)

    async def upload(self, audio: bytes, name: str = "Anna") -> tuple[int, dict[str, Any]]:
        form = aiohttp.FormData()
        form.add_field("name", name)
        form.add_field("audio_sample", io.BytesIO(audio), filename="a.wav")
        async with self.session.post(f"http://{self.gateway.addresses['public']}/v1/voices", data=form) as response:
            return response.status, await response.json()

    async def get(self, path: str) -> Any:
        async with self.session.get(f"http://{self.gateway.addresses['public']}{path}") as response:
            return await response.json()


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[Site]:
    async with running(tmp_path) as made:
        yield made


@asynccontextmanager
async def running(path: Path) -> AsyncIterator[Site]:
    loopback = parse_address("", "127.0.0.1:0")
    config = Config(listen=loopback, internal_listen=loopback, data_directory=path, drain_timeout=0)
    async with Gateway(config).running() as gateway, aiohttp.ClientSession(trust_env=False) as session:
        yield Site(gateway, session)


async def test_a_clip_that_is_too_short_for_one_model_is_told_so_at_the_upload(site: Site) -> None:
    site.join(CHATTERBOX, TURBO, EMBEDDED)
    status, voice = await site.upload(clip(seconds=4.0))
    assert (status, voice["models"], voice["model"]) == (201, ["chatterbox"], "chatterbox")
    assert [warning["code"] for warning in voice["warnings"]] == ["short"]
    assert voice["unusable_with"] == [
        {"model": "chatterbox-turbo", "reason": "it needs a clip of more than 5 s, and this one lasts 4.0 s"},
        {"model": "embedded", "reason": "it has voices of its own only"},
    ]


async def test_exactly_the_limit_is_too_short(site: Site) -> None:
    site.join(TURBO)
    assert (await site.upload(clip(seconds=5.0)))[1]["models"] == []
    assert (await site.upload(clip(seconds=5.1), "Bella"))[1]["models"] == ["chatterbox-turbo"]


async def test_a_clipped_clip_is_taken_and_told_about(site: Site) -> None:
    site.join(TURBO)
    status, voice = await site.upload(wav(np.sign(tone(6.0)) * 32_767))
    assert status == 201
    assert "clipped" in [warning["code"] for warning in voice["warnings"]]


async def test_a_silent_clip_is_refused(site: Site) -> None:
    status, answer = await site.upload(wav(tone(6.0, amplitude=0)))
    assert (status, answer["error"]["code"], "silent" in answer["error"]["message"]) == (422, "unusable_clip", True)


async def test_what_it_can_be_used_with_follows_the_fleet(site: Site) -> None:
    assert (await site.upload(clip()))[1]["models"] == []
    site.join(EMBEDDED)
    assert (await site.get("/v1/audio/voices"))["voices"][0] == {"id": "heart", "name": "heart"}
    assert "anna" not in str(await site.get("/v1/audio/voices"))
    site.join(CHATTERBOX)
    assert (await site.get("/v1/voices/anna"))["models"] == ["chatterbox"]
    assert {"id": "anna", "name": "Anna"} in (await site.get("/v1/audio/voices"))["voices"]


async def test_names_that_mean_something_cannot_be_taken(site: Site) -> None:
    site.join(TONE)
    for name in ("alto", "TENOR", "alloy", "Cedar"):
        status, answer = await site.upload(clip(), name)
        assert (status, answer["error"]["code"], answer["error"]["param"]) == (409, "voice_conflict", "name"), name


async def test_a_decoder_that_does_not_run_is_not_blamed_on_the_upload(
    site: Site, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(clip_module, "_PROGRAM", "gateway.no_such_program")
    status, answer = await site.upload(clip())
    assert (status, answer["error"]["code"]) == (500, "internal_error")
    assert "gateway.no_such_program ended with exit code 1" in caplog.text


async def test_there_is_an_end_to_uploads_at_once(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clip_module, "_UPLOADS_AT_ONCE", 0)
    status, answer = await site.upload(clip())
    assert (status, answer["error"]["code"]) == (503, "overloaded")
