"""One segment: to a worker, and on to another when that one fails, until its audio is whole."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, replace
from random import Random
from typing import Protocol

import aiohttp

from gateway.assembler import SegmentAudio
from gateway.budget import RetryBudget
from gateway.faults import Preempted, WorkerFault, WorkerRefused
from gateway.lease import Lease, Wanted
from gateway.patience import patience
from gateway.pool import Pool
from gateway.queue import Standing
from gateway.replica import Replica
from gateway.work import Admitted
from wire import headers, tracing
from wire.errors import ErrorCode, TtsError
from wire.frames import Frame, FrameError, FrameReader, FrameType
from wire.segment import Resume, SegmentRequest
from wire.tracing import NO_SPAN, Span

CONNECT_SECONDS = 2.0
# No speech is so slow, at a quarter of the pace and with every digit a word: a worker that sends more fills the memory.
MAX_SECONDS = 30.0
MAX_SECONDS_PER_CHARACTER = 4.0
MAX_REFUSAL_BYTES = 64 << 10
# A worker that is merely full or draining has not failed; so many such answers in a row and it is the fleet's trouble.
MAX_REFUSALS = 20
# No worker could do better with this segment, and none is to blame.
_CALLERS_OWN = (
    ErrorCode.UNSPEAKABLE_TEXT,
    ErrorCode.TEXT_TOO_LONG,
    ErrorCode.INVALID_VALUE,
    ErrorCode.VOICE_NOT_FOUND,
    ErrorCode.UNUSABLE_CLIP,
)
# A worker that meets an uploaded voice for the first time fetches and prepares it before it says anything.
NEW_VOICE_SECONDS = 20.0
# A segment that was preempted so often is left alone.
MAX_PREEMPTIONS = 2
_FULL_PAUSES_SECONDS = (0.005, 0.01, 0.02, 0.05)


class Observer(Protocol):
    """Who wants to know how segments fare: metrics and the log."""

    def segment_done(
        self, replica: Replica, *, seconds: float, predicted_seconds: float, audio_seconds: float
    ) -> None: ...
    def retried(self, replica: Replica, request_id: str, *, mid_stream: bool, reason: str, detail: str) -> None: ...
    def waited(self, seconds: float) -> None: ...
    def preempted(self) -> None: ...
    def speaking(
        self, replica: Replica, request: SegmentRequest, audio: SegmentAudio, sample_rate: int
    ) -> AbstractContextManager[None]: ...


@dataclass(slots=True)
class SegmentJourney:
    """What happens to one segment, for the request's log line and its trace; written by its dispatch as it happens."""

    characters: int
    waited_seconds: float = 0.0
    tries: int = 0
    workers: list[str] = field(default_factory=list)
    span: Span = NO_SPAN


