"""Perth's inaudible mark, put on every piece of sound, which then comes to the host as PCM.

On a CPU a thread of its own puts it on; on a GPU the one that calls has the GPU do it, for several pieces at once.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor

from worker.models.chatterbox.family import SAMPLE_RATE
from worker.models.chatterbox.fourier import inverse
from worker.models.chatterbox.graphs import FunctionGraphs, few_rows
from worker.models.chatterbox.transit import Landing

MULTIPLE_SAMPLES = 240  # the transform's hop
SHORTEST_SAMPLES = 960
LONGEST_SAMPLES = 2 * SAMPLE_RATE


class WatermarkMissing(Exception):
    """The watermark is asked for and cannot be put on."""


class Mark:
    """Perth's network around our transform. A function of tensors.

    Perth works at 32 kHz, on the loudness of 2048 samples every 320. These are 1536 and 240 at 24 kHz, with the same
    bins, of which it changes those below 2 kHz. So nothing has to be resampled, and what is above stays as it was.
    """

    def __init__(self, device: Any) -> None:
        net = _perth(device).perth_net
        self._encoder = net.encoder
        self._settings = net.hp
        self._zoom = net.hp.sample_rate / SAMPLE_RATE  # as much louder is a transform of more samples
        self._hop = net.hp.hop_size * SAMPLE_RATE // net.hp.sample_rate
        self._window = torch.hann_window(net.hp.window_size * SAMPLE_RATE // net.hp.sample_rate, device=device)

    def __call__(self, samples: Tensor) -> Tensor:
        """Mark (rows, samples), each a multiple of 240 and at least 960. Silence stays silence."""
        from perth.perth_net.perth_net_implicit.utils import denormalize_spectrogram, normalize

        spectrum = torch.stft(samples, len(self._window), self._hop, window=self._window, return_complex=True)
        quiet = self._settings.stft_magnitude_min
        loudness = normalize(self._settings, 20 * torch.log10((spectrum.abs() * self._zoom).clip(quiet)))
        marked, _ = self._encoder(loudness)
        decibels = denormalize_spectrogram(self._settings, marked) - denormalize_spectrogram(self._settings, loudness)
        change = spectrum * torch.expm1(decibels * (math.log(10) / 20))
        return samples + inverse(change, self._window, self._hop, torch.ones_like(samples[:1, None, : change.shape[2]]))


class Marker:
    """Marks pieces and turns them into PCM. `mark` is for the sound stage's thread."""

    def __init__(self, *, enabled: bool, device: Any) -> None:
        self._mark = Mark(device) if enabled else None
        self._device = device
        self._graphs = FunctionGraphs(device)
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="watermark")
        # Written by the pool's one thread, or where the device is a GPU by the sound stage's: it is what the host
        # spends on having it done, and the GPU's time is in that of the stage.
        self.seconds = 0.0

    def mark(self, pieces: Sequence[Tensor]) -> list[Future[bytes]]:
        """Have pieces marked (24 kHz, -1 to 1, multiples of 240 samples, 960 to 48,000); the results are PCM s16le,
        and come in this order."""
        if self._device.type != "cuda":
            return [self._pool.submit(self._marked, piece) for piece in pieces]
        began = time.monotonic()
        landing = Landing(self._finished_on_device(pieces, len(pieces)))
        self.seconds += time.monotonic() - began
        return [self._pool.submit(_landed, landing, row, len(piece)) for row, piece in enumerate(pieces)]

    def warm_up(self, most: int) -> None:
        """Have the marking of up to so many pieces at once recorded. For CUDA."""
        for rows in range(1, most + 1):
            self._finished_on_device([], rows)

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _marked(self, piece: Tensor) -> bytes:
        began = time.monotonic()
        # Else what a training would need is recorded: 4 MB for every second of sound.
        with torch.inference_mode():
            pcm = self._finished(piece[None])[0]
        self.seconds += time.monotonic() - began
        return _bytes(pcm)

    @torch.inference_mode()
    def _finished_on_device(self, pieces: Sequence[Tensor], rows: int) -> Tensor:
        """Mark pieces in one of few shapes, each of which is recorded once: with silence behind the shorter ones."""
        return self._graphs(self._finished, samples=padded(pieces, few_rows(rows), self._device))

    def _finished(self, samples: Tensor) -> Tensor:
        return to_pcm(samples if self._mark is None else self._mark(samples))


def padded(pieces: Sequence[Tensor], rows: int, device: Any) -> Tensor:
    """Return pieces on top of each other, as long as the longest can be."""
    samples = torch.zeros(rows, LONGEST_SAMPLES, device=device)
    for row, piece in zip(samples, pieces, strict=False):
        row[: len(piece)] = piece
    return samples


def to_pcm(samples: Tensor) -> Tensor:
    """Return 16-bit samples. The mark may lift a loud one over full scale, where plain conversion wraps around."""
    return (samples.clamp(-1.0, 1.0) * 32767.0).round().to(torch.int16)


def _landed(landing: Landing, row: int, count: int) -> bytes:
    return _bytes(landing.wait()[row, :count])


def _bytes(pcm: Tensor) -> bytes:
    return pcm.numpy().astype("<i2").tobytes()


def _perth(device: Any) -> Any:
    """Return upstream's marker.

    Raises:
        WatermarkMissing: it cannot be imported; the package then silently has None in its place.
    """
    import perth

    if perth.PerthImplicitWatermarker is None:
        raise WatermarkMissing(
            "The watermark cannot be put on: perth could not import its own parts. It needs setuptools older than 81 "
            "and librosa; install requirements/chatterbox.txt as it is, or start with --watermark off."
        )
    return perth.PerthImplicitWatermarker(device=device)
