"""Garbage on the inside: a worker that sends a gateway nonsense, a gateway that sends a worker nonsense.

Seeded, so that a failure can be had again."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web

from tests.e2e.cluster import Cluster, until
from tests.e2e.hostile.raw import exchange
from tests.e2e.hostile.test_smuggling import port_of
from tests.e2e.hostile.worker import STATUS, Guest, hello
from tests.fakes.worker import BEGINS, Answer, FakeWorker, audio, done, meta, speaks
from wire import link

pytestmark = pytest.mark.e2e

UPGRADE = (
    "GET {path} HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
    "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nAuthorization: Bearer {token}\r\n\r\n"
)


def mutated(message: dict[str, object], chance: random.Random) -> str:
    """A message of the protocol with one field bent, or its text cut or stirred."""
    bent = dict(message)
    odd: list[object] = [None, -1, 2**63, 1e308, "", "x" * 5000, [], {}, [[]] * 50, True, "\u0000", {"a": {"b": []}}]
    bent[chance.choice(list(bent))] = chance.choice(odd)
    text = json.dumps(bent)
    match chance.randrange(4):
        case 0:
            return text[: chance.randrange(len(text))]
        case 1:
            return "".join(chance.sample(text, len(text)))
        case _:
            return text


async def test_garbage_on_the_control_link_harms_nobody_else(cluster: Cluster):
    await cluster.start_gateway()
    await cluster.start_workers(1)
    assert cluster.gateway is not None
    chance = random.Random(7)
    head = UPGRADE.format(path=link.LINK_PATH, token=cluster.token).encode()
    for _ in range(60):  # frames that no WebSocket has
        await exchange(
            port_of(cluster.internal_url), head + chance.randbytes(chance.randrange(1, 400)), quiet_seconds=0.05
        )
    for message in (hello(), STATUS):  # messages that the protocol has not
        for number in range(40):
            async with Guest(cluster) as guest:
                if message is STATUS:
                    await guest.join(hello(epoch=f"e{number}"))
                with contextlib.suppress(ConnectionError, TimeoutError):
                    await guest.socket.send_str(mutated(message, chance))
                    await guest.socket.receive(timeout=0.02)
    assert (await cluster.speak("Hello.")).status == 200

    async def alone() -> bool:
        return [worker["id"] for worker in await cluster.listed()] == ["w0"]

    await until(alone, "the guests to be gone")
    assert "Traceback" not in cluster.gateway.log_text()


async def test_garbage_instead_of_audio_is_a_failed_worker_and_never_a_crash(cluster: Cluster):
    await cluster.start_gateway("--max-tries", "1", "--stall-timeout", "0.5")
    assert cluster.gateway is not None
    chance = random.Random(11)
    whole = meta() + audio(bytes(960)) + done(480)
    answers = [
        *(Answer(frames=(chance.randbytes(chance.randrange(1, 2000)),)) for _ in range(15)),
        *(Answer(frames=(bytes(b ^ (chance.random() < 0.05) for b in whole),)) for _ in range(15)),
        BEGINS.then(b"A\xff\xff\xff\xff"),
        BEGINS.then(audio(bytes(960)), done(481)),
        BEGINS.then(b"D\x00\x00\x00\x02[]"),
        BEGINS.then(b"E\x00\x00\x00\x02{}"),
        BEGINS.then(*[audio(bytes(1 << 20))] * 8),  # more audio than any text has, for as long as it is taken
        Answer(status=500),
        Answer(status=204),
    ]
    async with FakeWorker(answers) as data:
        for number, _ in enumerate(list(answers)):
            async with Guest(cluster) as guest:
                await guest.join(hello(port=data.port, epoch=f"g{number}", worker=f"guest-{number}"))
                answer = await cluster.speak("Hello.", stream=False)
                assert answer.status in (200, 502), answer
                if answer.status == 502:
                    assert answer.error["code"] == "worker_failed"
    async with FakeWorker([speaks(bytes(2000))]) as data, Guest(cluster) as guest:
        await guest.join(hello(port=data.port, epoch="sound", worker="sound"))
        assert (await cluster.speak("Hello.")).status == 200
    assert "Traceback" not in cluster.gateway.log_text()


async def test_a_gateway_that_sends_garbage_neither_ends_nor_steers_a_worker(tmp_path: Path):
    chance = random.Random(13)
    order = json.loads(link.encode(link.Order(link.Command.DRAIN)))
    dials = 0

    async def serve(request: web.Request) -> web.WebSocketResponse:
        nonlocal dials
        dials += 1
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        await socket.receive()
        if dials % 2:
            await socket.send_str(link.encode(link.Welcome("g")))
        with contextlib.suppress(ConnectionError):
            match dials % 4:
                case 0:
                    await socket.send_bytes(chance.randbytes(300))
                case 1:
                    await socket.send_str(mutated(order | {"command": "explode"}, chance))
                case 2:
                    await socket.send_str(mutated({"type": "welcome", "status_interval_seconds": 1e-9}, chance))
                case _:
                    assert request.transport is not None
                    request.transport.write(chance.randbytes(200))
        await socket.close()
        return socket

    app = web.Application()
    app.router.add_get(link.LINK_PATH, serve)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        async with Cluster(tmp_path) as cluster:
            cluster.internal_url = f"http://127.0.0.1:{runner.addresses[0][1]}"
            worker = await cluster.start_worker("--log-level", "info", port=0)

            async def dialled() -> bool:
                assert worker.is_running, worker.log_text()
                return dials >= 8

            await until(dialled, "the worker to dial again and again")
            text = worker.log_text()
            assert "Traceback" not in text
            assert "order=" not in text
            assert await worker.stop() == 0
    finally:
        await runner.cleanup()


async def test_a_link_without_the_token_is_no_link(cluster: Cluster):
    await cluster.start_gateway()
    for token in ("", "wrong", cluster.token[:-1], cluster.token + "0", cluster.token.upper() + "!"):
        with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
            async with Guest(cluster, token=token):
                pass
        assert refused.value.status == 401
    async with asyncio.timeout(20), Guest(cluster) as guest:
        assert (await guest.say(hello()))["type"] == "welcome"
