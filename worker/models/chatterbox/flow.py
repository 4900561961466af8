"""The flow: from speech tokens to mel frames, for several utterances at once, each at its own step of the solver.

Who takes steps together is padded to one length once, and stays so for as long as they stay together. The noise is a
function of the request.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from worker.models.chatterbox.conditionals import Voice
from worker.models.chatterbox.encoder import MELS, Encoder
from worker.models.chatterbox.estimator import Estimator
from worker.models.chatterbox.family import FRAMES_A_TOKEN, Family
from worker.models.chatterbox.graphs import FunctionGraphs, few_lengths, few_rows
from worker.models.chatterbox.transit import sent

LOOK_AHEAD_TOKENS = 3  # the encoder's; upstream's pre_lookahead_len
# The encoder keeps several squares of its length for each row. Together no more than the longest one needs alone:
# ten seconds of a recording and forty of speech.
_MOST_SQUARES = (50 * FRAMES_A_TOKEN * 25) ** 2
_MOST_READ_AT_ONCE = 8


@dataclass(frozen=True, slots=True)
class Score:
    """What is to be rendered. Unless it is the whole, the last three tokens are only looked at."""

    voice: Voice
    tokens: Sequence[int]
    seed: int
    is_whole: bool

    @property
    def prompt_frames(self) -> int:
        return self.voice.prompt_token.shape[1] * FRAMES_A_TOKEN

    @property
    def frames(self) -> int:
        """Mel frames, those of the voice's own recording in front."""
        tokens = len(self.tokens) - (0 if self.is_whole else LOOK_AHEAD_TOKENS)
        return self.prompt_frames + tokens * FRAMES_A_TOKEN


@dataclass(slots=True, eq=False)
class FlowRun:
    """One score on its way from noise to mel. `x`, `guide` and `heard` are (80, frames), `speaker` is (80,)."""

    score: Score
    guide: Tensor
    heard: Tensor
    speaker: Tensor
    x: Tensor
    step: int = 0

    def mel(self) -> Tensor:
        """Return what was made, (1, 80, frames) without the recording's."""
        return self.x[None, :, self.score.prompt_frames :].clone()


@dataclass(frozen=True, slots=True)
class _Company:
    """Runs that take steps together, and what the step is computed of. The `x` of each is a view of the one here."""

    runs: tuple[FlowRun, ...]
    inputs: dict[str, Tensor]

    def is_of(self, runs: Sequence[FlowRun]) -> bool:
        return len(runs) == len(self.runs) and all(one is other for one, other in zip(runs, self.runs, strict=True))


