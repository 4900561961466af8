"""What goes on now and went on in the last minute, for those who look: the page, `tts-gateway top` and `status`."""

from __future__ import annotations

import asyncio
import math
import re
import time
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from gateway import words
from gateway.assembler import SegmentAudio
from gateway.faults import Preempted, WorkerRefused
from gateway.journey import Journey, Outcome
from gateway.lease import InLine
from gateway.pool import Pool
from gateway.replica import Replica
from wire.gpu import Gpu
from wire.segment import SegmentRequest

KEPT_SECONDS = 60
# A run that ended is in every snapshot for so long: whoever misses one snapshot misses nothing.
_REPEATED_SECONDS = 3.0
_MOST_RUNS_KEPT = 2000
_MOST_RUNS_SHOWN = 300
_MOST_REQUESTS_SHOWN = 40
_RATE_SECONDS = 10
_SPEED_SECONDS = 5  # some models hand a whole segment over at its end
_MOST_FIRST_AUDIOS = 2000
_GPU_FIELDS = (
    "device", "name", "state", "memory_used_bytes", "memory_total_bytes", "utilization_ratio", "temperature_celsius",
    "power_watts",
)  # fmt: skip

# Such an id is a random number of the page's own making and says nothing about anybody, so it is shown: that is how a
# page finds its own request. Any other id is its caller's affair; strangers see a running number in its place.
_PAGE_ID = re.compile(r"page-[0-9a-f]{16}")


@dataclass(eq=False, slots=True)
class Run:
    """One try at a segment, on one worker. Instants are `time.monotonic()`."""

    number: int
    worker: str
    request: str  # as it is shown
    index: int
    characters: int
    sample_rate: int
    started: float
    audio: SegmentAudio | None  # while it runs; what nobody came to hear must not be kept
    samples: int  # that were there before; when it has ended, those that it made
    ended: float | None = None
    end: str = ""  # spoken, moved (gave its slot up), failed, cancelled

    @property
    def audio_seconds(self) -> float:
        """Of sound that this try has made."""
        made = self.samples if self.audio is None else self.audio.samples - self.samples
        return made / self.sample_rate

    def close(self, now: float) -> None:
        if self.audio is not None:
            self.ended, self.samples, self.audio = now, self.audio.samples - self.samples, None

    def shown(self) -> list[Any]:
        """Return the row of a snapshot: thousands of them travel, so no field carries its name."""
        ended = None if self.ended is None else round(self.ended, 2)
        start, audio = round(self.started, 2), round(self.audio_seconds, 1)
        return [self.number, self.worker, self.request, self.index, self.characters, start, ended, self.end, audio]


RUN_FIELDS = ("number", "worker", "request", "index", "characters", "started", "ended", "end", "audio_seconds")


@dataclass(eq=False, slots=True)
class _WorkerRecord:
    """How much a worker spoke, second by second."""

    spoken_seconds: float = 0.0  # of sound, by tries that have ended
    spoken_before: float = 0.0  # at the last tick, tries that ran included
    speeds: deque[float] = field(default_factory=lambda: deque(maxlen=KEPT_SECONDS))


