"""Can a worker send the gateway's calls, with the fleet's token in them, anywhere but to itself?

FastChat's controller, built like ours, dialled whatever URL was registered (its issues 3776 and 3886)."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio
from aiohttp import web

from tests.e2e.cluster import Cluster, free_port
from tests.e2e.hostile.worker import Guest, hello, model
from tests.fakes.worker import FakeWorker, speaks
from wire.headers import SEGMENTS_PATH

pytestmark = [pytest.mark.e2e, pytest.mark.asyncio(loop_scope="module")]

# Where an attacker would have the gateway call: clouds' metadata, this machine's other services, other protocols.
TARGETS = [
    "http://169.254.169.254/latest/meta-data/",
    "http://[fd00:ec2::254]/latest/meta-data/",
    "http://metadata.google.internal/computeMetadata/v1/",
    "http://100.100.100.200/latest/meta-data/",
    "http://127.0.0.1:6379/",
    "http://localhost:22/",
    "http://0.0.0.0:8081/admin/workers",
    "http://[::1]:8081/admin/workers",
    "http://[::ffff:127.0.0.1]:8081/",
    "http://2130706433/",
    "http://0x7f000001/",
    "http://017700000001/",
    "http://127.1/",
    "http://127.0.0.1.nip.io/",
    "http://user:pass@127.0.0.1:8081/",
    "http://worker@169.254.169.254/",
    "//169.254.169.254/",
    "file:///etc/passwd",
    "gopher://127.0.0.1:6379/_FLUSHALL",
    "dict://127.0.0.1:11211/stats",
    "ftp://127.0.0.1/",
    "unix:///run/docker.sock",
    "ldap://127.0.0.1/",
    "10.0.0.1",
]
FIELDS = ["host", "address", "url", "endpoint", "base_url", "worker_addr", "worker_address", "peer", "ip", "callback"]
PORTS: list[Any] = [
    0, -1, 1, 22, 25, 53, 80, 111, 443, 445, 1023, 65536, 99999, 2**31, 2**64, 10**400,
    "", "http", "8100@169.254.169.254", "8100/../../admin", "8100#", "8100?x=", "8100\r\nHost: evil", "0x1f90",
    "8100:80", "http://169.254.169.254:80", None, [], [22], {}, {"port": 22}, float("nan"), float("inf"),
]  # fmt: skip
WORKERS: list[Any] = [
    "", "..", "../../admin", "a/b", "a\\b", "a b", "a%2fb", "a?b", "a#b", "a@169.254.169.254", "http://evil/", "UPPER",
    "a\r\nHost: evil", "a\x00b", "-a", ".a", "a" * 65, "wörker", "a;b", "*", "{id}", None, 5, [], {},
]  # fmt: skip
EPOCHS: list[Any] = [
    "", "a b", "a\r\nHost: 169.254.169.254", "a\nAuthorization: x", "a\x00", "é", "a/b", "x" * 65, None, [], {},
]  # fmt: skip
IDS = ["../../etc/passwd", "a/../b", "A", "", "a b", "a\r\nX: y", "%2e%2e", "a\x00", "é", "m" * 65]

REFUSED = [
    *[("port", hello(port=port)) for port in PORTS],
    *[("worker", hello(worker=worker)) for worker in WORKERS],
    *[("epoch", hello(epoch=epoch)) for epoch in EPOCHS],
    *[("model", model(id=id_)) for id_ in IDS],
    *[("voice", model(voices=[id_])) for id_ in IDS],
]
# Fields that no protocol has, each with every kind of target: ignored, not believed.
IGNORED = [{FIELDS[number % len(FIELDS)]: target} for number, target in enumerate(TARGETS)]
REDIRECTS = [
    (status, target) for number, target in enumerate(TARGETS) for status in [(301, 302, 303, 307, 308)[number % 5]]
]


async def test_the_corpus_is_large_enough():
    assert len(REFUSED) + len(IGNORED) + len(REDIRECTS) >= 100


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def fleet(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Cluster]:
    async with Cluster(tmp_path_factory.mktemp("ssrf")) as made:
        await made.start_gateway("--queue-timeout", "2", "--max-tries", "1")
        yield made


class Canary:
    """A server that nobody has any business to call. It counts those who do."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.port = 0

    @contextlib.asynccontextmanager
    async def listening(self) -> AsyncIterator[Canary]:
        async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            self.calls.append((await reader.read(4096)).decode(errors="replace"))
            writer.close()

        server = await asyncio.start_server(connected, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        async with server:
            yield self


async def test_no_hello_that_names_a_strange_port_id_epoch_or_path_is_accepted(fleet: Cluster):
    accepted = []
    for what, message in REFUSED:
        async with Guest(fleet) as guest:
            answer = await guest.say(message)
        if answer["type"] != "refused" or answer["code"] != "link_refused" or not answer["message"]:
            accepted.append((what, message, answer))
    assert accepted == []
    assert await fleet.listed() == []


async def test_the_gateways_own_ports_are_no_workers(fleet: Cluster):
    for url in (fleet.url, fleet.internal_url):
        async with Guest(fleet) as guest:
            answer = await guest.say(hello(port=int(url.rpartition(":")[2])))
            assert answer["type"] == "refused"
            assert "the gateway's own" in answer["message"]


async def test_whatever_address_a_worker_names_the_gateway_calls_where_it_called_from(fleet: Cluster):
    async with Canary().listening() as canary, FakeWorker([speaks(bytes(2000))]) as data:
        for fields in IGNORED:
            lie = {name: value.replace("8081", str(canary.port)) for name, value in fields.items()}
            async with Guest(fleet) as guest:
                await guest.join(hello(port=data.port, **lie))
                [worker] = await fleet.listed()
                assert worker["address"] == f"127.0.0.1:{data.port}"
                assert (await fleet.speak("Hello.")).status == 200
        assert len(data.bodies) == len(IGNORED)
        assert canary.calls == []


async def test_no_redirect_is_followed_and_the_token_goes_nowhere(fleet: Cluster):
    answered: list[str] = []
    port = free_port()

    async def redirect(request: web.Request) -> web.Response:
        status, target = REDIRECTS[len(answered) % len(REDIRECTS)]
        answered.append(target)
        return web.Response(status=status, headers={"Location": target.replace("8081", str(canary.port))})

    app = web.Application()
    app.router.add_post(SEGMENTS_PATH, redirect)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port).start()
    try:
        async with Canary().listening() as canary:
            for number in range(len(REDIRECTS)):
                async with Guest(fleet) as guest:  # a new one each time: three failures would put it aside
                    await guest.join(hello(port=port, epoch=f"r{number}"))
                    answer = await fleet.speak("Hello.")
                    assert (answer.status, answer.error["code"]) == (502, "worker_failed")
            assert len(answered) == len(REDIRECTS)
            assert canary.calls == []
    finally:
        await runner.cleanup()


