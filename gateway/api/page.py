"""`GET /`: the live page, files of this package served as they are. It needs no network beyond this gateway."""

from __future__ import annotations

import hashlib
from importlib import resources
from typing import NamedTuple

from aiohttp import web

from wire.errors import ErrorCode, TtsError

_CONTENT_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
# Nothing from elsewhere, nothing inline, no frame around it: a text that found its way into the page as markup could
# still run nothing. `blob:` is the sound that the page has just fetched.
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "media-src 'self' blob:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_HEADERS = {
    "Content-Security-Policy": _POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",  # asked for each time, and mostly answered 304
}


class _File(NamedTuple):
    body: bytes
    content_type: str
    etag: str


class PageRoutes:
    """Holds the files in memory: all of them together are smaller than a second of audio."""

    def __init__(self) -> None:
        self._files = dict(_read_files())

    def add_to(self, app: web.Application) -> None:
        app.router.add_get("/", self.page)
        app.router.add_get("/page/{name}", self.file)

    async def page(self, request: web.Request) -> web.Response:
        return self._answer(request, "index.html")

    async def file(self, request: web.Request) -> web.Response:
        return self._answer(request, request.match_info["name"])

    def _answer(self, request: web.Request, name: str) -> web.Response:
        file = self._files.get(name)
        if file is None:
            raise TtsError(ErrorCode.NOT_FOUND, f"The page has no file {name[:64]!r}.")
        response = web.Response(body=file.body, headers=_HEADERS | {"Content-Type": file.content_type})
        response.etag = file.etag
        if any(tag.value == file.etag for tag in request.if_none_match or ()):
            return web.Response(status=304, headers=_HEADERS | {"ETag": response.headers["ETag"]})
        return response


def _read_files() -> list[tuple[str, _File]]:
    found = []
    for entry in resources.files("gateway").joinpath("page").iterdir():
        suffix = entry.name[entry.name.rfind(".") :]
        if suffix in _CONTENT_TYPES:
            body = entry.read_bytes()
            etag = hashlib.blake2s(body, digest_size=12).hexdigest()
            found.append((entry.name, _File(body, _CONTENT_TYPES[suffix], etag)))
    return found
