"""`/openapi.json` describes the routes that there are, with the ranges and codes that are checked."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from gateway.api.openai import parse_openai
from gateway.api.openapi import openapi
from gateway.app import Gateway
from gateway.config import Config, parse_address
from gateway.encoder import AudioFormat
from gateway.request import parse_speech
from wire.errors import ErrorCode, TtsError

DOCUMENT = openapi("1.2.3")
SCHEMAS = DOCUMENT["components"]["schemas"]


def references(node: Any) -> Iterator[str]:
    if isinstance(node, dict):
        if "$ref" in node:
            yield node["$ref"]
        for value in node.values():
            yield from references(value)
    elif isinstance(node, list):
        for value in node:
            yield from references(value)


def test_it_is_json_with_the_version_it_was_given():
    assert json.loads(json.dumps(DOCUMENT))["info"]["version"] == "1.2.3"
    assert DOCUMENT["openapi"] == "3.1.0"


def test_every_reference_leads_somewhere():
    found = set(references(DOCUMENT))
    assert found
    for reference in found:
        node: Any = DOCUMENT
        for step in reference.removeprefix("#/").split("/"):
            node = node[step]


async def test_it_has_every_public_route_and_no_other():
    loopback = parse_address("", "127.0.0.1:0")
    gateway = Gateway(Config(listen=loopback, internal_listen=loopback))
    async with gateway.running():
        public, _ = gateway._applications(None, None)  # type: ignore[arg-type]  # the routes need neither
    routed = {
        (route.resource.canonical, route.method.lower())
        for route in public.router.routes()
        if route.resource is not None and route.method != "HEAD"
    }
    described = {(path, method) for path, methods in DOCUMENT["paths"].items() for method in methods}
    assert described == routed - {("/openapi.json", "get"), ("/page/{name}", "get")}


@pytest.mark.parametrize("path", ["/v1/tts", "/v1/audio/speech"])
def test_a_speech_may_come_in_every_format(path: str):
    content = DOCUMENT["paths"][path]["post"]["responses"]["200"]["content"]
    assert {form.content_type.split(";")[0] for form in AudioFormat} <= content.keys()
    assert ("text/event-stream" in content) is (path == "/v1/audio/speech")


@pytest.mark.parametrize("path", ["/v1/tts", "/v1/audio/speech"])
def test_every_status_that_a_caller_can_meet_is_described(path: str):
    responses = DOCUMENT["paths"][path]["post"]["responses"]
    assert {"200", "400", "404", "408", "413", "415", "422", "429", "500", "502", "503", "504"} <= responses.keys()


def test_every_code_is_listed():
    listed = SCHEMAS["Error"]["properties"]["error"]["properties"]["code"]["enum"]
    assert listed == [str(code) for code in ErrorCode]


def accepts(schema: str, name: str, value: object) -> bool:
    """Ask the parser itself."""
    try:
        if schema == "SpeechRequest":
            parse_speech({"text": "Hello."} | {name: value}, text_field="text", max_characters=100)
        else:
            parse_openai({"input": "Hello."} | {name: value}, max_characters=100)
    except TtsError:
        return False
    return True


def described() -> list[tuple[str, str, dict[str, Any]]]:
    return [
        (schema, name, field)
        for schema in ("SpeechRequest", "OpenAISpeechRequest")
        for name, field in SCHEMAS[schema]["properties"].items()
    ]


@pytest.mark.parametrize(
    ("schema", "name", "field"), [row for row in described() if "minimum" in row[2]], ids=lambda item: str(item)[:20]
)
def test_a_range_is_the_one_that_is_checked(schema: str, name: str, field: dict[str, Any]):
    low, high = field["minimum"], field["maximum"]
    assert [accepts(schema, name, value) for value in (low, high, None)] == [True] * 3
    assert [accepts(schema, name, value) for value in (low - 1, high + 1, "a")] == [False] * 3


@pytest.mark.parametrize(
    ("schema", "name", "field"), [row for row in described() if "enum" in row[2]], ids=lambda item: str(item)[:20]
)
def test_an_enumeration_is_the_one_that_is_checked(schema: str, name: str, field: dict[str, Any]):
    assert all(accepts(schema, name, value) for value in field["enum"])
    assert not accepts(schema, name, "something else")


@pytest.mark.parametrize("schema", ["SpeechRequest", "OpenAISpeechRequest"])
def test_the_text_alone_is_required(schema: str):
    [required] = SCHEMAS[schema]["required"]
    assert required in SCHEMAS[schema]["properties"]
    assert accepts(schema, "anything", "else")
    assert not accepts(schema, required, None)
