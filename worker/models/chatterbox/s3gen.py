"""The sound stage: from speech tokens to samples, in pieces of work that are short enough to be broken off.

Upstream's own modules do the arithmetic, in upstream's order. What is ours is the noise, which is a function of the
request, and the vocoder's work in pieces: each piece hears 16 mel frames on both sides (the receptive field is 13.1)
and carries on the phase of the source, so that the pieces together are what the whole would be.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from worker.models.chatterbox import noise
from worker.models.chatterbox.conditionals import Voice
from worker.models.chatterbox.family import FRAMES_A_TOKEN, SAMPLES_A_FRAME, SILENCE, Family

Samples = NDArray[np.float32]

LOOK_AHEAD_TOKENS = 3  # the encoder's; upstream's pre_lookahead_len
_MELS = 80
_CONTEXT_FRAMES = 16
_F0_CONTEXT_FRAMES = 5
# What follows a piece must be known so far before the piece can be vocoded.
_HOLD_BACK_FRAMES = _CONTEXT_FRAMES + _F0_CONTEXT_FRAMES
_PIECE_FRAMES = 100
_SHORTEST_PIECE_FRAMES = 8
_TURBO_TAIL = (SILENCE,) * 3  # tts_turbo.py:291


@dataclass(slots=True)
class SoundRun:
    """One segment being turned into sound. `tokens` grow until `is_whole`."""

    voice: Voice
    seed: int
    tokens: list[int] = field(default_factory=list)
    is_whole: bool = False
    has_ended: bool = False
    work: Iterator[Samples | None] | None = None
    rendered: int = 0  # tokens whose mel is final
    mel: Tensor | None = None  # (1, 80, frames), final
    f0: Tensor | None = None  # (1, frames), final
    vocoded: int = 0  # frames that are samples already
    phase: Tensor | None = None  # (1, harmonics, 1) float64: cycles of the source before frame `sourced`
    source: Tensor | None = None  # (1, 1, samples) from frame `source_start`
    source_start: int = 0
    sourced: int = 0


class SoundStage:
    """The flow and the vocoder. `chunk` is how many tokens are rendered at once; None: all of them. One thread."""

    def __init__(self, s3gen: Any, family: Family, chunk: int | None) -> None:
        self._s3gen = s3gen
        self._flow = s3gen.flow
        self._vocoder = s3gen.mel2wav
        self._family = family
        self._chunk = chunk

    def can_advance(self, run: SoundRun) -> bool:
        """There is work that needs no more tokens."""
        return not run.has_ended and (run.work is not None or self._next_boundary(run) is not None)

    @torch.inference_mode()
    def advance(self, run: SoundRun) -> Samples | None:
        """Do one piece of work: one step of the flow, or one piece of sound, which is returned (float32, 24 kHz)."""
        if run.work is None:
            boundary = self._next_boundary(run)
            assert boundary is not None, "advanced with nothing to do"
            run.work = self._render(run, boundary, is_last=run.is_whole and boundary == len(run.tokens))
        try:
            return next(run.work)
        except StopIteration:
            run.work = None
            run.has_ended = run.is_whole and run.rendered == len(run.tokens)
            return None

    def _next_boundary(self, run: SoundRun) -> int | None:
        """Return how many tokens may be rendered now, None while more must come first.

        Boundaries depend on the voice and the number of tokens alone, so that a segment is cut alike on every worker.
        """
        if self._chunk is not None:
            # The flow's blocks are counted from the beginning of the voice's own tokens.
            prompt = run.voice.prompt_token.shape[1]
            boundary = (prompt + run.rendered) // self._chunk * self._chunk + self._chunk - prompt
            # The vocoder holds back what it has no right side of, and there must be something left.
            while boundary * FRAMES_A_TOKEN < _HOLD_BACK_FRAMES + _SHORTEST_PIECE_FRAMES:
                boundary += self._chunk
            if boundary + LOOK_AHEAD_TOKENS <= len(run.tokens):
                return boundary
        return len(run.tokens) if run.is_whole else None

    def _render(self, run: SoundRun, boundary: int, *, is_last: bool) -> Iterator[Samples | None]:
        if is_last:
            tokens = [*run.tokens, *_TURBO_TAIL] if self._family.is_turbo else run.tokens
        else:
            tokens = run.tokens[: boundary + LOOK_AHEAD_TOKENS]
        mel = None
        for mel in self.flow(run.voice, torch.tensor(tokens), run.seed, is_whole=is_last):  # noqa: B007
            yield None
        assert mel is not None
        known = 0 if run.mel is None else run.mel.shape[2]
        run.mel = mel if run.mel is None else torch.cat([run.mel, mel[:, :, known:]], dim=2)
        yield from self._vocode(run, is_last=is_last)
        run.rendered = boundary

    def flow(self, voice: Voice, tokens: Tensor, seed: int, *, is_whole: bool) -> Iterator[Tensor]:
        """Yield the mel (1, 80, 2n) of `tokens` (n,) after each step of the solver; the last is the result.

        Unless it is the whole, the last three tokens are only looked at, and have no frames of their own.
        """
        flow = self._flow
        device = self._s3gen.device
        prompt = voice.prompt_token.shape[1] * FRAMES_A_TOKEN
        ids = torch.cat([voice.prompt_token, tokens[None].to(device)], dim=1)
        speaker = flow.spk_embed_affine_layer(F.normalize(voice.embedding, dim=1))
        hidden, _ = flow.encoder(flow.input_embedding(ids), torch.tensor([ids.shape[1]], device=device))
        if not is_whole:
            hidden = hidden[:, : -LOOK_AHEAD_TOKENS * FRAMES_A_TOKEN]
        guide = flow.encoder_proj(hidden).transpose(1, 2).contiguous()
        heard = torch.zeros_like(guide)
        heard[:, :, :prompt] = voice.prompt_feat.transpose(1, 2)
        for mel in self._solve(guide, speaker, heard, seed):
            yield mel[:, :, prompt:]

    def _solve(self, guide: Tensor, speaker: Tensor, heard: Tensor, seed: int) -> Iterator[Tensor]:
        """Euler's method from noise to mel, with guidance; Turbo's flow has learned what guidance does."""
        estimator = self._flow.decoder.estimator
        frames = guide.shape[2]
        index = torch.arange(frames, device=guide.device)[None, :] * _MELS
        index = index + torch.arange(_MELS, device=guide.device)[:, None]
        x = noise.normal(seed, noise.Stream.FLOW, index)[None].to(guide.dtype)
        times = torch.linspace(0, 1, self._family.flow_steps + 1, device=guide.device, dtype=guide.dtype)
        if not self._family.is_turbo:
            times = 1 - torch.cos(times * 0.5 * torch.pi)
        rate = 0.0 if self._family.is_turbo else self._flow.decoder.inference_cfg_rate
        rows = 1 if self._family.is_turbo else 2
        mask = torch.ones(rows, 1, frames, device=guide.device, dtype=estimator.dtype)
        inputs = {
            name: self._guided(tensor, rows).to(estimator.dtype)
            for name, tensor in (("mu", guide), ("spks", speaker), ("cond", heard))
        }
        for now, then in pairwise(times):
            slope = estimator.forward(
                x=x.to(estimator.dtype).expand(rows, -1, -1),
                mask=mask,
                t=now.to(estimator.dtype).expand(rows),
                r=then.to(estimator.dtype).expand(rows) if self._family.is_turbo else None,
                **inputs,
            ).to(x.dtype)
            if rows == 2:
                slope = (1.0 + rate) * slope[:1] - rate * slope[1:]
            x = x + (then - now) * slope
            yield x

    @staticmethod
    def _guided(tensor: Tensor, rows: int) -> Tensor:
        return tensor if rows == 1 else torch.cat([tensor, torch.zeros_like(tensor)])

    def _vocode(self, run: SoundRun, *, is_last: bool) -> Iterator[Samples]:
        """Yield the samples of all frames that have their right side, or of all that are left."""
        assert run.mel is not None
        frames = run.mel.shape[2]
        self._extend_source(run, is_last=is_last)
        end = frames if is_last else frames - _HOLD_BACK_FRAMES
        while run.vocoded < end:
            stop = min(run.vocoded + _PIECE_FRAMES, end)
            # The watermark needs a few frames; a shorter rest belongs to this piece.
            if end - stop < _SHORTEST_PIECE_FRAMES:
                stop = end
            yield self._piece(run, run.vocoded, stop)
            run.vocoded = stop

    def _piece(self, run: SoundRun, start: int, stop: int) -> Samples:
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
            fade = self._s3gen.trim_fade[: len(samples)]
            samples = torch.cat([samples[: len(fade)] * fade, samples[len(fade) :]])
        # What lies more than the context behind is heard no more.
        keep = max(offset, stop - _CONTEXT_FRAMES)
        run.source = run.source[:, :, (keep - offset) * SAMPLES_A_FRAME :]
        run.source_start = keep
        result: Samples = samples.float().cpu().numpy()
        return result

    def _extend_source(self, run: SoundRun, *, is_last: bool) -> None:
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

    def _hum(self, run: SoundRun, f0: Tensor, first_frame: int) -> Tensor:
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
