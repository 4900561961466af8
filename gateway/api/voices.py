"""Voices: who can speak here, and voices of one's own: upload, listen, rename, delete. OpenAI's routes for them too."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any, NoReturn

from aiohttp import BodyPartReader, MultipartReader, web
from aiohttp.http import HttpProcessingError

from gateway.api.errors import read_json
from gateway.service import SpeechService
from gateway.voices.catalogue import Catalogue, UploadedVoice
from gateway.voices.clip import MAX_UPLOAD_BYTES, UPLOAD_FIELD, Clip
from gateway.voices.store import VoiceStore, checked_name
from wire.errors import ErrorCode, TtsError
from wire.link import ModelInfo

# The name and what multipart puts around the file.
_OVERHEAD_BYTES = 64 << 10
_LONGEST_FIELD_BYTES = 4 << 10
_PIECE_BYTES = 256 << 10
# A client that sends slower than this has gone, or means ill.
_UPLOAD_SECONDS = 300.0


@dataclass(frozen=True, slots=True)
class VoiceRoutes:
    service: SpeechService
    store: VoiceStore

    def add_to(self, app: web.Application) -> None:
        app.router.add_get("/v1/voices", self.voices)
        app.router.add_post("/v1/voices", self.upload)
        app.router.add_get("/v1/voices/{id}", self.voice)
        app.router.add_patch("/v1/voices/{id}", self.rename)
        app.router.add_delete("/v1/voices/{id}", self.delete)
        app.router.add_get("/v1/voices/{id}/audio", self.audio)
        app.router.add_get("/v1/audio/voices", self.audio_voices)
        app.router.add_post("/v1/audio/voices", self.upload)
        app.router.add_delete("/v1/audio/voices/{id}", self.delete)

    async def voices(self, request: web.Request) -> web.Response:
        return web.json_response({"voices": self._all(), "uploads": self.store.takes_uploads})

    async def audio_voices(self, request: web.Request) -> web.Response:
        """Objects, not strings: Open WebUI falls back to six fixed names when it meets a list of strings."""
        catalogue = self.service.catalogue
        names = dict.fromkeys(name for model in catalogue.models for name in catalogue.voice_names(model))
        return web.json_response({"voices": [{"id": name, "name": self._shown(name)} for name in names]})

    async def voice(self, request: web.Request) -> web.Response:
        for voice in self._all():
            if voice["id"] == request.match_info["id"]:
                return web.json_response(voice)
        raise _not_found(request)

    async def upload(self, request: web.Request) -> web.Response:
        """201 with the new voice; 200 with the one that is there, when that has the same name and the same clip."""
        if not request.content_type.startswith("multipart/form-data"):
            raise TtsError(
                ErrorCode.UNSUPPORTED_MEDIA_TYPE,
                f"The Content-Type is {request.content_type!r}; send a form (multipart/form-data) with name and "
                f"{UPLOAD_FIELD}, a file.",
            )
        if (request.content_length or 0) > MAX_UPLOAD_BYTES + _OVERHEAD_BYTES:
            raise TtsError(
                ErrorCode.BODY_TOO_LARGE,
                f"{UPLOAD_FIELD} may have {MAX_UPLOAD_BYTES >> 20} MiB. 10 s of speech are enough.",
                param=UPLOAD_FIELD,
            )
        async with AsyncExitStack() as stack:
            name, clip = await self._read_form(request, stack)
            stored = await self.store.add(name, clip, reserved=self.service.catalogue.meaning)
        voice = _uploaded(self.service.catalogue, stored.voice)
        if stored.is_new:
            return web.json_response(voice, status=201, headers={"Location": f"/v1/voices/{stored.voice.id}"})
        return web.json_response(voice)

    async def rename(self, request: web.Request) -> web.Response:
        voice = self._changeable(request)
        body = await read_json(request)
        renamed = await self.store.rename(voice.id, body.get("name"), reserved=self.service.catalogue.meaning)
        return web.json_response(_uploaded(self.service.catalogue, renamed))

    async def delete(self, request: web.Request) -> web.Response:
        voice = self._changeable(request)
        await self.store.delete(voice.id)
        return web.json_response({"id": voice.id, "object": "audio.voice.deleted", "deleted": True})

    async def audio(self, request: web.Request) -> web.StreamResponse:
        voice = self.store.get(request.match_info["id"])
        path = self.store.clip(voice.clip) if voice else None
        if path is None:
            raise _not_found(request)
        return web.FileResponse(path, headers={"Content-Type": "audio/wav", "Cache-Control": "private, no-cache"})

    async def _read_form(self, request: web.Request, stack: AsyncExitStack) -> tuple[str, Clip]:
        """Return the form's name and clip, in whichever order they come; the clip is there until the stack closes."""
        name: str | None = None
        clip: Clip | None = None
        try:
            async with asyncio.timeout(_UPLOAD_SECONDS):
                reader = await request.multipart()
                async for part in _parts(reader):
                    if part.name == "name":
                        name = checked_name(await _text(part))
                    elif part.name == "type" and await _text(part) != UPLOAD_FIELD:
                        _refuse("type", f"must be {UPLOAD_FIELD}: a voice is made of a recording here, of nothing else")
                    elif part.name == UPLOAD_FIELD and clip is None:
                        clip = await stack.enter_async_context(self.store.receive(_pieces(part)))
        except TimeoutError:
            raise TtsError(
                ErrorCode.INVALID_BODY, f"The upload did not come within {_UPLOAD_SECONDS:g} s.", param=UPLOAD_FIELD
            ) from None
        # aiohttp's reader meets bodies that are no multipart with any of these.
        except (ValueError, AssertionError, RuntimeError, LookupError, HttpProcessingError) as error:
            raise TtsError(ErrorCode.INVALID_BODY, f"The body is not multipart/form-data: {str(error)[:200]}") from None
        if name is None:
            _refuse("name", "is missing: how the voice is to be called")
        if clip is None:
            _refuse(UPLOAD_FIELD, "is missing: a file with some seconds of speech")
        return name, clip

    def _changeable(self, request: web.Request) -> UploadedVoice:
        id_ = request.match_info["id"]
        voice = self.store.get(id_)
        if voice is not None:
            return voice
        if any(row["id"] == id_ for row in self._all()):
            raise TtsError(
                ErrorCode.VOICE_CONFLICT, f"{id_[:64]!r} was not uploaded; it comes with a worker.", param="id"
            )
        raise _not_found(request)

    def _shown(self, name: str) -> str:
        voice = self.store.get(name)
        return voice.name if voice else name

    def _all(self) -> list[dict[str, Any]]:
        catalogue = self.service.catalogue
        found: dict[str, dict[str, Any]] = {v.id: _uploaded(catalogue, v) for v in self.store.voices()}
        own: dict[str, dict[str, Any]] = {}
        for model in catalogue.models:
            for name in catalogue.voice_names(model):
                if name not in found:
                    own.setdefault(name, _voice(catalogue, model, name))["models"].append(model.id)
        return [*own.values(), *found.values()]


