"""One segment against workers that fail in every way: it goes on elsewhere, and no sample is lost or doubled."""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
from collections.abc import AsyncIterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field

import aiohttp
import pytest

from gateway.assembler import SegmentAudio
from gateway.balancer import Policy
from gateway.dispatch import Dispatcher, SegmentJourney
from gateway.pool import Pool
from gateway.queue import Standing
from gateway.replica import Health, Replica
from tests.e2e.cluster import until
from tests.fakes.worker import BEGINS, Answer, Ending, FakeWorker, audio, checkpoint, done, error, meta, refuses, speaks
from tests.gateway.builders import Heard, pool, replica
from wire.errors import ErrorCode, TtsError
from wire.frames import encode_frame
from wire.segment import SegmentRequest

PCM = random.Random(1).randbytes(2 * 24_000)
REQUEST = SegmentRequest("call-7", 0, "Hello.", "tone", "alto", seed=5)
MAX_TRIES = 3
MOST_SECONDS = 20.0


class Hasty(random.Random):
    """The lot that falls so that no pause before another try lasts."""

    def uniform(self, a: float, b: float) -> float:
        return a


@dataclass
class Told:
    """The dispatcher's observer."""

    retries: list[tuple[str, str, bool]] = field(default_factory=list)  # worker, reason, in mid-stream
    spoken: list[tuple[str, float]] = field(default_factory=list)  # worker, seconds of audio

    def segment_done(self, replica: Replica, *, seconds: float, predicted_seconds: float, audio_seconds: float) -> None:
        self.spoken.append((replica.id, audio_seconds))

    def retried(self, replica: Replica, request_id: str, *, mid_stream: bool, reason: str, detail: str) -> None:
        assert request_id == "call-7"
        assert replica.id in detail
        self.retries.append((replica.id, reason, mid_stream))

    def waited(self, seconds: float) -> None: ...
    def preempted(self) -> None: ...

    def speaking(
        self, replica: Replica, request: SegmentRequest, audio: SegmentAudio, sample_rate: int
    ) -> AbstractContextManager[None]:
        return contextlib.nullcontext()


@dataclass
class House:
    """Workers a, b, … that are asked in this order, and the dispatcher before them."""

    workers: list[FakeWorker]
    members: list[Replica]
    pool: Pool
    heard: Heard
    told: Told
    dispatcher: Dispatcher
    audio: SegmentAudio = field(default_factory=SegmentAudio)

    async def speak(self, request: SegmentRequest = REQUEST) -> SegmentJourney:
        journey = SegmentJourney(len(request.text))
        with self.pool.admit("tone", "me", len(request.text)) as admitted:
            await self.dispatcher.speak(
                request,
                self.audio,
                journey,
                standing=Standing("me", unspoken_characters=len(request.text)),
                sample_rate=24_000,
                admitted=admitted,
                remaining_seconds=lambda: MOST_SECONDS,
            )
        return journey

    async def heard_audio(self) -> bytes:
        return b"".join([chunk async for chunk in self.audio.chunks()])

    async def is_whole(self) -> bool:
        return await self.heard_audio() == PCM

    def is_at_rest(self) -> bool:
        return self.pool.in_flight == 0 and self.pool.waiting == 0 and self.pool.backlog().waiting_characters == 0


@contextlib.asynccontextmanager
async def house(*answers: list[Answer], token: str = "", stall_seconds: float = 5.0) -> AsyncIterator[House]:
    async with contextlib.AsyncExitStack() as stack:
        workers = [await stack.enter_async_context(FakeWorker(script)) for script in answers]
        members = [replica(name) for name, _ in zip("abcd", workers, strict=False)]
        for member, worker in zip(members, workers, strict=True):
            member.port = worker.port
        session = await stack.enter_async_context(aiohttp.ClientSession(trust_env=False))
        heard, told = Heard(), Told()
        made = pool(*members, policy=Policy.ROUND_ROBIN, heard=heard)
        dispatcher = Dispatcher(
            made,
            session,
            told,
            token=token,
            max_tries=MAX_TRIES,
            stall_floor_seconds=stall_seconds,
            random=Hasty(),
        )
        yield House(workers, members, made, heard, told, dispatcher)


