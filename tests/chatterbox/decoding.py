"""Requests for the token stage by itself, and ways to run them: alone, in company, with some that leave early."""

from __future__ import annotations

import random
import string
from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import Tensor

from tests.chatterbox.speaking import LENGTH, clip
from worker.models.chatterbox.conditionals import Voice, on_device, prepare, prepared_default
from worker.models.chatterbox.family import Family
from worker.models.chatterbox.reading import TokenRun
from worker.models.chatterbox.sampler import Sampling
from worker.models.chatterbox.t3 import TokenStage
from worker.models.chatterbox.text import to_ids
from worker.models.chatterbox.upstream import Parts

# Turbo counts the text in, and has an end of its own at 45.
LONGEST_TEXT = {"chatterbox": 90, "chatterbox-multilingual": 90, "chatterbox-turbo": 40}
# At shorter ones Multilingual's own watch over the alignment fails once it has seen their end.
SHORTEST_TEXT = {"chatterbox": 1, "chatterbox-multilingual": 6, "chatterbox-turbo": 1}


# Multilingual's watch may hold the end of random speech back for ever.
MOST_TOKENS = 60


@dataclass(frozen=True)
class Request:
    text: Tensor
    prepared: bytes
    voice: Voice
    exaggeration: float
    sampling: Sampling


@dataclass
class Speakers:
    """Two voices of a model, and texts that are letters by chance."""

    parts: Parts
    family: Family
    voices: list[tuple[bytes, Voice]] = field(default_factory=list)

    def __post_init__(self) -> None:
        recording = clip(150, seconds=LENGTH[self.family.id])
        for prepared in (prepared_default(self.parts), prepare(recording, self.parts, self.family)):
            self.voices.append((prepared, on_device(prepared, self.parts)))

    def request(self, chance: random.Random, *, letters: int | None = None, **parameters: float) -> Request:
        count = letters or chance.randint(SHORTEST_TEXT[self.family.id], LONGEST_TEXT[self.family.id])
        text = "".join(chance.choice(string.ascii_lowercase + " ") for _ in range(count - 1)) + "a"
        prepared, voice = chance.choice(self.voices)
        sampling = Sampling.of(self.family, parameters, chance.randrange(1 << 32))
        ids = to_ids(text, "en", self.parts, self.family)
        return Request(ids, prepared, voice, 0.0 if self.family.is_turbo else chance.choice((0.3, 0.5)), sampling)


def begun(stage: TokenStage, request: Request, tokens: Sequence[int] = ()) -> TokenRun:
    return stage.begin(request.voice, request.text, request.sampling, request.exaggeration, tokens)


def alone(stage: TokenStage, request: Request, tokens: Sequence[int] = ()) -> list[int]:
    run = begun(stage, request, tokens)
    while not run.has_ended and len(run.tokens) < MOST_TOKENS:
        stage.step([run])
    stage.end(run)
    return run.tokens


def in_company(
    stage: TokenStage, requests: Sequence[Request], chance: random.Random, *, leaves: float = 0.0
) -> list[tuple[list[int], bool]]:
    """Run all, joining at random steps; each step somebody leaves with the chance `leaves`.

    Returns for each its tokens and whether it came to its end.
    """
    waiting = list(enumerate(requests))
    running: dict[int, TokenRun] = {}
    made: dict[int, tuple[list[int], bool]] = {}
    while waiting or running:
        while waiting and stage.free and (not running or chance.random() < 0.4):
            number, request = waiting.pop(0)
            running[number] = begun(stage, request)
        stage.step(list(running.values()))
        if running and chance.random() < leaves:
            number = chance.choice(list(running))
            stage.end(running[number])
            made[number] = (running.pop(number).tokens, False)
        for number, run in list(running.items()):
            if run.has_ended or len(run.tokens) >= MOST_TOKENS:
                stage.end(run)
                made[number] = (running.pop(number).tokens, run.has_ended)
    return [made[number] for number in range(len(requests))]
