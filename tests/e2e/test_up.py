"""What `make up` runs, with the real commands: two workers with the embedded voice, until somebody stops it."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import psutil
import pytest

from tests.deploy.test_up import free_ports
from tests.e2e.cluster import PATIENCE_SECONDS
from tests.e2e.ears import Ears, record, word_error_rate

pytestmark = pytest.mark.e2e

ROOT = Path(__file__).parents[2]


class Up:
    """One run of deploy/up.py, in an empty directory. What it prints is read as it comes."""

    def __init__(self, process: asyncio.subprocess.Process, directory: Path) -> None:
        self.process, self.directory = process, directory
        self.output = ""

    async def wait_for(self, words: str) -> str:
        """Read lines until one has `words`; return it."""
        assert self.process.stdout is not None
        async with asyncio.timeout(PATIENCE_SECONDS):
            async for line in self.process.stdout:
                self.output += line.decode()
                if words in line.decode():
                    return line.decode()
        raise AssertionError(f"it ended without {words!r}:\n{self.output}")

    async def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        assert self.process.stdout is not None
        self.process.send_signal(number)
        async with asyncio.timeout(PATIENCE_SECONDS):
            self.output += (await self.process.stdout.read()).decode()
            return await self.process.wait()

    def children(self) -> list[psutil.Process]:
        return psutil.Process(self.process.pid).children(recursive=True)

    def worker(self, index: int) -> psutil.Process:
        flags = ["--index", str(index)]
        [found] = [child for child in self.children() if any(flags == pair for pair in pairs(child.cmdline()))]
        return found


def pairs(words: list[str]) -> list[list[str]]:
    return [words[n : n + 2] for n in range(len(words))]


@pytest.fixture
async def up(tmp_path: Path) -> AsyncIterator[Up]:
    ports = free_ports(4)
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("TTS_", "CUDA_")) and "proxy" not in k.lower()}
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "deploy.up", "--public-port", str(ports[0]), "--internal-port", str(ports[1])),
        *("--first-worker-port", str(ports[2]), "--run-dir", str(tmp_path / "run")),
        cwd=ROOT,
        env=clean | {"CUDA_VISIBLE_DEVICES": ""},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    run = Up(process, tmp_path)
    try:
        yield run
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
        assert process.stdout is not None
        await process.stdout.read()


async def speak_as_printed(run: Up, output: str) -> bytes:
    """Run the curl that it prints, in its own directory; return what is in the file then."""
    command = re.search(r"^  (curl .*) -o (\S+)$", output, re.MULTILINE)
    assert command is not None, output
    environment = {name: value for name, value in os.environ.items() if "proxy" not in name.lower()}
    curl = await asyncio.create_subprocess_shell(
        f"{command[1]} -o {command[2]}", cwd=run.directory, env=environment, stdout=-1, stderr=-1
    )
    told, complained = await curl.communicate()
    assert (curl.returncode, told, complained) == (0, b"", b"")
    return (run.directory / command[2]).read_bytes()


async def test_it_speaks_heals_and_leaves_nothing_behind(up: Up, ears: Ears):
    await up.wait_for("Ctrl-C stops everything")
    assert "model embedded" in up.output
    assert "2 of 2 workers" in up.output
    assert [f"worker-{n}   ready" in up.output for n in (0, 1)] == [True, True]

    # The printed command is for the reader to copy: it works as it stands, and says what it says that it says.
    printed = up.output
    spoken = await speak_as_printed(up, printed)
    assert record(spoken).sample_rate == 24_000
    text = json.loads(re.search(r"-d '(\{.*?\})'", printed)[1])["text"]
    heard = ears.hear(spoken)
    assert word_error_rate(text, heard) <= 0.10, heard

    # A worker is killed: it is started again, and is of use again.
    before = up.worker(0)
    before.kill()
    assert "killed by SIGKILL" in await up.wait_for("worker-0 died")
    await up.wait_for("worker-0   ready")
    assert up.worker(0).pid != before.pid
    again = await speak_as_printed(up, printed)
    assert word_error_rate(text, ears.hear(again)) <= 0.10
    commands = " ".join(word for child in up.children() for word in child.cmdline())
    internal = re.search(r"--internal-listen 127\.0\.0\.1:(\d+)", commands)
    async with (
        aiohttp.ClientSession() as session,
        session.get(f"http://127.0.0.1:{internal[1]}/admin/workers") as response,
    ):
        assert [(worker["id"], worker["state"]) for worker in await response.json()] == [
            ("worker-0", "ready"),
            ("worker-1", "ready"),
        ]

    # A stop leaves nothing.
    everyone = up.children()
    assert len(everyone) == 3
    assert await up.stop() == 0
    assert "Stopped." in up.output
    assert "killed: it has not stopped by itself" not in up.output
    assert [process for process in everyone if process.is_running()] == []


async def test_what_is_being_spoken_when_it_is_stopped_is_finished(up: Up):
    await up.wait_for("Ctrl-C stops everything")
    address = re.search(r"curl -sS (http://[^/]+)", up.output)[1]
    text = "This is under way when the whole house is told to close, and it is heard to its end. " * 12
    async with aiohttp.ClientSession() as session:
        whole = {"text": text, "format": "pcm", "seed": 3}
        async with session.post(f"{address}/v1/tts", json=whole) as response:
            undisturbed = await response.read()
        async with session.post(f"{address}/v1/tts", json=whole) as response:
            heard = bytearray(await response.content.readexactly(4800))
            stopping = asyncio.create_task(up.stop())
            heard += await response.content.read()
        assert await stopping == 0
    is_whole = bytes(heard) == undisturbed  # not in the assert: a diff of megabytes takes minutes to print
    assert is_whole