class Dispatcher:
    """Speaks segments on the pool's replicas, any number at a time. Its only state is the fleet's retry budget."""

    def __init__(
        self,
        pool: Pool,
        session: aiohttp.ClientSession,
        observer: Observer,
        *,
        token: str,
        max_tries: int,
        stall_floor_seconds: float,
        random: Random,
    ) -> None:
        self._pool = pool
        self._session = session
        self._observer = observer
        self._headers = {"Authorization": f"Bearer {token}"} if token else {}
        self._max_tries = max_tries
        self._stall_floor_seconds = stall_floor_seconds
        self._random = random
        self._budget = RetryBudget()

    async def speak(
        self,
        request: SegmentRequest,
        audio: SegmentAudio,
        journey: SegmentJourney,
        *,
        standing: Standing,
        sample_rate: int,
        admitted: Admitted,
        remaining_seconds: Callable[[], float],
    ) -> None:
        """Write the segment's whole audio into `audio`; waits for a slot, and again for each further try.

        `remaining_seconds` says how long a slot may be waited for, at the moment of asking. A worker that takes over in
        mid-segment gets the newest checkpoint and continues at the sample after the last one written: what the listener
        hears is what one worker would have spoken.

        Raises:
            TtsError: the caller's own fault (`unspeakable_text` …), no slot in time, or `worker_failed` after
                `max_tries` workers failed.
        """
        attempt = _Attempt(request, audio, sample_rate)
        tried: frozenset[tuple[str, str]] = frozenset()
        refusals = preemptions = 0
        self._budget.first_try()
        while True:
            wanted = attempt.wanted(standing, tried, may_be_preempted=preemptions < MAX_PREEMPTIONS)
            asked = time.monotonic()
            async with self._pool.lease(wanted, wait_seconds=remaining_seconds()) as lease:
                replica = lease.replica
                self._note_slot(replica, asked, journey, admitted)
                try:
                    with (
                        self._observer.speaking(replica, request, audio, sample_rate),
                        _traced(journey, attempt, replica),
                    ):
                        await self._try(lease, attempt)
                    journey.tries += 1
                    return
                except Preempted:
                    preemptions += 1
                    self._observer.preempted()
                    continue
                except WorkerRefused as refusal:
                    refusals += 1
                    if refusals > MAX_REFUSALS:
                        raise TtsError(
                            ErrorCode.OVERLOADED, f"Every worker refuses work: {refusal}", retry_after_seconds=2.0
                        ) from None
                    pause = self._backoff_seconds(refusals)
                except WorkerFault as fault:
                    journey.tries += 1
                    self._note_fault(replica, attempt, journey, fault)
                    # Another worker is asked at once, if the fleet affords it; one that failed already gets a moment.
                    pause = self._budget.take(time.monotonic())
                    if replica.key in tried:
                        pause += self._backoff_seconds(journey.tries)
                    tried |= {replica.key}
            await asyncio.sleep(pause)

    def _note_slot(self, replica: Replica, asked: float, journey: SegmentJourney, admitted: Admitted) -> None:
        """Tell journey, observer and pool that a slot was had, for which the segment had waited since `asked`."""
        leased = time.monotonic()
        journey.waited_seconds += leased - asked
        journey.span.part("queue", asked, leased)
        if not journey.workers:
            self._observer.waited(journey.waited_seconds)
            self._pool.started(admitted, journey.characters)
        journey.workers.append(replica.id)

    def _note_fault(self, replica: Replica, attempt: _Attempt, journey: SegmentJourney, fault: WorkerFault) -> None:
        """Tell pool and observer of a failed try.

        Raises:
            TtsError: `worker_failed`, when it was the last one.
        """
        self._pool.failed(replica, fault.reason, fatal=fault.reason == "stalled")
        self._observer.retried(
            replica,
            attempt.request.request_id,
            mid_stream=attempt.audio.samples > 0,
            reason=fault.reason,
            detail=str(fault),
        )
        if journey.tries >= self._max_tries:
            raise TtsError(
                ErrorCode.WORKER_FAILED,
                f"A segment of this text failed {journey.tries} times; the last time: {fault}",
            ) from None

    def _backoff_seconds(self, attempt: int) -> float:
        """Exponential with full jitter, so that segments which failed together do not come back together."""
        return self._random.uniform(0, min(1.0, 0.05 * 2**attempt))

    async def _try(self, lease: Lease, attempt: _Attempt) -> None:
        replica, request = lease.replica, attempt.request
        started = time.monotonic()
        predicted = replica.pace.predict_seconds(len(request.text))
        stall_seconds = replica.pace.stall_seconds(len(request.text), self._stall_floor_seconds)
        attempt.resumed_at = attempt.audio.samples
        attempt.accepted_at = started
        clip = request.voice_sha256
        first_seconds = 0.0 if clip is None or clip in replica.warm_voices else NEW_VOICE_SECONDS
        try:
            async with patience(lease, stall_seconds, first_seconds) as progress:
                await self._stream_once_free(replica, attempt, progress)
        except (aiohttp.ClientError, ConnectionError, FrameError) as error:
            raise WorkerFault(_reason(error), f"{replica.id}: {type(error).__name__}: {error}") from None
        # From the acceptance: what a worker does once for a voice says nothing about its pace.
        seconds = time.monotonic() - attempt.accepted_at
        audio_seconds = (attempt.audio.samples - attempt.resumed_at) / attempt.sample_rate
        if attempt.resumed_at == 0:  # part of a segment says little about the pace of a whole one
            self._pool.spoke(replica, characters=len(request.text), seconds=seconds, audio_seconds=audio_seconds)
        self._observer.segment_done(replica, seconds=seconds, predicted_seconds=predicted, audio_seconds=audio_seconds)
        attempt.audio.finish()

    async def _stream_once_free(self, replica: Replica, attempt: _Attempt, progress: Callable[[], None]) -> None:
        # The slot is ours, but its last holder may have hung up this very moment: the worker then needs until its next
        # step to notice. Only a worker that stays full is full, with the work of another gateway.
        for pause in _FULL_PAUSES_SECONDS:
            try:
                return await self._stream(replica, attempt, progress)
            except WorkerRefused as refusal:
                if not refusal.is_full:
                    raise
                await asyncio.sleep(pause)
        return await self._stream(replica, attempt, progress)

    async def _stream(self, replica: Replica, attempt: _Attempt, progress: Callable[[], None]) -> None:
        host = f"[{replica.host}]" if ":" in replica.host else replica.host
        async with self._session.post(
            f"http://{host}:{replica.port}{headers.SEGMENTS_PATH}",
            json=attempt.request_now().to_json(),
            headers=self._headers | attempt.headers(replica),
            # A worker says where it is by where it calls from; it cannot send the gateway anywhere else.
            allow_redirects=False,
        ) as response:
            if response.status != 200:
                raise _refusal(replica, TtsError.from_envelope(await _json(response)))
            attempt.accepted_at = time.monotonic()
            reader = FrameReader()
            async for data in response.content.iter_any():
                progress()
                for frame in reader.feed(data):
                    if attempt.take(replica, frame):
                        return
        raise WorkerFault("cut", f"{replica.id}: the answer ended without its last frame")


