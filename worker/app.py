"""The composition root of a worker: builds every part, and owns the order in which they start and stop."""

from __future__ import annotations

import asyncio
import logging
import os
import platform
import time
import uuid
from collections.abc import Coroutine
from dataclasses import asdict
from importlib import metadata
from typing import Any

from aiohttp import web

from host.systemd import Systemd
from wire.link import Command, Hello, Status, WorkerState
from wire.tracing import NO_TRACER, Tracer
from worker.api import Api, Slots
from worker.config import CHATTERBOX_MODELS, Address, Config
from worker.engine import Engine, EngineDied
from worker.gpu.series import GpuSeries
from worker.gpu.watch import GpuWatch
from worker.heartbeat import Vitals, beat, in_words
from worker.lifecycle import Event, IllegalTransition, Lifecycle
from worker.link import Link
from worker.metrics import Metrics
from worker.models.base import SpeechModel
from worker.upkeep import Limits, wait_too_large, wait_unused
from worker.voices import Voices

log = logging.getLogger("worker.app")

_STOP_ENGINE_SECONDS = 2.0
_STOP_LISTENER_SECONDS = 2.0
_LAG_INTERVAL_SECONDS = 0.25
_STOP_MARGIN_SECONDS = 10.0  # what a stop may take after the drain
_DISTRIBUTIONS = ("chatterbox-gateway", "aiohttp", "numpy", "hibari-tts", "torch", "chatterbox-tts")


