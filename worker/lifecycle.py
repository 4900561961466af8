"""The life of the worker process: one table of states and events, one writer, and whoever wants to hear of a change."""

from __future__ import annotations

import logging
from collections.abc import Callable
from enum import StrEnum

from wire.link import WorkerState

log = logging.getLogger("worker.lifecycle")


class Event(StrEnum):
    """All that can happen to the process as a whole."""

    LOAD = "load"  # the model begins to load: at start, or by order
    LOADED = "loaded"  # its weights are in memory
    WARMED = "warmed"  # it has spoken once, so the first listener does not wait for lazy parts
    UNLOAD = "unload"
    DRAIN = "drain"
    UNDRAIN = "undrain"
    STOP = "stop"  # the end, after draining or where there is nothing to drain
    FAIL = "fail"


# Everything that can change the state of the process. A pair that is not listed is illegal: `Lifecycle.handle` raises.
# Load, drain and undrain may be repeated, because two gateways may send the same order. A worker that is ready cannot
# stop without draining first. What has stopped or failed stays so; the first failure is the one that is reported.
TRANSITIONS: dict[WorkerState, dict[Event, WorkerState]] = {
    WorkerState.STARTING: {
        Event.LOAD: WorkerState.LOADING,
        Event.STOP: WorkerState.STOPPED,
        Event.FAIL: WorkerState.FAILED,
    },
    WorkerState.LOADING: {
        Event.LOAD: WorkerState.LOADING,
        Event.LOADED: WorkerState.WARMING,
        Event.STOP: WorkerState.STOPPED,
        Event.FAIL: WorkerState.FAILED,
    },
    WorkerState.WARMING: {
        Event.LOAD: WorkerState.WARMING,
        Event.WARMED: WorkerState.READY,
        Event.STOP: WorkerState.STOPPED,
        Event.FAIL: WorkerState.FAILED,
    },
    WorkerState.READY: {
        Event.LOAD: WorkerState.READY,
        Event.UNLOAD: WorkerState.UNLOADED,
        Event.DRAIN: WorkerState.DRAINING,
        Event.UNDRAIN: WorkerState.READY,
        Event.FAIL: WorkerState.FAILED,
    },
    WorkerState.UNLOADED: {
        Event.LOAD: WorkerState.LOADING,
        Event.UNLOAD: WorkerState.UNLOADED,
        Event.STOP: WorkerState.STOPPED,
        Event.FAIL: WorkerState.FAILED,
    },
    WorkerState.DRAINING: {
        Event.DRAIN: WorkerState.DRAINING,
        Event.UNDRAIN: WorkerState.READY,
        Event.STOP: WorkerState.STOPPED,
        Event.FAIL: WorkerState.FAILED,
    },
    WorkerState.STOPPED: {},
    WorkerState.FAILED: {},
}


class IllegalTransition(Exception):
    """The event cannot happen in the present state: an order that comes at the wrong time, or a bug."""


class Lifecycle:
    """Where the process stands. The event loop is the one writer; `handle` is the one place that writes."""

    def __init__(self) -> None:
        self._state = WorkerState.STARTING
        self._reason = ""
        self._listeners: list[Callable[[], None]] = []

    def __repr__(self) -> str:
        return f"<Lifecycle {self._state}>"

    @property
    def state(self) -> WorkerState:
        return self._state

    @property
    def reason(self) -> str:
        """Why the last change happened, where somebody said so."""
        return self._reason

    @property
    def takes_segments(self) -> bool:
        return self._state is WorkerState.READY

    def on_change(self, listener: Callable[[], None]) -> None:
        """Call `listener` after each change of state; it must not raise and must not block."""
        self._listeners.append(listener)

    def handle(self, event: Event, reason: str = "") -> bool:
        """Make the transition of the table; return whether the state is another one now.

        Raises:
            IllegalTransition: the table has none; nothing has changed.
        """
        before = self._state
        after = TRANSITIONS[before].get(event)
        if after is None:
            raise IllegalTransition(f"a worker that is {before} cannot {event}")
        if after is before:
            return False
        self._state, self._reason = after, reason
        log.info("state=%s before=%s event=%s reason=%r", after, before, event, reason)
        for listener in self._listeners:
            listener()
        return True
