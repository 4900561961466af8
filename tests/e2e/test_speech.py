"""A text goes in, and exactly that text comes out, however many workers had a hand in it."""

import asyncio
import random
import unicodedata

import pytest

from tests.e2e.cluster import Cluster, until
from worker.models.tone import decode

pytestmark = pytest.mark.e2e

LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789äöüßéñçΩжшяあ漢字한אبक"
SIGNS = [
    ". ",
    "! ",
    "? ",
    ", ",
    "; ",
    ": ",
    " — ",
    " ",
    " ",
    " ",
    " ",
    " ",
    " ",
    "\n",
    "\n\n",
    "… ",
    ".",
    "-",
    "'",
    ") ",
    " (",
]


def random_text(chance: random.Random) -> str:
    """Words and signs of all kinds; lengths from a greeting to a page."""
    length = round(min(4000, max(3, chance.lognormvariate(4.8, 1.1))))
    text = chance.choice(LETTERS)
    while len(text) < length:
        word = "".join(chance.choices(LETTERS, k=chance.choice([1, 2, 3, 4, 5, 6, 7, 8, 30])))
        text += word + chance.choice(SIGNS)
    return text[:length]


def bare(text: str) -> str:
    """The characters that must be heard: everything but blanks."""
    return "".join(unicodedata.normalize("NFC", text).split())


async def test_every_character_comes_back_once_and_in_order(cluster: Cluster):
    await cluster.start_gateway()
    await cluster.start_workers(4)
    chance = random.Random(20261121)
    texts = [random_text(chance) for _ in range(2000)]
    lanes = asyncio.Semaphore(24)
    wrong: list[str] = []

    async def check(text: str) -> None:
        async with lanes:
            answer = await cluster.speak(text, format="pcm")
        if answer.status != 200 or bare(decode(answer.body)) != bare(text):
            wrong.append(f"{answer.status} {text[:60]!r}")

    await asyncio.gather(*map(check, texts))
    assert wrong == []
    spoken = {worker["id"]: worker["segments_spoken"] for worker in await cluster.listed()}
    assert sum(spoken.values()) > 2000
    assert min(spoken.values()) > 0.15 * sum(spoken.values()), f"one worker was left out: {spoken}"
    await cluster.wait_idle()


async def test_a_long_text_is_spoken_by_all_workers_at_once(cluster: Cluster):
    await cluster.start_gateway()
    await cluster.start_workers(3, "--slots", "1", "--tone-realtime-factor", "0.01")
    text = "The quick brown fox jumps over the lazy dog. " * 60
    answer = await cluster.speak(text, format="pcm")
    assert bare(decode(answer.body)) == bare(text)
    assert all(worker["segments_spoken"] >= 2 for worker in await cluster.listed())


async def test_a_pause_is_exactly_as_long_as_it_says(cluster: Cluster):
    await cluster.start_gateway()
    await cluster.start_workers(1)
    with_pause = await cluster.speak("One. [pause:1.5s] Two.", format="pcm")
    assert decode(with_pause.body) == "One.Two."
    spoken = len("One.Two.") * 1600
    assert len(with_pause.body) // 2 == spoken + 36_000
    assert with_pause.body[2 * 4 * 1600 :][: 2 * 36_000] == bytes(2 * 36_000)


async def test_the_same_seed_gives_the_same_audio_and_is_told_when_it_was_random(cluster: Cluster):
    await cluster.start_gateway()
    await cluster.start_worker(model="embedded")
    await cluster.start_worker(model="embedded")
    await cluster.wait_ready(2)
    text = "The birch canoe slid on the smooth planks. Glue the sheet to the dark blue background. " * 4
    first = await cluster.speak(text, format="pcm")
    again = await cluster.speak(text, format="pcm", seed=int(first.headers["X-TTS-Seed"]))
    assert again.body == first.body
    assert again.headers["X-TTS-Seed"] == first.headers["X-TTS-Seed"]


async def test_speed_changes_how_long_the_audio_is_and_nothing_else(cluster: Cluster):
    await cluster.start_gateway()
    await cluster.start_workers(2)
    for speed in (0.25, 0.5, 1.0, 2.0, 4.0):
        answer = await cluster.speak("All the same words. " * 30, format="pcm", speed=speed)
        assert decode(answer.body, speed) == ("All the same words. " * 30).replace(". A", ".A").strip() or bare(
            decode(answer.body, speed)
        ) == bare("All the same words. " * 30)


async def test_headers_tell_who_spoke(cluster: Cluster):
    await cluster.start_gateway()
    await cluster.start_workers(1)
    async with cluster.session.post(
        cluster.url + "/v1/tts", json={"text": "Hello.", "voice": "nova"}, headers={"X-Request-Id": "call-7"}
    ) as response:
        assert response.status == 200
        assert response.headers["X-Request-Id"] == "call-7"
        assert response.headers["X-TTS-Model"] == "tone"
        assert response.headers["X-TTS-Voice"] in ("alto", "tenor", "bass")
        assert response.headers["X-Accel-Buffering"] == "no"
        assert response.headers["Content-Type"] == "audio/wav"


async def test_a_request_leaves_one_log_line_without_its_text(cluster: Cluster):
    gateway = await cluster.start_gateway("--log-level", "debug")
    await cluster.start_workers(1)
    answer = await cluster.speak("A secret of some length.")

    async def logged() -> list[str]:
        return [line for line in gateway.log_text().splitlines() if "outcome=ok" in line]

    [line] = await until(logged, "the log line")
    assert f"request_id={answer.headers['X-Request-Id']}" in line
    assert "workers=w0" in line
    assert "secret" not in gateway.log_text()


async def test_a_wav_stream_begins_with_its_whole_header(cluster: Cluster):
    await cluster.start_gateway()
    await cluster.start_workers(1)
    async with cluster.streaming("Hello there, this is streamed.") as response:
        first = await response.content.readany()
        assert first[:4] == b"RIFF"
        assert len(first) > 44
        assert first[40:44] == b"\xff\xff\xff\xff"


async def test_a_request_that_is_not_streamed_has_a_length_and_true_sizes(cluster: Cluster):
    await cluster.start_gateway()
    await cluster.start_workers(1)
    answer = await cluster.speak("Hello there.", stream=False)
    assert int(answer.headers["Content-Length"]) == len(answer.body)
    assert int.from_bytes(answer.body[40:44], "little") == len(answer.body) - 44
    assert decode(answer.body[44:]) == "Hello there."
