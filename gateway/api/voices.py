"""`GET /v1/voices`: who can speak here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from aiohttp import web

from gateway.speech import SpeechService
from gateway.voices import Catalogue
from wire.errors import ErrorCode, TtsError
from wire.link import ModelInfo


@dataclass(frozen=True, slots=True)
class VoiceRoutes:
    service: SpeechService

    def add_to(self, app: web.Application) -> None:
        app.router.add_get("/v1/voices", self.voices)
        app.router.add_get("/v1/voices/{id}", self.voice)

    async def voices(self, request: web.Request) -> web.Response:
        return web.json_response({"voices": self._all()})

    async def voice(self, request: web.Request) -> web.Response:
        for voice in self._all():
            if voice["id"] == request.match_info["id"]:
                return web.json_response(voice)
        raise TtsError(
            ErrorCode.VOICE_NOT_FOUND,
            f"There is no voice {request.match_info['id'][:64]!r}. See GET /v1/voices.",
            param="id",
        )

    def _all(self) -> list[dict[str, Any]]:
        catalogue = self.service.catalogue
        found: dict[str, dict[str, Any]] = {}
        for model in catalogue.models:
            for name in catalogue.voice_names(model):
                found.setdefault(name, _voice(catalogue, model, name))
        return list(found.values())


def _voice(catalogue: Catalogue, model: ModelInfo, name: str) -> dict[str, Any]:
    return {
        "id": name,
        "name": name,
        "model": model.id,
        "alias_of": catalogue.alias_of(model, name),
        "languages": [*model.languages],
        "default": name == model.default_voice,
    }
