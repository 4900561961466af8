"""`tts-gateway top` in a pseudo-terminal, as over ssh, and `tts-gateway status`."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import os
import pty
import signal
import struct
import termios
from collections.abc import AsyncIterator, Callable
from itertools import takewhile
from pathlib import Path
from urllib.parse import urlsplit

import pyte
import pytest
import pytest_asyncio

from tests.e2e.cluster import BIN, Cluster, until
from tests.e2e.gpu_faults import FAULTS, GpuFault, mend, start_on_gpu
from tests.fakes.gpus import FakeGpus

pytestmark = [pytest.mark.e2e, pytest.mark.asyncio(loop_scope="module")]

COLUMNS, LINES = 140, 30


class Terminal:
    """A terminal with a program in it; `lines` are what a person would see."""

    def __init__(self, process: asyncio.subprocess.Process, master: int) -> None:
        self.process = process
        self._master = master
        self._screen = pyte.Screen(COLUMNS, LINES)
        self._stream = pyte.ByteStream(self._screen)
        asyncio.get_running_loop().add_reader(master, self._read)

    def _read(self) -> None:
        try:
            self._stream.feed(os.read(self._master, 65536))
        except OSError:  # the program ended, and its side of the terminal with it
            asyncio.get_running_loop().remove_reader(self._master)

    @property
    def lines(self) -> list[str]:
        return [line.rstrip() for line in self._screen.display]

    def troubles(self, worker: str) -> list[str]:
        """Return what is marked as wrong in the worker's row: its own line, and those below that begin with blanks."""
        from_there = iter(self.lines)
        if not any(line.startswith(f"{worker} ") for line in from_there):
            return [f"no row of {worker}"]
        below = takewhile(lambda line: line.startswith(" "), from_there)
        return [line.partition("▲ ")[2] for line in below if "▲" in line]

    async def wait_shown(self, *words: str) -> None:
        """Wait until one line has all of these words."""
        await self.wait_true(
            lambda: any(all(word in line for word in words) for line in self.lines), f"a line with {words}"
        )

    async def wait_true(self, claim: Callable[[], bool], what: str) -> None:
        """Wait until the claim about this screen holds.

        Raises:
            AssertionError: it never did; with the screen as it is.
        """

        async def holds() -> bool:
            return claim()

        try:
            await until(holds, what)
        except AssertionError as error:
            raise AssertionError("\n".join([str(error), *self.lines])) from None

    def press(self, key: str) -> None:
        os.write(self._master, key.encode())


def _at_a_terminal() -> None:
    """Let Ctrl-C be a signal, and heard: what runs in the background of a shell was told to ignore it."""
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@contextlib.asynccontextmanager
async def terminal(*command: str) -> AsyncIterator[Terminal]:
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", LINES, COLUMNS, 0, 0))
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("TTS_", "COLUMNS", "LINES"))}
    process = await asyncio.create_subprocess_exec(
        str(BIN / command[0]),
        *command[1:],
        stdin=slave,
        stdout=slave,
        stderr=slave,
        env=environment | {"TERM": "xterm-256color", "LANG": "C.UTF-8"},
        start_new_session=True,
        preexec_fn=_at_a_terminal,
    )
    os.close(slave)
    try:
        made = Terminal(process, master)
        yield made
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()
        asyncio.get_running_loop().remove_reader(master)
        os.close(master)


@pytest_asyncio.fixture(loop_scope="module")
async def fleet(tmp_path: Path) -> AsyncIterator[Cluster]:
    async with Cluster(tmp_path) as made:
        await made.start_gateway()
        await made.start_workers(2, "--slots", "2", "--tone-realtime-factor", "0.2")
        yield made


def top(fleet: Cluster) -> contextlib.AbstractAsyncContextManager[Terminal]:
    return terminal("tts-gateway", "top", "--internal", fleet.internal_url.removeprefix("http://"))


async def test_top_shows_the_fleet_as_it_speaks_and_leaves_at_a_key(fleet: Cluster):
    async with top(fleet) as screen:
        await screen.wait_shown("All 2 workers are ready. Nothing waits.")
        speech = asyncio.create_task(fleet.speak("A text that is spoken for a while, and is seen while it is. " * 6))
        await screen.wait_shown("w0", "speaking", "●", "segment")
        await screen.wait_shown("w1", "speaking", "#1 segment")
        assert (await speech).status == 200
        await screen.wait_shown("last minute 1 ok, 0 refused, 0 failed")
        await fleet.workers["w1"].kill()
        await screen.wait_shown("w1", "gone for")
        screen.press("q")
        assert await asyncio.wait_for(screen.process.wait(), 20) == 0


