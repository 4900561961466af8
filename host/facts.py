"""What can be seen of the machine: observed here, judged by host/checks.py and the two doctors."""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import resource
import socket
import ssl
import stat
import subprocess
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from email.utils import parsedate_to_datetime
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
class Guarded:
    """A file or directory of the service. Nobody but its owner may write it, nor read it where it is secret.

    `mode` is None when there is none.
    """

    path: str
    what: str
    is_secret: bool
    mode: int | None = None


@dataclass(frozen=True, slots=True)
class Machine:
    """What matters to gateway and worker alike. `open_files` below 0 is no limit."""

    python: str
    open_files: int
    is_clock_synchronised: bool | None
    ports: tuple[Port, ...]
    files: tuple[Guarded, ...]
    has_systemd: bool


def machine(ports: Iterable[Port], files: Iterable[Guarded]) -> Machine:
    """Look at this machine; takes well under a second."""
    return Machine(
        python=os.path.realpath(sys.executable),
        open_files=resource.getrlimit(resource.RLIMIT_NOFILE)[1],
        is_clock_synchronised=_is_clock_synchronised(),
        ports=tuple(_with_holder(port) for port in ports),
        files=tuple(replace(file, mode=_mode(file.path)) for file in files),
        has_systemd=Path("/run/systemd/system").is_dir(),  # as sd_booted(3) has it
    )


def settings(*names: str, directory: Path = SETTINGS) -> dict[str, str]:
    """Return the variables of the units' environment files, so that the doctor sees what the services see."""
    found: dict[str, str] = {}
    for name in names:
        try:
            lines = (directory / name).read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError):
            continue
        for line in lines:
            variable, equals, value = line.strip().partition("=")
            if equals and not variable.startswith(("#", ";")):
                found[variable.strip()] = value.strip().strip("\"'")
    return found


def token_of_units(environment: Mapping[str, str], directory: Path = SETTINGS) -> dict[str, str]:
    """Return the variable by which a unit hands over the workers' token, unless the environment has one."""
    if "TTS_WORKER_TOKEN" in environment or "TTS_WORKER_TOKEN_FILE" in environment:
        return {}
    path = directory / "worker-token"
    return {"TTS_WORKER_TOKEN_FILE": str(path)} if os.access(path, os.R_OK) else {}


def name_of(pid: int) -> str:
    """Return what a process is called, or says that it cannot be seen from here."""
    try:
        return Path(f"/proc/{pid}/comm").read_text(errors="replace").strip()
    except OSError:
        return "a process elsewhere"


def skew_seconds(date: str | None, now: float) -> float | None:
    """Return by how much a clock is ahead of ours (`now`, of time.time) that wrote this date into an HTTP answer.

    None where there is no date. A date has whole seconds, so that half of one is added.
    """
    with contextlib.suppress(ValueError, TypeError):
        return parsedate_to_datetime(date or "").timestamp() + 0.5 - now
    return None


def in_words(error: Exception) -> str:
    """Return why a call by HTTP came to nothing: what lies below aiohttp's own words for it."""
    cause = getattr(error, "certificate_error", None) or getattr(error, "os_error", None) or error
    if isinstance(cause, ssl.SSLCertVerificationError):
        return f"the certificate does not count: {cause.verify_message}"
    if isinstance(cause, OSError) and not isinstance(cause, ssl.SSLError) and (cause.errno or 0) > 0:
        return os.strerror(cause.errno or 0)
    return str(cause) or type(cause).__name__


def _mode(path: str) -> int | None:
    try:
        return stat.S_IMODE(os.stat(path).st_mode)
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
    if not port.port:
        return port  # any free one
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(port.address, port.port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as listener:
            # As servers do: connections of an earlier run that linger are no reason to refuse, a listener is.
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
    except OSError as error:
        return replace(port, holder=_holder(port.port) or str(error.strerror or error))
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
