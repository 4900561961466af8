"""The processes of one measurement: started on free ports, waited for by looking, ended in order."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import secrets
import signal
import socket
import sys
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, TypeVar

import aiohttp
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

T = TypeVar("T")

HOST = "127.0.0.1"
TERMINATED = 143  # what a shell expects of a command that SIGTERM ended

# Bounds a start that does not come about, on a machine ten times slower than most.
_START_SECONDS = 60.0
_STOP_SECONDS = 10.0
_LOOK_EVERY_SECONDS = 0.05
_LOG_TAIL_CHARACTERS = 2000
_LISTENING = re.compile(r"listening public=(\S+) internal=(\S+)")


class FleetError(Exception):
    """A process did not come up, or ended before it was told to; the message has the end of its log."""


@dataclass(eq=False, slots=True)
class Running:
    """One process and its log."""

    name: str
    process: asyncio.subprocess.Process
    log: Path

    def describe_end(self) -> str:
        tail = self.log.read_text(errors="replace")[-_LOG_TAIL_CHARACTERS:]
        return f"{self.name} ended with {self.process.returncode}; the end of its log:\n{tail}"


@dataclass(frozen=True, slots=True)
class Gateway:
    """A gateway that listens. Both are http://host:port."""

    url: str
    internal_url: str