class Flow:
    """The encoder and the solver. One thread. `chunk` is how many tokens may be looked at at once; None: all."""

    def __init__(
        self, s3gen: Any, family: Family, chunk: int | None, steps: int | None = None, *, graphs: FunctionGraphs
    ) -> None:
        self._device = s3gen.device
        self._encoder = Encoder(s3gen.flow, chunk)
        self._estimator = Estimator(s3gen.flow.decoder, chunk, is_distilled=family.is_turbo)
        self.steps = steps or family.flow_steps
        self._instants = _instants(self.steps, is_even=family.is_turbo).to(self._device)
        self._graphs = graphs
        self._company: _Company | None = None

    @torch.inference_mode()
    def begin(self, scores: Sequence[Score]) -> list[FlowRun]:
        """Read the tokens of all; what `step` needs of them is ready."""
        return [run for group in _groups(scores) for run in self._read(group)]

    @torch.inference_mode()
    def step(self, runs: Sequence[FlowRun]) -> None:
        """Take one step of the solver with each, wherever it is."""
        if self._company is None or not self._company.is_of(runs):
            self._company = self._gathered(runs)
        inputs = self._company.inputs
        inputs["x"].copy_(self._graphs(self._stepped, **inputs))
        inputs["step"].add_(1)
        for run in runs:
            run.step += 1

    @property
    def has_kernels(self) -> bool:
        return self._estimator.has_kernels

    def is_done(self, run: FlowRun) -> bool:
        return run.step == self.steps

    @torch.inference_mode()
    def warm_up(self, rows: int, frames: int) -> None:
        """Have the work recorded of so many at once, so long with the voice's recording."""
        self._graphs(self._stepped, **self._blank_step(*self._shape(rows, frames)))
        together = min(rows, _MOST_READ_AT_ONCE, _MOST_SQUARES // frames**2)
        self._graphs(self._encoder, **self._blank_text(*self._shape(max(1, together), frames // FRAMES_A_TOKEN)))

    def _read(self, scores: Sequence[Score]) -> Iterator[FlowRun]:
        lengths = [score.voice.prompt_token.shape[1] + len(score.tokens) for score in scores]
        inputs = self._blank_text(*self._shape(len(scores), max(lengths)))
        # One crossing for all numbers of all of them.
        tokens = [token for score in scores for token in score.tokens]
        packed = sent([*lengths, *(score.seed for score in scores), *tokens], self._device)
        count = len(scores)
        inputs["lengths"][:count], inputs["seeds"][:count] = packed[:count], packed[count : 2 * count]
        begin = 2 * count
        for row, score in enumerate(scores):
            _held_for_this_stream(score.voice)
            prompt, end = score.voice.prompt_token.shape[1], begin + len(score.tokens)
            inputs["ids"][row, :prompt] = score.voice.prompt_token[0]
            inputs["ids"][row, prompt : prompt + len(score.tokens)] = packed[begin:end]
            inputs["embedding"][row] = score.voice.embedding[0]
            begin = end
        guides, speakers, noises = self._graphs(self._encoder, **inputs)
        for row, score in enumerate(scores):
            # Copies: what a recording returned is overwritten by the next.
            guide = guides[row, :, : score.frames].clone()
            heard = torch.zeros_like(guide)
            heard[:, : score.prompt_frames] = score.voice.prompt_feat[0].T
            yield FlowRun(score, guide, heard, speakers[row].clone(), noises[row, :, : score.frames].clone())

    def _gathered(self, runs: Sequence[FlowRun]) -> _Company:
        inputs = self._blank_step(*self._shape(len(runs), max(run.score.frames for run in runs)))
        numbers = sent([*(run.score.frames for run in runs), *(run.step for run in runs)], self._device)
        inputs["frames"][: len(runs)], inputs["step"][: len(runs)] = numbers[: len(runs)], numbers[len(runs) :]
        for row, run in enumerate(runs):
            frames = run.score.frames
            inputs["guide"][row, :, :frames] = run.guide
            inputs["heard"][row, :, :frames] = run.heard
            inputs["speaker"][row] = run.speaker
            inputs["x"][row, :, :frames] = run.x
            run.x = inputs["x"][row, :, :frames]
        return _Company(tuple(runs), inputs)

    def _stepped(
        self, x: Tensor, guide: Tensor, heard: Tensor, speaker: Tensor, frames: Tensor, step: Tensor
    ) -> Tensor:
        now, then = self._instants[step], self._instants[step + 1]
        slope = self._estimator(x, guide, heard, speaker, frames, now, then)
        return x + (then - now)[:, None, None] * slope

    def _blank_step(self, rows: int, frames: int) -> dict[str, Tensor]:
        dtype, device = self._estimator.dtype, self._device
        return {
            "x": torch.zeros(rows, MELS, frames, device=device),
            "guide": torch.zeros(rows, MELS, frames, dtype=dtype, device=device),
            "heard": torch.zeros(rows, MELS, frames, dtype=dtype, device=device),
            "speaker": torch.zeros(rows, MELS, dtype=dtype, device=device),
            "frames": torch.ones(rows, dtype=torch.int64, device=device),
            "step": torch.zeros(rows, dtype=torch.int64, device=device),
        }

    def _blank_text(self, rows: int, tokens: int) -> dict[str, Tensor]:
        device = self._device
        return {
            "ids": torch.zeros(rows, tokens, dtype=torch.int64, device=device),
            "embedding": torch.zeros(rows, self._encoder.embedding_size, device=device),
            "lengths": torch.ones(rows, dtype=torch.int64, device=device),
            "seeds": torch.zeros(rows, dtype=torch.int64, device=device),
        }

    def _shape(self, rows: int, length: int) -> tuple[int, int]:
        """Return the shape that is computed: on CUDA one of few, each of which is recorded and tuned once."""
        return (few_rows(rows), few_lengths(length)) if self._graphs.is_recording else (rows, length)


def _held_for_this_stream(voice: Voice) -> None:
    """Have the voice's memory stay its own until this stream has read it, though nobody may hold the voice by then."""
    if voice.prompt_token.is_cuda:
        for tensor in (voice.prompt_token, voice.prompt_feat, voice.embedding):
            tensor.record_stream(torch.cuda.current_stream(tensor.device))


def _instants(steps: int, *, is_even: bool) -> Tensor:
    """Return the instants of the solver: flow_matching.py:231, a cosine unless the model has learned even ones."""
    instants = torch.linspace(0, 1, steps + 1)
    return instants if is_even else 1 - torch.cos(instants * 0.5 * torch.pi)


def _groups(scores: Sequence[Score]) -> Iterator[list[Score]]:
    """Cut into what the encoder may read at once."""
    group: list[Score] = []
    longest = 0
    for score in scores:
        longest = max(longest, score.frames)
        if group and (len(group) == _MOST_READ_AT_ONCE or (len(group) + 1) * longest**2 > _MOST_SQUARES):
            yield group
            group, longest = [], score.frames
        group.append(score)
    if group:
        yield group
