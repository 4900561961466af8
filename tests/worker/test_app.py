"""The composition root: what a failure of the model or of the engine means for the process."""

import subprocess
import sys
from typing import Any

import aiohttp
import pytest

from tests.worker.harness import Client, config, eventually, gateway, segment
from wire.frames import FrameType
from wire.link import Command
from worker.app import Worker, build_model
from worker.config import MODELS, Address, Config, ToneOptions
from worker.models.tone import ToneModel


class Stubborn(ToneModel):
    def load(self) -> None:
        raise FileNotFoundError("no weights here")


class Mortal(ToneModel):
    def step(self, states: Any) -> Any:
        raise SystemExit("the end")


class Trapped(ToneModel):
    """Loads once."""

    loads = 0

    def load(self) -> None:
        self.loads += 1
        if self.loads > 1:
            raise OSError("the disk has gone")


class Counting(ToneModel):
    """Has memory for three segments, as it finds out while it loads."""

    def load(self) -> int:
        return 3


async def test_slots_are_what_the_model_has_memory_for_once_it_is_loaded() -> None:
    async with gateway() as peer, aiohttp.ClientSession() as http:
        settings = config(gateways=(Address("127.0.0.1", peer.port),), slots=None, batch=None)
        worker = Worker(settings, Counting(ToneOptions(stall_after_chunks=1)))
        await worker.start()
        await eventually(lambda: peer.states[-1:] == ["ready"] and peer.statuses[-1].slots == 3)
        client = Client(http, worker.port)
        assert await client.metric("tts_worker_engine_slots") == 3
        async with client.speaking(segment()) as one, client.speaking(segment()) as two, client.speaking(segment()):
            # They wait in the model, all of them: none in a line before it.
            for frames in (one, two):
                assert [(await anext(frames)).type for _ in "MA"] == [FrameType.META, FrameType.AUDIO]
            assert (await client.speak(segment())).status == 429
        worker.request_stop()
        await worker.wait_stopped()


async def test_a_model_that_does_not_load_ends_the_process_with_1_and_the_gateway_knows_why() -> None:
    async with gateway() as peer:
        settings = config(gateways=(Address("127.0.0.1", peer.port),))
        worker = Worker(settings, Stubborn(ToneOptions(load_seconds=0)))
        await worker.start()
        assert await worker.wait_stopped() == 1
        assert worker.report()["state"] == "failed"
        assert worker.report()["reason"] == "FileNotFoundError: no weights here"


async def test_a_model_that_does_not_load_again_ends_the_process_too() -> None:
    async with gateway() as peer:
        worker = Worker(config(gateways=(Address("127.0.0.1", peer.port),)), Trapped(ToneOptions()))
        await worker.start()
        await eventually(lambda: peer.states[-1:] == ["ready"])
        await peer.order(Command.UNLOAD)
        await peer.order(Command.LOAD)
        assert await worker.wait_stopped() == 1
        await eventually(lambda: peer.states[-1] == "failed")
        assert peer.statuses[-1].detail == "OSError: the disk has gone"


async def test_an_engine_that_dies_ends_the_process_with_1() -> None:
    worker = Worker(config(), Mortal(ToneOptions()))
    await worker.start()
    await eventually(lambda: worker.report()["state"] == "ready")
    async with aiohttp.ClientSession() as http:
        answer = await Client(http, worker.port).speak(segment())
    assert answer.kinds == "ME"
    assert await worker.wait_stopped() == 1
    assert "SystemExit" in worker.report()["reason"]


@pytest.mark.parametrize("model", MODELS)
def test_each_model_has_the_id_by_which_it_is_asked_for(model: str) -> None:
    assert build_model(Config(id="w", model=model)).info().id == model


def test_no_model_imports_anything_slow_before_it_is_loaded() -> None:
    """The import of torch takes ten seconds, and the listener opens when all models are made."""
    program = """
import sys
from worker.app import build_model
from worker.config import MODELS, Config
for model in MODELS:
    build_model(Config(id="w", model=model)).info()
print({"torch", "transformers", "hibari", "onnxruntime", "chatterbox"} & sys.modules.keys())
"""
    assert subprocess.check_output([sys.executable, "-c", program], text=True) == "set()\n"


async def test_a_model_whose_packages_are_missing_registers_and_fails_with_their_names() -> None:
    async with gateway() as peer:
        settings = config(model="chatterbox", gateways=(Address("127.0.0.1", peer.port),))
        worker = Worker(settings, build_model(settings))
        await worker.start()
        assert await worker.wait_stopped() == 1
        # The import fails in the engine's thread in no time: it may be over before the link is there.
        assert peer.hellos[0].state in ("loading", "failed")
        assert peer.states[-1] == "failed"
        assert "package torch, which is not installed here: pip install" in peer.statuses[-1].detail
