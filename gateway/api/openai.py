"""OpenAI's speech API, as its clients really use it: `POST /v1/audio/speech`, models, voices."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from aiohttp import web

from gateway.api.answer import Answerer
from gateway.api.errors import read_json
from gateway.encoder import AudioFormat
from gateway.request import SpeechRequest, parse_speech
from gateway.service import SpeechService
from gateway.voices.catalogue import OPENAI_MODELS
from wire.errors import ErrorCode, TtsError
from wire.link import ModelInfo


@dataclass(frozen=True, slots=True)
class OpenAIRoutes:
    answerer: Answerer
    service: SpeechService
    max_characters: int
    body_timeout_seconds: float

    def add_to(self, app: web.Application) -> None:
        app.router.add_post("/v1/audio/speech", self.speak)
        app.router.add_get("/v1/models", self.models)
        app.router.add_get("/v1/models/{id}", self.model)
        app.router.add_get("/v1/audio/models", self.audio_models)

    async def speak(self, request: web.Request) -> web.StreamResponse:
        with self.answerer.journey(request, "/v1/audio/speech") as journey:
            body = await read_json(request, self.body_timeout_seconds)
            speech_request, sse = parse_openai(body, max_characters=self.max_characters)
            return await self.answerer.answer(request, speech_request, journey, sse=sse)

    async def models(self, request: web.Request) -> web.Response:
        return web.json_response({"object": "list", "data": [_model(m) for m in self.service.catalogue.models]})

    async def model(self, request: web.Request) -> web.Response:
        cast = self.service.catalogue.cast(model=request.match_info["id"], voice=None)
        return web.json_response(_model(cast.model))

    async def audio_models(self, request: web.Request) -> web.Response:
        return web.json_response({"models": [{"id": m.id} for m in self.service.catalogue.models]})


def parse_openai(body: Mapping[str, Any], *, max_characters: int) -> tuple[SpeechRequest, bool]:
    """Return the request, and whether its audio is to come as server-sent events.

    OpenAI's fields under their names, ours (`seed`, `language`, `temperature` …) accepted beside them; others ignored,
    since every client sends extras. Audio is mp3 unless asked otherwise: OpenAI's JavaScript client sends no format.

    Raises:
        TtsError: naming the field.
    """
    given = {name: value for name, value in body.items() if value is not None and name != "format"}
    stream_format = given.get("stream_format", "audio")
    if stream_format not in ("audio", "sse"):
        raise TtsError(
            ErrorCode.INVALID_VALUE,
            f"stream_format must be audio or sse; it is {str(stream_format)[:40]!r}.",
            param="stream_format",
        )
    asked = given.get("response_format", AudioFormat.MP3)
    if not isinstance(asked, str) or asked not in list(AudioFormat):
        raise TtsError(
            ErrorCode.INVALID_VALUE,
            f"response_format must be one of {', '.join(AudioFormat)}; it is {str(asked)[:40]!r}.",
            param="response_format",
        )
    request = parse_speech({**given, "format": asked}, text_field="input", max_characters=max_characters)
    if given.get("instructions"):
        request = replace(request, given=request.given | {"instructions"})
    return request, stream_format == "sse"


def _model(model: ModelInfo) -> dict[str, Any]:
    return {
        "id": model.id,
        "object": "model",
        "created": 0,
        "owned_by": "chatterbox-gateway",
        "languages": list(model.languages),
        "parameters": list(model.parameters),
        "cloning": model.cloning,
        "watermark": model.watermark or None,
        "sample_rate": model.sample_rate,
        "voices": list(model.voices),
        "aliases": list(OPENAI_MODELS),
    }
