"""Programs kept running together: started again when one dies, shown while they come up, stopped in order.

All of it is one thread, so that the code between fork and exec in a child finds no lock held by another.
"""

from __future__ import annotations

import ctypes
import http.client
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from pathlib import Path
from types import FrameType
from typing import NamedTuple

from rich.console import Console
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table

HOST = "127.0.0.1"
LONGEST_PAUSE_SECONDS = 30.0
STEADY_SECONDS = 60.0  # a program that lived so long starts again with the shortest pause
STOP_MARGIN_SECONDS = 10.0  # what a program gets to end after the drain that it was granted
TICK_SECONDS = 0.1
STEADY_TICK_SECONDS = 0.5
STEPS = {"starting": 1, "loading": 2, "warming": 3, "ready": 4}
HELLO = json.dumps({"text": "Hello. This voice comes from your own machine."})
PLAYERS = ("aplay", "paplay", "pw-play", "afplay", "ffplay")
# With the C library found before any fork, the child has one call to make.
_LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None
_PR_SET_PDEATHSIG = 1


class Program(NamedTuple):
    name: str
    command: tuple[str, ...]
    environment: Mapping[str, str]
    port: int


def restart_pause_seconds(deaths_in_a_row: int) -> float:
    return min(2.0 ** (deaths_in_a_row - 1), LONGEST_PAUSE_SECONDS)


def count_death(deaths_in_a_row: int, lived_seconds: float) -> int:
    return 1 if lived_seconds >= STEADY_SECONDS else deaths_in_a_row + 1


def describe_exit(status: int) -> str:
    return f"exit status {status}" if status >= 0 else f"killed by {signal.Signals(-status).name}"


class Child:
    """One program and its log; holds at most one process of it."""

    def __init__(self, program: Program, log: Path) -> None:
        self.program, self.name, self.log = program, program.name, log
        self.deaths_in_a_row = 0
        self.restart_at = 0.0
        self._started_at = 0.0
        self._process: subprocess.Popen[bytes] | None = None
        log.write_bytes(b"")

    @property
    def runs(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def start(self) -> None:
        parent = os.getpid()

        def die_with_parent() -> None:
            # However this program ends, SIGKILL included, the kernel ends the child: a fleet never outlives it.
            if _LIBC is not None:
                _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
            if os.getppid() != parent:  # it ended before the line above
                os._exit(1)

        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                self.program.command,
                env=os.environ | self.program.environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                # A session of its own: the terminal sends Ctrl-C to all of a session, and workers must stop first.
                start_new_session=True,
                preexec_fn=die_with_parent,
            )
        self._started_at = time.monotonic()

    def notice_death(self) -> str | None:
        """Return how the process ended, once, and set when it is due again."""
        if self._process is None or self.runs:
            return None
        ended, self._process = describe_exit(self._process.returncode), None
        now = time.monotonic()
        self.deaths_in_a_row = count_death(self.deaths_in_a_row, now - self._started_at)
        self.restart_at = now + restart_pause_seconds(self.deaths_in_a_row)
        return ended

    def send(self, number: signal.Signals) -> None:
        """Signal the process and whatever it started."""
        if self._process is not None and self.runs:
            os.killpg(self._process.pid, number)

    def kill(self) -> None:
        """End the process and whatever it started; returns when it is gone."""
        self.send(signal.SIGKILL)
        if self._process is not None:
            self._process.wait()

    def last_lines(self, count: int = 10) -> str:
        lines = self.log.read_text(errors="replace").splitlines()[-count:]
        return "\n".join(f"    {line}" for line in lines) or "    (it wrote nothing)"


