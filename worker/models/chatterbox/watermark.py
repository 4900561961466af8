"""Perth's inaudible mark, put on every piece by a thread of its own: it takes the CPU 12 ms a second of sound."""

from __future__ import annotations

import time
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from worker.models.chatterbox.family import SAMPLE_RATE

Samples = NDArray[np.float32]

# The mark is computed at 32 kHz; other lengths than multiples of this come back shorter than they went in.
MULTIPLE_SAMPLES = 240
SHORTEST_SAMPLES = 960


class WatermarkMissing(Exception):
    """The watermark is asked for and cannot be put on."""


class Marker:
    """Marks pieces and turns them into PCM. `mark` is for the engine thread; the work is done by a pool."""

    def __init__(self, *, enabled: bool) -> None:
        self._perth = _perth() if enabled else None
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="watermark")
        self.seconds = 0.0  # written by the pool's one thread

    def mark(self, piece: Samples) -> Future[bytes]:
        """Have a piece (24 kHz, -1 to 1, a multiple of 240 samples, at least 960) marked; the result is PCM s16le."""
        return self._pool.submit(self._marked, piece)

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _marked(self, piece: Samples) -> bytes:
        if self._perth is None:
            return to_pcm(piece)
        began = time.monotonic()
        # Upstream's marker records what a training would need, and keeps 4 MB of it for every second of sound.
        with torch.inference_mode():
            marked = np.asarray(self._perth.apply_watermark(piece, sample_rate=SAMPLE_RATE), np.float32)
        if len(marked) != len(piece):
            raise RuntimeError(f"the watermark made {len(marked)} samples of {len(piece)}")
        self.seconds += time.monotonic() - began
        return to_pcm(marked)


def to_pcm(piece: Samples) -> bytes:
    """Return PCM s16le. The watermark may lift a loud sample over full scale, where plain conversion wraps around."""
    pcm: bytes = np.round(np.clip(piece, -1.0, 1.0) * 32767.0).astype("<i2").tobytes()
    return pcm


def _perth() -> Any:
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
    return perth.PerthImplicitWatermarker()