async def test_the_calls_carry_what_is_ours_and_nothing_of_the_clients(fleet: Cluster):
    """A client's headers, its key above all, are not a worker's business."""
    async with FakeWorker([speaks(bytes(2000))]) as data, Guest(fleet) as guest:
        await guest.join(hello(port=data.port, epoch="mine"))
        async with fleet.session.post(
            f"{fleet.url}/v1/tts",
            json={"text": "Hello."},
            headers={
                "Authorization": "Bearer the-clients-own-key",
                "Cookie": "session=secret",
                "X-Request-Id": "from-the-client",
                "X-TTS-Epoch": "another",
                "X-Forwarded-For": "127.0.0.1",
                "X-Real-IP": "127.0.0.1",
                "X-Worker": "w7",
                "Connection": "X-Worker, keep-alive",
                "Te": "trailers",
                "Proxy-Authorization": "Basic c2VjcmV0",
                "Upgrade-Insecure-Requests": "1",
                "Expect": "",
            },
        ) as response:
            assert response.status == 200
            assert response.headers["X-Request-Id"] == "from-the-client"
            assert "Set-Cookie" not in response.headers
            await response.read()
        [headers] = data.headers
        ours = {"Host", "Authorization", "X-Request-Id", "X-TTS-Epoch", "Accept", "Accept-Encoding", "User-Agent"}
        ours |= {"Content-Length", "Content-Type"}
        assert {name.title() for name in headers} == {name.title() for name in ours}
        assert headers["Authorization"] == f"Bearer {fleet.token}"
        assert (headers["X-Request-Id"], headers["X-TTS-Epoch"]) == ("from-the-client", "mine")
        assert headers["Host"] == f"127.0.0.1:{data.port}"
        assert "the-clients-own-key" not in str(data.bodies)


@pytest.mark.parametrize(
    "given",
    ["a b", "x" * 65, "a\tb", "é", "../..", "a,b", 'a"b', "<script>", "${jndi:ldap://x}", "", "%0d%0aX: y"],
)
async def test_a_request_id_that_could_hurt_is_replaced(fleet: Cluster, given: str):
    async with fleet.session.get(f"{fleet.url}/v1/nothing", headers={"X-Request-Id": given}) as response:
        id_ = response.headers["X-Request-Id"]
        assert response.status == 404
    assert id_ != given
    assert len(id_) == 16
    assert int(id_, 16) >= 0
