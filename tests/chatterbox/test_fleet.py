"""The three models behind one gateway, as processes; and the death of one that is being listened to."""

import asyncio
from pathlib import Path

import aiohttp
import pytest

from tests.chatterbox.conftest import Checkpoints
from tests.chatterbox.speaking import ALL, clip, distance, samples, wav
from tests.e2e.cluster import Cluster, until
from worker.models.chatterbox.family import ENGLISH, FAMILIES
from worker.models.chatterbox.tiny import make

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(900)]

LONG = (
    "A sentence that goes on for quite a while, and then for some more, to be still running when its "
    "worker dies and another one has to go on with it, which nobody who listens to it can ever hear."
)


@pytest.fixture
async def cluster(tmp_path: Path):
    async with Cluster(tmp_path) as made:
        yield made


async def wait_ready(cluster: Cluster, count: int) -> None:
    """Wait until so many workers are ready; on a busy machine the import of torch alone takes each a minute."""

    async def ready() -> bool:
        return sum(worker["state"] == "ready" for worker in await cluster.listed()) == count

    await until(ready, f"{count} workers to be ready", patience_seconds=600)


async def test_three_models_in_one_fleet(cluster: Cluster, checkpoint: Checkpoints) -> None:
    await cluster.start_gateway("--data-directory", str(cluster.directory / "data"))
    for model in ALL:
        await cluster.start_worker("--checkpoint", str(checkpoint(model)), model=model)
    await wait_ready(cluster, 3)
    async with cluster.session.get(f"{cluster.url}/v1/models") as response:
        models = {model["id"]: model for model in (await response.json())["data"]}
    assert set(ALL) <= models.keys()
    for model in ALL:
        assert models[model]["cloning"] is True
        assert models[model]["languages"] == list(FAMILIES[model].languages)
        assert models[model]["parameters"] == list(FAMILIES[model].parameters)
    requests = [
        {"text": text, "model": model, "format": "pcm", "seed": seed}
        for model in ALL
        for seed, text in ((1, "Hello there."), (2, "Good night."))
    ]
    together = await asyncio.gather(*(cluster.speak(**request) for request in requests))
    for request, answer in zip(requests, together, strict=True):
        assert (answer.status, answer.headers["X-TTS-Model"]) == (200, request["model"])
        assert answer.headers["X-TTS-Watermark"] == "perth"
        assert samples(answer.body).any()
    for request, answer in list(zip(requests, together, strict=True))[::2]:
        alone = await cluster.speak(**request)
        assert distance(samples(alone.body), samples(answer.body)) < 1e-5
    await check_a_cloned_voice(cluster, {answer.body for answer in together})
    ignored = await cluster.speak("Hello.", model="chatterbox-turbo", exaggeration=0.7, format="pcm")
    assert ignored.headers["X-TTS-Ignored-Fields"] == "exaggeration"


async def check_a_cloned_voice(cluster: Cluster, others: set[bytes]) -> None:
    """Upload a recording and have all three models speak with its voice, twice the same and as nobody else."""
    form = aiohttp.FormData()
    form.add_field("name", "Anna")
    form.add_field("audio_sample", wav(clip(seconds=15.5)), filename="anna.wav", content_type="audio/wav")
    async with cluster.session.post(f"{cluster.url}/v1/voices", data=form) as response:
        assert response.status in (200, 201), await response.text()
        voice = (await response.json())["id"]
    for model in ALL:
        request = {"text": "Hello there.", "model": model, "format": "pcm", "seed": 1, "voice": voice}
        first, second = [await cluster.speak(**request) for _ in range(2)]
        assert (first.status, first.headers["X-TTS-Voice"]) == (200, voice)
        assert distance(samples(second.body), samples(first.body)) < 1e-5
        assert first.body not in others


async def test_a_worker_killed_mid_stream_is_not_heard(cluster: Cluster, tmp_path: Path) -> None:
    make(tmp_path / "weights", ENGLISH, end_at=200)
    # The first sound comes when all tokens are there; a machine with much else to do may take a minute for that.
    await cluster.start_gateway("--segments", "whole", "--stall-timeout", "120")
    for _ in range(2):
        await cluster.start_worker("--checkpoint", str(tmp_path / "weights"), model="chatterbox")
    await wait_ready(cluster, 2)
    undisturbed = await cluster.speak(LONG, format="pcm", seed=3)
    assert undisturbed.status == 200, undisturbed.body
    heard = bytearray()
    async with cluster.streaming(LONG, format="pcm", seed=3) as response:
        heard += await response.content.readexactly(4800)
        busy = next(worker["id"] for worker in await cluster.listed() if worker["in_flight"])
        await cluster.workers[busy].kill()
        heard += await response.content.read()
    assert distance(samples(bytes(heard)), samples(undisturbed.body)) < 1e-4
    assert await cluster.metric("tts_failovers_total") >= 1