class Fleet:
    """The gateway and its workers from the first start to the last stop."""

    def __init__(self, programs: Sequence[Program], internal_port: int, run_dir: Path, drain_seconds: float) -> None:
        """`programs` are the gateway, with its public port, then the workers."""
        self._began_at = time.monotonic()
        self._internal_port, self._run_dir, self._drain_seconds = internal_port, run_dir, drain_seconds
        self._console = Console(soft_wrap=True, highlight=False, markup=False)
        self._live = Live(console=self._console, auto_refresh=False)  # its refreshing would be a second thread
        run_dir.mkdir(parents=True, exist_ok=True)
        self._gateway, *self._workers = [Child(program, run_dir / f"{program.name}.log") for program in programs]
        self._states: dict[str, str] = {}
        # Set by the signal handler only.
        self._stopping = self._hurried = False

    def run(self) -> int:
        """Run until a signal. Return 0 when all stopped by themselves, 1 when not, 130 after a second Ctrl-C."""
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, self._on_signal)
        try:
            with self._live:
                while not self._stopping and not self._is_settled():
                    self._tick(TICK_SECONDS)
            if not self._stopping:
                self._greet()
            while not self._stopping:
                self._tick(STEADY_TICK_SECONDS)
            return self._stop()
        finally:
            for child in self._everyone():
                child.kill()

    def _on_signal(self, number: int, _: FrameType | None) -> None:
        # Only a second Ctrl-C means hurry: make passes one SIGTERM on, and a supervisor may have sent one to all.
        self._hurried |= self._stopping and number == signal.SIGINT
        self._stopping = True

    def _everyone(self) -> list[Child]:
        return [self._gateway, *self._workers]

    def _say(self, text: str) -> None:
        self._console.print(text)

    def _tick(self, pause_seconds: float) -> None:
        for child in self._everyone():
            if ended := child.notice_death():
                self._states[child.name] = "down"
                pause = restart_pause_seconds(child.deaths_in_a_row)
                self._say(f"{child.name} died ({ended}) and starts again in {pause:g} s. The end of {child.log}:")
                self._say(child.last_lines())
            elif not child.runs and child.restart_at <= time.monotonic():
                child.start()
                self._states[child.name] = "starting"
        self._observe()
        time.sleep(pause_seconds)

    def _observe(self) -> None:
        """Ask the gateway for the states, and show those that changed."""
        answer = _get(self._internal_port, "/admin/workers") if self._gateway.runs else None
        before = dict(self._states)
        if self._gateway.runs:
            self._states["gateway"] = "starting" if answer is None else "ready"
        reported = _states_by_port(answer)
        for child in self._workers:
            if child.runs:
                unlinked = "starting" if before[child.name] in ("down", "starting") else "without link"
                self._states[child.name] = reported.get(child.program.port, unlinked)
        if self._live.is_started and self._console.is_terminal:
            self._live.update(self._table(), refresh=True)
            return
        for name, state in self._states.items():
            if state != before.get(name):
                self._say(f"{time.monotonic() - self._began_at:6.1f} s  {name:<10} {state}")

    def _table(self) -> Table:
        table = Table.grid(padding=(0, 2))
        for name, state in self._states.items():
            table.add_row(name, ProgressBar(total=STEPS["ready"], completed=STEPS.get(state, 0), width=20), state)
        return table

    def _is_settled(self) -> bool:
        """The service speaks, and no worker is on its first way up; one that cannot start must not hide the rest."""
        up = (self._states.get(child.name) == "ready" or child.deaths_in_a_row for child in self._workers)
        return all(up) and (_get(self._gateway.program.port, "/readyz") or (0, b""))[0] == HTTPStatus.OK

    def _greet(self) -> None:
        ready = sum(self._states[child.name] == "ready" for child in self._workers)
        player = next((f"{name} hello.wav" for name in PLAYERS if shutil.which(name)), "# and play hello.wav")
        self._say(
            f"\nReady in {time.monotonic() - self._began_at:.1f} s, {ready} of {len(self._workers)} workers.\n\n"
            f"  curl -sS http://{HOST}:{self._gateway.program.port}/v1/tts -H 'Content-Type: application/json'"
            f" -d '{HELLO}' -o hello.wav\n  {player}\n\n"
            f"Logs are in {self._run_dir}/. Ctrl-C stops everything."
        )

    def _stop(self) -> int:
        """The gateway first, which takes nothing new and brings running requests to their end; it needs the workers
        for that, so they follow."""
        self._say("Stopping: what is being spoken is finished; Ctrl-C again stops at once.")
        clean = self._end([self._gateway], self._drain_seconds + STOP_MARGIN_SECONDS)
        clean &= self._end(self._workers, self._drain_seconds + STOP_MARGIN_SECONDS)
        if self._hurried:
            return 130
        self._say("Stopped.")
        return 0 if clean else 1

    def _end(self, children: Sequence[Child], deadline_seconds: float) -> bool:
        """Ask, wait, and kill what is left at the deadline; say whether nothing was."""
        deadline = time.monotonic() + deadline_seconds
        for child in children:
            child.send(signal.SIGTERM)
        while not self._hurried and time.monotonic() < deadline and any(child.runs for child in children):
            time.sleep(TICK_SECONDS)
        left = [child for child in children if child.runs]
        for child in left:
            self._say(f"{child.name} is killed: it has not stopped by itself.")
            child.kill()
        return not left


def _get(port: int, path: str) -> tuple[int, bytes] | None:
    """Return status and body, or None when nobody answers. Not urllib, which would obey a proxy in the environment."""
    connection = http.client.HTTPConnection(HOST, port, timeout=1)
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        return response.status, response.read()
    except (OSError, http.client.HTTPException):
        return None
    finally:
        connection.close()


def _states_by_port(answer: tuple[int, bytes] | None) -> dict[int, str]:
    """Read the answer of /admin/workers, whose ids are the workers' own affair: here a worker is known by its port."""
    try:
        return {int(row["address"].rpartition(":")[2]): row["state"] for row in json.loads(answer[1])} if answer else {}
    except (ValueError, TypeError, KeyError, AttributeError):
        return {}
