"""What a driver's library is asked for. One class for each vendor; all calls may block, and the watch's thread makes
them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Protocol


class Unavailable(Exception):
    """The driver or its library cannot be used. A sentence for people."""


class Lost(Exception):
    """The GPU was there and is not any more, or does not work until it is reset. A sentence for people."""


@dataclass(frozen=True, slots=True)
class Card:
    """A GPU of this machine. `names` are all by which an environment variable may call it, the driver's own first.
    `index` is its place on the bus, as nvidia-smi counts; None for a slice of a GPU."""

    index: int | None
    names: tuple[str, ...]
    model: str

    @property
    def uuid(self) -> str:
        return self.names[0]


class Reader(Protocol):
    """One vendor's library, from `open` to `close`. `visible` are the environment variables that narrow and reorder
    what a process sees, in the order in which they apply; `order` is the one that says how GPUs are numbered."""

    visible: tuple[str, ...]
    order: str | None

    def open(self) -> None:
        """Load and start the library.

        Raises:
            Unavailable: it is not there, or its driver is not.
        """
        ...

    def close(self) -> None:
        """Stop the library. Safe to call twice, and after a failure."""
        ...

    def cards(self) -> list[Card]:
        """Return all GPUs of the machine in the order of their place on the bus.

        Raises:
            Unavailable: the driver does not tell.
        """
        ...

    def read(self, uuid: str) -> dict[str, Any]:
        """Return the figures of one GPU by the names of `wire.gpu.Gpu`; those that it does not tell are left out.

        Raises:
            Lost: the GPU has gone.
            Unavailable: the driver does not tell.
        """
        ...

    def xids(self, uuid: str) -> list[int]:
        """Return the codes of the driver's reports of trouble on this GPU since the last call. Does not wait."""
        ...


@dataclass(frozen=True, slots=True)
class Process:
    """A process on a GPU. `memory_bytes` is None where the driver does not tell."""

    pid: int
    memory_bytes: int | None


def share_out(processes: Iterable[Process], own_pid: int) -> dict[str, Any]:
    """Return the figures about processes: what is ours and what is others'.

    A process that both computes and draws is listed twice, and counts once. In a container the driver may know us by
    another number than we do; then nothing is known of our own share.
    """
    by_pid = {process.pid: process for process in processes}
    own = by_pid.pop(own_pid, None)
    others = [process.memory_bytes for process in by_pid.values()]
    figures: dict[str, Any] = {"other_processes": len(others)}
    if own is not None and own.memory_bytes is not None:
        figures["memory_own_bytes"] = own.memory_bytes
    if None not in others:
        figures["memory_other_bytes"] = sum(filter(None, others))
    return figures