class Live:
    """Written on the loop's thread by the observer's calls and by `tick`, once a second. Nobody's text is in here."""

    def __init__(self, version: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._version = version
        self._clock = clock
        self._started = clock()
        self._running: dict[int, Run] = {}
        self._ended: deque[Run] = deque(maxlen=_MOST_RUNS_KEPT)
        self._runs = self._requests = 0
        self._journeys: dict[str, tuple[str, Journey]] = {}
        self._workers: defaultdict[str, _WorkerRecord] = defaultdict(_WorkerRecord)
        self._outcomes: deque[Counter[str]] = deque([Counter()], maxlen=KEPT_SECONDS)
        self._first_audios: deque[tuple[float, float]] = deque(maxlen=_MOST_FIRST_AUDIOS)
        self._ticked_at = clock()
        self._next_tick = asyncio.Event()
        self.ticks = 0
        self.is_closed = False

    # -- what happens -----------------------------------------------------------------------------------------------

    def request_started(self, journey: Journey) -> None:
        self._requests += 1
        own = _PAGE_ID.fullmatch(journey.request_id) is not None
        self._journeys[journey.request_id] = (journey.request_id if own else f"#{self._requests}", journey)

    def request_done(self, journey: Journey) -> None:
        if self._journeys.get(journey.request_id, ("", None))[1] is journey:  # two callers may use one id
            del self._journeys[journey.request_id]
        self._outcomes[-1][str(journey.outcome or Outcome.FAILED)] += 1
        if journey.first_audio_seconds is not None:
            self._first_audios.append((self._clock(), journey.first_audio_seconds))

    @contextmanager
    def speaking(
        self, replica: Replica, request: SegmentRequest, audio: SegmentAudio, sample_rate: int
    ) -> Iterator[None]:
        """Follow one try at a segment for the length of the block; how the block ends is how the try ended."""
        self._runs += 1
        run = Run(
            number=self._runs,
            worker=replica.id,
            request=self._name(request.request_id),
            index=request.index,
            characters=len(request.text),
            sample_rate=sample_rate,
            started=self._clock(),
            audio=audio,
            samples=audio.samples,
        )
        self._running[run.number] = run
        record = self._workers[replica.id]
        try:
            yield
            run.end = "spoken"
        except Preempted:
            run.end = "moved"
            raise
        except asyncio.CancelledError:
            run.end = "cancelled"
            raise
        except WorkerRefused:
            raise
        except Exception:
            run.end = "failed"
            raise
        finally:
            del self._running[run.number]
            run.close(self._clock())
            record.spoken_seconds += run.audio_seconds
            if run.end:  # a worker that was full has spoken nothing
                self._ended.append(run)

    def tick(self) -> None:
        """Close one second: how much each worker spoke in it. Wakes those who look."""
        now = self._clock()
        passed = max(now - self._ticked_at, 1e-3)
        self._ticked_at = now
        self._outcomes.append(Counter())
        under_way: defaultdict[str, float] = defaultdict(float)
        for run in self._running.values():
            under_way[run.worker] += run.audio_seconds
        for name, record in list(self._workers.items()):
            spoken = record.spoken_seconds + under_way.get(name, 0.0)
            record.speeds.append(round(max(0.0, spoken - record.spoken_before) / passed, 2))
            record.spoken_before = spoken
            # Ids are the workers' own choice: whoever was silent for the whole minute, or is gone, is forgotten.
            if name not in under_way and len(record.speeds) == KEPT_SECONDS and not any(record.speeds):
                del self._workers[name]
        self.ticks += 1
        self._wake()

    async def wait_tick(self) -> None:
        """Wait for the next tick, or for the end."""
        if not self.is_closed:
            await self._next_tick.wait()

    def close(self) -> None:
        """Let everybody who looks go: the gateway is stopping, and a page that looks on is no request to wait for."""
        self.is_closed = True
        self._wake()

    def _wake(self) -> None:
        self._next_tick.set()
        self._next_tick = asyncio.Event()

    def _name(self, request_id: str) -> str:
        return self._journeys[request_id][0] if request_id in self._journeys else "#0"

    # -- what is seen -----------------------------------------------------------------------------------------------

    def snapshot(
        self, pool: Pool, *, since_seconds: float = _REPEATED_SECONDS, with_history: bool = False
    ) -> dict[str, Any]:
        """Return this moment as JSON: workers, the line, the runs of the last `since_seconds`.

        It goes to everybody: there is no text in it, no address, no caller, and no request id but a page's own.
        """
        now = self._clock()
        workers = [self._worker(replica, now) for replica in sorted(pool.replicas, key=lambda replica: replica.id)]
        if with_history:
            for worker in workers:
                worker["speeds"] = list(self._workers[worker["id"]].speeds)
        gone = [{"id": loss.replica.id, "words": words.gone(loss.reason, now - loss.at)} for loss in pool.missing]
        most = _MOST_RUNS_KEPT if with_history else _MOST_RUNS_SHOWN
        ended = [run for run in islice(reversed(self._ended), most) if run.ended and now - run.ended <= since_seconds]
        runs = [*reversed(ended), *self._running.values()][-most:]
        return {
            "now": round(now, 3),
            "version": self._version,
            "uptime_seconds": round(now - self._started, 1),
            "summary": words.summary(pool.replicas, pool.waiting, len(gone)),
            "workers": workers,
            "gone": gone,
            "traffic": self._traffic(now, sum(worker["speed"] for worker in workers)),
            "queue": self._queue(pool),
            "requests": self._own_requests(),
            "run_fields": RUN_FIELDS,
            "runs": [run.shown() for run in runs],
        }

    def history(self, pool: Pool) -> dict[str, Any]:
        """Return a snapshot with the whole last minute: the first thing that somebody who looks gets."""
        return self.snapshot(pool, since_seconds=KEPT_SECONDS, with_history=True)

    def _worker(self, replica: Replica, now: float) -> dict[str, Any]:
        recent = list(self._workers[replica.id].speeds)[-_SPEED_SECONDS:]
        return {
            "id": replica.id,
            "state": replica.state,
            "words": words.state(replica, now),
            "troubles": [trouble for gpu in replica.gpus for trouble in words.troubles(gpu)],
            "in_flight": replica.in_flight,
            "slots": replica.slots,
            "models": list(replica.models),
            "device": replica.device,
            "gpus": [_gpu(gpu) for gpu in replica.gpus],
            "speed": round(sum(recent) / max(1, len(recent)), 2),
            "segments_spoken": replica.segments_spoken,
        }

    def _traffic(self, now: float, speed: float) -> dict[str, Any]:
        recent = list(self._outcomes)[-_RATE_SECONDS - 1 : -1]
        waits = sorted(seconds for at, seconds in self._first_audios if now - at <= KEPT_SECONDS)
        return {
            "requests_in_progress": len(self._journeys),
            "requests_per_second": round(sum(map(Counter.total, recent)) / max(1, len(recent)), 2),
            "last_minute": {
                str(outcome): sum(second[str(outcome)] for second in self._outcomes) for outcome in Outcome
            },
            "first_audio_p50_seconds": _rounded(_quantile(waits, 0.50)),
            "first_audio_p95_seconds": _rounded(_quantile(waits, 0.95)),
            "speed": round(speed, 2),
        }

    def _queue(self, pool: Pool) -> dict[str, Any]:
        backlog = pool.backlog()
        rows: list[dict[str, Any]] = []
        for line in pool.lines():
            rows += self._requests_in(line)
        # Those that look for themselves must find themselves, however long the line is.
        own = [row for row in rows[_MOST_REQUESTS_SHOWN:] if _PAGE_ID.fullmatch(row["request"])]
        return {
            "segments": pool.waiting,
            "characters": backlog.waiting_characters,
            "seconds": round(backlog.seconds, 2) if math.isfinite(backlog.seconds) else None,
            "requests": len(rows),
            "line": rows[:_MOST_REQUESTS_SHOWN] + own[:_MOST_REQUESTS_SHOWN],
        }

    def _requests_in(self, line: Sequence[InLine]) -> list[dict[str, Any]]:
        """Return the requests of one model's line in the order of their next segments."""
        rows: dict[str, dict[str, Any]] = {}
        for place in line:
            row = rows.get(place.request_id)
            if row is None:
                name = self._name(place.request_id)
                row = {"request": name, "ahead": len(rows), "segments": 0, "characters": 0}
                row["waited_seconds"] = round(place.waited_seconds, 1)
                rows[place.request_id] = row
            row["segments"] += 1
            row["characters"] += place.characters
        return list(rows.values())

    def _own_requests(self) -> list[dict[str, Any]]:
        """Return the plans of pages' requests, as lengths: the page has the text, and so knows what is spoken where."""
        own = [(name, journey) for name, journey in self._journeys.values() if name.startswith("page-")]
        return [{"request": name, "plan": journey.plan} for name, journey in own[-_MOST_REQUESTS_SHOWN:]]


def _gpu(gpu: Gpu) -> dict[str, Any]:
    """Return the figures that everybody may see: not the serial numbers of the hardware."""
    return {name: getattr(gpu, name) for name in _GPU_FIELDS}


def _quantile(ordered: Sequence[float], share: float) -> float | None:
    """Return the nearest-rank quantile of ordered figures, None of none."""
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)] if ordered else None


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 3)
