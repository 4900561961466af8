"""A fleet of the real commands, as processes on free ports. Everything is waited for by looking, never by the clock."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import secrets
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import aiohttp

BIN = Path(sys.executable).parent
# Nothing in these tests takes so long on purpose: it bounds a hang, on a machine that may be ten times slower.
PATIENCE_SECONDS = 60.0
_LOOK_EVERY_SECONDS = 0.02


async def until(claim: Callable[[], Awaitable[Any]], what: str, patience_seconds: float = PATIENCE_SECONDS) -> Any:
    """Look until `claim` returns something true, and return that.

    Raises:
        AssertionError: it did not within `patience_seconds`; names `what` and the last look.
    """
    deadline = time.monotonic() + patience_seconds
    while not (seen := await claim()):
        if time.monotonic() > deadline:
            raise AssertionError(f"waited {patience_seconds:g} s in vain for {what}; last seen: {seen!r}")
        await asyncio.sleep(_LOOK_EVERY_SECONDS)
    return seen


@dataclass
class Running:
    """One process of the fleet and its log."""

    name: str
    process: asyncio.subprocess.Process
    log: Path

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    async def kill(self) -> None:
        """SIGKILL, and wait until it is gone."""
        with contextlib.suppress(ProcessLookupError):
            self.process.kill()
        await self.process.wait()

    async def stop(self) -> int:
        """SIGTERM, wait for its end, return its exit code."""
        with contextlib.suppress(ProcessLookupError):
            self.process.terminate()
        async with asyncio.timeout(PATIENCE_SECONDS):
            return await self.process.wait()

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def is_running(self) -> bool:
        return self.process.returncode is None

    def log_text(self) -> str:
        return self.log.read_text(errors="replace")


@dataclass
class Answer:
    """What a client got."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> dict[str, Any]:
        error: dict[str, Any] = self.json()["error"]
        return error


