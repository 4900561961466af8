"""OpenAI's own Python client, unchanged, with nothing but another address."""

from __future__ import annotations

import base64
import json
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any, Literal, get_args

import openai
import pytest
import pytest_asyncio

from gateway.encoder import AudioFormat
from tests.e2e.cluster import Cluster
from tests.e2e.ears import record
from worker.models.tone import decode

pytestmark = [pytest.mark.e2e, pytest.mark.asyncio(loop_scope="module")]

TEXT = "Any client will do, as long as it speaks the same language. This one was not told of us."
RATE = 24_000
SECONDS = len(TEXT.replace(". T", ".T")) / 15  # the tone model speaks fifteen characters a second

Form = Literal["mp3", "opus", "aac", "flac", "wav", "pcm"]
FORMS: tuple[Form, ...] = get_args(Form)
MODELS = ("tts-1", "tts-1-hd", "gpt-4o-mini-tts", "gpt-4o-mini-tts-2025-12-15")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def fleet(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Cluster]:
    async with Cluster(tmp_path_factory.mktemp("openai")) as made:
        await made.start_gateway("--queue-timeout", "1")
        await made.start_workers(2)
        yield made


@pytest.fixture
def client(fleet: Cluster) -> Iterator[openai.OpenAI]:
    # No retries: an error must be seen, not outlived. No proxy of this machine's environment either.
    with (
        openai.DefaultHttpxClient(trust_env=False) as http,
        openai.OpenAI(base_url=f"{fleet.url}/v1", api_key="none", max_retries=0, http_client=http) as made,
    ):
        yield made


@pytest_asyncio.fixture(loop_scope="module")
async def async_client(fleet: Cluster) -> AsyncIterator[openai.AsyncOpenAI]:
    async with (
        openai.DefaultAsyncHttpxClient(trust_env=False) as http,
        openai.AsyncOpenAI(base_url=f"{fleet.url}/v1", api_key="none", max_retries=0, http_client=http) as made,
    ):
        yield made


def bare(text: str) -> str:
    return "".join(text.split())


async def test_without_a_format_it_gets_mp3(client: openai.OpenAI):
    speech = client.audio.speech.create(model="tts-1", voice="alloy", input=TEXT)
    assert speech.response.headers["content-type"] == "audio/mpeg"
    recording = record(speech.content)
    assert recording.codec.startswith("mp3")
    assert abs(recording.seconds - SECONDS) < 0.1


@pytest.mark.parametrize("form", FORMS)
async def test_it_gets_the_format_it_asks_for(client: openai.OpenAI, form: Form):
    speech = client.audio.speech.create(model="tts-1", voice="alloy", input=TEXT, response_format=form)
    assert speech.response.headers["content-type"] == AudioFormat(form).content_type
    recording = record(speech.content, pcm_rate=RATE if form == "pcm" else None)
    assert abs(recording.seconds - SECONDS) < 0.1
    if form == "pcm":
        assert bare(decode(speech.content)) == bare(TEXT)


async def test_it_streams_into_a_file(client: openai.OpenAI, tmp_path: Path):
    file = tmp_path / "speech.wav"
    with client.audio.speech.with_streaming_response.create(
        model="gpt-4o-mini-tts", voice="coral", input=TEXT, response_format="wav", instructions="Speak cheerfully."
    ) as speech:
        assert speech.headers["transfer-encoding"] == "chunked"
        speech.stream_to_file(file)
    assert bare(decode(file.read_bytes()[44:])) == bare(TEXT)


async def test_the_asynchronous_client_streams_too(async_client: openai.AsyncOpenAI):
    heard = bytearray()
    async with async_client.audio.speech.with_streaming_response.create(
        model="tts-1-hd", voice="verse", input=TEXT, response_format="pcm"
    ) as speech:
        async for chunk in speech.iter_bytes():
            heard += chunk
    assert bare(decode(bytes(heard))) == bare(TEXT)
    whole = await async_client.audio.speech.create(model="tone", voice="alto", input=TEXT, response_format="pcm")
    assert bare(decode(whole.content)) == bare(TEXT)


@pytest.mark.parametrize("model", [*MODELS, "tone"])
async def test_every_model_of_openais_is_spoken_for(client: openai.OpenAI, model: str):
    speech = client.audio.speech.create(model=model, voice="nova", input="Hello.", response_format="pcm")
    assert decode(speech.content) == "Hello."
    assert speech.response.headers["x-tts-model"] == "tone"


async def test_a_voice_may_be_a_name_or_an_object(client: openai.OpenAI):
    for voice in ("alto", {"id": "alto"}):
        speech = client.audio.speech.create(
            model="tts-1",
            voice=voice,
            input="Hello.",
            response_format="pcm",  # type: ignore[arg-type]
        )
        assert speech.response.headers["x-tts-voice"] == "alto"
        assert decode(speech.content) == "Hello."


