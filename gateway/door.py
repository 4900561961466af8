"""How many connections one address may hold. Decided when a connection is made, before a byte of it is read."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from typing import Any

from aiohttp import web

from gateway.address import Network, is_in, is_loopback

log = logging.getLogger(__name__)


class LimitedRunner(web.AppRunner):
    """An AppRunner that hangs up on an address which holds `connections_per_address` connections (0: any number).

    This machine's own addresses and those of `proxies` are not counted: a proxy in front brings the connections of
    everybody, and counts them for itself.
    """

    def __init__(
        self, app: web.Application, *, connections_per_address: int, proxies: Sequence[Network], **options: Any
    ) -> None:
        super().__init__(app, **options)
        self._connections_per_address = connections_per_address
        self._proxies = proxies

    @property
    def server(self) -> Any:
        """What sites ask for the protocol of a new connection."""
        server = super().server
        if server is None or not self._connections_per_address:
            return server
        return _Doors(server, self._connections_per_address, self._proxies)


class _Doors:
    """aiohttp's server, but for the protocol that it begins a connection with."""

    def __init__(self, server: web.Server, connections_per_address: int, proxies: Sequence[Network]) -> None:
        self._server = server
        self._connections_per_address = connections_per_address
        self._proxies = proxies

    def __call__(self) -> asyncio.Protocol:
        return _Door(self._server, self._connections_per_address, self._proxies)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._server, name)  # its connections, and its shutdown


class _Door(asyncio.Protocol):
    """The first protocol of a connection: hands it on to aiohttp's, or hangs up."""

    def __init__(self, server: web.Server, connections_per_address: int, proxies: Sequence[Network]) -> None:
        self._server = server
        self._connections_per_address = connections_per_address
        self._proxies = proxies

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        address = _address(transport.get_extra_info("peername"))
        if address and not is_loopback(address) and not is_in(address, self._proxies):
            held = sum(_address(connection.peername) == address for connection in self._server.connections)
            if held >= self._connections_per_address:
                log.info("hung up on address=%s: it holds %d connections", address, held)
                transport.abort()
                return
        protocol = self._server()
        transport.set_protocol(protocol)
        protocol.connection_made(transport)


def _address(peername: object) -> str:
    """The host part of a peer's name; a Unix socket's peer has none."""
    return str(peername[0]) if isinstance(peername, tuple) else ""
