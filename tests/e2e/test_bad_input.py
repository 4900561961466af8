"""What a caller does wrong is told with the field's name, in OpenAI's envelope, and never as a 5xx."""

import io
import json
from typing import Any

import pytest

from tests.e2e.cluster import Cluster
from worker.models.tone import decode

pytestmark = pytest.mark.e2e


@pytest.fixture
async def fleet(cluster: Cluster) -> Cluster:
    await cluster.start_gateway("--queue-timeout", "1")
    await cluster.start_worker(model="tone")
    await cluster.start_worker(model="embedded")
    await cluster.wait_ready(2)
    return cluster


# (fields of POST /v1/tts, the status, the code, the field that is named)
BAD_FIELDS: list[tuple[dict[str, Any], int, str, str | None]] = [
    ({}, 422, "empty_text", "text"),
    ({"text": ""}, 422, "empty_text", "text"),
    ({"text": " \n\t "}, 422, "empty_text", "text"),
    ({"text": "\u200b\u200b"}, 422, "empty_text", "text"),
    ({"text": None}, 422, "empty_text", "text"),
    ({"text": 7}, 422, "invalid_value", "text"),
    ({"text": ["Hello"]}, 422, "invalid_value", "text"),
    ({"text": "a" * 100_000}, 422, "text_too_long", "text"),
    ({"text": "Hello\x00there"}, 422, "unspeakable_text", "text"),
    ({"text": "Hello\x07there"}, 422, "unspeakable_text", "text"),
    ({"text": "Hello \ud800 there"}, 422, "unspeakable_text", "text"),
    ({"text": "😀😀👍"}, 422, "unspeakable_text", "text"),
    ({"text": "… — !?"}, 422, "unspeakable_text", "text"),
    ({"text": "你好，世界", "model": "embedded"}, 422, "unspeakable_text", "text"),
    ({"text": "Hello 世界", "model": "embedded"}, 422, "unspeakable_text", "text"),
    ({"text": "Привет", "model": "embedded"}, 422, "unspeakable_text", "text"),
    ({"text": "Hello", "model": "no-such-model"}, 404, "model_not_found", "model"),
    ({"text": "Hello", "model": 5}, 422, "invalid_value", "model"),
    ({"text": "Hello", "model": ""}, 422, "invalid_value", "model"),
    ({"text": "Hello", "voice": "no-such-voice"}, 404, "voice_not_found", "voice"),
    ({"text": "Hello", "voice": "../../etc/passwd"}, 404, "voice_not_found", "voice"),
    ({"text": "Hello", "voice": "\ud800"}, 404, "voice_not_found", "voice"),
    ({"text": "Hello", "voice": {"id": 5}}, 422, "invalid_value", "voice"),
    ({"text": "Hello", "format": "ogg"}, 422, "invalid_value", "format"),
    ({"text": "Hello", "format": ["wav"]}, 422, "invalid_value", "format"),
    ({"text": "Hello", "speed": 0}, 422, "invalid_value", "speed"),
    ({"text": "Hello", "speed": 4.01}, 422, "invalid_value", "speed"),
    ({"text": "Hello", "speed": float("nan")}, 422, "invalid_value", "speed"),
    ({"text": "Hello", "speed": "fast"}, 422, "invalid_value", "speed"),
    ({"text": "Hello", "speed": True}, 422, "invalid_value", "speed"),
    ({"text": "Hello", "speed": 10**400}, 422, "invalid_value", "speed"),
    ({"text": "Hello", "temperature": float("inf")}, 422, "invalid_value", "temperature"),
    ({"text": "Hello", "top_p": -0.1}, 422, "invalid_value", "top_p"),
    ({"text": "Hello", "repetition_penalty": 0.5}, 422, "invalid_value", "repetition_penalty"),
    ({"text": "Hello", "seed": 1.5}, 422, "invalid_value", "seed"),
    ({"text": "Hello", "seed": -2}, 422, "invalid_value", "seed"),
    ({"text": "Hello", "seed": 2**32}, 422, "invalid_value", "seed"),
    ({"text": "Hello", "stream": "yes"}, 422, "invalid_value", "stream"),
    ({"text": "Hello", "language": "english please"}, 422, "invalid_value", "language"),
    ({"text": "Hallo", "language": "de"}, 422, "invalid_value", "language"),
    ({"text": "Hello", "timeout_seconds": 0}, 422, "invalid_value", "timeout_seconds"),
    ({"text": "Hello [pause:99s] there"}, 422, "invalid_value", "text"),
    ({"text": "Hello [pause:soon] there"}, 422, "invalid_value", "text"),
]


async def test_every_bad_field_is_told_by_its_name(fleet: Cluster):
    wrong = []
    for fields, status, code, param in BAD_FIELDS:
        answer = await fleet.post("/v1/tts", fields)
        told = (answer.status, answer.error["code"], answer.error["param"])
        if told != (status, code, param) or not answer.error["message"]:
            wrong.append((str(fields)[:80], told, answer.error["message"]))
    assert wrong == []
    await fleet.wait_idle()


