"""`POST /v1/tts`: the gateway's own speech route."""

from __future__ import annotations

from dataclasses import dataclass

from aiohttp import web

from gateway.api.answer import Answerer
from gateway.api.errors import read_json
from gateway.request import parse_speech


@dataclass(frozen=True, slots=True)
class NativeRoutes:
    answerer: Answerer
    max_characters: int
    body_timeout_seconds: float

    def add_to(self, app: web.Application) -> None:
        app.router.add_post("/v1/tts", self.speak)

    async def speak(self, request: web.Request) -> web.StreamResponse:
        with self.answerer.journey(request, "/v1/tts") as journey:
            body = await read_json(request, self.body_timeout_seconds)
            speech_request = parse_speech(body, text_field="text", max_characters=self.max_characters)
            return await self.answerer.answer(request, speech_request, journey)