@dataclass(slots=True)
class _Attempt:
    """What is known of a segment across its tries. One writer: the dispatch that owns it."""

    request: SegmentRequest
    audio: SegmentAudio
    sample_rate: int
    checkpoint: bytes = b""
    span: Span = NO_SPAN  # of the present try
    resumed_at: int = 0  # samples that were there when the present try began
    accepted_at: float = 0.0  # instant at which the present worker took it

    def wanted(self, standing: Standing, tried: frozenset[tuple[str, str]], *, may_be_preempted: bool) -> Wanted:
        """What the next try needs of a worker."""
        request = self.request
        characters, is_first = len(request.text), request.index == 0
        voice = request.voice_sha256 or request.voice  # as workers report those that they have warm
        return Wanted(
            request.model,
            voice,
            standing,
            characters,
            is_first,
            tried,
            may_be_preempted,
            request.request_id,
        )

    def request_now(self) -> SegmentRequest:
        """The request for the next worker: from the start, or from where the last one left off."""
        if self.audio.samples == 0:
            return self.request
        return replace(self.request, resume=Resume(self.checkpoint, self.audio.samples))

    def headers(self, replica: Replica) -> dict[str, str]:
        """What tells the worker that it is meant, and its log and traces whose segment it is."""
        names = {headers.REQUEST_ID: self.request.request_id, headers.EPOCH: replica.epoch}
        return names | ({tracing.HEADER: self.span.traceparent} if self.span.traceparent else {})

    def take(self, replica: Replica, frame: Frame) -> bool:
        """Take in one frame; return whether it was the last one.

        Raises:
            WorkerFault: an error frame, or audio of another sample rate than the voice was announced with.
            TtsError: the error is the caller's.
        """
        match frame.type:
            case FrameType.AUDIO:
                self.audio.write(frame.payload)
                limit = MAX_SECONDS + MAX_SECONDS_PER_CHARACTER * len(self.request.text)
                if self.audio.samples > limit * self.sample_rate:
                    raise WorkerFault("endless", f"{replica.id}: more than {limit:.0f} s of audio for one segment")
            case FrameType.CHECKPOINT:
                self.checkpoint = frame.payload
            case FrameType.META:
                rate = frame.json().get("sample_rate")
                if rate != self.sample_rate:
                    raise WorkerFault("wrong_rate", f"{replica.id}: speaks at {rate} Hz, announced {self.sample_rate}")
            case FrameType.ERROR:
                error = TtsError.from_envelope(frame.json())
                raise _owned(replica, error)
            case FrameType.DONE:
                samples, came = frame.json().get("samples"), self.audio.samples - self.resumed_at
                if samples != came:
                    raise WorkerFault("cut", f"{replica.id}: says {samples} samples, {came} came")
                return True
        return False


@contextmanager
def _traced(segment: SegmentJourney, attempt: _Attempt, replica: Replica) -> Iterator[None]:
    """Trace one try, however it ends."""
    attempt.span = segment.span.begin("try")
    error = "cancelled"
    try:
        yield
        error = ""
    except Exception as raised:
        error = raised.reason if isinstance(raised, WorkerFault) else type(raised).__name__
        raise
    finally:
        attempt.span.end({"worker": replica.id, "resumed_at_sample": attempt.resumed_at}, error=error)


async def _json(response: aiohttp.ClientResponse) -> object:
    """Return the body of a refusal as JSON, or a few words for one that is none, or too long for one."""
    data = b""
    while len(data) <= MAX_REFUSAL_BYTES and (more := await response.content.readany()):
        data += more
    try:
        return json.loads(data)
    except (ValueError, RecursionError):
        return f"HTTP {response.status}"


def _refusal(replica: Replica, error: TtsError) -> Exception:
    if error.code in (ErrorCode.WORKER_FULL, ErrorCode.WORKER_NOT_READY):
        return WorkerRefused(f"{replica.id}: {error.message}", is_full=error.code is ErrorCode.WORKER_FULL)
    return _owned(replica, error)


def _owned(replica: Replica, error: TtsError) -> Exception:
    """A worker's error belongs to the caller when no other worker could do better, else to the worker."""
    if error.code in _CALLERS_OWN:
        return error
    return WorkerFault("error", f"{replica.id}: {error.message}")


def _reason(error: Exception) -> str:
    match error:
        case aiohttp.ClientConnectorError():
            return "unreachable"
        case FrameError():
            return "bad_frames"
        case _:
            return "cut"