async def test_the_openai_route_names_its_own_fields(fleet: Cluster):
    for fields, param in [
        ({"input": ""}, "input"),
        ({"input": "你好", "model": "embedded"}, "input"),
        ({"input": "Hello", "response_format": "ogg"}, "response_format"),
        ({"input": "Hello", "response_format": {}}, "response_format"),
        ({"input": "Hello", "stream_format": "xml"}, "stream_format"),
        ({"input": "Hello", "voice": "nobody"}, "voice"),
        ({"input": "Hello", "model": "gpt-9"}, "model"),
    ]:
        answer = await fleet.post("/v1/audio/speech", fields)
        assert (answer.status // 100, answer.error["param"]) == (4, param), fields


# (body, content type, the status, the code)
BAD_BODIES = [
    (b"", "application/json", 400, "invalid_body"),
    (b"Hello", "application/json", 400, "invalid_body"),
    (b"[1, 2]", "application/json", 400, "invalid_body"),
    (b'"text"', "application/json", 400, "invalid_body"),
    (b"null", "application/json", 400, "invalid_body"),
    (b'{"text": "Hello"', "application/json", 400, "invalid_body"),
    (b'{"text": "\xff\xfe"}', "application/json", 400, "invalid_body"),
    (b"[" * 100_000, "application/json", 400, "invalid_body"),
    (b'{"text": "Hello"}', "text/plain", 415, "unsupported_media_type"),
    (b'{"text": "Hello"}', "application/x-www-form-urlencoded", 415, "unsupported_media_type"),
    (b'{"text": "' + b"a" * (5 << 20) + b'"}', "application/json", 413, "body_too_large"),
]


@pytest.mark.parametrize("path", ["/v1/tts", "/v1/audio/speech"])
async def test_every_bad_body_is_refused_with_a_reason(fleet: Cluster, path: str):
    for body, content_type, status, code in BAD_BODIES:
        async with fleet.session.post(
            fleet.url + path, data=io.BytesIO(body), headers={"Content-Type": content_type}
        ) as response:
            error = json.loads(await response.read())["error"]
            assert (response.status, error["code"]) == (status, code), body[:40]


async def test_unknown_fields_and_nulls_are_ignored(fleet: Cluster):
    answer = await fleet.speak(
        "Hello there.",
        model="tone",
        format="pcm",
        voice=None,
        speed=None,
        user="me",
        extra_body={"a": 1},
        instructions="x",
    )
    assert decode(answer.body) == "Hello there."


async def test_a_field_that_the_model_does_not_use_is_reported(fleet: Cluster):
    answer = await fleet.speak("Hello.", model="tone", format="pcm", temperature=0.5, speed=1.5, top_p=0.9)
    assert answer.headers["X-TTS-Ignored-Fields"] == "temperature, top_p"
    assert "X-TTS-Ignored-Fields" not in (await fleet.speak("Hello.", model="tone", speed=1.5)).headers


async def test_an_unknown_route_and_a_wrong_method_get_the_envelope(fleet: Cluster):
    async with fleet.session.get(fleet.url + "/v1/nothing") as response:
        assert (response.status, (await response.json())["error"]["code"]) == (404, "not_found")
    async with fleet.session.get(fleet.url + "/v1/tts") as response:
        assert (response.status, (await response.json())["error"]["code"]) == (405, "method_not_allowed")


# What can be spoken is spoken.
SPEAKABLE = [
    "Hm",
    "A.",
    "1234567890" * 50,
    "a" * 900,
    "<p>Hello <b>there</b></p>",
    "# Heading\n\n* one\n* two `code` [link](http://example.com)",
    "cafe\u0301 nai\u0308ve \u00fcber",
    "zero\u200bwidth\ufeff and soft\u00adhyphen",
    "Hello 😀 there 👍🏽.",
    "  leading and trailing blanks \n\n",
    "Dr. Smith paid $1,250.50 on 3/4/2024 at 5:30 p.m.",
    "NO. STOP! What?! Oh... well; yes: (maybe) \u201cquoted\u201d \u2014 done",
]


@pytest.mark.parametrize("model", ["tone", "embedded"])
async def test_what_can_be_spoken_is_spoken(fleet: Cluster, model: str):
    for text in SPEAKABLE:
        answer = await fleet.speak(text, model=model, format="pcm")
        assert answer.status == 200, (text[:40], answer.body[:300])
        assert len(answer.body) > 4800, text[:40]
    await fleet.wait_idle()


async def test_without_any_worker_the_answer_is_503_with_retry_after(cluster: Cluster):
    await cluster.start_gateway("--queue-timeout", "0")
    answer = await cluster.speak("Hello.")
    assert (answer.status, answer.error["code"]) == (503, "no_worker")
    assert int(answer.headers["Retry-After"]) >= 1


async def test_when_the_last_worker_has_gone_the_queue_is_as_patient_as_told(cluster: Cluster):
    await cluster.start_gateway("--queue-timeout", "0.2")
    [worker] = await cluster.start_workers(1)
    assert (await cluster.speak("Hello.")).status == 200
    await worker.kill()
    await cluster.wait_ready(0)
    answer = await cluster.speak("Hello.")
    assert (answer.status, answer.error["code"]) == (503, "no_worker")
    await cluster.start_worker()
    await cluster.wait_ready(1)
    assert (await cluster.speak("Hello.")).status == 200
