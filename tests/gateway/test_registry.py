"""The control link's gateway side, against real WebSockets that say what they should not, or nothing."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket as py_socket
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field, replace
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from gateway.api.errors import errors_as_envelopes
from gateway.lease import Wanted
from gateway.pool import Pool
from gateway.queue import Standing
from gateway.registry import DIALS_AT_ONCE, MAX_MODELS, MAX_STRANGERS, MESSAGES_AT_ONCE, Registry
from gateway.replica import Health
from tests.e2e.cluster import until
from tests.gateway.builders import TONE, Heard, pool
from wire import link
from wire.errors import ErrorCode, TtsError

HELLO = link.Hello("w0", "epoch-1", 8100, 4, "cpu", (TONE,), link.WorkerState.READY)
STATUS = link.Status(link.WorkerState.READY, in_flight=1, steps=7, slots=4)


@dataclass
class Site:
    """A registry that listens, the pool it feeds, and connections to it."""

    registry: Registry
    pool: Pool
    heard: Heard
    url: str
    session: aiohttp.ClientSession
    # A socket that nobody holds is closed by the garbage collector.
    sockets: list[aiohttp.ClientWebSocketResponse] = field(default_factory=list)

    async def dial(self, token: str = "") -> aiohttp.ClientWebSocketResponse:
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        self.sockets.append(await self.session.ws_connect(self.url + link.LINK_PATH, headers=headers))
        return self.sockets[-1]

    async def join(self, hello: link.Hello = HELLO) -> aiohttp.ClientWebSocketResponse:
        socket = await self.dial()
        await socket.send_str(link.encode(hello))
        assert isinstance(link.parse(await socket.receive_str()), link.Welcome)
        return socket

    async def wait_lost(self, *workers: str) -> None:
        async def lost() -> bool:
            return self.heard.losses == list(workers)

        await until(lost, f"{workers} to be lost")


@contextlib.asynccontextmanager
async def site(token: str = "", clock: Callable[[], float] = time.monotonic) -> AsyncIterator[Site]:
    heard = Heard()
    made = pool(heard=heard)
    registry = Registry(made, token=token, gateway_id="g1", clock=clock)
    app = web.Application(middlewares=[errors_as_envelopes])
    registry.add_to(app)
    runner = web.AppRunner(app, handler_cancellation=True, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        async with aiohttp.ClientSession(trust_env=False) as session:
            here = Site(registry, made, heard, f"http://127.0.0.1:{runner.addresses[0][1]}", session)
            try:
                yield here
            finally:
                await asyncio.gather(*(socket.close() for socket in here.sockets))
    finally:
        await runner.cleanup()


async def speak(fleet: Pool) -> None:
    async with fleet.lease(Wanted("tone", "alto", Standing("", 1), 1), wait_seconds=60):
        pass


async def refusal(socket: aiohttp.ClientWebSocketResponse) -> str:
    """Return why the gateway refuses; the link must be closed after it, as a breach of policy."""
    message = link.parse(await socket.receive_str())
    assert isinstance(message, link.Refused)
    assert message.code == ErrorCode.LINK_REFUSED
    end = await socket.receive()
    assert (end.type, end.data) == (aiohttp.WSMsgType.CLOSE, aiohttp.WSCloseCode.POLICY_VIOLATION)
    return message.message


def changed(**fields: Any) -> str:
    return json.dumps(json.loads(link.encode(HELLO)) | fields)


async def test_a_worker_that_says_hello_is_welcome_and_in_the_pool():
    async with site() as it:
        socket = await it.dial()
        await socket.send_str(link.encode(HELLO))
        assert link.parse(await socket.receive_str()) == link.Welcome("g1")
        [replica] = it.pool.replicas
        assert (replica.id, replica.epoch, replica.port, replica.slots) == ("w0", "epoch-1", 8100, 4)
        assert replica.host == "127.0.0.1"
        assert replica.models == {"tone": TONE}


async def test_the_host_is_where_the_link_comes_from_whatever_the_worker_says():
    async with site() as it:
        socket = await it.dial()
        await socket.send_str(changed(host="10.0.0.1", address="10.0.0.1:1"))
        assert isinstance(link.parse(await socket.receive_str()), link.Welcome)
        assert it.pool.replicas[0].host == "127.0.0.1"


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        ("", "not JSON"),
        ("{", "not JSON"),
        ("[]", "JSON object"),
        ("5", "JSON object"),
        ("[" * 100_000, "not JSON"),
        ("{}", "must be a hello"),
        ('{"type": "later"}', "must be a hello"),
        (link.encode(STATUS), "must be a hello"),
        (link.encode(link.Welcome("me")), "must be a hello"),
        ('{"type": "hello"}', "bad hello"),
        (changed(worker="W 0"), "worker"),
        (changed(port=0), "port"),
        (changed(slots=0), "slots"),
        (changed(epoch=""), "epoch"),
        (changed(models=[]), "models"),
        (changed(state="asleep"), "asleep"),
        (changed(protocol=2), "protocol 2"),
        (changed(protocol=0), "protocol 0"),
    ],
    ids=lambda item: str(item)[:24],
)
async def test_a_bad_first_message_is_refused_with_a_reason(message: str, reason: str):
    async with site() as it:
        socket = await it.dial()
        await socket.send_str(message)
        assert reason in await refusal(socket)
        assert it.pool.replicas == ()
        assert it.heard.losses == []


async def test_bytes_are_no_hello():
    async with site() as it:
        socket = await it.dial()
        await socket.send_bytes(link.encode(HELLO).encode())
        assert "as text" in await refusal(socket)


async def test_another_protocol_says_which_side_to_upgrade():
    async with site() as it:
        socket = await it.dial()
        await socket.send_str(changed(protocol=9))
        assert await refusal(socket) == "The worker speaks protocol 9, the gateway 1: upgrade the older."


async def test_a_name_that_is_taken_is_refused_and_the_first_one_stays():
    async with site() as it:
        await it.join()
        second = await it.dial()
        await second.send_str(changed(epoch="epoch-2"))
        reason = await refusal(second)
        assert "'w0' is linked already" in reason
        assert "--id" in reason
        assert [replica.epoch for replica in it.pool.replicas] == ["epoch-1"]


async def test_a_name_is_free_again_when_its_link_is_gone():
    async with site() as it:
        first = await it.join()
        await first.close()
        await it.wait_lost("w0")
        await it.join(link.Hello("w0", "epoch-2", 8101, 4, "cpu", (TONE,), link.WorkerState.READY))
        assert [replica.port for replica in it.pool.replicas] == [8101]


@pytest.mark.parametrize("given", [None, "", "Bearer wrong", "Bearer", "s3cret", "Bearer s3cretx", "\xe9"])
async def test_a_wrong_token_is_told_before_there_is_a_link(given: str | None):
    async with site(token="s3cret") as it:
        headers = {} if given is None else {"Authorization": given}
        async with it.session.get(it.url + link.LINK_PATH, headers=headers) as response:
            error = (await response.json())["error"]
        assert (response.status, error["code"]) == (401, "unauthorized")
        assert "TTS_WORKER_TOKEN" in error["message"]
        assert "s3cret" not in error["message"]
        assert response.headers["WWW-Authenticate"] == "Bearer"
        assert it.pool.replicas == ()


async def test_the_right_token_opens_the_link():
    async with site(token="s3cret") as it:
        socket = await it.dial("s3cret")
        await socket.send_str(link.encode(HELLO))
        assert isinstance(link.parse(await socket.receive_str()), link.Welcome)


async def test_reports_reach_the_pool():
    async with site() as it:
        socket = await it.join()
        await socket.send_str(link.encode(STATUS))
        [replica] = it.pool.replicas

        async def reported() -> bool:
            return (replica.reported_in_flight, replica.steps) == (1, 7)

        await until(reported, "the report to arrive")


async def test_what_a_newer_worker_says_is_ignored():
    async with site() as it:
        socket = await it.join()
        await socket.send_str('{"type": "news", "anything": [1, 2]}')
        await socket.send_str('{"type": 5}')
        await socket.send_str(json.dumps(json.loads(link.encode(STATUS)) | {"future": {"field": 1}, "steps": 9}))
        [replica] = it.pool.replicas

        async def reported() -> bool:
            return replica.steps == 9

        await until(reported, "the report after it to arrive")
        assert it.heard.losses == []


@pytest.mark.parametrize(
    "message",
    [
        "{",
        "[]",
        "null",
        '{"type": "status"}',
        '{"type": "status", "state": "?", "in_flight": 0, "steps": 0, "slots": 1}',
    ],
)
async def test_junk_closes_the_link_and_the_worker_is_lost(message: str):
    async with site() as it:
        socket = await it.join()
        [replica] = it.pool.replicas
        await socket.send_str(message)
        async with asyncio.timeout(20):
            assert (await socket.receive()).type is aiohttp.WSMsgType.CLOSE
        await it.wait_lost("w0")
        assert it.pool.replicas == ()
        assert replica.health is Health.GONE


async def test_bytes_and_messages_without_end_close_the_link_too():
    for send in (
        lambda socket: socket.send_bytes(b"\x00"),
        lambda socket: socket.send_str("x" * (link.MAX_MESSAGE_BYTES + 1)),
    ):
        async with site() as it:
            socket = await it.join()
            with contextlib.suppress(ConnectionError):
                await send(socket)
            await it.wait_lost("w0")


async def test_a_connection_that_breaks_is_a_worker_that_is_lost():
    async with site() as it:
        socket = await it.join()
        connection = socket.get_extra_info("socket")
        connection.shutdown(py_socket.SHUT_RDWR)  # without a farewell
        await it.wait_lost("w0")


async def test_orders_are_carried_to_the_worker_they_are_for():
    async with site() as it:
        first = await it.join()
        second = await it.join(link.Hello("w1", "e", 8101, 1, "cpu", (TONE,), link.WorkerState.READY))
        for command in (link.Command.UNLOAD, link.Command.LOAD, link.Command.DRAIN, link.Command.UNDRAIN):
            await it.registry.order("w1", command)
            assert link.parse(await second.receive_str()) == link.Order(command)
        # Nothing came to the other one before its own.
        await it.registry.order("w0", link.Command.UNLOAD)
        assert link.parse(await first.receive_str()) == link.Order(link.Command.UNLOAD)


async def test_a_worker_that_is_told_to_drain_gets_nothing_from_that_instant():
    async with site() as it:
        await it.join()
        await it.registry.order("w0", link.Command.DRAIN)
        assert it.pool.replicas[0].limit == 0


async def test_a_sleeping_worker_is_ordered_to_load_when_a_segment_waits_for_it():
    async with site() as it:
        hello = replace(HELLO, state=link.WorkerState.UNLOADED, loads_on_demand=True)
        socket = await it.join(hello)
        waiting = asyncio.create_task(speak(it.pool))
        assert link.parse(await socket.receive_str()) == link.Order(link.Command.LOAD)
        await socket.send_str(link.encode(STATUS))
        await waiting


async def test_an_order_to_load_comes_after_the_welcome_also_when_the_segment_was_there_first():
    async with site() as it:
        awake = await it.join(replace(HELLO, worker="w1"))
        await awake.close()
        await it.wait_lost("w1")
        waiting = asyncio.create_task(speak(it.pool))
        await asyncio.sleep(0)
        assert it.pool.waiting == 1
        socket = await it.join(replace(HELLO, state=link.WorkerState.UNLOADED, loads_on_demand=True))
        assert link.parse(await socket.receive_str()) == link.Order(link.Command.LOAD)
        await socket.send_str(link.encode(STATUS))
        await waiting


async def test_an_order_for_nobody_names_those_there_are():
    async with site() as it:
        await it.join()
        with pytest.raises(TtsError) as caught:
            await it.registry.order("w7", link.Command.DRAIN)
        assert caught.value.code is ErrorCode.WORKER_NOT_FOUND
        assert "Linked now: w0." in caught.value.message


async def test_a_gateway_that_goes_says_so():
    async with site() as it:
        socket = await it.join()
        closing = asyncio.create_task(it.registry.close())
        end = await socket.receive()
        assert (end.type, end.data) == (aiohttp.WSMsgType.CLOSE, aiohttp.WSCloseCode.GOING_AWAY)
        await closing
        await it.wait_lost("w0")


async def test_whoever_is_silent_is_not_waited_for():
    """One says no hello, one says hello and no more: together, so that their times pass at once."""
    async with site() as it:
        mute = await it.dial()
        await it.join()
        assert "No hello came within 5 s" in await refusal(mute)
        assert it.heard.losses == ["w0"]
        assert it.pool.replicas == ()


async def test_a_worker_that_restarts_before_its_loss_is_noticed_is_another_one():
    """The old link is open, its process dead (a power cut): the new epoch waits until the old one is lost."""
    async with site() as it:
        old = await it.join()
        again = await it.dial()
        await again.send_str(changed(epoch="epoch-2"))
        assert "(epoch epoch-1)" in await refusal(again)
        [before] = it.pool.replicas
        await old.close()
        await it.wait_lost("w0")
        await it.join(link.Hello("w0", "epoch-2", 8100, 4, "cpu", (TONE,), link.WorkerState.READY))
        [after] = it.pool.replicas
        assert after is not before
        assert before.health is Health.GONE
        assert (before.key, after.key) == (("w0", "epoch-1"), ("w0", "epoch-2"))


@pytest.mark.parametrize("port", [1, 22, 80, 443, 1023])
async def test_a_port_where_other_services_listen_is_refused(port: int):
    async with site() as it:
        socket = await it.dial()
        await socket.send_str(changed(port=port))
        assert f"Data port {port} is below 1024" in await refusal(socket)


async def test_whoever_dials_without_end_is_told_to_wait():
    now = [100.0]
    async with site(token="s3cret", clock=lambda: now[0]) as it:

        async def dial() -> tuple[int, str]:
            async with it.session.get(it.url + link.LINK_PATH) as response:
                return response.status, response.headers.get("Retry-After", "")

        # A wrong token costs a dial too: nobody tries many of them.
        assert {await dial() for _ in range(DIALS_AT_ONCE)} == {(401, "")}
        assert {await dial() for _ in range(20)} == {(429, "1")}
        with pytest.raises(aiohttp.WSServerHandshakeError, match="429"):
            await it.dial("s3cret")
        now[0] += 1.0
        await it.dial("s3cret")


async def test_links_that_say_no_hello_are_held_to_a_number():
    async with site() as it:
        for _ in range(MAX_STRANGERS):
            await it.dial()
        with pytest.raises(aiohttp.WSServerHandshakeError, match="429"):
            await it.dial()
        # One that leaves makes room for one that means it.
        await it.sockets[0].close()

        async def welcome() -> bool:
            with contextlib.suppress(aiohttp.WSServerHandshakeError):
                await it.join()
                return True
            return False

        await until(welcome, "room for a worker")


async def test_a_flood_of_reports_closes_the_link():
    async with site(clock=lambda: 100.0) as it:
        socket = await it.join()
        with contextlib.suppress(ConnectionError):
            for _ in range(MESSAGES_AT_ONCE + 1):
                await socket.send_str(link.encode(STATUS))
        await it.wait_lost("w0")


async def test_models_without_number_are_not_remembered():
    async with site() as it:

        def hello(worker: str, batch: int) -> str:
            models = [json.loads(changed())["models"][0] | {"id": f"m{batch}-{n}"} for n in range(16)]
            return changed(worker=worker, models=models)

        for batch in range(MAX_MODELS // 16):
            socket = await it.dial()
            await socket.send_str(hello(f"w{batch}", batch))
            assert isinstance(link.parse(await socket.receive_str()), link.Welcome)
        late = await it.dial()
        await late.send_str(hello("late", 999))
        assert "models have been announced" in await refusal(late)
        # Nor by a report of one that is in already.
        [model] = [json.loads(changed())["models"][0] | {"id": "one-more"}]
        await socket.send_str(json.dumps(json.loads(link.encode(STATUS)) | {"models": [model]}))
        await it.wait_lost(f"w{MAX_MODELS // 16 - 1}")
        assert len(it.pool.known.models) == MAX_MODELS
