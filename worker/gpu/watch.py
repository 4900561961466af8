"""Reads the figures once a second, in a thread of its own: a driver that hangs takes that thread and nothing else."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from wire.gpu import Gpu, GpuState
from worker.gpu.amd import AmdReader
from worker.gpu.nvidia import NvidiaReader
from worker.gpu.reader import Card, Lost, Reader, Unavailable
from worker.gpu.visible import find_card, is_gpu

log = logging.getLogger("worker.gpu")

READERS: tuple[Callable[[], Reader], ...] = (NvidiaReader, AmdReader)
_INTERVAL_SECONDS = 1.0
# A driver that restarts needs a while, and one that is not there does not come often.
_REOPEN_SECONDS = 10.0
SILENT_SECONDS = 3.0


class GpuWatch:
    """The figures of the devices of one worker. `latest` is for the event loop; it never waits for a driver."""

    def __init__(
        self,
        devices: Sequence[str],
        environment: Mapping[str, str],
        *,
        readers: Sequence[Callable[[], Reader]] = READERS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._environment = environment
        self._readers = readers
        self._clock = clock
        self._stopped = threading.Event()
        # Written by the thread, each as a whole: what was read last, and when.
        self._gpus = tuple(
            Gpu(device, GpuState.UNREADABLE, "not read yet") for device in dict.fromkeys(devices) if is_gpu(device)
        )
        self._read_at = clock()

    def start(self) -> None:
        """Begin to read, if any of the devices is a GPU."""
        if self._gpus:
            threading.Thread(target=self._run, name="gpu", daemon=True).start()

    def stop(self) -> None:
        """Have the thread end. Not waited for: it may hang in the driver, and is a daemon."""
        self._stopped.set()

    def latest(self) -> tuple[Gpu, ...]:
        """Return what was read last; one entry for each device that is a GPU."""
        age = self._clock() - self._read_at
        if age < SILENT_SECONDS:
            return tuple(replace(gpu, age_seconds=age) for gpu in self._gpus)
        detail = f"the driver has not answered for {age:.0f} s"
        return tuple(replace(gpu, state=GpuState.SILENT, detail=detail, age_seconds=age) for gpu in self._gpus)

    def _run(self) -> None:
        while not self._stopped.is_set():
            reader: Reader | None = None
            try:
                reader = self._open()
                cards = reader.cards()
                while not self._stopped.is_set():
                    self._publish([self._read(reader, gpu, cards) for gpu in self._gpus])
                    self._stopped.wait(_INTERVAL_SECONDS)
            except Unavailable as error:
                self._give_up(str(error))
            except Exception as error:  # boundary: the gpu thread. Figures are missing then, and speech goes on.
                log.exception("gpu=unreadable")
                self._give_up(f"{type(error).__name__}: {error}")
            finally:
                if reader is not None:
                    reader.close()
            self._wait_to_reopen()

    def _open(self) -> Reader:
        """Return the first reader that opens.

        Raises:
            Unavailable: none does; says why of each.
        """
        reasons = []
        for make in self._readers:
            reader = make()
            try:
                reader.open()
            except Unavailable as error:
                reasons.append(str(error))
            else:
                return reader
        raise Unavailable("; ".join(reasons))

    def _read(self, reader: Reader, before: Gpu, cards: Sequence[Card]) -> Gpu:
        seen = _known(before)
        if not seen.uuid:
            # Found once: a GPU that falls off the bus changes the numbers of all behind it.
            card = find_card(before.device, cards, reader, self._environment)
            seen = replace(seen, index=card.index, uuid=card.uuid, name=card.model)
        if codes := reader.xids(seen.uuid):
            log.error("gpu=%s uuid=%s xid=%s", seen.device, seen.uuid, ",".join(map(str, codes)))
            seen = replace(seen, xid_errors=seen.xid_errors + len(codes), xid_last=codes[-1])
        try:
            return replace(seen, **reader.read(seen.uuid))
        except Lost as error:
            return replace(seen, state=GpuState.LOST, detail=str(error))

    def _give_up(self, reason: str) -> None:
        unreadable = (replace(_known(gpu), state=GpuState.UNREADABLE, detail=reason) for gpu in self._gpus)
        self._publish(list(unreadable))

    def _publish(self, gpus: Sequence[Gpu]) -> None:
        for before, now in zip(self._gpus, gpus, strict=True):
            if (before.state, before.detail) != (now.state, now.detail):
                level = logging.INFO if now.state is GpuState.OK else logging.WARNING
                log.log(level, "gpu=%s uuid=%s state=%s %s", now.device, now.uuid, now.state, now.detail)
        self._gpus, self._read_at = tuple(gpus), self._clock()

    def _wait_to_reopen(self) -> None:
        """Wait, and go on saying that nothing is known: that is not the same as a driver that hangs."""
        ends = self._clock() + _REOPEN_SECONDS
        while self._clock() < ends and not self._stopped.wait(_INTERVAL_SECONDS):
            self._read_at = self._clock()


def _known(gpu: Gpu) -> Gpu:
    """Return what stays true of a GPU whatever its figures are: which it is, and its past troubles."""
    return Gpu(
        gpu.device,
        GpuState.OK,
        index=gpu.index,
        uuid=gpu.uuid,
        name=gpu.name,
        xid_errors=gpu.xid_errors,
        xid_last=gpu.xid_last,
    )
