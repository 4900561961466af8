"""A machine to install on: the real systemd as PID 1 in namespaces, with the project installed as a user would have it.

Needs root. Nothing inside changes this machine: the root directory is an overlay, the network its own.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.deploy.wheels import build_own

ROOT = Path(__file__).parents[2]
BOOT = Path(__file__).parent / "boot.sh"
PATIENCE_SECONDS = 90.0
_LOOK_EVERY_SECONDS = 0.05
# Where the host sees this machine's Python, and the libraries of the tests' own environment.
_PYTHON = "/opt/tts/python"
_LIBRARIES = "/opt/tts/libraries"
_VENV = "/opt/tts/venv"


def until(claim: Callable[[], Any], what: str, patience_seconds: float = PATIENCE_SECONDS) -> Any:
    """Look until `claim` returns something true, and return that."""
    deadline = time.monotonic() + patience_seconds
    while not (seen := claim()):
        assert time.monotonic() < deadline, f"waited {patience_seconds:g} s in vain for {what}; last seen: {seen!r}"
        time.sleep(_LOOK_EVERY_SECONDS)
    return seen


def install(directory: Path) -> list[str]:
    """Install the project, as a wheel, into a virtual environment; return what `Host.booted` shows to have it.

    The libraries are those of the tests' environment, so that nothing is downloaded. The host sees the environment as
    /opt/tts/venv, which is where it is made.
    """
    venv, wheel = directory / "venv", directory / "wheel"
    venv.mkdir()
    build_own(wheel)
    shown = {sys.base_prefix: _PYTHON, sysconfig.get_path("purelib"): _LIBRARIES, str(venv): _VENV}
    script = f"""
        set -eu
        umask 022
        mount -t tmpfs -o mode=755 tmpfs /opt
        {"".join(f"mkdir -p {to}; mount --bind {here} {to};" for here, to in shown.items())}
        {_PYTHON}/bin/python3 -m venv --without-pip {_VENV}
        echo {_LIBRARIES} > {_VENV}/lib/python3.{sys.version_info.minor}/site-packages/libraries.pth
        {_VENV}/bin/python -m pip -qq --disable-pip-version-check install --no-index --no-deps --ignore-installed \
            --no-warn-script-location {wheel}/*.whl
    """
    made_by = ["unshare", "--mount", "--propagation", "private", "sh", "-c", script]
    ran = subprocess.run(made_by, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return [f"{here}:{to}" for here, to in shown.items()]


class Host:
    """One booted machine. Commands run inside it as root; leaving `booted` switches it off."""

    def __init__(self, name: str, log: Path, process: subprocess.Popen[bytes]) -> None:
        self.name = name
        self.log = log
        self._process = process
        self.leader = 0  # its PID 1, as this machine counts

    @classmethod
    @contextlib.contextmanager
    def booted(cls, name: str, installed: Sequence[str], directory: Path) -> Iterator[Host]:
        """Boot a host; a machine that cannot do that skips the test, and fails it where CI=true."""
        log = directory / f"{name}.log"
        unique = f"{name}-{os.getpid()}"
        with log.open("wb") as out:
            process = subprocess.Popen(["bash", str(BOOT), unique, *installed], stdout=out, stderr=out)
        host = cls(name, log, process)
        try:
            host._wait_booted()
            yield host
        finally:
            host.power_cut()
            _remove_control_groups(unique)

    def _wait_booted(self) -> None:
        def is_up() -> bool:
            if self._process.poll() is not None:
                cannot(f"no host could be booted here: {self.log.read_text(errors='replace')[-2000:]}")
            children = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children").read_text().split()
            self.leader = int(children[0]) if children else 0
            return bool(self.leader) and self.run("systemctl", "is-system-running", check=False).strip() in (
                "running",
                "degraded",
            )

        until(is_up, f"{self.name} to boot")

    def command(self, *command: str) -> list[str]:
        """Return the command that runs `command` inside."""
        return ["nsenter", "--target", str(self.leader), "--all", "env", "--chdir=/", *command]

    def in_network(self, *command: str) -> list[str]:
        """Return the command that runs `command` with this machine's files and the host's network."""
        return ["nsenter", "--target", str(self.leader), "--net", *command]

    def run(self, *command: str, check: bool = True, timeout: float = PATIENCE_SECONDS) -> str:
        """Run a command inside and return what it printed."""
        environment = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C.UTF-8"}
        ran = subprocess.run(
            self.command(*command), env=environment, capture_output=True, text=True, timeout=timeout, errors="replace"
        )
        said = ran.stdout + ran.stderr
        if check and ran.returncode != 0:
            raise AssertionError(f"{self.name}: {' '.join(command)} ended with {ran.returncode}:\n{said}")
        return said if check else ran.stdout

    def shell(self, script: str, timeout: float = PATIENCE_SECONDS) -> str:
        """Run lines as they stand on a page, as root would paste them."""
        return self.run("bash", "-euo", "pipefail", "-c", script, timeout=timeout)

    def path(self, path: str) -> Path:
        """Return where a file of the host is for this machine."""
        return Path(f"/proc/{self.leader}/root{path}")

    def write(self, path: str, text: str) -> None:
        there = self.path(path)
        there.parent.mkdir(parents=True, exist_ok=True)
        there.write_text(text, encoding="utf-8")

    def show(self, unit: str, name: str) -> str:
        """Return one property of a unit, as `systemctl show` has it."""
        return self.run("systemctl", "show", "--value", "--property", name, unit).strip()

    def is_active(self, *units: str) -> bool:
        states = self.run("systemctl", "is-active", *units, check=False).split()
        return states == ["active"] * len(units)

    def journal(self, unit: str) -> str:
        return self.run("journalctl", "--no-pager", "--output=cat", f"--unit={unit}")

    def get(self, url: str) -> tuple[int, str]:
        """Ask with curl, inside; return status and body, status 0 when nobody answers."""
        said = self.run("curl", "-sk", "-m", "30", "-w", "\n%{http_code}", url, check=False)
        body, _, status = said.rpartition("\n")
        return int(status or 0), body

    def workers(self) -> dict[str, dict[str, Any]]:
        """Return the gateway's list of workers by id; empty while it is away."""
        status, body = self.get("http://127.0.0.1:8081/admin/workers")
        return {worker["id"]: worker for worker in json.loads(body)} if status == 200 else {}

    def wait_ready(self, *workers: str) -> None:
        """Wait until the gateway of this host says that these workers are ready."""

        def are_ready() -> bool:
            listed = self.workers()
            return all(listed.get(worker, {}).get("state") == "ready" for worker in workers)

        until(are_ready, f"{', '.join(workers)} to be ready on {self.name}")

    def power_cut(self) -> None:
        """End the host at once, and everything on it."""
        if self.leader:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.leader, signal.SIGKILL)
            self.leader = 0
        self._process.kill()
        self._process.wait()


def join(first: Host, second: Host, *addresses: tuple[str, str]) -> None:
    """Lay a cable between two hosts, `link0` on both, with these addresses of the first and the second."""
    peer = ("peer", "name", "link0", "netns", str(second.leader))
    subprocess.run(first.in_network("ip", "link", "add", "link0", "type", "veth", *peer), check=True)
    for number, host in enumerate((first, second)):
        for pair in addresses:
            host.run("ip", "address", "add", pair[number], "dev", "link0")
        host.run("ip", "link", "set", "link0", "up")


def cannot(why: str) -> None:
    """Skip the test, or fail it where CI=true: there a machine has what the tests need."""
    if os.environ.get("CI") == "true":
        pytest.fail(why)
    pytest.skip(why)


def need_root() -> None:
    if os.geteuid() != 0:
        cannot("a host of its own needs root, for namespaces: run the tests as root")
    for tool in ("unshare", "nsenter", "ip", "nginx", "curl", "openssl", "/lib/systemd/systemd"):
        if shutil.which(tool) is None:
            cannot(f"a host of its own needs {tool}")


def _remove_control_groups(name: str) -> None:
    tops = [Path("/sys/fs/cgroup") / name, *Path("/sys/fs/cgroup").glob(f"*/{name}")]

    def are_gone() -> bool:
        for top in tops:
            for directory, _, _ in os.walk(top, topdown=False):
                with contextlib.suppress(OSError):  # its last process is not gone yet
                    os.rmdir(directory)
        return not any(top.exists() for top in tops)

    until(are_gone, f"the control groups of {name} to be free")


@contextlib.contextmanager
def calling(host: Host, url: str, *options: str) -> Iterator[dict[str, Any]]:
    """Call from the host's network at a fixed rate for the length of the block; then the tally is in the dictionary."""
    tally: dict[str, Any] = {}
    command = host.in_network(sys.executable, "-m", "tests.deploy.callers", url, *options)
    process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        yield tally
        said, _ = process.communicate(timeout=PATIENCE_SECONDS)  # closes its standard input
        tally |= json.loads(said)
    finally:
        process.kill()
        process.wait()