class Cluster:
    """One gateway and any number of workers, in `directory`. Use as `async with`; leaving it ends every process."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.token = secrets.token_hex(8)
        self.url = ""
        self.internal_url = ""
        self.gateway: Running | None = None
        self.workers: dict[str, Running] = {}
        self.environment: dict[str, str] = {}  # for what is started from now on
        self._started = 0
        self.session: aiohttp.ClientSession

    async def __aenter__(self) -> Self:
        self.session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0), timeout=aiohttp.ClientTimeout(total=300), trust_env=False
        )
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.session.close()
        running = [*self.workers.values(), *([self.gateway] if self.gateway else [])]
        await asyncio.gather(*(one.kill() for one in running))
        if error[0] is not None:
            for one in running:
                sys.stdout.write(f"--- {one.name}\n{one.log_text()[-4000:]}")

    async def start_gateway(
        self, *options: str, public_port: int = 0, internal_port: int = 0, within: Sequence[str] = ()
    ) -> Running:
        """Start `tts-gateway`; returns when it listens. Its log must be at info, where it says on which ports.

        `within` is a command that runs the command behind it, in a namespace for instance.
        """
        assert self.gateway is None or not self.gateway.is_running, "a cluster has one gateway"
        self.gateway = await self.start(
            "gateway",
            "tts-gateway",
            "--listen",
            f"127.0.0.1:{public_port}",
            "--internal-listen",
            f"127.0.0.1:{internal_port}",
            *options,
            within=within,
        )
        gateway = self.gateway

        async def listening() -> re.Match[str] | None:
            assert gateway.is_running, f"the gateway ended: {gateway.log_text()}"
            return re.search(r"listening public=(\S+) internal=(\S+)", gateway.log_text())

        found = await until(listening, "the gateway to listen")
        self.url, self.internal_url = f"http://{found[1]}", f"http://{found[2]}"
        return gateway

    async def start_worker(self, *options: str, name: str = "", model: str = "tone", port: int = 0) -> Running:
        """Start `tts-worker`; returns at once. `wait_ready` waits."""
        name = name or f"w{self._started}"
        self._started += 1
        self.workers[name] = await self.start(
            name,
            "tts-worker",
            "--id",
            name,
            "--model",
            model,
            "--port",
            str(port),
            "--gateways",
            self.internal_url.removeprefix("http://"),
            *options,
        )
        return self.workers[name]

    async def start_workers(self, count: int, *options: str, model: str = "tone") -> list[Running]:
        """Start several alike and wait until all that run are ready."""
        workers = [await self.start_worker(*options, model=model) for _ in range(count)]
        await self.wait_ready(sum(worker.is_running for worker in self.workers.values()))
        return workers

    async def start(self, name: str, command: str, *arguments: str, within: Sequence[str] = ()) -> Running:
        """Start one of the project's commands with the fleet's token."""
        log = self.directory / f"{name}-{secrets.token_hex(2)}.log"
        environment = {key: value for key, value in os.environ.items() if not key.startswith("TTS_")}
        with log.open("wb") as out:
            process = await asyncio.create_subprocess_exec(
                *within,
                str(BIN / command),
                *arguments,
                stdout=out,
                stderr=out,
                env=environment | {"TTS_WORKER_TOKEN": self.token, "PYTHONUNBUFFERED": "1"} | self.environment,
            )
        return Running(name, process, log)

    # -- looking

    async def listed(self) -> list[dict[str, Any]]:
        """`GET /admin/workers`."""
        async with self.session.get(f"{self.internal_url}/admin/workers") as response:
            listed: list[dict[str, Any]] = await response.json()
            return listed

    async def wait_ready(self, count: int) -> None:
        """Wait until exactly so many workers are ready."""

        async def ready() -> bool:
            return sum(worker["state"] == "ready" for worker in await self.listed()) == count

        await until(ready, f"{count} workers to be ready")

    async def wait_idle(self) -> None:
        """Wait until nothing waits, nothing is leased, and no worker says that it is busy."""

        async def idle() -> bool:
            listed = await self.listed()
            queue = (await self.health())["queue"]
            busy = any(worker["in_flight"] or worker["reported_in_flight"] for worker in listed)
            return not busy and queue["segments"] == 0 and queue["characters"] == 0

        await until(idle, "the fleet to be idle")

    async def health(self) -> dict[str, Any]:
        async with self.session.get(f"{self.url}/health") as response:
            health: dict[str, Any] = await response.json()
            return health

    async def metric(self, name: str, **labels: str) -> float:
        """Return the sum of a metric's samples that carry these labels; 0 when there is none."""
        async with self.session.get(f"{self.internal_url}/metrics") as response:
            text = await response.text()
        total = 0.0
        for line in text.splitlines():
            found = re.fullmatch(r"(\w+)(?:\{(.*)\})? (\S+)", line)
            if found and found[1] == name:
                carried = dict(re.findall(r'(\w+)="([^"]*)"', found[2] or ""))
                if labels.items() <= carried.items():
                    total += float(found[3])
        return total

    # -- speaking

    async def speak(self, text: str, **fields: Any) -> Answer:
        """`POST /v1/tts`, read to its end."""
        return await self.post("/v1/tts", {"text": text, **fields})

    async def post(self, path: str, body: Any) -> Answer:
        async with self.session.post(f"{self.url}{path}", json=body) as response:
            return Answer(response.status, response.headers, await response.read())

    @contextlib.asynccontextmanager
    async def streaming(self, text: str, **fields: Any) -> AsyncIterator[aiohttp.ClientResponse]:
        """`POST /v1/tts`, its response to be read piece by piece; leaving the block hangs up."""
        async with self.session.post(f"{self.url}/v1/tts", json={"text": text, **fields}) as response:
            yield response
            response.close()


def free_port() -> int:
    """Return a port that nobody listens on now, for a process that must know it before it starts."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
