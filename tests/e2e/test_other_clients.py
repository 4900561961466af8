"""What the clients that people use really send and expect, each with its own quirk, on raw HTTP where that matters."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import wave
from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import av
import pytest
import pytest_asyncio

from gateway.voices.catalogue import OPENAI_VOICES
from tests.e2e.cluster import Cluster
from tests.e2e.ears import record
from worker.models.tone import decode

pytestmark = [pytest.mark.e2e, pytest.mark.asyncio(loop_scope="module")]

TEXT = "Every client has a habit of its own. The service has to know all of them. Here is one more sentence."
RATE = 24_000
SPEECH = "/v1/audio/speech"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def fleet(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Cluster]:
    async with Cluster(tmp_path_factory.mktemp("clients")) as made:
        await made.start_gateway()
        await made.start_workers(2)
        yield made


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def slow_fleet(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Cluster]:
    """One slot that speaks at the pace of a person: what comes early comes before the rest is made."""
    async with Cluster(tmp_path_factory.mktemp("slow-clients")) as made:
        await made.start_gateway()
        await made.start_workers(1, "--tone-realtime-factor", "0.5", "--slots", "1")
        yield made


def bare(text: str) -> str:
    return "".join(text.split())


async def get(fleet: Cluster, path: str) -> tuple[int, str, bytes]:
    async with fleet.session.get(fleet.url + path) as response:
        return response.status, response.content_type, await response.read()


class RawAnswer:
    """An HTTP/1.1 answer as it lies on the wire: the head, then the chunks as the server cut them."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, head: str) -> None:
        self._reader, self._writer = reader, writer
        self.status_line, *fields = head.strip().split("\r\n")
        self.headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in fields)}

    @classmethod
    async def post(cls, fleet: Cluster, path: str, body: dict[str, Any]) -> RawAnswer:
        address = urlsplit(fleet.url)
        reader, writer = await asyncio.open_connection(address.hostname, address.port)
        data = json.dumps(body).encode()
        head = f"POST {path} HTTP/1.1\r\nHost: {address.netloc}\r\nContent-Type: application/json\r\n"
        writer.write(f"{head}Content-Length: {len(data)}\r\n\r\n".encode() + data)
        return cls(reader, writer, (await reader.readuntil(b"\r\n\r\n")).decode("latin-1"))

    async def chunk(self) -> bytes:
        """The next chunk; empty for the last one."""
        size = int(await self._reader.readline(), 16)
        data = await self._reader.readexactly(size + 2)
        return data[:-2]

    async def rest(self) -> bytes:
        heard = b""
        while chunk := await self.chunk():
            heard += chunk
        return heard

    async def close(self) -> None:
        self._writer.close()
        await self._writer.wait_closed()


# ── LiveKit ──────────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_livekit_gets_mp3_in_events_at_24_khz_mono(fleet: Cluster):
    """It chooses its parser by the content type, takes `audio` or `delta`, and stops at [DONE]."""
    body = {
        "input": TEXT,
        "model": "gpt-4o-mini-tts",
        "voice": "ash",
        "response_format": "mp3",
        "speed": 1.0,
        "stream_format": "sse",
        "extra_body": None,
    }
    audio, types = b"", []
    async with fleet.session.post(fleet.url + SPEECH, json=body) as response:
        assert (response.status, response.content_type) == (200, "text/event-stream")
        assert response.headers["X-Request-Id"]
        assert response.headers["Cache-Control"] == "no-cache"
        async for line in response.content:
            if not line.startswith(b"data:"):
                assert line == b"\n"
                continue
            data = line.removeprefix(b"data:").strip()
            if data == b"[DONE]":
                break
            event = json.loads(data)
            types.append(event["type"])
            audio += base64.b64decode(event.get("delta") or event.get("audio") or "")
        assert await response.read() in (b"", b"\n")
    assert types[-1] == "speech.audio.done"
    assert set(types[:-1]) == {"speech.audio.delta"}
    with av.open(io.BytesIO(audio)) as container:
        stream = container.streams.audio[0]
        assert (stream.rate, stream.channels, container.format.name) == (RATE, 1, "mp3")
    assert abs(record(audio).seconds - len(TEXT) / 15) < 0.25


