"""For workers, on the internal listener: the clips of uploaded voices, and what another worker has computed of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from aiohttp import web

from gateway.voices.prepared import MAX_PREPARED_BYTES, PreparedVoices
from gateway.voices.store import VoiceStore
from wire.errors import ErrorCode, TtsError
from wire.headers import CLIP_PATH, PREPARED_PATH

_SHA256 = "{sha256:[0-9a-f]{64}}"
_FORMAT = "{format:[a-z0-9.-]{1,64}}"


@dataclass(frozen=True, slots=True)
class ClipRoutes:
    """`authenticate` raises for a request without the fleet's token."""

    store: VoiceStore
    authenticate: Callable[[web.Request], None]

    def add_to(self, app: web.Application) -> None:
        clip = CLIP_PATH.replace("{sha256}", _SHA256)
        prepared = PREPARED_PATH.replace("{sha256}", _SHA256).replace("{format}", _FORMAT)
        app.router.add_get(clip, self.clip)
        app.router.add_get(prepared, self.fetch)
        app.router.add_put(prepared, self.keep)
        app.router.add_delete(prepared, self.give_up)

    async def clip(self, request: web.Request) -> web.StreamResponse:
        self.authenticate(request)
        path = self.store.clip(request.match_info["sha256"])
        if path is None:
            raise _unknown(request)
        return web.FileResponse(path, headers={"Content-Type": "audio/wav"})

    async def fetch(self, request: web.Request) -> web.Response:
        """200 with the prepared voice; 204: it is for this worker to compute it, others wait for that meanwhile."""
        prepared = self._checked(request)
        data = await prepared.get(request.match_info["sha256"], request.match_info["format"])
        if data is None:
            return web.Response(status=204)
        return web.Response(body=data, content_type="application/octet-stream")

    async def keep(self, request: web.Request) -> web.Response:
        prepared = self._checked(request)
        data = await request.read()
        if not 0 < len(data) <= MAX_PREPARED_BYTES:
            raise TtsError(ErrorCode.BODY_TOO_LARGE, f"a prepared voice has 1 to {MAX_PREPARED_BYTES} bytes")
        await prepared.put(request.match_info["sha256"], request.match_info["format"], data)
        return web.Response(status=204)

    async def give_up(self, request: web.Request) -> web.Response:
        """The worker that was to compute it could not."""
        self._checked(request).give_up(request.match_info["sha256"], request.match_info["format"])
        return web.Response(status=204)

    def _checked(self, request: web.Request) -> PreparedVoices:
        self.authenticate(request)
        if self.store.prepared is None or not self.store.has_clip(request.match_info["sha256"]):
            raise _unknown(request)
        return self.store.prepared


def _unknown(request: web.Request) -> TtsError:
    return TtsError(
        ErrorCode.VOICE_NOT_FOUND, f"No voice here has the clip {request.match_info['sha256'][:12]}…", param="sha256"
    )