class Fleet:
    """Gateways, workers and what stands in front of them, with their logs in `directory`. Use as `async with`: leaving
    ends every process, the newest first, by SIGTERM and then by SIGKILL."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._token = secrets.token_hex(8)
        self._running: list[Running] = []
        self._watchers: list[asyncio.Task[None]] = []
        self._crash: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._session: aiohttp.ClientSession

    async def __aenter__(self) -> Self:
        self._session = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=10), trust_env=False)
        return self

    async def __aexit__(self, *error: object) -> None:
        for watcher in self._watchers:
            watcher.cancel()
        await asyncio.gather(*self._watchers, return_exceptions=True)
        if not self._crash.cancel():
            self._crash.exception()  # seen: it is what ends the block, or comes after the block's own error
        try:
            await self._session.close()
        finally:
            for running in reversed(self._running):
                await _end(running.process)

    async def guard(self, work: Coroutine[Any, Any, T]) -> T:
        """Do `work`; give it up when a process ends meanwhile.

        Raises:
            FleetError: naming that process.
        """
        task = asyncio.create_task(work)
        try:
            either: set[asyncio.Future[Any]] = {task, self._crash}
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
            if self._crash.done():
                self._crash.result()
            return await task
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    # -- starting

    async def start(self, name: str, *command: str, environment: Mapping[str, str] | None = None) -> Running:
        """Start a process that runs until this fleet ends; its end before that is a crash."""
        log = self._directory / f"{name}.log"
        # Whatever options the shell exports, a measurement is what its command line says.
        inherited = {key: value for key, value in os.environ.items() if not key.startswith("TTS_")}
        with log.open("ab") as out:
            process = await asyncio.create_subprocess_exec(
                *command,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                env=inherited | {"TTS_WORKER_TOKEN": self._token, "PYTHONUNBUFFERED": "1"} | dict(environment or {}),
                start_new_session=True,  # a terminal's Ctrl-C goes to us, and we end the others in order
            )
        running = Running(name, process, log)
        self._running.append(running)
        self._watchers.append(asyncio.create_task(self._watch(running)))
        return running

    async def start_gateway(self, name: str, *options: str) -> Gateway:
        """Start `tts-gateway` on free ports; returns when it listens."""
        gateway, _ = await self.start_gateway_as(name, "gateway", *options)
        return gateway

    async def start_gateway_as(
        self, name: str, module: str, *options: str, token: str | None = None
    ) -> tuple[Gateway, int]:
        """Start the gateway that `module` is, on free ports; returns it and its process id when it listens. `token` is
        the workers', where it is not the fleet's own."""
        listen = ("--listen", f"{HOST}:0", "--internal-listen", f"{HOST}:0", "--drain-timeout", "0")
        environment = None if token is None else {"TTS_WORKER_TOKEN": token}
        running = await self.start(name, sys.executable, "-m", module, *listen, *options, environment=environment)

        async def listening() -> re.Match[str] | None:
            return _LISTENING.search(running.log.read_text(errors="replace"))

        found = await self._until(listening, f"{name} to listen")
        return Gateway(f"http://{found[1]}", f"http://{found[2]}"), running.process.pid

    async def start_worker(
        self, name: str, gateway: Gateway, *options: str, module: tuple[str, ...], model: str = "tone"
    ) -> int:
        """Start the worker that `module` is, with its arguments; `wait_ready` waits. Returns its process id."""
        link = ("--gateways", gateway.internal_url.removeprefix("http://"), "--drain-timeout", "0")
        running = await self.start(
            name, sys.executable, "-m", *module, "--model", model, "--id", name, "--port", "0", *link, *options
        )
        return running.process.pid

    # -- looking

    async def wait_ready(self, gateway: Gateway, count: int, patience_seconds: float = _START_SECONDS) -> None:
        """Wait until so many workers of the gateway are ready; weights from a disk take longer than `tone`."""

        async def ready() -> bool:
            states = [str(worker["state"]) for worker in await self.workers(gateway)]
            return states.count("ready") == count

        await self._until(ready, f"{count} workers to be ready", patience_seconds)

    async def wait_listening(self, port: int) -> None:
        """Wait until a connection to the port is taken."""

        async def listening() -> bool:
            try:
                _, writer = await asyncio.open_connection(HOST, port)
            except OSError:
                return False
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()
            return True

        await self._until(listening, f"port {port} to listen")

    async def workers(self, gateway: Gateway) -> list[dict[str, Any]]:
        """Return what the gateway knows of its workers."""
        async with self._session.get(f"{gateway.internal_url}/admin/workers") as response:
            listed: list[dict[str, Any]] = await response.json()
            return listed

    async def metrics(self, url: str) -> list[Sample]:
        """Return every sample under `url`/metrics."""
        async with self._session.get(f"{url}/metrics") as response:
            response.raise_for_status()
            text = await response.text()
        return [sample for family in text_string_to_metric_families(text) for sample in family.samples]

    async def _until(
        self, claim: Callable[[], Awaitable[T | None]], what: str, patience_seconds: float = _START_SECONDS
    ) -> T:
        """Look until `claim` returns something true, and return that.

        Raises:
            FleetError: it did not in time, or a process ended meanwhile.
        """
        deadline = time.monotonic() + patience_seconds
        while True:
            if self._crash.done():
                self._crash.result()
            if seen := await claim():
                return seen
            if time.monotonic() > deadline:
                raise FleetError(f"waited {patience_seconds:g} s in vain for {what}")
            await asyncio.sleep(_LOOK_EVERY_SECONDS)

    async def _watch(self, running: Running) -> None:
        await running.process.wait()
        if not self._crash.done():
            self._crash.set_exception(FleetError(running.describe_end()))


def total(samples: Iterable[Sample], name: str, **labels: str) -> float:
    """Return the sum of a metric's samples that carry these labels; 0 when there is none."""
    return sum(s.value for s in samples if s.name == name and labels.items() <= s.labels.items())


def ends_on_sigterm() -> None:
    """Let SIGTERM cancel this task, so that the fleets it holds end in order, as Ctrl-C does."""
    task = asyncio.current_task()
    assert task is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)


def free_port() -> int:
    """Return a port that nothing listens on just now."""
    with socket.socket() as listener:
        listener.bind((HOST, 0))
        port: int = listener.getsockname()[1]
        return port


async def _end(process: asyncio.subprocess.Process) -> None:
    """SIGTERM, and SIGKILL to one that does not heed it; returns when it is gone."""
    with contextlib.suppress(ProcessLookupError):
        process.terminate()
    try:
        async with asyncio.timeout(_STOP_SECONDS):
            await process.wait()
    except TimeoutError:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()