@pytest.mark.parametrize("form", ["pcm", "wav", "opus", "aac", "flac"])
async def test_livekit_gets_in_events_the_codec_it_asked_for(fleet: Cluster, form: str):
    body = {"input": TEXT, "model": "gpt-4o-mini-tts", "voice": "ash", "response_format": form, "stream_format": "sse"}
    answer = await fleet.post(SPEECH, body)
    events = [json.loads(line[6:]) for line in answer.body.split(b"\n\n") if line and line != b"data: [DONE]"]
    audio = b"".join(base64.b64decode(event["audio"]) for event in events[:-1])
    recording = record(audio, pcm_rate=RATE if form == "pcm" else None)
    assert abs(recording.seconds - len(TEXT) / 15) < 0.25
    if form in ("pcm", "wav"):
        assert bare(decode(audio[44:] if form == "wav" else audio)) == bare(TEXT)


async def test_livekit_asks_tts_1_for_plain_audio(fleet: Cluster):
    answer = await fleet.post(SPEECH, {"input": TEXT, "model": "tts-1", "voice": "ash", "response_format": "mp3"})
    assert answer.headers["Content-Type"] == "audio/mpeg"
    assert record(answer.body).sample_rate == RATE


# ── Pipecat ──────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("voice", OPENAI_VOICES)
async def test_pipecat_has_all_its_thirteen_voices(fleet: Cluster, voice: str):
    """It lets no other names through, and takes whatever comes for 24 kHz s16le."""
    body = {"input": TEXT, "model": "gpt-4o-mini-tts", "voice": voice, "response_format": "pcm"}
    async with fleet.session.post(fleet.url + SPEECH, json=body) as response:
        assert response.status == 200
        heard = await response.read()
    assert bare(decode(heard)) == bare(TEXT)


async def test_the_thirteen_voices_are_not_all_one_and_the_same(fleet: Cluster):
    answers = [await fleet.post(SPEECH, {"input": "Hi", "voice": voice}) for voice in OPENAI_VOICES]
    assert {answer.headers["X-TTS-Voice"] for answer in answers} == {"alto", "tenor", "bass"}


# ── Open WebUI ───────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_open_webui_lists_models_and_voices_as_objects(fleet: Cluster):
    status, _, body = await get(fleet, "/v1/audio/models")
    assert (status, json.loads(body)) == (200, {"models": [{"id": "tone"}]})
    status, _, body = await get(fleet, "/v1/audio/voices")
    voices = json.loads(body)["voices"]
    assert status == 200
    assert {frozenset(voice) for voice in voices} == {frozenset({"id", "name"})}
    assert {"alto", *OPENAI_VOICES} <= {voice["id"] for voice in voices}


async def test_open_webui_shows_the_message_of_an_error(fleet: Cluster):
    async with fleet.session.post(
        fleet.url + SPEECH,
        json={"model": "tts-1", "input": "Hello.", "voice": "af_bella"},
        headers={"X-OpenWebUI-User-Id": "7", "X-OpenWebUI-User-Name": "M%C3%BCller", "Authorization": "Bearer x"},
    ) as response:
        assert response.status == 404
        message = (await response.json())["error"]["message"]
    assert "af_bella" in message
    assert "alloy" in message


# ── wyoming-openai ───────────────────────────────────────────────────────────────────────────────────────────────────


async def test_wyoming_openai_reads_the_wav_header_from_the_first_chunk(fleet: Cluster):
    answer = await RawAnswer.post(fleet, SPEECH, {"input": TEXT, "voice": "alloy", "response_format": "wav"})
    assert answer.status_line == "HTTP/1.1 200 OK"
    assert answer.headers["transfer-encoding"] == "chunked"
    first = await answer.chunk()
    with wave.open(io.BytesIO(first)) as header:
        assert (header.getframerate(), header.getsampwidth(), header.getnchannels()) == (RATE, 2, 1)
    assert bare(decode((first + await answer.rest())[44:])) == bare(TEXT)
    await answer.close()


async def test_wyoming_openai_sends_three_sentences_at_once_with_blanks_before_them(fleet: Cluster):
    sentences = ["This comes first.", " A blank comes before this one.", " And before this."]
    answers = await asyncio.gather(
        *(fleet.post(SPEECH, {"input": text, "voice": "alloy", "response_format": "wav"}) for text in sentences)
    )
    assert [decode(answer.body[44:]) for answer in answers] == [text.strip() for text in sentences]


