"""An address that opens connection after connection gets so many and no more, and takes none from anybody else.

Callers of several addresses: the gateway runs in a network of its own, whose loopback device has them all.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import shutil
import socket
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import pytest_asyncio

from gateway import keys_command
from tests.deploy.host import cannot
from tests.e2e.cluster import Cluster

pytestmark = [pytest.mark.e2e, pytest.mark.asyncio(loop_scope="module")]

HERE, CALLER, OTHER, PROXY = "10.0.0.1", "10.0.0.2", "10.0.0.3", "10.0.0.9"
LIMIT = 5
_CLONE_NEWNET = 0x40000000
_PROBE = b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n"
_ADDRESSES = "; ".join(f"ip address add {address}/24 dev lo" for address in (HERE, CALLER, OTHER, PROXY))


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def gateway(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Cluster]:
    """A gateway that is reached from other addresses than this machine's own."""
    if os.geteuid() != 0 or not shutil.which("ip"):
        cannot("a network of its own needs root and ip")
    directory = tmp_path_factory.mktemp("door")
    keys = str(directory / "keys.json")
    assert keys_command.run(["add", "--name", "ann", "--keys-file", keys]) == 0
    within = ("unshare", "--net", "sh", "-c", f'ip link set lo up; {_ADDRESSES}; exec "$@"', "sh")
    public = ("--listen", "0.0.0.0:0", "--keys-file", keys, "--trusted-proxies", f"127.0.0.0/8,{PROXY}")
    async with Cluster(directory) as made:
        await made.start_gateway(*public, "--connections-per-address", str(LIMIT), within=within)
        yield made


class Caller:
    """The connections of one address."""

    def __init__(self, gateway: Cluster, address: str) -> None:
        assert gateway.gateway is not None
        self._pid = gateway.gateway.pid
        self._port = int(gateway.url.rpartition(":")[2])
        self._address = address
        self._open: list[socket.socket] = []

    async def connect(self) -> bool:
        """Open one more connection and ask on it; return whether there was an answer. An answered one stays open."""
        connection = await asyncio.to_thread(self._connect)
        connection.setblocking(False)
        loop = asyncio.get_running_loop()
        try:
            await loop.sock_sendall(connection, _PROBE)
            answer = await loop.sock_recv(connection, 4096)
        except ConnectionError:
            answer = b""
        if answer.startswith(b"HTTP/1.1 200 "):
            self._open.append(connection)
            return True
        assert answer == b"", "hung up on without a word"
        connection.close()
        return False

    def hang_up(self, count: int) -> None:
        for _ in range(count):
            self._open.pop().close()

    def _connect(self) -> socket.socket:
        # A thread that has entered another network stays there, so it is used once.
        with ThreadPoolExecutor(1) as one:
            return one.submit(self._connect_there).result()

    def _connect_there(self) -> socket.socket:
        with Path(f"/proc/{self._pid}/ns/net").open("rb") as network:
            assert ctypes.CDLL(None).setns(network.fileno(), _CLONE_NEWNET) == 0
        return socket.create_connection((HERE, self._port), source_address=(self._address, 0))


@contextlib.asynccontextmanager
async def calling(gateway: Cluster, address: str) -> AsyncIterator[Caller]:
    caller = Caller(gateway, address)
    try:
        yield caller
    finally:
        caller.hang_up(len(caller._open))


async def test_an_address_holds_so_many_connections_and_the_next_one_is_hung_up_on(gateway: Cluster):
    async with calling(gateway, CALLER) as caller:
        assert [await caller.connect() for _ in range(LIMIT)] == [True] * LIMIT
        assert not await caller.connect()
        assert gateway.gateway is not None
        assert f"hung up on address={CALLER}: it holds {LIMIT} connections" in gateway.gateway.log_text()


async def test_others_do_not_notice(gateway: Cluster):
    async with calling(gateway, CALLER) as caller, calling(gateway, OTHER) as other:
        while await caller.connect():
            pass
        assert [await other.connect() for _ in range(LIMIT)] == [True] * LIMIT


async def test_who_hangs_up_has_room_again(gateway: Cluster):
    async with calling(gateway, CALLER) as caller:
        while await caller.connect():
            pass
        caller.hang_up(2)
        # The gateway learns of it in its own time, but never of more than two.
        again = 0
        async with asyncio.timeout(60):
            while again < 2:
                again += await caller.connect()
        assert not await caller.connect()


@pytest.mark.parametrize("address", [PROXY, "127.0.0.1"])
async def test_a_trusted_proxy_and_this_machine_bring_as_many_as_they_like(gateway: Cluster, address: str):
    async with calling(gateway, address) as proxy:
        assert [await proxy.connect() for _ in range(3 * LIMIT)] == [True] * 3 * LIMIT
