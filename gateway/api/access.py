"""Who is calling, and may they? Every request to either listener passes here before its route."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from aiohttp import hdrs, web

from gateway.address import Network, is_in, is_loopback, plain
from gateway.api.errors import Handler
from gateway.keys import Caller, Key, Keyring, Scope
from wire.errors import ErrorCode, TtsError
from wire.logs import fields

log = logging.getLogger(__name__)

CALLER = web.RequestKey("caller", Caller)
# How a browser's WebSocket, which cannot set headers, sends its key: as a subprotocol that the answer does not choose.
SUBPROTOCOL_PREFIX = "bearer."

# What says nothing and does nothing: probes, the description, the page (its data has routes of its own).
_FREE = frozenset({"/", "/livez", "/readyz", "/openapi.json", "/favicon.ico"})
_FREE_BELOW = ("/static", "/page")
_VOICES = ("/v1/voices", "/v1/audio/voices")
_NO_KEYS = (
    "This gateway has no keys, so it answers callers on its own machine only. Make one there: tts-gateway keys add "
    "--name NAME --keys-file FILE, and start the gateway with --keys-file FILE."
)


def scopes_for(method: str, route: str) -> frozenset[Scope] | None:
    """Return the scopes of which a key needs one for a route of the public listener; None: no key is needed.

    A route that is not named here is for speakers: a new one is closed until somebody opens it.
    """
    if route in _FREE or any(route == prefix or route.startswith(prefix + "/") for prefix in _FREE_BELOW):
        return None
    if any(route == prefix or route.startswith(prefix + "/") for prefix in _VOICES):
        if method in (hdrs.METH_GET, hdrs.METH_HEAD):
            return frozenset({Scope.SPEAK, Scope.VOICES})
        return frozenset({Scope.VOICES})
    return frozenset({Scope.SPEAK})


def internal_scopes_for(route: str) -> frozenset[Scope] | None:
    """The same for the internal listener. Workers show their own token, which their routes check."""
    if route in ("/livez", "/readyz") or route.startswith("/internal/"):
        return None
    if route in ("/metrics", "/admin/prometheus-targets"):
        return frozenset({Scope.METRICS, Scope.ADMIN})
    return frozenset({Scope.ADMIN})


@dataclass(slots=True)
class Access:
    """Decides by key, or, without keys, by where the caller is. `refused` is told the code of each refusal."""

    keyring: Keyring | None  # None: no keys file. One writer: `Gateway.reload_keys`
    trusted_proxies: Sequence[Network]
    refused: Callable[[str], None]

    @web.middleware
    async def public(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        request[CALLER] = self.caller(request)
        return await handler(request)

    def caller(self, request: web.Request) -> Caller:
        """Return who calls the public listener; a connection that lasts asks again for each request that it brings.

        Raises:
            TtsError: `unauthorized` or `forbidden`.
        """
        resource = request.match_info.route.resource
        address = client_address(request, self.trusted_proxies)
        if resource is None:  # there is no such route, which is no secret
            return Caller(address)
        needed = scopes_for(request.method, resource.canonical)
        return Caller(address) if needed is None else self._admit(request, address, needed)

    @web.middleware
    async def internal(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        resource = request.match_info.route.resource
        address = client_address(request, self.trusted_proxies)
        if hdrs.ORIGIN in request.headers:
            raise TtsError(ErrorCode.FORBIDDEN, "The internal listener does not answer web pages.")
        if resource is not None and not is_loopback(address):
            needed = internal_scopes_for(resource.canonical)
            if needed is not None:
                self._admit(request, address, needed)
        return await handler(request)

    def _admit(self, request: web.Request, address: str, needed: frozenset[Scope]) -> Caller:
        """Return the caller.

        Raises:
            TtsError: `unauthorized` or `forbidden`.
        """
        if self.keyring is None:
            if not is_loopback(address):
                raise self._refused(request, address, ErrorCode.UNAUTHORIZED, _NO_KEYS)
            return Caller(address)
        presented = presented_key(request)
        key = self.keyring.find(presented) if presented else None
        if key is None:
            what = "This key is not known here; it may have been revoked." if presented else "A key is missing."
            message = f"{what} Send one that is: Authorization: Bearer KEY."
            raise self._refused(request, address, ErrorCode.UNAUTHORIZED, message)
        if not needed & key.scopes:
            message = f"The key {key.name!r} is for {_or(key.scopes)}; this needs one for {_or(needed)}."
            raise self._refused(request, address, ErrorCode.FORBIDDEN, message, key)
        return Caller(f"key:{key.id}", key.limits)

    def _refused(
        self, request: web.Request, address: str, code: ErrorCode, message: str, key: Key | None = None
    ) -> TtsError:
        # The route and not the path, and nothing that was presented: keys get into the wrong places.
        resource = request.match_info.route.resource
        about = {"address": address, "route": resource.canonical if resource else "", "key": key.id if key else ""}
        log.info("refused", extra=fields({"code": code, **{name: value for name, value in about.items() if value}}))
        self.refused(str(code))
        return TtsError(code, message)


def presented_key(request: web.Request) -> str:
    """Return the key that came with a request, or an empty string: a bearer token, or a WebSocket's subprotocol."""
    scheme, _, key = request.headers.get(hdrs.AUTHORIZATION, "").partition(" ")
    if scheme.lower() == "bearer":
        return key.strip()
    for protocol in request.headers.get(hdrs.SEC_WEBSOCKET_PROTOCOL, "").split(","):
        if protocol.strip().startswith(SUBPROTOCOL_PREFIX):
            return protocol.strip().removeprefix(SUBPROTOCOL_PREFIX)
    return ""


def client_address(request: web.Request, trusted_proxies: Sequence[Network]) -> str:
    """Return the address that a request comes from: the peer's, or the one that a trusted proxy saw.

    Each proxy appends to X-Forwarded-For the address that it was called from. Read from the right, the first one that
    is not itself a trusted proxy is the client; whatever stands left of it the client may have made up.
    """
    peer = plain(request.remote or "127.0.0.1")  # a Unix socket's peer has no address, and is on this machine
    hops = [hop.strip() for value in request.headers.getall(hdrs.X_FORWARDED_FOR, []) for hop in value.split(",")]
    while is_in(peer, trusted_proxies) and hops:
        peer = plain(hops.pop())
    return peer


def _or(scopes: frozenset[Scope]) -> str:
    return " or ".join(sorted(scopes))