def _voice(catalogue: Catalogue, model: ModelInfo, name: str) -> dict[str, Any]:
    """Describe a voice of a model's own, or another name for one; `models` is filled by the caller."""
    return {
        "id": name,
        "object": "audio.voice",
        "type": "built_in",
        "name": name,
        "uploaded": False,
        "created_at": None,
        "seconds": None,
        "model": model.id,
        "models": [],
        "alias_of": catalogue.alias_of(model, name),
        "languages": [*model.languages],
        "default": name == model.default_voice,
        "warnings": [],
        "unusable_with": [],
    }


def _uploaded(catalogue: Catalogue, voice: UploadedVoice) -> dict[str, Any]:
    """Describe an uploaded voice, and what it can be used with among the models that are known now."""
    reasons = {model: voice.why_not(model) for model in catalogue.models}
    usable = [model for model, reason in reasons.items() if reason is None]
    return {
        "id": voice.id,
        "object": "audio.voice",
        "type": "audio_sample",
        "name": voice.name,
        "uploaded": True,
        "created_at": voice.created_at,
        "seconds": voice.seconds,
        "model": usable[0].id if usable else None,
        "models": [model.id for model in usable],
        "alias_of": None,
        "languages": sorted({language for model in usable for language in model.languages}),
        "default": False,
        "warnings": [warning._asdict() for warning in voice.warnings],
        "unusable_with": [{"model": model.id, "reason": reason} for model, reason in reasons.items() if reason],
    }


async def _parts(reader: MultipartReader) -> AsyncIterator[BodyPartReader]:
    """Yield the form's parts; what the caller leaves of one is read and thrown away."""
    while (part := await reader.next()) is not None:
        if not isinstance(part, BodyPartReader):
            raise ValueError("a form within the form")
        yield part


async def _pieces(part: BodyPartReader) -> AsyncIterator[bytes]:
    while piece := await part.read_chunk(_PIECE_BYTES):
        yield piece


async def _text(part: BodyPartReader) -> str:
    data = b""
    async for piece in _pieces(part):
        data += piece
        if len(data) > _LONGEST_FIELD_BYTES:
            _refuse(part.name or "", f"is longer than {_LONGEST_FIELD_BYTES} bytes")
    return data.decode()  # a ValueError for what is no UTF-8


def _refuse(field: str, why: str) -> NoReturn:
    raise TtsError(ErrorCode.INVALID_VALUE, f"{field} {why}.", param=field)


def _not_found(request: web.Request) -> TtsError:
    return TtsError(
        ErrorCode.VOICE_NOT_FOUND,
        f"There is no voice {request.match_info['id'][:64]!r}. See GET /v1/voices.",
        param="id",
    )
