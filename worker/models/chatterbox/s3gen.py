"""The sound stage: from speech tokens to samples, for several segments at once, in pieces of work that are short.

A segment is cut into renderings, the same ones on every worker. Each goes through the flow, and then through the
vocoder a piece at a time.
"""

from __future__ import annotations

import concurrent.futures
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from worker.models.chatterbox.conditionals import Voice
from worker.models.chatterbox.family import FRAMES_A_TOKEN, SILENCE, SPEECH_IDS, Family
from worker.models.chatterbox.flow import LOOK_AHEAD_TOKENS, Flow, FlowRun, Score
from worker.models.chatterbox.graphs import FunctionGraphs, few_rows
from worker.models.chatterbox.vocoder import HOLD_BACK_FRAMES, MOST_ROWS, SHORTEST_PIECE_FRAMES, Vocoder, VocoderRun

_ALIKE = 1.5  # as many times as long
_USUAL_FRAMES = range(550, 1050, 100)  # ten seconds of a recording, and one to ten of speech
_TURBO_TAIL = (SILENCE,) * 3  # tts_turbo.py:291


@dataclass(frozen=True, slots=True)
class Rendering:
    """Tokens that are final, from the first on; unless `is_last`, the last three are only looked at."""

    tokens: Sequence[int]
    is_last: bool


@dataclass(slots=True, eq=False)
class SoundRun:
    """One part of a segment being turned into sound.

    Whoever runs the stage writes all of it. Another thread may read `work`, `error` and `has_ended`, which is set
    when nothing more will come, and take from `pieces`.
    """

    voice: Voice
    seed: int
    renderings: deque[Rendering] = field(default_factory=deque)  # not yet begun
    flow: FlowRun | None = None
    vocoder: VocoderRun | None = None
    is_last: bool = False  # of the rendering that is at work
    work: int = 0  # pieces of work that were done
    pieces: deque[concurrent.futures.Future[bytes]] = field(default_factory=deque)  # what has come out, in order
    error: Exception | None = None
    has_ended: bool = False

    @property
    def is_due(self) -> bool:
        """There is work that needs no more tokens."""
        in_vocoder = self.vocoder is not None and self.vocoder.is_due
        return not self.has_ended and (in_vocoder or self.flow is not None or bool(self.renderings))

    @property
    def is_spoken(self) -> bool:
        """All of it is sound."""
        return self.is_last and self.flow is None and self.vocoder is not None and not self.vocoder.is_due


class SoundStage:
    """The flow and the vocoder. One thread."""

    def __init__(self, s3gen: Any, family: Family, chunk: int | None, steps: int | None = None) -> None:
        graphs = FunctionGraphs(s3gen.device)
        self.flow = Flow(s3gen, family, chunk, steps, graphs=graphs)
        self._vocoder = Vocoder(s3gen, graphs)
        self._has_spoken = False  # the last time
        self.at_work: Sequence[SoundRun] = ()  # whom the last piece of work was for

    def advance(self, runs: Sequence[SoundRun]) -> list[Tensor | None]:
        """Do one piece of work for some of the runs, all of which are due: a step of the flow for those that are
        there, or a piece of sound for the others, which is returned (float32, 24 kHz, on the stage's device).

        Where there are both, they take turns: what is finished is heard before the next step is taken, and who begins
        does not wait until all others have been heard.
        """
        speaking = [run for run in runs if run.vocoder is not None and run.vocoder.is_due]
        solving = [run for run in runs if run not in speaking]
        self._has_spoken = bool(speaking) and not (solving and self._has_spoken)
        if not self._has_spoken:
            self.at_work = _alike(solving)
            self._solve(self.at_work)
            return [None] * len(runs)
        self.at_work = speaking = speaking[:MOST_ROWS]
        pieces = iter(self._speak(speaking))
        return [next(pieces) if run in speaking else None for run in runs]

    def warm_up(self, most: int, seconds: float) -> None:
        """Have the shapes recorded that are met most, of `most` runs at once; those that `seconds` do not reach, and
        all others, are when they are first met. For CUDA."""
        end = time.monotonic() + seconds
        for rows in dict.fromkeys(few_rows(count) for count in range(1, min(most, MOST_ROWS) + 1)):
            self._vocoder.warm_up(rows)
        for rows in dict.fromkeys(few_rows(count) for count in range(1, most + 1)):
            for frames in _USUAL_FRAMES:
                if time.monotonic() < end:
                    self.flow.warm_up(rows, frames)

    def _solve(self, runs: Sequence[SoundRun]) -> None:
        fresh = [run for run in runs if run.flow is None]
        for run, flow in zip(fresh, self.flow.begin([_next(run) for run in fresh]), strict=True):
            run.flow = flow
        self.flow.step([run.flow for run in runs if run.flow is not None])
        for run in runs:
            run.work += 1
            assert run.flow is not None
            if self.flow.is_done(run.flow):
                run.vocoder = run.vocoder or VocoderRun(run.seed)
                self._vocoder.extend(run.vocoder, run.flow.mel()[0], is_last=run.is_last)
                run.flow = None

    def _speak(self, runs: Sequence[SoundRun]) -> list[Tensor]:
        pieces = self._vocoder.speak([run.vocoder for run in runs if run.vocoder is not None])
        for run in runs:
            run.work += 1
        return pieces


def _alike(runs: Sequence[SoundRun]) -> list[SoundRun]:
    """Return the first and those about as long: all are padded to the longest. The others come when they are first."""
    lengths = [_frames(run) for run in runs]
    return [
        run
        for run, length in zip(runs, lengths, strict=True)
        if max(length, lengths[0]) <= _ALIKE * min(length, lengths[0])
    ]


def _frames(run: SoundRun) -> int:
    if run.flow is not None:
        return run.flow.score.frames
    tokens = run.voice.prompt_token.shape[1] + len(run.renderings[0].tokens)
    return tokens * FRAMES_A_TOKEN


def _next(run: SoundRun) -> Score:
    rendering = run.renderings.popleft()
    run.is_last = rendering.is_last
    # An index beyond the flow's table is a fault of the device. The sampler cannot draw one; a checkpoint may lie.
    assert all(0 <= token < SPEECH_IDS for token in rendering.tokens)
    return Score(run.voice, rendering.tokens, run.seed, rendering.is_last)


def next_rendering(
    voice: Voice, tokens: Sequence[int], rendered: int, *, is_whole: bool, family: Family, chunk: int | None
) -> tuple[int, Rendering] | None:
    """Return what may be rendered when `rendered` tokens are, and how many are then; None while more must come first.

    It depends on the voice and the number of tokens alone, so that a segment is cut alike on every worker.
    """
    if chunk is not None:
        # The flow's blocks are counted from the beginning of the voice's own tokens.
        prompt = voice.prompt_token.shape[1]
        boundary = (prompt + rendered) // chunk * chunk + chunk - prompt
        # The vocoder holds back what it has no right side of, and there must be something left.
        while boundary * FRAMES_A_TOKEN < HOLD_BACK_FRAMES + SHORTEST_PIECE_FRAMES:
            boundary += chunk
        if boundary + LOOK_AHEAD_TOKENS <= len(tokens):
            return boundary, Rendering(tuple(tokens[: boundary + LOOK_AHEAD_TOKENS]), is_last=False)
    if not is_whole or rendered == len(tokens):
        return None
    tail = _TURBO_TAIL if family.is_turbo else ()
    return len(tokens), Rendering((*tokens, *tail), is_last=True)