class Worker:
    """One worker; two fit in one process. Call `start`, then `wait_stopped`; `request_stop` ends the wait."""

    def __init__(
        self, config: Config, model: SpeechModel[Any], systemd: Systemd | None = None, tracer: Tracer = NO_TRACER
    ) -> None:
        self._config = config
        self._systemd = systemd or Systemd({})
        self._epoch = uuid.uuid4().hex
        self._began = time.monotonic()
        self._versions = _versions()
        self._lifecycle = Lifecycle()
        self._metrics = Metrics()
        # Where the model is to find out how many, there are none to speak of before it is loaded, but 0 is no number.
        self._slots = Slots(config.slots or 1)
        self._engine = Engine(model, batch=config.batch or 1, metrics=self._metrics)
        self._links = [self._link(index) for index in range(len(config.gateways))]
        self._voices = Voices(self._engine, self._metrics, gateways=self._gateways, token=config.token)
        self._metrics.observe(
            slots=lambda: self._slots.count,
            in_flight=lambda: self._engine.in_flight,
            state=lambda: self._lifecycle.state,
            model=self._engine.info.id,
            figures=model.figures,
        )
        self._gpus = GpuWatch(config.devices, os.environ)
        self._metrics.register(GpuSeries(self._gpus.latest))
        for link in self._links:
            self._lifecycle.on_change(link.announce)
        api = Api(
            engine=self._engine,
            lifecycle=self._lifecycle,
            slots=self._slots,
            voices=self._voices,
            metrics=self._metrics,
            tracer=tracer,
            token=config.token,
            epoch=self._epoch,
            report=self.report,
        )
        # aiohttp's default lets the handler of a caller who hung up run on, with its slot and its share of the device.
        self._runner = web.AppRunner(
            api.application(), handler_cancellation=True, shutdown_timeout=_STOP_LISTENER_SECONDS, access_log=None
        )
        self._port = config.port  # the real one, once the listener has it
        self._detail = ""  # why the last order was not obeyed
        # Loading and unloading take turns, in the order in which they were asked for.
        self._model_turn = asyncio.Lock()
        self._tasks: set[asyncio.Task[None]] = set()
        self._stop_requests = 0
        self._stop = asyncio.Event()
        self._stop_at_once = asyncio.Event()

    @property
    def port(self) -> int:
        """Port of the data listener."""
        return self._port

    async def start(self) -> None:
        """Open the listener, dial the gateways and begin to load; `/readyz` says when that is done.

        Raises:
            OSError: the address is taken.
        """
        # The listener first: from here on /livez answers, however long the model takes.
        await self._runner.setup()
        await web.TCPSite(self._runner, self._config.host, self._config.port).start()
        self._port = self._runner.addresses[0][1]
        log.info("worker=%s epoch=%s listening=%s:%d", self._config.id, self._epoch, self._config.host, self._port)
        # The driver is asked in a thread of its own, which may hang in it for all we care.
        self._gpus.start()
        self._spawn(self._watch_event_loop())
        # Then the engine, which has nothing to do yet, and somebody who notices if it dies.
        self._engine.start()
        self._spawn(self._watch_engine())
        self._spawn(beat(self._systemd, self._vitals))
        self._spawn(self._end_when_too_large())
        self._spawn(self._unload_when_unused())
        # The links before the model, so that the gateways see it loading.
        for link in self._links:
            self._spawn(link.run())
        self._lifecycle.handle(Event.LOAD)
        self._spawn(self._load())

    def request_stop(self) -> None:
        """Drain, then stop; a second request stops at once. Safe in a signal handler of the loop."""
        self._stop_requests += 1
        self._stop.set()
        if self._stop_requests > 1:
            self._stop_at_once.set()

    async def wait_stopped(self) -> int:
        """Wait for `request_stop` or a failure and shut down in order; return the exit code, 1 after a failure."""
        await self._stop.wait()
        self._systemd.stopping(self._config.drain_timeout_seconds + _STOP_MARGIN_SECONDS)
        # 1. Nothing new. The links stay up, and the gateways learn it now; a segment under way to us gets a 503.
        if self._lifecycle.state is WorkerState.READY:
            self._lifecycle.handle(Event.DRAIN, "stopping")
        # 2. Finish what is held, down to the last byte, unless there is no time or no model to finish it.
        if self._lifecycle.state is not WorkerState.FAILED:
            await self._wait_drained()
        if self._lifecycle.state is not WorkerState.FAILED:  # it may have failed meanwhile
            self._lifecycle.handle(Event.STOP)
        self._systemd.status(in_words(self._vitals()))
        # 3. Say farewell on the links, so that no gateway has to wait for a silence.
        await asyncio.gather(*(link.close() for link in self._links))
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._gpus.stop()
        await self._voices.close()
        # 4. The engine ends after its present step. What is left gets an error frame, which a gateway can act upon.
        await self._engine.stop(_STOP_ENGINE_SECONDS)
        # 5. The listener last: it writes those error frames.
        await self._runner.cleanup()
        return 1 if self._lifecycle.state is WorkerState.FAILED else 0

    def report(self) -> dict[str, Any]:
        """Return the JSON of `/health`."""
        return {
            "id": self._config.id,
            "epoch": self._epoch,
            "state": self._lifecycle.state,
            "reason": self._lifecycle.reason,
            "model": self._engine.info.id,
            "device": self._config.device,
            "settings": self._engine.settings(),
            "slots": self._slots.count,
            "slots_held": self._slots.held,
            "in_flight": self._engine.in_flight,
            "steps": self._engine.steps,
            "uptime_seconds": round(time.monotonic() - self._began, 3),
            "versions": self._versions,
            "gpus": [asdict(gpu) for gpu in self._gpus.latest()],
            "links": [link.report() for link in self._links],
        }

    def _gateways(self) -> list[Address]:
        """The gateways, those that are linked first."""
        return [link.gateway for link in sorted(self._links, key=lambda link: not link.is_up)]

    def _vitals(self) -> Vitals:
        return Vitals(
            about=f"{self._engine.info.id} on {self._config.device}, {self._slots.count} slots",
            state=self._lifecycle.state,
            reason=self._lifecycle.reason,
            steps=self._engine.steps,
            in_flight=self._engine.in_flight,
            links_up=sum(link.is_up for link in self._links),
            links=len(self._links),
        )

    def _link(self, index: int) -> Link:
        return Link(
            self._config.gateways[index],
            token=self._config.token,
            hello=self._hello,
            status=self._status,
            obey=self._obey,
        )

    def _hello(self) -> Hello:
        return Hello(
            worker=self._config.id,
            epoch=self._epoch,
            port=self._config.announced_port or self._port,
            slots=self._slots.count,
            device=self._config.device,
            split=self._config.split,
            models=(self._engine.info,),
            state=self._lifecycle.state,
            versions=self._versions,
            loads_on_demand=self._config.unload_after_seconds > 0,
        )

    def _status(self) -> Status:
        info = self._engine.info
        return Status(
            state=self._lifecycle.state,
            in_flight=self._engine.in_flight,
            steps=self._engine.steps,
            slots=self._slots.count,
            models=(info,),
            voices=(*info.voices, *self._voices.warm) if self._lifecycle.takes_segments else (),
            gpus=self._gpus.latest(),
            detail=self._detail or self._lifecycle.reason,
        )

    def _obey(self, command: Command) -> None:
        """Do what a gateway orders, or say in the status why not."""
        try:
            if self._stop_requests:
                # An undrain would take back what the operator of this very process has asked for.
                raise IllegalTransition(f"a worker that is stopping cannot {command}")
            has_changed = self._lifecycle.handle(_EVENTS[command], "ordered")
        except IllegalTransition as error:
            log.warning("order=%s refused: %s", command, error)
            self._detail = str(error)
            for link in self._links:
                link.announce()
            return
        self._detail = ""
        if command is Command.LOAD and has_changed:
            self._spawn(self._load())
        elif command is Command.UNLOAD and has_changed:
            self._spawn(self._unload())

    async def _load(self) -> None:
        """Bring the model from `loading` to `ready`, or the worker to `failed`."""
        async with self._model_turn:
            try:
                room = await self._engine.load()
                if self._config.slots is None and room is not None:
                    await self._engine.resize(room)
                    self._slots.count = room
                self._lifecycle.handle(Event.LOADED)
                await self._engine.warm_up()
                self._lifecycle.handle(Event.WARMED)
            except IllegalTransition as error:
                log.info("model=%s loaded too late: %s", self._engine.info.id, error)  # stopped or failed meanwhile
            except Exception as error:  # boundary: whatever a model raises while loading means the same
                log.exception("model=%s did not load", self._engine.info.id)
                self._give_up(f"{type(error).__name__}: {error}")

    async def _unload(self) -> None:
        async with self._model_turn:
            try:
                await self._engine.unload()
            except Exception as error:  # boundary: as above
                log.exception("model=%s did not unload", self._engine.info.id)
                self._give_up(f"{type(error).__name__}: {error}")

    async def _watch_event_loop(self) -> None:
        while True:
            due = time.monotonic() + _LAG_INTERVAL_SECONDS
            await asyncio.sleep(_LAG_INTERVAL_SECONDS)
            self._metrics.event_loop_lag.observe(max(0.0, time.monotonic() - due))

    async def _end_when_too_large(self) -> None:
        """Drain and end when the process has grown too large; its supervisor starts a fresh one."""
        limits = Limits(self._config.max_memory_bytes, self._config.max_gpu_memory_bytes)
        reason = await wait_too_large(limits, self._gpus.latest)
        log.warning("%s: draining, to be started anew", reason)
        self.request_stop()

    async def _unload_when_unused(self) -> None:
        """Give the model's memory back when nobody has wanted it for long; a gateway orders it back when somebody does.

        Between the look at the slots and the change of state nothing is awaited, so that no segment comes between.
        """
        patience = self._config.unload_after_seconds
        while True:
            await wait_unused(patience, self._uses)
            self._lifecycle.handle(Event.UNLOAD, f"unused for {patience:g} s")
            await self._unload()

    def _uses(self) -> int | None:
        """How often a slot was taken so far; None while one is, and while there is no model to unload."""
        is_unused = self._lifecycle.state is WorkerState.READY and not self._slots.held
        return self._slots.taken if is_unused else None

    async def _watch_engine(self) -> None:
        try:
            await self._engine.wait_died()
        except EngineDied as error:
            self._give_up(str(error))

    def _give_up(self, reason: str) -> None:
        """Fail, for good: a process that cannot speak must end, so that its supervisor starts a better one."""
        # At the end already: a load that was cut short by the stop, or by the failure that was reported first.
        if self._lifecycle.state not in (WorkerState.STOPPED, WorkerState.FAILED):
            self._lifecycle.handle(Event.FAIL, reason)
        self._stop.set()

    async def _wait_drained(self) -> None:
        """Wait until no slot is held, at most for the drain timeout, not at all after a second request.

        The slots and not the engine, which is done before a gateway that reads slowly has all of it.
        """
        drained = asyncio.create_task(self._slots.wait_free())
        at_once = asyncio.create_task(self._stop_at_once.wait())
        try:
            await asyncio.wait(
                (drained, at_once),
                timeout=self._config.drain_timeout_seconds,
                return_when=asyncio.FIRST_COMPLETED,
            )
            if not drained.done():
                log.warning("stopping with slots_held=%d", self._slots.held)
        finally:
            drained.cancel()
            at_once.cancel()

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        """Run a coroutine beside the others until the end; the set keeps it from being collected."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._reap)

    def _reap(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            # A link that has died of a bug would leave a worker that runs and that nobody sees.
            log.error("a task of the worker died", exc_info=error)
            self._give_up(f"{type(error).__name__}: {error}")


_EVENTS = {
    Command.DRAIN: Event.DRAIN,
    Command.UNDRAIN: Event.UNDRAIN,
    Command.LOAD: Event.LOAD,
    Command.UNLOAD: Event.UNLOAD,
}


def build_model(config: Config) -> SpeechModel[Any]:
    """Return the model that the configuration names; only its own module is imported, and of that nothing slow."""
    if config.model == "tone":
        from worker.models.tone import ToneModel

        return ToneModel(config.tone)
    if config.model in CHATTERBOX_MODELS:
        from worker.models.chatterbox.late import LateModel

        devices = config.devices
        return LateModel(config.chatterbox, config.model, devices[0], config.batch, sound_device=devices[-1])
    from worker.models.embedded import EmbeddedModel

    return EmbeddedModel()


def _versions() -> dict[str, str]:
    versions = {"python": platform.python_version()}
    for name in _DISTRIBUTIONS:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions
