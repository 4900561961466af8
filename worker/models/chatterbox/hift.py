"""Upstream's HiFT for windows of several utterances at once: from mel frames to pitch, source and samples.

Upstream's modules do the arithmetic, in upstream's order (hifigan.py). It has no mask, and knows one utterance that
ends where its tensor does. Here rows end where they end: each convolution finds behind the end of a row what it finds
behind the end of a tensor, nothing. And nothing waits for the device, so that all of it can be recorded as one.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from worker.models.chatterbox import noise
from worker.models.chatterbox.family import SAMPLES_A_FRAME
from worker.models.chatterbox.fourier import inverse
from worker.models.chatterbox.masks import filled

PITCH_CONTEXT_FRAMES = 5  # that the pitch of a frame is computed of, on both sides
# The columns of a window's numbers; the first three are frames of the window.
KNOWN, RIGHT, KEPT, FIRST_FRAME, SEED = range(5)
NUMBERS = 5


class Hift:
    """A function of tensors. It changes nothing."""

    def __init__(self, vocoder: Any, fade: Tensor) -> None:
        self._vocoder = vocoder
        self._fade = fade
        self._window = vocoder.stft_window.to(fade.device)
        self.harmonics = vocoder.m_source.l_sin_gen.harmonic_num + 1

    def __call__(self, mel: Tensor, source: Tensor, phase: Tensor, numbers: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return samples and source (rows, samples), and the source's phase at `RIGHT`.

        `mel` is (rows, 80, frames + `PITCH_CONTEXT_FRAMES`), of which `KNOWN` frames are there. Samples come of those
        before `RIGHT`. `source` is there up to `KEPT`, and is made from there on, with `phase` (rows, harmonics;
        float64, in cycles) at that point. `FIRST_FRAME` is the window's place in the utterance.
        """
        frames = mel.shape[2] - PITCH_CONTEXT_FRAMES
        pitch = self._pitch(mel, _mask(numbers[:, KNOWN], mel.shape[2]))[:, :frames]
        sample = torch.arange(frames * SAMPLES_A_FRAME, device=mel.device)[None, None]
        is_new = sample >= numbers[:, KEPT, None, None] * SAMPLES_A_FRAME
        hum, phase = self._hum(pitch, phase, is_new, sample, numbers)
        source = torch.where(is_new[:, 0], hum, source)
        samples = self._samples(mel[:, :, :frames], source, numbers[:, RIGHT])
        # Upstream's fade: 20 ms of silence and a slope, against what spills over from the voice's recording.
        start, rest = samples[:, : len(self._fade)], samples[:, len(self._fade) :]
        start = torch.where(numbers[:, FIRST_FRAME, None] == 0, start * self._fade[: start.shape[1]], start)
        return torch.cat([start, rest], dim=1), source, phase

    def _pitch(self, mel: Tensor, mask: Tensor) -> Tensor:
        predictor = self._vocoder.f0_predictor
        x = mel * mask
        for layer in predictor.condnet:
            x = layer(x) * mask
        return torch.abs(predictor.classifier(x.transpose(1, 2)).squeeze(-1))

    def _hum(self, f0: Tensor, phase: Tensor, is_new: Tensor, sample: Tensor, numbers: Tensor) -> tuple[Tensor, Tensor]:
        """Return the harmonic source for `f0` (rows, frames), SineGen and SourceModuleHnNSF, and its phase at `RIGHT`.

        The cycles are summed in double precision, as torch does on the CPU by itself, and carried from window to
        window. The noise is a function of the request.
        """
        module = self._vocoder.m_source
        sines = module.l_sin_gen
        pitch = self._vocoder.f0_upsamp(f0[:, None])  # (rows, 1, samples)
        turns = torch.cat([pitch * (n + 1) / sines.sampling_rate for n in range(self.harmonics)], dim=1).double()
        turns = turns * is_new
        turns[:, :, 0] += phase
        cycles = turns.cumsum(-1)
        last = (numbers[:, RIGHT, None, None] * SAMPLES_A_FRAME - 1).clamp_min(0)
        phase = cycles.gather(2, last.expand(-1, self.harmonics, 1))[:, :, 0]
        angle = 2 * math.pi * (cycles.float() % 1)
        harmonic = torch.arange(self.harmonics, device=f0.device)[None, :, None]
        seed = numbers[:, SEED, None, None]
        start = (noise.uniform(seed, noise.Stream.PHASE, harmonic).float() * 2 - 1) * math.pi * (harmonic > 0)
        place = sample + numbers[:, FIRST_FRAME, None, None] * SAMPLES_A_FRAME
        hiss = noise.normal(seed, noise.Stream.SOURCE, place * self.harmonics + harmonic)
        voiced = (pitch > sines.voiced_threshold).float()
        loudness = voiced * sines.noise_std + (1 - voiced) * sines.sine_amp / 3
        waves = sines.sine_amp * torch.sin(angle + start) * voiced + loudness * hiss
        return module.l_tanh(module.l_linear(waves.transpose(1, 2)))[:, :, 0], phase

    def _samples(self, mel: Tensor, source: Tensor, right: Tensor) -> Tensor:
        """Go through upstream's generator as its own `decode` does."""
        vocoder = self._vocoder
        heard = self._spectrum(source, right)
        mask = _mask(right, mel.shape[2])
        x = vocoder.conv_pre(mel * mask) * mask
        rate = 1
        for stage, up in enumerate(vocoder.ups):
            is_last = stage == vocoder.num_upsamples - 1
            rate *= up.stride[0]
            x = up(F.leaky_relu(x, vocoder.lrelu_slope))
            if is_last:
                x = vocoder.reflection_pad(x)
            mask = _mask(right * rate + is_last, x.shape[2])
            added = _resolved(vocoder.source_resblocks[stage], vocoder.source_downs[stage](heard) * mask, mask)
            x = torch.addcmul(added, x, mask)
            first = stage * vocoder.num_kernels
            resolved = [_resolved(block, x, mask) for block in vocoder.resblocks[first : first + vocoder.num_kernels]]
            x = resolved[0]
            for other in resolved[1:]:
                x = x.add_(other)
            x = x.div_(vocoder.num_kernels)
        x = vocoder.conv_post(F.leaky_relu(x))
        bins = vocoder.istft_params["n_fft"] // 2 + 1
        loudness = torch.exp(x[:, :bins]).clip(max=1e2)
        angle = torch.sin(x[:, bins:])
        spectrum = torch.complex(loudness * torch.cos(angle), loudness * torch.sin(angle))
        samples = inverse(spectrum, self._window, vocoder.istft_params["hop_len"], mask)
        return samples.clamp(-vocoder.audio_limit, vocoder.audio_limit)

    def _spectrum(self, source: Tensor, right: Tensor) -> Tensor:
        """Return real and imaginary parts of the source's transform, (rows, 18, n).

        It mirrors a tensor at its ends; a row that ends before is mirrored there.
        """
        hop = self._vocoder.istft_params["hop_len"]
        place = torch.arange(source.shape[1], device=source.device)[None]
        end = right[:, None] * SAMPLES_A_FRAME
        mirrored = source.gather(1, torch.where(place < end, place, 2 * end - 2 - place).clamp_min(0))
        spectrum = torch.stft(mirrored, len(self._window), hop, window=self._window, return_complex=True)
        return torch.cat([spectrum.real, spectrum.imag], dim=1) * _mask(end // hop + 1, spectrum.shape[2])


def _mask(ends: Tensor, width: int) -> Tensor:
    """Return (rows, 1, width), one where a row has something."""
    return filled(ends, width).float()


def _resolved(block: Any, x: Tensor, mask: Tensor) -> Tensor:
    """Go through a ResBlock, in which nothing comes of what is behind the end."""
    for number in range(len(block.convs1)):
        y = block.convs1[number](_snake(block.activations1[number], x))
        y = block.convs2[number](_snake(block.activations2[number], y) * mask)
        x = torch.addcmul(x, y, mask)
    return x


def _snake(activation: Any, x: Tensor) -> Tensor:
    """x + sin(ax)² / a, with fewer passes over the memory than upstream's."""
    alpha = activation.alpha[:, None]
    wave = (x * alpha).sin_()
    return torch.addcdiv(x, wave.mul_(wave), alpha + activation.no_div_by_zero)
