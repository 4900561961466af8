"""What clients get is listened to: every format, streamed and whole, says the text, at the right rate and length."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator

import numpy as np
import pytest
import pytest_asyncio

from gateway.voices.catalogue import OPENAI_VOICES
from tests.e2e.cluster import Cluster
from tests.e2e.ears import Ears, Recording, record, word_error_rate
from tests.e2e.texts import PARAGRAPH, SENTENCES

pytestmark = [pytest.mark.e2e, pytest.mark.asyncio(loop_scope="module")]

# Five sentences together fill one window of the recogniser; a sentence that is lost is a fifth of the words.
TEXTS = (*(" ".join(SENTENCES[n : n + 5]) for n in range(0, len(SENTENCES), 5)), PARAGRAPH)
WORST_ERROR_RATE = 0.10
SEED = 7
RATE = 24_000
VOICES = ("heart", "warm", "deep")

# form: (content type, codec, rate that the file decodes at)
LOSSLESS = {
    "wav": ("audio/wav", "pcm_s16le", RATE),
    "flac": ("audio/flac", "flac", RATE),
    "pcm": ("audio/pcm", "pcm_s16le", RATE),
}
LOSSY = {
    "mp3": ("audio/mpeg", ("mp3float", "mp3"), RATE),
    "opus": ("audio/ogg; codecs=opus", ("opus", "libopus"), 48_000),  # whatever went in, opus comes out at 48 kHz
    "aac": ("audio/aac", ("aac",), RATE),
}
# Codecs begin and end with whole frames; the worst is aac, with its priming and its last frame: 2 x 1024 samples.
PADDING_SECONDS = 0.1

streamed_and_whole = pytest.mark.parametrize("stream", [True, False], ids=["streamed", "whole"])


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def fleet(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Cluster]:
    async with Cluster(tmp_path_factory.mktemp("listening")) as made:
        await made.start_gateway()
        await made.start_workers(2, model="embedded")
        yield made


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def originals(fleet: Cluster) -> list[Recording]:
    """The samples of each text, to measure the other formats by."""
    answers = await speak_all(fleet, "pcm", stream=False)
    return [record(body, pcm_rate=RATE) for body in answers]


class Memory:
    """Ears that hear no sound twice: a whole file often has the very samples of one that was streamed."""

    def __init__(self, ears: Ears) -> None:
        self._ears = ears
        self._heard: dict[tuple[int, bytes], str] = {}

    def hear(self, recording: Recording) -> str:
        pcm = np.int16(np.clip(recording.sound, -1, 32767 / 32768) * 32768).tobytes()
        key = (recording.sample_rate, pcm)
        if key not in self._heard:
            self._heard[key] = self._ears.hear(pcm, pcm_rate=recording.sample_rate)
        return self._heard[key]


@pytest.fixture(scope="module")
def memory(ears: Ears) -> Memory:
    return Memory(ears)


async def speak_all(fleet: Cluster, form: str, *, stream: bool) -> list[bytes]:
    """Speak every text at once, so that both workers have a hand in each."""
    answers = await asyncio.gather(*(fleet.speak(text, format=form, stream=stream, seed=SEED) for text in TEXTS))
    assert [answer.status for answer in answers] == [200] * len(TEXTS)
    expected = (LOSSLESS | LOSSY)[form][0]
    assert [answer.headers["Content-Type"] for answer in answers] == [expected] * len(TEXTS)
    assert all(("Content-Length" in answer.headers) is not stream for answer in answers)
    return [answer.body for answer in answers]


def decoded(form: str, body: bytes) -> Recording:
    return record(body, pcm_rate=RATE if form == "pcm" else None)


async def test_the_speech_is_understood_whole(originals: list[Recording], memory: Memory):
    for text, original in zip(TEXTS, originals, strict=True):
        heard = memory.hear(original)
        assert word_error_rate(text, heard) <= WORST_ERROR_RATE, heard
        assert -30 < original.loudness_dbfs < -15
        assert original.longest_silence_seconds() < 1.0


@streamed_and_whole
@pytest.mark.parametrize("form", LOSSLESS)
async def test_a_lossless_format_has_the_very_samples(
    fleet: Cluster, originals: list[Recording], form: str, stream: bool
):
    _, codec, rate = LOSSLESS[form]
    for body, original in zip(await speak_all(fleet, form, stream=stream), originals, strict=True):
        recording = decoded(form, body)
        assert (recording.codec, recording.sample_rate) == (codec, rate)
        assert np.array_equal(recording.sound, original.sound)


@streamed_and_whole
@pytest.mark.parametrize("form", LOSSY)
async def test_a_lossy_format_is_understood_and_as_long(
    fleet: Cluster, originals: list[Recording], memory: Memory, form: str, stream: bool
):
    _, codecs, rate = LOSSY[form]
    for text, body, original in zip(TEXTS, await speak_all(fleet, form, stream=stream), originals, strict=True):
        recording = decoded(form, body)
        assert recording.codec in codecs
        assert recording.sample_rate == rate
        assert abs(recording.seconds - original.seconds) <= PADDING_SECONDS
        assert abs(recording.loudness_dbfs - original.loudness_dbfs) < 1.5
        heard = memory.hear(recording)
        assert word_error_rate(text, heard) <= WORST_ERROR_RATE, heard


async def test_every_voice_is_understood_and_none_is_another(fleet: Cluster, ears: Ears):
    text = TEXTS[0]
    answers = await asyncio.gather(*(fleet.speak(text, voice=name, format="mp3", seed=SEED) for name in VOICES))
    assert [answer.headers["X-TTS-Voice"] for answer in answers] == list(VOICES)
    for answer in answers:
        heard = ears.hear(answer.body)
        assert word_error_rate(text, heard) <= WORST_ERROR_RATE, heard
    assert len({answer.body for answer in answers}) == len(VOICES)
    listed = (await fleet.listed())[0]["warm_voices"]
    assert sorted(listed) == sorted(VOICES)


async def test_a_name_of_openais_is_one_of_the_voices(fleet: Cluster, ears: Ears):
    text = TEXTS[1]
    voice = VOICES[OPENAI_VOICES.index("nova") % len(VOICES)]
    body = {"model": "tts-1", "input": text, "voice": "nova", "response_format": "wav", "seed": SEED}
    answer = await fleet.post("/v1/audio/speech", body)
    assert (answer.status, answer.headers["X-TTS-Voice"]) == (200, voice)
    is_that_voice = answer.body == (await fleet.speak(text, voice=voice, format="wav", seed=SEED)).body
    assert is_that_voice
    heard = ears.hear(answer.body)
    assert word_error_rate(text, heard) <= WORST_ERROR_RATE, heard


@pytest.mark.parametrize("form", ["mp3", "opus"])
async def test_the_pieces_of_an_event_stream_are_one_file(
    fleet: Cluster, originals: list[Recording], ears: Ears, form: str
):
    body = {"input": PARAGRAPH, "response_format": form, "stream_format": "sse", "seed": SEED}
    answer = await fleet.post("/v1/audio/speech", body)
    assert (answer.status, answer.headers["Content-Type"]) == (200, "text/event-stream")
    lines = [line.removeprefix(b"data: ") for line in answer.body.split(b"\n\n") if line]
    assert lines.pop() == b"[DONE]"
    *deltas, done = map(json.loads, lines)
    assert done["type"] == "speech.audio.done"
    assert {delta["type"] for delta in deltas} == {"speech.audio.delta"}
    assert len(deltas) > 3
    audio = b"".join(base64.b64decode(delta["audio"]) for delta in deltas)
    recording = record(audio)
    assert recording.codec in LOSSY[form][1]
    assert recording.sample_rate == LOSSY[form][2]
    assert abs(recording.seconds - originals[-1].seconds) <= PADDING_SECONDS
    assert done["usage"]["output_tokens"] == round(originals[-1].seconds * 25)
    heard = ears.hear(audio)
    assert word_error_rate(PARAGRAPH, heard) <= WORST_ERROR_RATE, heard


async def test_all_of_it_was_spoken_by_both_workers(fleet: Cluster, originals: list[Recording]):
    """Runs last: what was heard above was put together from two processes."""
    spoken = [worker["segments_spoken"] for worker in await fleet.listed()]
    assert len(spoken) == 2
    assert min(spoken) > 0.25 * sum(spoken)
