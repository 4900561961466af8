"""A worker with a random checkpoint: hang-ups in both stages, what /health and /metrics say, loading and unloading."""

import asyncio
import dataclasses
import re
from pathlib import Path

import pytest

from tests.chatterbox.conftest import Checkpoints
from tests.chatterbox.speaking import segment
from tests.worker.harness import eventually, process, running
from wire.frames import FrameType
from worker.app import Worker
from worker.config import ChatterboxOptions, Config
from worker.models.chatterbox.family import ENGLISH
from worker.models.chatterbox.model import CHUNK_TOKENS
from worker.models.chatterbox.tiny import make

# Long enough not to be too long for the guards.
LONG = (
    "A sentence that goes on for quite a while, and then for some more, to be still running when its "
    "listener has left and nobody is there to hear the rest of it any more, which is what this is for."
)


def config(directory: Path, **options: object) -> Config:
    chatterbox = ChatterboxOptions(checkpoint=str(directory), precision="fp32", **options)  # type: ignore[arg-type]
    return Config(id="worker-0", model="chatterbox", port=0, slots=2, batch=2, chatterbox=chatterbox)


@pytest.fixture(scope="module")
def long_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("long")
    make(directory, ENGLISH, end_at=500)
    return directory


def total(worker: Worker, name: str) -> float:
    """Return a counter of this very moment: a scrape over HTTP would be some steps late."""
    found = re.search(rf"^{name}_total (\S+)$", worker._metrics.expose().decode(), re.MULTILINE)
    assert found, f"{name} is not among the metrics"
    return float(found[1])


async def made_after_the_hang_up(worker: Worker, name: str) -> float:
    """Return what a counter grew by from the moment in which the worker saw the hang-up until nothing ran."""
    await eventually(lambda: worker.report()["slots_held"] == 0, "the hang-up to be seen")
    seen = total(worker, name)
    await eventually(lambda: worker.report()["in_flight"] == 0, "the sequence to be let go")
    return total(worker, name) - seen


async def test_a_hang_up_stops_the_tokens_within_a_chunk(long_checkpoint: Path) -> None:
    async with running(config(long_checkpoint)) as (worker, client):
        async with client.speaking(segment("chatterbox", LONG)) as frames:
            assert (await anext(frames)).type is FrameType.META
            before = total(worker, "tts_worker_tokens")
            await eventually(lambda: total(worker, "tts_worker_tokens") > before + 30, "tokens")
        assert await made_after_the_hang_up(worker, "tts_worker_tokens") <= CHUNK_TOKENS
        # It ended because of the hang-up, and not because it had made all of its 500.
        assert total(worker, "tts_worker_tokens") < before + 500


async def test_a_hang_up_stops_the_sound_within_a_piece(long_checkpoint: Path) -> None:
    async with running(config(long_checkpoint)) as (worker, client):
        async with client.speaking(segment("chatterbox", LONG)) as frames:
            async for frame in frames:
                if frame.type is FrameType.AUDIO:
                    break
        # 500 tokens are 20 seconds, in pieces of two.
        assert await made_after_the_hang_up(worker, "tts_worker_audio_seconds") <= 2
        assert total(worker, "tts_worker_audio_seconds") < 15


async def test_health_metrics_and_a_second_life(checkpoint: Checkpoints) -> None:
    async with running(config(checkpoint("chatterbox"))) as (worker, client):
        health = await client.health()
        assert health["settings"]["precision"] == "fp32"
        assert health["settings"]["watermark"] == "perth"
        assert health["versions"]["torch"].startswith("2.13.0")
        first = await client.speak(segment("chatterbox"))
        assert first.kinds.endswith("D")
        assert await client.metric('tts_worker_stage_seconds_total{stage="vocode"}') > 0
        assert await client.metric('tts_worker_stage_seconds_total{stage="watermark"}') > 0
        assert await client.metric('tts_worker_guards_total{guard="no_end"}') == 0
        await worker._engine.unload()
        await worker._engine.load()
        assert (await client.speak(segment("chatterbox"))).pcm == first.pcm


async def test_a_worker_on_two_devices_is_one_worker_with_both_in_its_name(checkpoint: Checkpoints) -> None:
    settings = dataclasses.replace(config(checkpoint("chatterbox")), device="cpu,cpu", split=("cpu", "cpu"))
    async with running(settings) as (worker, client):
        health = await client.health()
        assert (health["device"], health["slots"]) == ("cpu,cpu", 2)
        assert worker._hello().split == ("cpu", "cpu")
        assert (await client.speak(segment("chatterbox"))).kinds.endswith("D")
        assert await client.metric("tts_worker_stage_overlap_seconds_total") >= 0
        assert 0 <= await client.metric("tts_worker_stage_overlap_ratio") < 1


async def test_what_is_missing_is_named_with_the_place_that_was_looked_in(tmp_path: Path) -> None:
    (tmp_path / "conds.pt").touch()
    # A process: a worker that cannot load its model says why and ends, before anybody could be sure to ask it.
    async with process("--model", "chatterbox", "--checkpoint", str(tmp_path), ready=False) as worker:
        assert await worker.wait_exit() != 0
        log = worker.read_log()
    for word in (str(tmp_path), "ve.safetensors", "t3_cfg.safetensors", "s3gen.safetensors", "tokenizer.json"):
        assert word in log
    assert "lacks conds.pt" not in log


async def test_two_at_once_sound_as_each_alone(checkpoint: Checkpoints) -> None:
    async with running(config(checkpoint("chatterbox"))) as (_, client):
        requests = [segment("chatterbox", text, seed=seed) for seed, text in enumerate(("Hello there.", "Good night."))]
        together = await asyncio.gather(*map(client.speak, requests))
        for request, answer in zip(requests, together, strict=True):
            assert (await client.speak(request)).pcm == answer.pcm
