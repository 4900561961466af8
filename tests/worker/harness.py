"""What the worker's tests have in common: a segment, a worker in this process, the command as a process, a gateway."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import aiohttp
from aiohttp import web

from wire.frames import Frame, FrameReader, FrameType
from wire.headers import SEGMENTS_PATH
from wire.link import LINK_PATH, Command, Hello, Message, Order, Refused, Status, Welcome, encode, parse
from wire.segment import SegmentRequest
from worker.app import Worker, build_model
from worker.config import Config, ToneOptions

# How long anything may take on a machine that is busy with other work; reached only by a test that fails.
DEADLINE_SECONDS = 90.0

_PLAIN = SegmentRequest(request_id="test", index=0, text="Hello there.", model="tone", voice="alto", seed=7)


def segment(text: str = _PLAIN.text, **changes: Any) -> SegmentRequest:
    return replace(_PLAIN, text=text, **changes)


async def eventually(claim: Callable[[], object], what: str = "the claim") -> None:
    """Wait until `claim` is true; the turns in between belong to the rest of the loop."""
    deadline = time.monotonic() + DEADLINE_SECONDS
    while not claim():
        assert time.monotonic() < deadline, f"{what} did not come true"
        await asyncio.sleep(0.005)


@dataclass
class Answer:
    """What came back for one segment."""

    status: int
    content_type: str
    frames: list[Frame]
    error: dict[str, Any] | None = None

    @property
    def kinds(self) -> str:
        return "".join(chr(frame.type) for frame in self.frames)

    @property
    def pcm(self) -> bytes:
        return b"".join(frame.payload for frame in self.frames if frame.type is FrameType.AUDIO)

    @property
    def checkpoints(self) -> list[bytes]:
        return [frame.payload for frame in self.frames if frame.type is FrameType.CHECKPOINT]


class Client:
    """Asks a worker as a gateway does."""

    def __init__(self, http: aiohttp.ClientSession, port: int) -> None:
        self.http = http
        self.base = f"http://127.0.0.1:{port}"

    async def speak(self, request: SegmentRequest, headers: Mapping[str, str] | None = None) -> Answer:
        return await self.post(request.to_json(), headers)

    async def post(self, body: Any, headers: Mapping[str, str] | None = None) -> Answer:
        data = {"data": body} if isinstance(body, bytes) else {"json": body}
        async with self.http.post(self.base + SEGMENTS_PATH, headers=headers, **data) as response:
            if response.status != 200:
                return Answer(response.status, response.content_type, [], (await response.json())["error"])
            reader = FrameReader()
            frames = list(reader.feed(await response.read()))
            assert reader.is_empty
            return Answer(response.status, response.content_type, frames)

    @asynccontextmanager
    async def speaking(self, request: SegmentRequest) -> AsyncIterator[AsyncIterator[Frame]]:
        """Give the frames as they come; leaving the block hangs up."""
        async with self.http.post(self.base + SEGMENTS_PATH, json=request.to_json()) as response:
            assert response.status == 200, await response.text()
            yield _frames(response)
            response.close()

    async def get(self, path: str) -> tuple[int, str]:
        async with self.http.get(self.base + path) as response:
            return response.status, await response.text()

    async def health(self) -> dict[str, Any]:
        async with self.http.get(self.base + "/health") as response:
            body: dict[str, Any] = await response.json()
            return body

    async def wait_health(self, claim: Callable[[dict[str, Any]], object]) -> dict[str, Any]:
        deadline = time.monotonic() + DEADLINE_SECONDS
        while not claim(health := await self.health()):
            assert time.monotonic() < deadline, f"health stayed at {health}"
            await asyncio.sleep(0.005)
        return health

    async def metric(self, line: str) -> float:
        """Return the value of one series, as `/metrics` names it."""
        _, text = await self.get("/metrics")
        found = re.search(rf"^{re.escape(line)} (\S+)$", text, re.MULTILINE)
        assert found, f"{line} is not in /metrics"
        return float(found[1])

    async def wait_metric(self, line: str, value: float) -> None:
        deadline = time.monotonic() + DEADLINE_SECONDS
        while (seen := await self.metric(line)) != value:
            assert time.monotonic() < deadline, f"{line} stayed at {seen}"
            await asyncio.sleep(0.005)


async def _frames(response: aiohttp.ClientResponse) -> AsyncIterator[Frame]:
    reader = FrameReader()
    async for data in response.content.iter_any():
        for frame in reader.feed(data):
            yield frame


def config(tone: ToneOptions | None = None, **changes: Any) -> Config:
    plain = Config(id="worker-0", model="tone", port=0, slots=4, batch=4, tone=tone or ToneOptions())
    return replace(plain, **changes)


@asynccontextmanager
async def running(settings: Config) -> AsyncIterator[tuple[Worker, Client]]:
    """Run a worker in this process, ready, and stop it at the end of the block, if the test has not."""
    worker = Worker(settings, build_model(settings))
    await worker.start()
    stopped = asyncio.create_task(worker.wait_stopped())
    try:
        async with aiohttp.ClientSession() as http:
            client = Client(http, worker.port)
            await client.wait_health(lambda health: health["state"] in ("ready", "unloaded", "failed"))
            yield worker, client
    finally:
        worker.request_stop()
        worker.request_stop()
        await stopped


@dataclass
class Process:
    """The command `tts-worker`, and its log."""

    child: subprocess.Popen[bytes]
    log: Path
    client: Client

    def signal(self, number: signal.Signals) -> None:
        self.child.send_signal(number)

    async def wait_exit(self) -> int:
        await eventually(lambda: self.child.poll() is not None, "exit")
        return self.child.returncode

    def read_log(self) -> str:
        return self.log.read_text()


def start(*options: str, log: Path, environment: Mapping[str, str] | None = None) -> subprocess.Popen[bytes]:
    """Start the command; what it writes goes to `log`."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("TTS_")}
    with log.open("wb") as sink:
        command = (sys.executable, "-m", "worker", *options)
        return subprocess.Popen(command, stderr=sink, env=clean | dict(environment or {}))


