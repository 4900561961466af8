"""What can be seen of the machine: observed here, judged by host/checks.py and the two doctors."""

from __future__ import annotations

import ctypes
import os
import re
import resource
import socket
import stat
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

SETTINGS = Path("/etc/tts")
_TIME_ERROR = 5  # adjtimex(2): the clock is not synchronised


@dataclass(frozen=True, slots=True)
class Port:
    """An address that a service wants to listen on; `holder` is who does so now, empty when it is free."""

    address: str
    port: int
    option: str
    holder: str = ""


@dataclass(frozen=True, slots=True)
class Secret:
    """A file that others must not read; `mode` None when there is none."""

    path: str
    mode: int | None


@dataclass(frozen=True, slots=True)
class Machine:
    """What matters to gateway and worker alike."""

    python: str
    open_files: int
    is_clock_synchronised: bool | None
    ports: tuple[Port, ...]
    secrets: tuple[Secret, ...]
    has_systemd: bool


def machine(ports: tuple[Port, ...], secrets: tuple[Path, ...]) -> Machine:
    """Look at this machine; takes well under a second."""
    return Machine(
        python=os.path.realpath(sys.executable),
        open_files=resource.getrlimit(resource.RLIMIT_NOFILE)[1],
        is_clock_synchronised=_is_clock_synchronised(),
        ports=tuple(_with_holder(port) for port in ports),
        secrets=tuple(Secret(str(path), _mode(path)) for path in secrets),
        has_systemd=Path("/run/systemd/system").is_dir(),
    )


def settings(*names: str, directory: Path = SETTINGS) -> dict[str, str]:
    """Return the variables of the units' environment files, so that the doctor sees what the services see."""
    found: dict[str, str] = {}
    for name in names:
        try:
            lines = (directory / name).read_text(encoding="utf-8").splitlines()
        except OSError:
            continue
        for line in lines:
            variable, equals, value = line.strip().partition("=")
            if equals and not variable.startswith(("#", ";")):
                found[variable.strip()] = value.strip().strip("\"'")
    return found


def token_of_units(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the variable by which a unit hands over the workers' token, unless the environment has one."""
    if "TTS_WORKER_TOKEN" in environment or "TTS_WORKER_TOKEN_FILE" in environment:
        return {}
    path = SETTINGS / "worker-token"
    return {"TTS_WORKER_TOKEN_FILE": str(path)} if os.access(path, os.R_OK) else {}


def _mode(path: Path) -> int | None:
    try:
        return stat.S_IMODE(path.stat().st_mode)
    except OSError:
        return None


def _is_clock_synchronised() -> bool | None:
    try:
        # struct timex has 208 bytes; all of them 0 asks without changing anything.
        state: int = ctypes.CDLL(None).adjtimex(ctypes.create_string_buffer(512))
    except (OSError, AttributeError):
        return None
    return None if state < 0 else state != _TIME_ERROR


def _with_holder(port: Port) -> Port:
    family = socket.AF_INET6 if ":" in port.address else socket.AF_INET
    with socket.socket(family) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((port.address, port.port))
        except OSError as error:
            return Port(port.address, port.port, port.option, _holder(port.port) or str(error.strerror or error))
    return port


def _holder(port: int) -> str:
    """Return the name of the program that listens there, as far as `ss` tells it to this user."""
    try:
        command = ["ss", "-Hltnp", f"sport = :{port}"]
        listed = subprocess.run(command, capture_output=True, text=True, timeout=5, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return "another program"
    names = re.findall(r'\("([^"]+)",pid=(\d+)', listed)
    return ", ".join(sorted({f"{name} ({pid})" for name, pid in names})) or ("another program" if listed else "")