async def test_top_survives_a_restart_of_the_gateway(fleet: Cluster):
    port, internal = (urlsplit(url).port for url in (fleet.url, fleet.internal_url))
    async with top(fleet) as screen:
        await screen.wait_shown("All 2 workers are ready.")
        assert fleet.gateway is not None
        await fleet.gateway.kill()
        await screen.wait_shown("No gateway answers", "What is shown is")
        await fleet.start_gateway(public_port=port or 0, internal_port=internal or 0)
        await screen.wait_shown("All 2 workers are ready.")

        await screen.wait_true(
            lambda: not any("No gateway answers" in line for line in screen.lines), "the trouble to be off the screen"
        )
        screen.press("\x03")
        assert await asyncio.wait_for(screen.process.wait(), 20) in (0, 130)


async def run(fleet: Cluster, *arguments: str) -> tuple[int, str]:
    ran = await fleet.start("cli", "tts-gateway", *arguments, "--internal", fleet.internal_url.removeprefix("http://"))
    code = await ran.process.wait()
    return code, ran.log_text()


async def test_status_is_for_people_and_as_json_for_programs(fleet: Cluster):
    code, text = await run(fleet, "status")
    assert code == 0
    assert "All 2 workers are ready. Nothing waits." in text
    assert "○○ 0/2" in text
    assert max(map(len, text.splitlines())) < 200
    code, text = await run(fleet, "status", "--json")
    assert code == 0
    status = json.loads(text)
    assert [worker["state"] for worker in status["workers"]] == ["ready", "ready"]
    assert status["queue"]["segments"] == 0
    for worker in list(fleet.workers.values()):
        await worker.kill()
    await fleet.wait_ready(0)
    code, text = await run(fleet, "status")
    assert code == 1
    assert "No worker is ready." in text


@pytest.fixture(scope="module")
def gpus(tmp_path_factory: pytest.TempPathFactory) -> FakeGpus:
    return FakeGpus(tmp_path_factory.mktemp("gpus"), count=2)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def gpu_fleet(tmp_path_factory: pytest.TempPathFactory, gpus: FakeGpus) -> AsyncIterator[Cluster]:
    """A worker for each of two GPUs. Every test leaves both well."""
    async with Cluster(tmp_path_factory.mktemp("gpu_fleet")) as made:
        await made.start_gateway()
        for gpu in range(2):
            await start_on_gpu(made, gpus, gpu)
        await made.wait_ready(2)
        yield made


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def screen(gpu_fleet: Cluster) -> AsyncIterator[Terminal]:
    """Left open the whole time, as on a wall."""
    async with top(gpu_fleet) as made:
        await made.wait_shown("w1", "ready")
        yield made


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
async def test_top_and_status_name_the_sick_gpu_for_as_long_as_it_is_sick(
    gpu_fleet: Cluster, gpus: FakeGpus, screen: Terminal, fault: GpuFault
):
    gpus.set_gpu(1, **fault.figures)
    await screen.wait_true(lambda: fault.is_all_of(screen.troubles("w1")), f"w1 to have {fault.words}")
    assert screen.troubles("w0") == []
    (_, text), (_, status) = await asyncio.gather(run(gpu_fleet, "status"), run(gpu_fleet, "status", "--json"))
    assert f"▲ {fault.words}" in text
    told = {worker["id"]: worker["troubles"] for worker in json.loads(status)["workers"]}
    assert told["w0"] == []
    assert fault.is_all_of(told["w1"])
    await mend([fault], gpu_fleet, gpus, 1)
    await screen.wait_true(lambda: screen.troubles("w1") == [], "w1 to be well")


async def test_top_without_a_terminal_says_what_to_use_instead(fleet: Cluster):
    code, text = await run(fleet, "top")
    assert code == 2
    assert "tts-gateway status" in text


async def test_status_of_a_gateway_that_is_away_says_so(tmp_path: Path):
    async with Cluster(tmp_path) as nobody:
        nobody.internal_url = "http://127.0.0.1:9"
        code, text = await run(nobody, "status")
    assert code == 1
    assert "No gateway answers on 127.0.0.1:9" in text