@asynccontextmanager
async def process(
    *options: str, ready: bool = True, environment: Mapping[str, str] | None = None
) -> AsyncIterator[Process]:
    """Run `tts-worker --model tone` with `options`, and kill it at the end of the block if it still runs."""
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder, "log")
        child = start(
            "--model", "tone", "--port", "0", "--gateways", "none", *options, log=log, environment=environment
        )
        try:
            await eventually(lambda: _port(log) or child.poll() is not None, "listening")
            async with aiohttp.ClientSession() as http:
                client = Client(http, _port(log))
                if ready:
                    await client.wait_health(lambda health: health["state"] == "ready")
                yield Process(child, log, client)
        finally:
            child.kill()
            child.wait()


def _port(log: Path) -> int:
    found = re.search(r"listening=\S+:(\d+)", log.read_text())
    return int(found[1]) if found else 0


@dataclass
class Gateway:
    """The gateway's end of control links: a real WebSocket server that can refuse, go away and come back."""

    token: str = ""
    refusing: str = ""
    interval_seconds: float = 0.05
    heard: list[Message] = field(default_factory=list)
    sockets: list[web.WebSocketResponse] = field(default_factory=list)
    port: int = 0
    _runner: web.AppRunner | None = None

    async def open(self) -> None:
        app = web.Application()
        app.router.add_get(LINK_PATH, self._serve)
        self._runner = web.AppRunner(app, shutdown_timeout=0.1)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", self.port, reuse_address=True).start()
        self.port = self._runner.addresses[0][1]

    async def close(self) -> None:
        for socket in self.sockets:
            await socket.close()
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    async def order(self, command: Command) -> None:
        await self.sockets[-1].send_str(encode(Order(command)))

    @property
    def hellos(self) -> list[Hello]:
        return [message for message in self.heard if isinstance(message, Hello)]

    @property
    def statuses(self) -> list[Status]:
        return [message for message in self.heard if isinstance(message, Status)]

    @property
    def states(self) -> list[str]:
        """The states that were reported, repetitions left out."""
        states = [str(status.state) for status in self.statuses]
        return [state for i, state in enumerate(states) if i == 0 or state != states[i - 1]]

    async def _serve(self, request: web.Request) -> web.StreamResponse:
        if self.token and request.headers.get("Authorization") != f"Bearer {self.token}":
            return web.Response(status=401)
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        self.sockets.append(socket)
        async for message in socket:
            heard = parse(message.data)
            assert heard is not None
            self.heard.append(heard)
            if isinstance(heard, Hello) and self.refusing:
                await socket.send_str(encode(Refused("link_refused", self.refusing)))
                await socket.close()
            elif isinstance(heard, Hello):
                await socket.send_str(encode(Welcome("test", self.interval_seconds)))
        return socket


@asynccontextmanager
async def gateway(**changes: Any) -> AsyncIterator[Gateway]:
    peer = Gateway(**changes)
    await peer.open()
    try:
        yield peer
    finally:
        await peer.close()