WELL = speaks(PCM)
HALF = len(PCM) // 2
HALFWAY = BEGINS.then(audio(PCM[:HALF]), checkpoint(b"after half"))
THE_REST = Answer(frames=(meta(), audio(PCM[HALF:]), done(len(PCM) // 2 - HALF // 2)))


async def test_a_segment_is_spoken_by_one_worker_and_told_what_it_was_asked():
    async with house([WELL], token="secret") as it:
        journey = await it.speak()
        assert await it.is_whole()
        assert (journey.workers, journey.tries) == (["a"], 1)
        assert it.workers[0].bodies == [REQUEST.to_json()]
        assert it.workers[0].headers[0]["Authorization"] == "Bearer secret"
        assert it.workers[0].headers[0]["X-Request-Id"] == "call-7"
        assert it.told.spoken == [("a", 1.0)]
        assert it.members[0].segments_spoken == 1
        assert it.is_at_rest()


async def test_without_a_token_none_is_sent():
    async with house([WELL]) as it:
        await it.speak()
        assert "Authorization" not in it.workers[0].headers[0]


@pytest.mark.parametrize("code", [ErrorCode.WORKER_FULL, ErrorCode.WORKER_NOT_READY])
async def test_a_worker_that_has_no_room_is_passed_by_and_has_not_failed(code: ErrorCode):
    async with house([refuses(code)], [WELL]) as it:
        journey = await it.speak()
        assert await it.is_whole()
        assert (journey.workers, journey.tries) == (["a", "b"], 1)
        assert it.told.retries == []
        assert it.members[0].consecutive_failures == 0
        assert it.is_at_rest()


async def test_a_fleet_that_refuses_everything_is_overloaded_in_the_end():
    async with house([refuses(ErrorCode.WORKER_FULL)]) as it:
        with pytest.raises(TtsError) as caught:
            await it.speak()
        assert caught.value.code is ErrorCode.OVERLOADED
        assert caught.value.retry_after_seconds
        assert it.members[0].consecutive_failures == 0
        assert it.is_at_rest()


# (how the first worker fails before any audio, the reason that is told)
EARLY = {
    "an error status": (refuses(ErrorCode.SEGMENT_FAILED), "error"),
    "a wrong token": (refuses(ErrorCode.UNAUTHORIZED), "error"),
    "a model it lost": (refuses(ErrorCode.MODEL_NOT_FOUND), "error"),
    "no envelope": (Answer(status=500), "error"),
    "an error frame": (BEGINS.then(error(ErrorCode.SEGMENT_FAILED)), "error"),
    "cut": (BEGINS.then(ending=Ending.CUT), "cut"),
    "no last frame": (BEGINS, "cut"),
    "nothing at all": (Answer(), "cut"),
    "another sample rate": (Answer(frames=(meta(16_000), audio(PCM), done(24_000))), "wrong_rate"),
    "no sample rate": (Answer(frames=(encode_frame(0x4D, {}), audio(PCM), done(24_000))), "wrong_rate"),  # type: ignore[arg-type]
    "half a sample": (Answer(frames=(meta(), b"A\0\0\0\x03abc", done(1))), "bad_frames"),
    "no frames": (Answer(frames=(b"<html>" * 100,)), "bad_frames"),
    "no JSON": (Answer(frames=(b"M\0\0\0\x01[",)), "bad_frames"),
    "a count without audio": (BEGINS.then(done(24_000)), "cut"),
}


@pytest.mark.parametrize(("first", "reason"), EARLY.values(), ids=EARLY.keys())
async def test_a_worker_that_fails_before_any_audio_is_not_noticed(first: Answer, reason: str):
    async with house([first], [WELL]) as it:
        journey = await it.speak()
        assert await it.is_whole()
        assert (journey.workers, journey.tries) == (["a", "b"], 2)
        assert it.told.retries == [("a", reason, False)]
        assert "resume" not in it.workers[1].bodies[0]
        assert (it.members[0].consecutive_failures, it.members[1].consecutive_failures) == (1, 0)
        assert it.is_at_rest()


# (how the first worker fails after half of the audio, the reason that is told)
LATE = {
    "an error frame": (HALFWAY.then(error(ErrorCode.SEGMENT_FAILED)), "error"),
    "cut": (HALFWAY.then(ending=Ending.CUT), "cut"),
    "no last frame": (HALFWAY, "cut"),
    "a wrong count": (HALFWAY.then(done(24_000)), "cut"),
    "no count": (HALFWAY.then(encode_frame(0x44, {})), "cut"),  # type: ignore[arg-type]
    "half a sample": (HALFWAY.then(b"A\0\0\0\x01a"), "bad_frames"),
    "a frame that is too long": (HALFWAY.then(b"A\xff\xff\xff\xff"), "bad_frames"),
}


@pytest.mark.parametrize(("first", "reason"), LATE.values(), ids=LATE.keys())
async def test_a_worker_that_fails_in_mid_stream_is_not_heard(first: Answer, reason: str):
    async with house([first], [THE_REST]) as it:
        journey = await it.speak()
        assert await it.is_whole()
        assert (journey.workers, journey.tries) == (["a", "b"], 2)
        assert it.told.retries == [("a", reason, True)]
        # The newest checkpoint, and all samples that were taken: the second goes on with the very next one.
        assert it.workers[1].bodies[0]["resume"] == {
            "checkpoint": "YWZ0ZXIgaGFsZg==",
            "delivered_samples": HALF // 2,
        }
        assert it.told.spoken == [("b", 0.5)]
        # Half a segment says nothing about the pace of a whole one.
        assert it.members[1].pace.observations == 0
        assert it.is_at_rest()


async def test_without_a_checkpoint_the_next_worker_is_told_the_samples_alone():
    async with house([BEGINS.then(audio(PCM[:HALF]))], [THE_REST]) as it:
        await it.speak()
        assert await it.is_whole()
        assert it.workers[1].bodies[0]["resume"] == {"checkpoint": "", "delivered_samples": HALF // 2}


async def test_a_third_worker_goes_on_where_the_second_failed():
    quarter = HALF + HALF // 2
    second = Answer(frames=(meta(), audio(PCM[HALF:quarter]), checkpoint(b"newer")))
    third = Answer(frames=(meta(), audio(PCM[quarter:]), done((len(PCM) - quarter) // 2)))
    async with house([HALFWAY], [second], [third]) as it:
        journey = await it.speak()
        assert await it.is_whole()
        assert (journey.workers, journey.tries) == (["a", "b", "c"], 3)
        assert it.workers[2].bodies[0]["resume"] == {"checkpoint": "bmV3ZXI=", "delivered_samples": quarter // 2}


@pytest.mark.parametrize("code", [ErrorCode.UNSPEAKABLE_TEXT, ErrorCode.INVALID_VALUE, ErrorCode.VOICE_NOT_FOUND])
@pytest.mark.parametrize("is_frame", [True, False], ids=["frame", "status"])
async def test_the_callers_own_error_is_told_at_once_and_is_no_workers_fault(code: ErrorCode, is_frame: bool):
    first = BEGINS.then(error(code)) if is_frame else refuses(code)
    async with house([first], [WELL]) as it:
        with pytest.raises(TtsError) as caught:
            await it.speak()
        assert (caught.value.code, caught.value.param) == (code, "text")
        assert it.workers[1].bodies == []
        assert it.told.retries == []
        assert it.members[0].consecutive_failures == 0
        assert it.is_at_rest()


async def test_when_all_fail_the_request_fails_after_so_many_tries():
    async with house([BEGINS], [BEGINS]) as it:
        with pytest.raises(TtsError) as caught:
            await it.speak()
        assert caught.value.code is ErrorCode.WORKER_FAILED
        assert str(MAX_TRIES) in caught.value.message
        assert sum(len(worker.bodies) for worker in it.workers) == MAX_TRIES
        # Everybody had a turn before anybody had a second.
        assert [worker for worker, *_ in it.told.retries][:2] == ["a", "b"]
        assert it.is_at_rest()


async def test_a_worker_that_does_not_listen_is_unreachable():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        nobody = taken.getsockname()[1]
    async with house([WELL], [WELL]) as it:
        it.members[0].port = nobody
        await it.speak()
        assert await it.is_whole()
        assert it.told.retries == [("a", "unreachable", False)]


async def test_a_worker_that_falls_silent_is_given_up_and_put_aside():
    async with house([HALFWAY.then(ending=Ending.HANG)], [THE_REST], stall_seconds=0.1) as it:
        await it.speak()
        assert await it.is_whole()
        assert it.told.retries == [("a", "stalled", True)]
        assert it.heard.ejections == [("a", "stalled")]
        assert it.members[0].health is Health.EJECTED

        async def hung_up() -> bool:
            return it.workers[0].in_flight == 0

        await until(hung_up, "the silent worker to be hung up on")


async def test_a_worker_whose_link_is_lost_is_left_at_once():
    """Long before its silence would tell."""
    async with house([HALFWAY.then(ending=Ending.HANG)], [THE_REST], stall_seconds=600.0) as it:
        speaking = asyncio.create_task(it.speak())

        async def begun() -> bool:
            return it.audio.samples > 0

        await until(begun, "the first half to be there")
        it.pool.lose(it.members[0], "the link was closed")
        async with asyncio.timeout(MOST_SECONDS):
            await speaking
        assert await it.is_whole()
        assert it.told.retries == [("a", "lost", True)]
        assert it.members[0].on_gone == set()
        assert it.is_at_rest()


async def test_a_caller_who_leaves_frees_the_worker_and_the_slot():
    async with house([HALFWAY.then(ending=Ending.HANG)], stall_seconds=600.0) as it:
        speaking = asyncio.create_task(it.speak())

        async def begun() -> bool:
            return it.audio.samples > 0

        await until(begun, "the first half to be there")
        speaking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await speaking
        assert it.is_at_rest()
        assert it.told.retries == []
        assert it.members[0].consecutive_failures == 0

        async def hung_up() -> bool:
            return it.workers[0].in_flight == 0

        await until(hung_up, "the worker to be hung up on")
