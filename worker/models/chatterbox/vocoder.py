"""From mel frames to samples, in pieces that together are what the whole would be, for several utterances at once.

Each piece is made in a window that hears 16 mel frames on both sides of it (the receptive field is 13.1). What the
source was in those on the left, and its phase, are carried on from the window before.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from worker.models.chatterbox.encoder import MELS
from worker.models.chatterbox.family import SAMPLES_A_FRAME
from worker.models.chatterbox.graphs import FunctionGraphs, few_rows
from worker.models.chatterbox.hift import NUMBERS, PITCH_CONTEXT_FRAMES, Hift
from worker.models.chatterbox.transit import sent

_CONTEXT_FRAMES = 16
# What follows a piece must be known so far before the piece can be vocoded.
HOLD_BACK_FRAMES = _CONTEXT_FRAMES + PITCH_CONTEXT_FRAMES
PIECE_FRAMES = 100
SHORTEST_PIECE_FRAMES = 8
# Of windows, on CUDA: that of a chunk of 25 tokens, and the longest.
_WIDTHS = (2 * 25 + 2 * _CONTEXT_FRAMES, PIECE_FRAMES + 2 * _CONTEXT_FRAMES)
# 16 seconds of sound, for which a GPU has work enough; more would take more memory, and the first would wait for it.
MOST_ROWS = 8


@dataclass(slots=True, eq=False)
class VocoderRun:
    """The mel of one utterance as far as it is final, and what of it is samples already."""

    seed: int
    mel: Tensor | None = None  # (80, frames)
    is_whole: bool = False  # no more mel comes
    vocoded: int = 0  # frames that are samples
    source: Tensor | None = None  # from the context before `vocoded` on, as far as it is made
    phase: Tensor | None = None  # (harmonics,) float64: cycles of the source at its end

    @property
    def end(self) -> int:
        """Frames that may become samples."""
        known = 0 if self.mel is None else self.mel.shape[1]
        return known if self.is_whole else known - HOLD_BACK_FRAMES

    @property
    def is_due(self) -> bool:
        return self.vocoded < self.end


@dataclass(frozen=True, slots=True)
class _Window:
    """Frames of an utterance: the piece from `start` to `stop`, and what is heard of both sides of it."""

    start: int
    stop: int
    left: int
    right: int
    known: int  # the pitch of the last frames is made of some that are not heard

    @classmethod
    def next(cls, run: VocoderRun) -> _Window:
        assert run.mel is not None
        known = run.mel.shape[1]
        stop = min(run.vocoded + PIECE_FRAMES, run.end)
        # The watermark needs a few frames: no shorter rest is left.
        if 0 < run.end - stop < SHORTEST_PIECE_FRAMES:
            stop = run.end - SHORTEST_PIECE_FRAMES
        left, right = max(0, run.vocoded - _CONTEXT_FRAMES), min(known, stop + _CONTEXT_FRAMES)
        return cls(run.vocoded, stop, left, right, min(known, right + PITCH_CONTEXT_FRAMES))


class Vocoder:
    """Upstream's HiFT over windows. One thread."""

    def __init__(self, s3gen: Any, graphs: FunctionGraphs) -> None:
        self._device = s3gen.device
        self._hift = Hift(s3gen.mel2wav, s3gen.trim_fade)
        self._graphs = graphs

    @torch.inference_mode()
    def extend(self, run: VocoderRun, mel: Tensor, *, is_last: bool) -> None:
        """Take in `mel` (80, frames), of which the frames that were known are left as they were."""
        run.mel = mel if run.mel is None else torch.cat([run.mel, mel[:, run.mel.shape[1] :]], dim=1)
        run.is_whole = is_last

    @torch.inference_mode()
    def speak(self, runs: Sequence[VocoderRun]) -> list[Tensor]:
        """Return the next piece of each, all of which are due, at most `MOST_ROWS`: float32, 24 kHz."""
        windows = [_Window.next(run) for run in runs]
        rows, width = self._shape(len(runs), max(window.right - window.left for window in windows))
        inputs = self._blank(rows, width)
        numbers = []
        for row, (run, window) in enumerate(zip(runs, windows, strict=True)):
            assert run.mel is not None
            inputs["mel"][row, :, : window.known - window.left] = run.mel[:, window.left : window.known]
            kept = 0
            if run.source is not None and run.phase is not None:
                kept = len(run.source) // SAMPLES_A_FRAME
                inputs["source"][row, : len(run.source)] = run.source
                inputs["phase"][row] = run.phase
            numbers += [window.known - window.left, window.right - window.left, kept, window.left, run.seed]
        inputs["numbers"][: len(runs)] = sent(numbers, self._device).view(-1, NUMBERS)
        samples, sources, phases = self._graphs(self._hift, **inputs)
        pieces = []
        for row, (run, window) in enumerate(zip(runs, windows, strict=True)):
            left = max(0, window.stop - _CONTEXT_FRAMES)  # of the next window
            # Copies: what a recording returned is overwritten by the next.
            run.source = _frames(sources[row], left - window.left, window.right - window.left).clone()
            run.phase = phases[row].clone()
            run.vocoded = window.stop
            pieces.append(_frames(samples[row], window.start - window.left, window.stop - window.left).clone())
        return pieces

    @torch.inference_mode()
    def warm_up(self, rows: int) -> None:
        """Have the windows recorded that will be met with so many rows."""
        for width in _WIDTHS:
            self._graphs(self._hift, **self._blank(rows, width))

    def _shape(self, rows: int, width: int) -> tuple[int, int]:
        """Return the shape that is computed: on CUDA one of few, each of which is recorded once."""
        if not self._graphs.is_recording:
            return rows, width
        return few_rows(rows), min(fixed for fixed in _WIDTHS if fixed >= width)

    def _blank(self, rows: int, width: int) -> dict[str, Tensor]:
        return {
            "mel": torch.zeros(rows, MELS, width + PITCH_CONTEXT_FRAMES, device=self._device),
            "source": torch.zeros(rows, width * SAMPLES_A_FRAME, device=self._device),
            "phase": torch.zeros(rows, self._hift.harmonics, dtype=torch.float64, device=self._device),
            "numbers": torch.zeros(rows, NUMBERS, dtype=torch.int64, device=self._device),
        }


def _frames(samples: Tensor, start: int, stop: int) -> Tensor:
    return samples[start * SAMPLES_A_FRAME : stop * SAMPLES_A_FRAME]