@pytest.mark.parametrize("speed", [0.25, 0.5, 2.0, 4.0])
async def test_speed_is_heeded(client: openai.OpenAI, speed: float):
    speech = client.audio.speech.create(
        model="tts-1", voice="alloy", input="Faster or slower.", response_format="pcm", speed=speed
    )
    assert decode(speech.content, speed) == "Faster or slower."


@pytest.mark.parametrize(
    ("fields", "error_type", "code", "param"),
    [
        ({"model": "gpt-9"}, openai.NotFoundError, "model_not_found", "model"),
        ({"voice": "nobody"}, openai.NotFoundError, "voice_not_found", "voice"),
        ({"input": ""}, openai.UnprocessableEntityError, "empty_text", "input"),
        ({"input": "😀"}, openai.UnprocessableEntityError, "unspeakable_text", "input"),
        ({"input": "a" * 60_000}, openai.UnprocessableEntityError, "text_too_long", "input"),
        ({"speed": 9.0}, openai.UnprocessableEntityError, "invalid_value", "speed"),
        ({"response_format": "ogg"}, openai.UnprocessableEntityError, "invalid_value", "response_format"),
        ({"stream_format": "xml"}, openai.UnprocessableEntityError, "invalid_value", "stream_format"),
        ({"extra_body": {"seed": "x"}}, openai.UnprocessableEntityError, "invalid_value", "seed"),
    ],
    ids=str,
)
async def test_errors_are_the_clients_own_exceptions(
    client: openai.OpenAI, fields: dict[str, Any], error_type: type[openai.APIStatusError], code: str, param: str
):
    with pytest.raises(error_type) as caught:
        client.audio.speech.create(**{"model": "tts-1", "voice": "alloy", "input": "Hello."} | fields)
    assert (caught.value.code, caught.value.param) == (code, param)
    assert caught.value.type == "invalid_request_error"
    assert caught.value.request_id
    assert param in caught.value.message


async def test_a_fleet_without_workers_is_an_error_that_the_client_would_retry(tmp_path: Path):
    async with Cluster(tmp_path) as cluster:
        await cluster.start_gateway("--queue-timeout", "0")
        async with (
            openai.DefaultAsyncHttpxClient(trust_env=False) as http,
            openai.AsyncOpenAI(base_url=f"{cluster.url}/v1", api_key="none", max_retries=0, http_client=http) as client,
        ):
            with pytest.raises(openai.InternalServerError) as caught:
                await client.audio.speech.create(model="tts-1", voice="alloy", input="Hello.")
    assert (caught.value.status_code, caught.value.code) == (503, "no_worker")
    assert int(caught.value.response.headers["retry-after"]) >= 1


async def test_it_lists_the_models_and_reads_one(client: openai.OpenAI, async_client: openai.AsyncOpenAI):
    assert [model.id for model in client.models.list()] == ["tone"]
    assert [model.id async for model in async_client.models.list()] == ["tone"]
    model = client.models.retrieve("tone")
    assert (model.id, model.object, model.owned_by) == ("tone", "model", "chatterbox-gateway")
    assert client.models.retrieve("tts-1").id == "tone"
    with pytest.raises(openai.NotFoundError) as caught:
        client.models.retrieve("whisper-1")
    assert caught.value.code == "model_not_found"


async def test_it_lists_the_voices(client: openai.OpenAI):
    # The client has no method for it; this is how its users call a path that it does not know.
    answer = client.get("/audio/voices", cast_to=object)
    assert isinstance(answer, dict)
    names = [voice["id"] for voice in answer["voices"]]
    assert names[:3] == ["alto", "tenor", "bass"]
    assert {"alloy", "cedar"} < set(names)
    for name in names:
        speech = client.audio.speech.create(model="tts-1", voice=name, input="Hi", response_format="pcm")
        assert decode(speech.content) == "Hi"


async def test_events_are_read_the_way_the_client_gives_them(async_client: openai.AsyncOpenAI):
    """As LiveKit's plugin does: line by line, `data:` taken off, until [DONE]."""
    audio, usage, ended = b"", None, False
    async with async_client.audio.speech.with_streaming_response.create(
        model="gpt-4o-mini-tts", voice="ash", input=TEXT, response_format="pcm", stream_format="sse"
    ) as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        async for line in response.iter_lines():
            if not line.startswith("data:"):
                assert line == ""
                continue
            data = line.removeprefix("data:").strip()
            if data == "[DONE]":
                ended = True
                break
            event = json.loads(data)
            if event["type"] == "speech.audio.done":
                usage = event["usage"]
            else:
                assert event["type"] == "speech.audio.delta"
                assert usage is None
                audio += base64.b64decode(event["audio"], validate=True)
    assert ended
    assert bare(decode(audio)) == bare(TEXT)
    assert usage is not None
    assert usage["input_tokens"] == -(-len(TEXT) // 4)
    assert usage["output_tokens"] == round(len(audio) / 2 / RATE * 25)
    assert usage["total_tokens"] == usage["input_tokens"] + usage["output_tokens"]
