"""systemd, as the process that it started sees it: what it is told, how often it wants to hear, what it hands over.

The protocols are those of sd_notify(3), sd_watchdog_enabled(3) and sd_listen_fds_with_names(3). Without systemd every
call does nothing, so that nobody has to ask who started the process.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
from collections.abc import Mapping

log = logging.getLogger(__name__)

_FIRST_DESCRIPTOR = 3  # SD_LISTEN_FDS_START


class Systemd:
    """The service manager of this process, if it has one."""

    def __init__(self, environment: Mapping[str, str] = os.environ) -> None:
        self._address = environment.get("NOTIFY_SOCKET", "")
        self._status = ""
        # The variables are inherited by children, for whom they are not meant: each names its process.
        self._watchdog_usec = environment.get("WATCHDOG_USEC", "") if _is_for_us(environment, "WATCHDOG_PID") else ""

    @property
    def watchdog_seconds(self) -> float | None:
        """How long systemd waits for a `beat` before it ends the process; None when it does not watch."""
        return int(self._watchdog_usec) / 1e6 if self._watchdog_usec.isdecimal() else None

    @property
    def beat_seconds(self) -> float:
        """How often to look whether a `beat` is due: four times in the patience of the watchdog."""
        return min(1.0, (self.watchdog_seconds or 4.0) / 4)

    def ready(self) -> None:
        """The service does its work; `systemctl start` returns now."""
        self._send("READY=1")

    def status(self, words: str) -> None:
        """Set the line that `systemctl status` shows; sent only where it changed."""
        if words != self._status:
            self._status = words
            self._send(f"STATUS={words.replace(chr(10), ' ')}")

    def beat(self) -> None:
        """Say that there is progress. Call it only where that was seen."""
        self._send("WATCHDOG=1")

    def stopping(self, seconds: float) -> None:
        """The service ends, and may take so long; systemd kills it only after that, whatever TimeoutStopSec says."""
        self._send(f"STOPPING=1\nEXTEND_TIMEOUT_USEC={int(seconds * 1e6)}")

    def _send(self, message: str) -> None:
        if not self._address:
            return
        # An address that begins with @ is in the abstract namespace, where the first byte is 0.
        address = "\0" + self._address[1:] if self._address.startswith("@") else self._address
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
            sender.setblocking(False)
            try:
                sender.sendto(message.encode(), address)
            except OSError as error:
                # systemd that restarts itself, or is very busy: the next message comes in a second.
                log.warning("systemd was not told %r: %s", message, error)


def listeners(environment: Mapping[str, str] = os.environ) -> dict[str, list[socket.socket]]:
    """Return the sockets that systemd listens on for this process, by FileDescriptorName; call it once."""
    count = environment.get("LISTEN_FDS", "")
    if not count.isdecimal() or not _is_for_us(environment, "LISTEN_PID"):
        return {}
    names = environment.get("LISTEN_FDNAMES", "").split(":")
    found: dict[str, list[socket.socket]] = {}
    for offset in range(int(count)):
        with contextlib.suppress(OSError):  # a descriptor that is no socket is none of ours
            os.set_inheritable(_FIRST_DESCRIPTOR + offset, False)
            listener = socket.socket(fileno=_FIRST_DESCRIPTOR + offset)
            found.setdefault(names[offset] if offset < len(names) else "", []).append(listener)
    return found


def _is_for_us(environment: Mapping[str, str], variable: str) -> bool:
    return environment.get(variable, str(os.getpid())) == str(os.getpid())
