import asyncio
import json
import time

import pytest

from bench.client import Api, SpeechClient, Target, open_session
from bench.journey import Journey, Problem, ProblemKind
from tests.bench.waiting import until
from tests.fakes.speech_server import Script, SpeechServer
from wire.errors import ErrorCode
from wire.segment import SegmentRequest

TEXT = "A sentence to speak."


async def speak(server: SpeechServer, api: Api = Api.TTS, **options: object) -> Journey:
    """Speak `TEXT` once and return its journey."""
    origin = time.monotonic()
    target = Target(url=server.url, api=api, **options)  # type: ignore[arg-type]
    journey = Journey(7, len(TEXT), due_at=0.0)
    async with open_session() as session:
        await SpeechClient(session, target, lambda: time.monotonic() - origin).speak(journey, TEXT)
    return journey


WAYS = [
    (Api.TTS, "pcm", "audio"),
    (Api.TTS, "wav", "audio"),
    (Api.OPENAI, "pcm", "audio"),
    (Api.OPENAI, "wav", "audio"),
    (Api.OPENAI, "pcm", "sse"),
    (Api.OPENAI, "wav", "sse"),
    (Api.SEGMENTS, "pcm", "audio"),
]


@pytest.mark.parametrize(("api", "format_", "stream_format"), WAYS)
async def test_audio_is_measured_in_each_way_to_ask_for_it(api: Api, format_: str, stream_format: str) -> None:
    # The script's pauses are half a second and more beyond what is asserted of them.
    script = Script(first_byte_seconds=0.5, chunks=3, chunk_audio_seconds=0.25, interval_seconds=0.75)
    async with SpeechServer(script) as server:
        journey = await speak(server, api, format=format_, stream_format=stream_format, model="m", voice="v")
    assert journey.problem is None
    assert journey.is_ok
    assert journey.audio_seconds == pytest.approx(0.75)
    assert journey.audio_bytes == 36_000
    assert journey.ttfa_seconds is not None
    assert journey.completion_seconds is not None
    assert journey.ttfa_seconds >= 0.5
    assert journey.completion_seconds - journey.ttfa_seconds >= 1.0
    assert journey.stalls == 2
    assert journey.recording is None


async def test_a_wav_header_that_is_early_is_no_audio() -> None:
    async with SpeechServer(Script(stall_after_chunks=0, stall_seconds=0.5)) as server:
        journey = await speak(server, format="wav")
    assert journey.ttfa_seconds is not None
    assert journey.ttfa_seconds >= 0.5


async def test_a_stall_is_heard_unless_audio_is_in_hand() -> None:
    script = Script(chunks=4, chunk_audio_seconds=0.5, stall_after_chunks=3, stall_seconds=3.0)
    async with SpeechServer(script) as server:
        at_once = await speak(server)
        patient = await speak(server, prebuffer_seconds=2.0)
    assert at_once.stalls == 1
    assert at_once.stall_seconds is not None
    assert at_once.stall_seconds >= 1.0
    assert (patient.stalls, patient.stall_seconds) == (0, 0.0)


async def test_each_api_is_asked_in_its_own_words() -> None:
    async with SpeechServer() as server:
        for api in Api:
            await speak(server, api, model="m", voice="v", token="secret", seed=3)
        await speak(server)
    native, openai, segment, bare = server.requests
    assert native.path == "/v1/tts"
    assert native.body | {"seed": 0} == {"text": TEXT, "format": "pcm", "model": "m", "voice": "v", "seed": 0}
    assert openai.path == "/v1/audio/speech"
    assert openai.body == {
        "input": TEXT,
        "response_format": "pcm",
        "stream_format": "audio",
        "model": "m",
        "voice": "v",
    }
    assert segment.path == "/v1/segments"
    assert SegmentRequest.from_json(segment.body).text == TEXT
    assert segment.body["seed"] == native.body["seed"]
    assert {received.headers["Authorization"] for received in (native, openai, segment)} == {"Bearer secret"}
    assert "Authorization" not in bare.headers
    assert set(bare.body) == {"text", "format", "seed"}


@pytest.mark.parametrize(
    ("api", "stream_format", "script", "problem"),
    [
        (Api.TTS, "audio", Script(refuse=ErrorCode.OVERLOADED), Problem(ProblemKind.REFUSED, 503, "overloaded")),
        (Api.SEGMENTS, "audio", Script(refuse=ErrorCode.WORKER_FULL), Problem(ProblemKind.REFUSED, 429, "worker_full")),
        (Api.TTS, "audio", Script(cut_after_chunks=2), Problem(ProblemKind.TRUNCATED, 200, "ClientPayloadError")),
        (Api.SEGMENTS, "audio", Script(cut_after_chunks=1), Problem(ProblemKind.TRUNCATED, 200, "ClientPayloadError")),
        (Api.TTS, "audio", Script(half_a_sample=True), Problem(ProblemKind.TRUNCATED, 200, "half_a_sample")),
        (Api.TTS, "audio", Script(chunks=0), Problem(ProblemKind.SILENT, 200)),
        (Api.OPENAI, "sse", Script(fail_after_chunks=1), Problem(ProblemKind.FAILED, 200, "worker_failed")),
        (Api.SEGMENTS, "audio", Script(fail_after_chunks=1), Problem(ProblemKind.FAILED, 200, "segment_failed")),
    ],
)
async def test_failures_are_told_apart(api: Api, stream_format: str, script: Script, problem: Problem) -> None:
    async with SpeechServer(script) as server:
        journey = await speak(server, api, stream_format=stream_format)
    assert journey.problem == problem
    assert not journey.is_ok
    assert journey.finished_at is not None


async def test_an_answer_that_takes_too_long_is_given_up() -> None:
    async with SpeechServer(Script(chunks=2, stall_after_chunks=1, stall_seconds=60)) as server:
        late = await speak(server, timeout_seconds=0.5)
    assert late.problem == Problem(ProblemKind.TIMEOUT, 200)
    assert late.first_audio_at is not None


async def test_a_service_that_is_not_there_is_unreachable() -> None:
    async with SpeechServer() as server:
        pass
    journey = await speak(server)
    assert journey.problem == Problem(ProblemKind.UNREACHABLE, None, "ClientConnectorError")


async def test_an_answer_that_is_no_json_is_refused_without_a_code() -> None:
    async with SpeechServer() as server:
        server.url += "/nowhere"
        journey = await speak(server)
    assert journey.problem == Problem(ProblemKind.REFUSED, 404, "")


async def test_a_cancelled_request_hangs_up_and_says_so() -> None:
    async with SpeechServer(Script(first_byte_seconds=60)) as server:
        target, journey = Target(url=server.url, api=Api.TTS), Journey(0, len(TEXT), due_at=0.0)
        async with open_session() as session:
            task = asyncio.create_task(SpeechClient(session, target, time.monotonic).speak(journey, TEXT))
            await until(lambda: server.in_flight)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            await until(lambda: not server.in_flight)
    assert journey.problem == Problem(ProblemKind.CANCELLED)


async def test_no_proxy_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    async with SpeechServer() as server:
        assert (await speak(server)).is_ok


def test_requests_differ_by_seed_and_are_the_same_again() -> None:
    one, other = (Target(url="", api=Api.TTS, seed=seed) for seed in (1, 2))
    assert one.body(0, TEXT) == one.body(0, TEXT)
    assert len({json.dumps(target.body(index, TEXT)) for target in (one, other) for index in range(5)}) == 10
