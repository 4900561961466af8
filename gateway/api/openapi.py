"""`GET /openapi.json`: the public routes, for machines."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from aiohttp import web

from gateway.api.utterance import ENDPOINT as STREAM
from gateway.encoder import AudioFormat
from gateway.request import TIMEOUT
from gateway.voices.clip import MAX_UPLOAD_BYTES, UPLOAD_FIELD
from gateway.voices.decode import MAX_CHANNELS, MAX_SECONDS, MIN_SECONDS
from gateway.voices.store import MAX_NAME_CHARACTERS
from wire.errors import TRAITS, ErrorCode
from wire.segment import MAX_SEED, PARAMETERS, SPEED, Range

_JSON = "application/json"


@dataclass(frozen=True, slots=True)
class OpenApiRoutes:
    version: str

    def add_to(self, app: web.Application) -> None:
        app.router.add_get("/openapi.json", self.document)

    async def document(self, request: web.Request) -> web.Response:
        return web.json_response(openapi(self.version))


def openapi(version: str) -> dict[str, Any]:
    """Return the OpenAPI 3.1 document. Ranges and codes are those that the gateway checks, not copies of them."""
    return {
        "openapi": "3.1.0",
        "info": {"title": "chatterbox-gateway", "version": version, "license": {"name": "Apache-2.0"}},
        "paths": {
            "/v1/tts": {"post": _speak("Speak a text.", "SpeechRequest")},
            STREAM: {"get": _stream()},
            "/v1/audio/speech": {"post": _speak("Speak a text, the way OpenAI's clients ask.", "OpenAISpeechRequest")},
            "/v1/voices": {"get": _voices("Who can speak here."), "post": _upload()},
            "/v1/voices/{id}": {
                "get": _get("One voice.", "id", schema="Voice"),
                "patch": _rename(),
                "delete": _delete(),
            },
            "/v1/voices/{id}/audio": {"get": _audio()},
            "/v1/models": {"get": _get("The models that workers serve, and what they heed.")},
            "/v1/models/{id}": {"get": _get("One model.", "id")},
            "/v1/audio/models": {"get": _get("Models, the way Open WebUI asks.")},
            "/v1/audio/voices": {"get": _get("Voices, the way Open WebUI asks."), "post": _upload()},
            "/v1/audio/voices/{id}": {"delete": _delete()},
            "/": {"get": _page()},
            "/v1/live": {"get": _live()},
            "/livez": {"get": _free("The event loop turns.")},
            "/readyz": {"get": _free("A request sent now would be spoken.", 503)},
            "/health": {"get": _get("Workers and queue.")},
        },
        "security": [{"key": []}, {}],
        "components": {
            "securitySchemes": {
                "key": {"type": "http", "scheme": "bearer", "description": "Needed where the gateway has keys."}
            },
            "schemas": {
                "SpeechRequest": _native(),
                "OpenAISpeechRequest": _openai(),
                "Voice": _voice(),
                "Error": _error(),
            },
        },
    }


def _answer(text: str, content: dict[str, Any] | None = None) -> dict[str, Any]:
    return {"description": text, "content": content or {_JSON: {"schema": {"type": "object"}}}}


def _errors(*statuses: int) -> dict[str, Any]:
    content = {_JSON: {"schema": {"$ref": "#/components/schemas/Error"}}}
    return {str(status): _answer("An error, in OpenAI's envelope.", content) for status in sorted(statuses)}


def _get(
    text: str, parameter: str | None = None, statuses: tuple[int, ...] = (), schema: str | None = None
) -> dict[str, Any]:
    content = _schema(schema) if schema else None
    operation: dict[str, Any] = {"summary": text, "responses": {"200": _answer(text, content)}}
    if parameter is not None:
        operation["parameters"] = _parameters(parameter)
        statuses = (*statuses, 404)
    operation["responses"] |= _errors(*statuses, 401, 403)
    return operation


def _parameters(name: str) -> list[dict[str, Any]]:
    return [{"name": name, "in": "path", "required": True, "schema": {"type": "string"}}]


def _schema(name: str) -> dict[str, Any]:
    return {_JSON: {"schema": {"$ref": f"#/components/schemas/{name}"}}}


def _voices(text: str) -> dict[str, Any]:
    voices = {"type": "array", "items": {"$ref": "#/components/schemas/Voice"}}
    uploads = {"type": "boolean", "description": "whether voices can be uploaded here"}
    schema = {"type": "object", "required": ["voices"], "properties": {"voices": voices, "uploads": uploads}}
    return {"summary": text, "responses": {"200": _answer(text, {_JSON: {"schema": schema}})} | _errors(401, 403)}


def _upload() -> dict[str, Any]:
    form = {
        "type": "object",
        "required": ["name", UPLOAD_FIELD],
        "properties": {
            "name": {"type": "string", "minLength": 1, "maxLength": MAX_NAME_CHARACTERS},
            UPLOAD_FIELD: {
                "type": "string",
                "format": "binary",
                "description": f"wav, mp3, flac, ogg, opus, m4a, webm; at most {MAX_UPLOAD_BYTES >> 20} MiB, "
                f"{MIN_SECONDS:g} to {MAX_SECONDS:g} s of speech, {MAX_CHANNELS} channels",
            },
            "type": {"enum": [UPLOAD_FIELD]},
            "consent": {"type": "string", "description": "not used"},
        },
    }
    return {
        "summary": "Upload a voice.",
        "requestBody": {"required": True, "content": {"multipart/form-data": {"schema": form}}},
        "responses": {
            "200": _answer("The same clip has this name already.", _schema("Voice")),
            "201": _answer("The new voice.", _schema("Voice")),
        }
        | _errors(400, 401, 403, 408, 409, 413, 415, 422, 500, 503, 507),
    }


def _rename() -> dict[str, Any]:
    body = {"type": "object", "required": ["name"], "properties": {"name": {"type": "string", "minLength": 1}}}
    return {
        "summary": "Give an uploaded voice another name; its id stays.",
        "parameters": _parameters("id"),
        "requestBody": {"required": True, "content": {_JSON: {"schema": body}}},
        "responses": {"200": _answer("The voice.", _schema("Voice"))}
        | _errors(400, 401, 403, 404, 408, 409, 413, 415, 422, 507),
    }


def _delete() -> dict[str, Any]:
    return {
        "summary": "Forget an uploaded voice. What is being spoken with it goes on.",
        "parameters": _parameters("id"),
        "responses": {"200": _answer("It is gone.")} | _errors(401, 403, 404, 409),
    }


def _audio() -> dict[str, Any]:
    wav = {"audio/wav": {"schema": {"type": "string", "format": "binary"}}}
    return {
        "summary": "The clip of an uploaded voice, as it is used: 24 kHz, mono.",
        "parameters": _parameters("id"),
        "responses": {"200": _answer("The clip.", wav), "206": _answer("A part of it.", wav)} | _errors(401, 403, 404),
    }


def _page() -> dict[str, Any]:
    html = {"text/html": {"schema": {"type": "string"}}}
    return {"summary": "The live page, for browsers.", "security": [], "responses": {"200": _answer("The page.", html)}}


def _live() -> dict[str, Any]:
    stream = {"text/event-stream": {"schema": {"type": "string"}}}
    answer = _answer("Once a second: workers, line, and what runs where. No text, no address.", stream)
    return {
        "summary": "The service as it is, for the live page.",
        "responses": {"200": answer} | _errors(401, 403, 503),
    }


def _stream() -> dict[str, Any]:
    return {
        "summary": "A WebSocket: text comes in pieces, its audio goes back as it is made. See docs/stream.md.",
        "responses": {"101": {"description": "Send `start`."}} | _errors(400, 401, 403, 503),
    }


def _free(text: str, *statuses: int) -> dict[str, Any]:
    """What is answered without a key, always."""
    return {"summary": text, "security": [], "responses": {"200": _answer(text)} | _errors(*statuses)}


def _speak(text: str, schema: str) -> dict[str, Any]:
    audio = {f.content_type.split(";")[0]: {"schema": {"type": "string", "format": "binary"}} for f in AudioFormat}
    if schema == "OpenAISpeechRequest":
        audio["text/event-stream"] = {"schema": {"type": "string"}}
    statuses = {traits.status for code, traits in TRAITS.items() if code not in _BETWEEN_THE_SIDES}
    return {
        "summary": text,
        "requestBody": {"required": True, "content": {_JSON: {"schema": {"$ref": f"#/components/schemas/{schema}"}}}},
        "responses": {"200": _answer("The speech.", audio)} | _errors(*statuses - {404, 405}, 404),
    }


_BETWEEN_THE_SIDES = {
    ErrorCode.WORKER_FULL,
    ErrorCode.WORKER_NOT_READY,
    ErrorCode.SEGMENT_FAILED,
    ErrorCode.LINK_REFUSED,
    ErrorCode.WRONG_WORKER,
    ErrorCode.METHOD_NOT_ALLOWED,
}


def _number(range_: Range) -> dict[str, Any]:
    return {"type": ["number", "null"], "minimum": range_.low, "maximum": range_.high}


def _tuning() -> dict[str, Any]:
    return {
        "seed": {
            "type": ["integer", "null"],
            "minimum": -1,
            "maximum": MAX_SEED,
            "description": "0, -1, absent: random",
        },
        "speed": _number(SPEED),
        "language": {"type": ["string", "null"], "examples": ["en"]},
        "timeout_seconds": _number(TIMEOUT),
        "priority": {"enum": ["interactive", "batch", None], "default": "interactive"},
        "keep_markup": {
            "type": ["boolean", "null"],
            "default": False,
            "description": "speak Markdown and HTML marks instead of leaving them out",
        },
        "stream": {"type": ["boolean", "null"], "default": True},
        "model": {"type": ["string", "null"]},
        **{name: _number(range_) for name, range_ in PARAMETERS.items()},
    }


def _native() -> dict[str, Any]:
    return {
        "type": "object",
        "required": ["text"],
        "properties": {
            "text": {"type": "string", "minLength": 1, "description": "[pause:1.5s] is exact silence"},
            "voice": {"type": ["string", "null"]},
            "format": {"enum": [*AudioFormat, None], "default": "wav"},
            **_tuning(),
        },
    }


def _openai() -> dict[str, Any]:
    return {
        "type": "object",
        "required": ["input"],
        "properties": {
            "input": {"type": "string", "minLength": 1},
            "voice": {
                "anyOf": [
                    {"type": ["string", "null"]},
                    {"type": "object", "required": ["id"], "properties": {"id": {"type": "string"}}},
                ]
            },
            "response_format": {"enum": [*AudioFormat, None], "default": "mp3"},
            "stream_format": {"enum": ["audio", "sse", None], "default": "audio"},
            "instructions": {"type": ["string", "null"]},
            **_tuning(),
        },
    }


def _voice() -> dict[str, Any]:
    text, texts = {"type": "string"}, {"type": "array", "items": {"type": "string"}}
    rows = {"type": "array", "items": {"type": "object"}}
    return {
        "type": "object",
        "required": ["id", "name", "uploaded", "models"],
        "properties": {
            "id": text | {"description": "what `voice` of a speech request is"},
            "object": {"const": "audio.voice"},
            "type": {"enum": ["built_in", UPLOAD_FIELD]},
            "name": text,
            "uploaded": {"type": "boolean"},
            "created_at": {"type": ["integer", "null"]},
            "seconds": {"type": ["number", "null"]},
            "model": {"type": ["string", "null"], "description": "that speaks it where a request names none"},
            "models": texts | {"description": "known now, that can speak it"},
            "alias_of": {"type": ["string", "null"]},
            "languages": texts,
            "default": {"type": "boolean"},
            "warnings": rows | {"description": "what is wrong with the clip: `code`, `message`"},
            "unusable_with": rows | {"description": "`model`, `reason`"},
        },
    }


def _error() -> dict[str, Any]:
    return {
        "type": "object",
        "required": ["error"],
        "properties": {
            "error": {
                "type": "object",
                "required": ["message", "type", "param", "code"],
                "properties": {
                    "message": {"type": "string"},
                    "type": {"type": "string"},
                    "param": {"type": ["string", "null"]},
                    "code": {"enum": [str(code) for code in ErrorCode]},
                },
            }
        },
    }