@pytest.mark.parametrize("path", ["/v1/readyz", "/v1/test"])
async def test_wyoming_openai_takes_us_for_no_other_server(fleet: Cluster, path: str):
    """A 200 on either would make it believe that it talks to LocalAI or Kokoro."""
    status, content_type, body = await get(fleet, path)
    assert (status, content_type) == (404, "application/json")
    assert json.loads(body)["error"]["code"] == "not_found"


@pytest.mark.parametrize("path", ["/health", "/v1/health"])
async def test_wyoming_openai_does_not_find_the_plain_ok_of_speaches(fleet: Cluster, path: str):
    _, content_type, body = await get(fleet, path)
    assert content_type == "application/json"
    assert b"OK" not in body
    assert isinstance(json.loads(body), dict)


# ── Home Assistant ───────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("form", ["mp3", "opus"])
async def test_home_assistant_starts_after_one_kilobyte_while_the_rest_is_being_made(slow_fleet: Cluster, form: str):
    body = {
        "model": "tts-1",
        "voice": "alloy",
        "input": TEXT,
        "response_format": form,
        "speed": 1.0,
        "instructions": "Calm.",
        # Its extra_payload: whatever the user wrote there.
        "exaggeration": 0.5,
        "streaming_chunk_size": 120,
        "nested": {"any": ["thing"]},
    }
    async with slow_fleet.session.post(slow_fleet.url + SPEECH, json=body) as response:
        assert response.status == 200
        assert response.headers["X-TTS-Ignored-Fields"] == "exaggeration, instructions"
        heard = await response.content.readexactly(1024)
        [worker] = await slow_fleet.listed()
        assert worker["in_flight"] == 1
        unsaid = (await slow_fleet.health())["queue"]["characters"]
        heard += await response.content.read()
    assert unsaid > 0
    assert abs(record(heard).seconds - len(TEXT) / 15) < 0.25
    await slow_fleet.wait_idle()


# ── SillyTavern and other servers' users ─────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("seed", [0, -1, None])
@pytest.mark.parametrize("path", ["/v1/tts", SPEECH])
async def test_sillytaverns_seeds_0_and_minus_1_mean_a_random_one(fleet: Cluster, path: str, seed: int | None):
    body = {"text": "Hello.", "input": "Hello.", "seed": seed}
    seeds = [int((await fleet.post(path, body)).headers["X-TTS-Seed"]) for _ in range(3)]
    assert len(set(seeds)) == 3
    assert min(seeds) > 0


async def test_a_seed_that_was_given_is_the_one_that_is_used(fleet: Cluster):
    answers = [await fleet.post(SPEECH, {"input": "Hello.", "seed": 4294967295}) for _ in range(2)]
    assert [answer.headers["X-TTS-Seed"] for answer in answers] == ["4294967295"] * 2


async def test_a_client_that_names_no_format_gets_mp3(fleet: Cluster):
    """OpenAI's JavaScript client."""
    answer = await fleet.post(SPEECH, {"model": "tts-1", "input": "Hello.", "voice": "alloy"})
    assert answer.headers["Content-Type"] == "audio/mpeg"
    assert record(answer.body).codec.startswith("mp3")


async def test_the_extras_of_other_servers_are_taken(fleet: Cluster):
    body = {"input": "Hello.", "language": "en-US", "seed": 5, "task_type": "CustomVoice", "ref_text": "x"}
    answer = await fleet.post(SPEECH, body | {"stream": False, "response_format": "wav"})
    assert answer.status == 200
    assert int(answer.headers["Content-Length"]) == len(answer.body)
    with wave.open(io.BytesIO(answer.body)) as file:
        assert decode(file.readframes(file.getnframes())) == "Hello."


async def test_one_connection_serves_one_speech_after_another(fleet: Cluster):
    """Each answer ends cleanly: what follows on the connection is the next answer."""
    made = []

    async def note(*event: object) -> None:
        made.append(event)

    trace = aiohttp.TraceConfig()
    trace.on_connection_create_end.append(note)
    async with aiohttp.ClientSession(trace_configs=[trace]) as session:
        for form in ("pcm", "mp3", "wav", "opus", "pcm"):
            async with session.post(
                fleet.url + SPEECH, json={"input": "Hi there.", "response_format": form}
            ) as response:
                heard = await response.read()
        assert decode(heard) == "Hi there."
    assert len(made) == 1
