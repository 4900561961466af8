"""Clients that send a byte now and then, or nothing: each is hung up on in time, and nobody else notices.

aiohttp bounds how long a head may take by its keep-alive clock, and not how long a body may."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from tests.e2e.cluster import Cluster
from tests.e2e.hostile.test_smuggling import port_of

pytestmark = [pytest.mark.e2e, pytest.mark.asyncio(loop_scope="module")]

HEAD = b"POST /v1/tts HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
SLOW = {
    "says nothing": (b"", b""),
    "half a request line": (b"POST /v1/t", b"t"),
    "a head without end": (HEAD, b"X-A: b\r\n"),
    "a body that does not come": (HEAD + b"Content-Length: 100\r\n\r\n", b""),
    "a body byte by byte": (HEAD + b"Content-Length: 100000\r\n\r\n", b" "),
    "chunks byte by byte": (HEAD + b"Transfer-Encoding: chunked\r\n\r\n", b"1\r\n \r\n"),
    "a chunk size without end": (HEAD + b"Transfer-Encoding: chunked\r\n\r\n", b"0"),
    "a body that nobody asked for": (b"GET /livez HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n\r\n", b" "),
    "a body for a path that is not": (HEAD.replace(b"/v1/tts", b"/nowhere") + b"Content-Length: 100000\r\n\r\n", b" "),
}
MANY = 25  # of each


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def fleet(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Cluster]:
    async with Cluster(tmp_path_factory.mktemp("slow")) as made:
        await made.start_gateway("--idle-timeout", "3", "--body-timeout", "2")
        await made.start_workers(1)
        yield made


async def drip(port: int, first: bytes, more: bytes) -> tuple[float, bytes]:
    """Send as slowly as it goes; return after how many seconds the server hung up, and what it had said."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    began, got = time.monotonic(), b""

    async def send() -> None:
        with contextlib.suppress(ConnectionError):
            writer.write(first)
            while True:
                await writer.drain()
                await asyncio.sleep(0.2)
                writer.write(more)

    sending = asyncio.create_task(send())
    try:
        with contextlib.suppress(ConnectionError):
            async with asyncio.timeout(120):
                while data := await reader.read(4096):
                    got += data
        return time.monotonic() - began, got
    finally:
        sending.cancel()
        await asyncio.gather(sending, return_exceptions=True)
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()


async def test_every_slow_client_is_hung_up_on_while_others_are_served(fleet: Cluster):
    port = port_of(fleet.url)
    everyone = [asyncio.create_task(drip(port, *parts), name=name) for name, parts in SLOW.items() for _ in range(MANY)]
    served = 0
    while not all(one.done() for one in everyone):
        answer = await fleet.speak("Hello.")
        assert answer.status == 200
        served += 1
    assert served >= 3
    for one in everyone:
        _, got = one.result()
        if "body that nobody" in one.get_name():
            assert got.startswith(b"HTTP/1.1 200 ")
        elif "path that is not" in one.get_name():
            assert got.startswith(b"HTTP/1.1 404 ")
        elif "body" in one.get_name() or "chunk" in one.get_name():
            assert got.startswith(b"HTTP/1.1 408 "), (one.get_name(), got)
            assert b'"code": "body_timeout"' in got
        else:
            assert got == b"", one.get_name()
    await fleet.wait_idle()


async def test_a_body_that_comes_in_time_is_read_to_its_end(fleet: Cluster):
    body = b'{"text": "Hello.", "format": "pcm"}'
    reader, writer = await asyncio.open_connection("127.0.0.1", port_of(fleet.url))
    writer.write(HEAD + b"Content-Length: %d\r\n\r\n" % len(body))
    for number in range(len(body)):
        writer.write(body[number : number + 1])
        await writer.drain()
    assert (await reader.readline()).startswith(b"HTTP/1.1 200 ")
    writer.close()
    await writer.wait_closed()
