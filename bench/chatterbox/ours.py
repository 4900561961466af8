"""Our engine without its processes: the token stage alone, and the whole model as the engine thread drives it."""

from __future__ import annotations

import hashlib
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from bench.chatterbox.device import finish
from bench.roofline import TokenModel
from wire.segment import SegmentRequest
from worker.config import ChatterboxOptions
from worker.models.base import Clip
from worker.models.chatterbox import memory
from worker.models.chatterbox.conditionals import on_device, prepared_default
from worker.models.chatterbox.family import DEFAULT_VOICE, Family
from worker.models.chatterbox.model import ChatterboxModel
from worker.models.chatterbox.reading import TokenRun
from worker.models.chatterbox.sampler import Sampling
from worker.models.chatterbox.t3 import TokenStage
from worker.models.chatterbox.text import to_ids
from worker.models.chatterbox.upstream import Parts, Precision, load_parts
from worker.models.chatterbox.utterance import Utterance

GREEDY = {"top_p": 0.0}
_BYTES_A_SAMPLE = 2


@dataclass(frozen=True, slots=True)
class SpokenTogether:
    """Utterances that were spoken at once: PCM s16le of each, and seconds, in all and by stage. `seams` are the samples
    of each at which two pieces of sound meet; `first_audio_seconds` are counted from its own beginning."""

    pcm: list[bytes]
    seams: list[list[int]]
    first_audio_seconds: list[float]
    seconds: float
    stages: dict[str, float]


class Tokens:
    """Our token stage with a checkpoint and its own voice, for `slots` texts at once."""

    def __init__(self, directory: Path, family: Family, device: str, precision: Precision, slots: int) -> None:
        self.parts: Parts = load_parts(directory, family, device, device, precision)
        self._stage = TokenStage(self.parts.t3, family, slots)
        self._stage.warm_up(memory.positions(family))
        self._voice = on_device(prepared_default(self.parts), self.parts)
        self._family = family

    def ids(self, text: str) -> Any:
        """Return the ids of a text, as both engines read it."""
        return to_ids(text, None, self.parts, self._family)

    def positions(self, text: str) -> int:
        """Return how many positions stand in front of the first token."""
        return int(self._voice.prefix.shape[1]) + len(self.ids(text)) + (1 if self._family.is_turbo else 3)

    def begin(self, texts: Sequence[str], parameters: dict[str, float] | None = None) -> list[TokenRun]:
        """Read the texts, one after another, and draw the first token of each; each has a seed of its own."""
        exaggeration = self._family.defaults.get("exaggeration", 0.0)
        runs = [
            self._stage.begin(
                self._voice,
                self.ids(text),
                Sampling.of(self._family, parameters or {}, seed),
                exaggeration,
            )
            for seed, text in enumerate(texts, start=1)
        ]
        while unread := [run for run in runs if not run.is_read]:
            self._stage.step(unread)
        return runs

    def step(self, runs: Sequence[TokenRun]) -> None:
        """Draw the next token of all runs; a GPU may still be at it when this returns."""
        self._stage.step(runs)

    def end(self, runs: Sequence[TokenRun]) -> None:
        """Give back what the runs hold."""
        for run in runs:
            self._stage.end(run)

    def greedy(self, texts: Sequence[str], most: int) -> list[list[int]]:
        """Return the ids that the texts are decoded to together, greedily, each to its end or to `most`."""
        runs = self.begin(texts, GREEDY)
        going = list(runs)
        while going := [run for run in going if not run.has_ended and len(run.tokens) < most]:
            self.step(going)
        found = [list(run.tokens) for run in runs]
        self.end([run for run in runs if not run.has_ended])
        return found

    def shape(self) -> TokenModel:
        """Return what the roofline is computed from."""
        t3 = self.parts.t3
        config = t3.tfmr.config
        head = t3.speech_head.weight
        weights = sum(parameter.numel() for parameter in t3.tfmr.parameters()) + head.numel()
        # Positions and words are looked up, not read through.
        tables = sum(m.weight.numel() for m in t3.tfmr.modules() if isinstance(m, torch.nn.Embedding))
        return TokenModel(
            weights=weights - tables,
            layers=config.num_hidden_layers,
            width=config.hidden_size,
            rows=1 if self._family.is_turbo else 2,
            bytes_a_number=head.element_size(),
        )

    @property
    def dtype(self) -> Any:
        return self.parts.t3.speech_head.weight.dtype

    @property
    def prompt_seconds(self) -> float:
        """The seconds of the voice's recording that the flow hears."""
        return self._voice.prompt_token.shape[1] / 25


class Whole:
    """Our model, driven as the engine thread drives it: all that are under way step together."""

    def __init__(
        self, directory: Path, family: Family, device: str, options: ChatterboxOptions, *, batch: int = 1
    ) -> None:
        self._family = family
        self._device = device
        self._model = ChatterboxModel(options, family.id, device, batch)
        self._model.load()
        self._voice: bytes | None = None

    @property
    def settings(self) -> dict[str, Any]:
        return dict(self._model.settings())

    def warm_up(self) -> None:
        """Do what a worker does before it is ready."""
        self._model.warm_up()

    def take_voice(self, clip: Clip) -> None:
        """Speak with the voice of a recording from now on.

        Raises:
            TtsError: the recording is no voice.
        """
        self._voice = self._model.prepare_voice(clip)

    def speak(self, texts: Sequence[str], seed: int = 1, at_once: int | None = None) -> SpokenTogether:
        """Speak all texts, so many of them at once (default: all): where one ends the next begins.

        Raises:
            TtsError: the model makes nothing of one of them.
        """
        before = dict(self._model.figures().stage_seconds)
        finish(self._device)
        clock = time.perf_counter
        began, reading = clock(), 0.0
        coming = deque(enumerate(texts))
        begun: dict[int, float] = {}
        states: dict[int, Utterance] = {}
        pcm = [b""] * len(texts)
        seams: list[list[int]] = [[] for _ in texts]
        first: dict[int, float] = {}
        while coming or states:
            while coming and len(states) < (at_once or len(texts)):
                number, text = coming.popleft()
                begun[number] = clock()
                states[number] = self._model.prefill(self._request(number, text, seed), self._voice)
                reading += clock() - begun[number]
            for number, output in zip(list(states), self._model.step(list(states.values())), strict=True):
                if output.error is not None:
                    raise output.error
                if output.audio:
                    first.setdefault(number, clock() - begun[number])
                    if pcm[number]:
                        seams[number].append(len(pcm[number]) // _BYTES_A_SAMPLE)
                    pcm[number] += output.audio
                if output.finished:
                    del states[number]
        finish(self._device)
        seconds = clock() - began
        after = self._model.figures().stage_seconds
        stages = {"read": reading} | {name: after[name] - before.get(name, 0.0) for name in after}
        return SpokenTogether(pcm, seams, [first[number] for number in sorted(first)], seconds, stages)

    def _request(self, number: int, text: str, seed: int) -> SegmentRequest:
        voice_sha256 = None if self._voice is None else hashlib.sha256(self._voice).hexdigest()
        return SegmentRequest(
            request_id=f"bench-{number}",
            index=0,
            text=text,
            model=self._family.id,
            voice=DEFAULT_VOICE,
            seed=seed + number,
            voice_sha256=voice_sha256,
        )

    def close(self) -> None:
        self._model.unload()
