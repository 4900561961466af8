"""A TCP proxy that breaks connections in the ways that networks and dying processes do."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from collections.abc import AsyncIterator
from dataclasses import dataclass
from enum import Enum, auto

_PIECE_BYTES = 4096


class Fault(Enum):
    NONE = auto()
    RESET = auto()  # TCP reset: the process was killed, a firewall lost its state
    TRUNCATE = auto()  # an orderly end, too early
    HALF_CLOSE = auto()  # our side of the answer ends, the other direction stays open
    BLACK_HOLE = auto()  # silence, with the connection open: a partition, a hung process


@dataclass
class FaultProxy:
    """Forwards to 127.0.0.1:`target_port`. `fault` strikes each connection once `after_bytes` of its answer went
    through; `delay_seconds` and `trickle_bytes_per_second` slow the answer down. All may be changed while it runs."""

    target_port: int
    fault: Fault = Fault.NONE
    after_bytes: int = 0
    delay_seconds: float = 0.0
    trickle_bytes_per_second: float | None = None
    port: int = 0
    connections: int = 0
    struck: int = 0

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[FaultProxy]:
        """Listen for the length of the block."""
        tasks: set[asyncio.Task[None]] = set()

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = asyncio.current_task()
            assert task is not None
            tasks.add(task)
            try:
                await self._connection(reader, writer)
            finally:
                tasks.discard(task)

        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        try:
            yield self
        finally:
            server.close()
            for task in list(tasks):
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            to_reader, to_writer = await asyncio.open_connection("127.0.0.1", self.target_port)
        except OSError:
            writer.close()
            return
        up = asyncio.create_task(_copy(reader, to_writer))
        try:
            await self._answer(to_reader, writer)
        except (ConnectionError, asyncio.CancelledError):
            pass
        finally:
            up.cancel()
            to_writer.close()
            writer.close()

    async def _answer(self, source: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        passed = 0
        while True:
            if self.fault is not Fault.NONE and passed >= self.after_bytes:
                self.struck += 1
                await self._strike(writer)
                return
            limit = _PIECE_BYTES if self.fault is Fault.NONE else min(_PIECE_BYTES, self.after_bytes - passed)
            data = await source.read(limit)
            if not data:
                return
            if self.delay_seconds:
                await asyncio.sleep(self.delay_seconds)
            if self.trickle_bytes_per_second:
                await asyncio.sleep(len(data) / self.trickle_bytes_per_second)
            writer.write(data)
            await writer.drain()
            passed += len(data)

    async def _strike(self, writer: asyncio.StreamWriter) -> None:
        match self.fault:
            case Fault.RESET:
                connection = writer.get_extra_info("socket")
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                writer.transport.abort()
            case Fault.TRUNCATE | Fault.NONE:
                writer.close()
            case Fault.HALF_CLOSE:
                writer.write_eof()
                await asyncio.Event().wait()
            case Fault.BLACK_HOLE:
                await asyncio.Event().wait()


async def _copy(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
    with contextlib.suppress(ConnectionError):
        while data := await source.read(_PIECE_BYTES):
            sink.write(data)
            await sink.drain()
