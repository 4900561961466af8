"""From mel frames to samples, in pieces that together are what the whole would be.

Upstream's own modules do the arithmetic, in upstream's order. What is ours is the noise, which is a function of the
request, and the pieces: each hears 16 mel frames on both sides (the receptive field is 13.1) and carries on the phase
of the source.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from worker.models.chatterbox import noise
from worker.models.chatterbox.family import SAMPLES_A_FRAME

Samples = NDArray[np.float32]

_CONTEXT_FRAMES = 16
_F0_CONTEXT_FRAMES = 5
# What follows a piece must be known so far before the piece can be vocoded.
HOLD_BACK_FRAMES = _CONTEXT_FRAMES + _F0_CONTEXT_FRAMES
PIECE_FRAMES = 100
SHORTEST_PIECE_FRAMES = 8


@dataclass(slots=True)
class VocoderRun:
    """The mel of one utterance as far as it is final, and what of it is samples already."""

    seed: int
    mel: Tensor | None = None  # (1, 80, frames)
    vocoded: int = 0  # frames that are samples
    end: int = 0  # frames that may become samples
    phase: Tensor | None = None  # (1, harmonics, 1) float64: cycles of the source before frame `sourced`
    source: Tensor | None = None  # (1, 1, samples) from frame `source_start`
    source_start: int = 0
    sourced: int = 0

    @property
    def is_due(self) -> bool:
        return self.vocoded < self.end


class Vocoder:
    """Upstream's HiFT around our source. One thread."""

    def __init__(self, s3gen: Any) -> None:
        self._vocoder = s3gen.mel2wav
        self._fade = s3gen.trim_fade

    @torch.inference_mode()
    def extend(self, run: VocoderRun, mel: Tensor, *, is_last: bool) -> None:
        """Take in `mel`, of which the frames that were known are left as they were."""
        run.mel = mel if run.mel is None else torch.cat([run.mel, mel[:, :, run.mel.shape[2] :]], dim=2)
        self._extend_source(run, is_last=is_last)
        run.end = run.mel.shape[2] - (0 if is_last else HOLD_BACK_FRAMES)

    @torch.inference_mode()
    def speak(self, run: VocoderRun) -> Samples:
        """Return the next piece of what is due."""
        stop = min(run.vocoded + PIECE_FRAMES, run.end)
        # The watermark needs a few frames; a shorter rest belongs to this piece.
        if run.end - stop < SHORTEST_PIECE_FRAMES:
            stop = run.end
        piece = self._piece(run, run.vocoded, stop)
        run.vocoded = stop
        return piece

    def _piece(self, run: VocoderRun, start: int, stop: int) -> Samples:
        """Vocode the frames from `start` to `stop`."""
        assert run.mel is not None
        assert run.source is not None
        left = max(0, start - _CONTEXT_FRAMES)
        right = min(run.mel.shape[2], stop + _CONTEXT_FRAMES)
        offset = run.source_start
        source = run.source[:, :, (left - offset) * SAMPLES_A_FRAME : (right - offset) * SAMPLES_A_FRAME]
        samples = self._vocoder.decode(x=run.mel[:, :, left:right].float(), s=source)[0]
        samples = samples[(start - left) * SAMPLES_A_FRAME :][: (stop - start) * SAMPLES_A_FRAME]
        if start == 0:
            # Upstream's fade: 20 ms of silence and a slope, against what spills over from the voice's recording.
            fade = self._fade[: len(samples)]
            samples = torch.cat([samples[: len(fade)] * fade, samples[len(fade) :]])
        # What lies more than the context behind is heard no more.
        keep = max(offset, stop - _CONTEXT_FRAMES)
        run.source = run.source[:, :, (keep - offset) * SAMPLES_A_FRAME :]
        run.source_start = keep
        result: Samples = samples.float().cpu().numpy()
        return result

    def _extend_source(self, run: VocoderRun, *, is_last: bool) -> None:
        """Compute the pitch, and the hum and noise made of it, as far as the mel reaches."""
        assert run.mel is not None
        f0_end = run.mel.shape[2] - (0 if is_last else _F0_CONTEXT_FRAMES)
        if f0_end <= run.sourced:
            return
        left = max(0, run.sourced - _F0_CONTEXT_FRAMES)
        f0 = self._vocoder.f0_predictor(run.mel[:, :, left:].float())[:, run.sourced - left : f0_end - left]
        hum = self._hum(run, f0, run.sourced)
        run.source = hum if run.source is None else torch.cat([run.source, hum], dim=2)
        run.sourced = f0_end

    def _hum(self, run: VocoderRun, f0: Tensor, first_frame: int) -> Tensor:
        """Return upstream's harmonic source for `f0` (1, frames): SineGen and SourceModuleHnNSF of hifigan.py.

        The cycles are summed in double precision, as torch does on the CPU by itself, and carried from piece to piece.
        """
        module = self._vocoder.m_source
        sines = module.l_sin_gen
        pitch = self._vocoder.f0_upsamp(f0[:, None])  # (1, 1, samples)
        harmonics = sines.harmonic_num + 1
        turns = torch.cat([pitch * (number + 1) / sines.sampling_rate for number in range(harmonics)], dim=1).double()
        if run.phase is not None:
            turns[:, :, :1] += run.phase
        cycles = turns.cumsum(-1)
        run.phase = cycles[:, :, -1:]
        angle = 2 * np.pi * (cycles.float() % 1)
        number = torch.arange(harmonics, device=f0.device)[:, None]
        phase = (noise.uniform(run.seed, noise.Stream.PHASE, number).float() * 2 - 1) * math.pi
        phase[0] = 0
        sample = torch.arange(pitch.shape[2], device=f0.device)[None] + first_frame * SAMPLES_A_FRAME
        hiss = noise.normal(run.seed, noise.Stream.SOURCE, sample * harmonics + number)[None]
        voiced = (pitch > sines.voiced_threshold).float()
        loudness = voiced * sines.noise_std + (1 - voiced) * sines.sine_amp / 3
        waves = sines.sine_amp * torch.sin(angle + phase) * voiced + loudness * hiss
        return module.l_tanh(module.l_linear(waves.transpose(1, 2))).transpose(1, 2)
