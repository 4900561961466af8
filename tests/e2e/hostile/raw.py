"""HTTP as bytes: what no client library would send, and what came back."""

from __future__ import annotations

import asyncio
import contextlib
import re
from dataclasses import dataclass

# Long enough for a gateway on a machine that does ten things at once; whoever waits so long waits in vain.
PATIENCE_SECONDS = 20.0


@dataclass(frozen=True, slots=True)
class Raw:
    """All that came on one connection until its end, or until there was silence."""

    data: bytes
    closed: bool

    @property
    def statuses(self) -> list[int]:
        """The status of each answer on the connection, in order."""
        return [int(status) for status in re.findall(rb"HTTP/1\.[01] (\d{3}) ", self.data)]


async def exchange(port: int, data: bytes, *, quiet_seconds: float = 0.3, host: str = "127.0.0.1") -> Raw:
    """Send bytes on a connection of their own and read until the server closes it, or has answered and is quiet."""
    reader, writer = await asyncio.open_connection(host, port)
    got = b""
    closed = False
    try:
        with contextlib.suppress(ConnectionError):
            writer.write(data)
            await writer.drain()
        while True:
            try:
                async with asyncio.timeout(quiet_seconds if got else PATIENCE_SECONDS):
                    more = await reader.read(65536)
            except TimeoutError:
                break
            except ConnectionError:
                closed = True
                break
            if not more:
                closed = True
                break
            got += more
    finally:
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()
    return Raw(got, closed)
