"""A gateway and workers with a model of choice, as processes, for benchmarks of what listeners get."""

from __future__ import annotations

import argparse
import math
import shlex
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory

from bench.client import Api, SpeechClient, Target, open_session
from bench.errors import OptionError
from bench.fleet import Fleet, FleetError, Gateway
from bench.journey import Journey
from bench.services import NEVER_STALLED, PATIENT
from bench.torch_extra import need_torch
from bench.trace import fixed_texts

MODELS = ("tone", "chatterbox", "chatterbox-turbo")
SIZES = ("tiny", "full")
LONGEST_CHARACTERS = 200
_SHORTEST_CHARACTERS = 12
# People speak 25 tokens and some 15 characters a second; and the worker's guards refuse far more and far fewer.
_TOKENS_A_CHARACTER = 0.6
# A full checkpoint takes torch a minute to import and load on a busy machine.
_LOAD_SECONDS = 600.0
_OUR_WORKER = ("worker",)


@dataclass(frozen=True, slots=True)
class Speaker:
    """What the workers speak with. A Chatterbox model without a `checkpoint` gets one of random weights."""

    model: str
    checkpoint: Path | None
    size: str
    characters: int
    worker_options: tuple[str, ...]

    def options(self) -> tuple[str, ...]:
        """Return the options of a worker, but for where it runs."""
        weights = () if self.checkpoint is None else ("--checkpoint", str(self.checkpoint))
        return (*weights, *self.worker_options)


def add_speaker_arguments(parser: argparse.ArgumentParser, *, model: str) -> None:
    """Declare the options that `read_speaker` reads; `model` is the default."""
    add = parser.add_argument
    add("--model", choices=MODELS, default=model, help=f"default: {model}")
    add("--checkpoint", type=Path, metavar="DIR", help="weights of a Chatterbox model (default: random ones)")
    add("--size", choices=SIZES, default="tiny", help="of random weights (default: tiny)")
    add("--characters", type=int, default=60, metavar="N", help="of a text (default: 60)")
    add("--worker-options", default="", metavar="OPTIONS", help="of tts-worker, in one argument (default: none)")


def read_speaker(arguments: argparse.Namespace, subcommand: str) -> Speaker:
    """Return what the workers speak with.

    Raises:
        OptionError: an option is impossible, or torch is needed and not there.
    """
    if not _SHORTEST_CHARACTERS <= arguments.characters <= LONGEST_CHARACTERS:
        raise OptionError(
            f"--characters must be from {_SHORTEST_CHARACTERS} to {LONGEST_CHARACTERS}, not {arguments.characters}"
        )
    if arguments.model == "tone":
        if arguments.checkpoint is not None:
            raise OptionError("--checkpoint is used with a Chatterbox --model, not with tone")
    else:
        need_torch(subcommand)
    if arguments.checkpoint is not None and not arguments.checkpoint.is_dir():
        raise OptionError(f"--checkpoint: {arguments.checkpoint} is no directory")
    options = tuple(shlex.split(arguments.worker_options))
    return Speaker(arguments.model, arguments.checkpoint, arguments.size, arguments.characters, options)


def with_weights(speaker: Speaker, folder: Path) -> Speaker:
    """Return the speaker with a checkpoint: its own, or random weights that are written to `folder`.

    Blocks for as long as that takes: half a minute for the published size.
    """
    if speaker.model == "tone" or speaker.checkpoint is not None:
        return speaker
    tokens = math.ceil(speaker.characters * _TOKENS_A_CHARACTER)
    # Turbo counts the text in.
    end_at = tokens + (speaker.characters if speaker.model == "chatterbox-turbo" else 0)
    directory = folder / "weights"
    command = ("make-tiny-checkpoint", str(directory), "--model", speaker.model, "--size", speaker.size)
    made = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "worker", *command, "--end-at", str(end_at)],
        capture_output=True,
        text=True,
        check=False,
    )
    if made.returncode:
        raise FleetError(f"no random weights could be made:\n{made.stderr[-2000:]}")
    return replace(speaker, checkpoint=directory)


def texts_for(speaker: Speaker, count: int, seed: int) -> list[str]:
    """Return so many texts of the speaker's length; one seed, the same texts."""
    return list(islice(fixed_texts(seed, speaker.characters), count))


@dataclass(frozen=True, slots=True)
class Service:
    """A gateway whose workers are ready. `pids` are the workers'."""

    fleet: Fleet
    gateway: Gateway
    pids: tuple[int, ...]

    async def worker_metric(self, name: str, **labels: str) -> float | None:
        """Return the sum of a metric over the workers; None where none of them has it."""
        found: list[float] = []
        for worker in await self.fleet.workers(self.gateway):
            seen = await self.fleet.metrics(f"http://{worker['address']}")
            found += [
                sample.value for sample in seen if sample.name == name and labels.items() <= sample.labels.items()
            ]
        return sum(found) if found else None


@asynccontextmanager
async def serving(speaker: Speaker, places: Sequence[Sequence[str]]) -> AsyncIterator[Service]:
    """Run a gateway and one worker for each of `places`, which are the options that say where it runs.

    Raises:
        FleetError: a process did not come up, or ended.
    """
    with TemporaryDirectory(prefix="tts-bench-") as name:
        folder = Path(name)
        async with Fleet(folder) as fleet:
            gateway = await fleet.start_gateway("gateway", *PATIENT, *NEVER_STALLED)
            pids = []
            for number, place in enumerate(places):
                options = (*speaker.options(), *place)
                pid = await fleet.start_worker(
                    f"worker-{number}", gateway, *options, module=_OUR_WORKER, model=speaker.model
                )
                pids.append(pid)
            await fleet.wait_ready(gateway, len(places), _LOAD_SECONDS)
            yield Service(fleet, gateway, tuple(pids))


@asynccontextmanager
async def client_of(url: str, model: str | None, token: str | None = None) -> AsyncIterator[SpeechClient]:
    """Give a client of a service that has been spoken to once: what is opened or imported late is not measured.

    Raises:
        FleetError: it did not answer that with speech.
    """
    async with open_session() as session:
        target = Target(url=url, api=Api.TTS, model=model, token=token, timeout_seconds=3600)
        client = SpeechClient(session, target, time.monotonic)
        journey = Journey(0, 0, time.monotonic())
        await client.speak(journey, "The first words open everything.")
        if not journey.is_ok:
            raise FleetError(f"{url} did not speak: {journey.problem}")
        yield client
