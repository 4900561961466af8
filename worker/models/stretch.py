"""Time-stretching: the same voice, faster or slower, where the network's own speed ends. WSOLA, in numpy alone."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Samples = NDArray[np.float32]

_FRAME = 720  # 30 ms at 24 kHz: two or three periods of a low voice
_HOP = _FRAME // 2
_SEARCH = 240  # 10 ms either way: one period of the lowest voice fits


def stretch(samples: Samples, speed: float) -> Samples:
    """Return `samples` at `speed` times their pace and at their own pitch; the length follows to the sample.

    Waveform-similarity overlap-add: frames are laid half over each other, each taken from near its due place in the
    source, where it best continues the frame before.
    """
    length = round(len(samples) / speed)
    if speed == 1.0 or len(samples) < 2 * (_FRAME + _SEARCH) or length < _FRAME:
        return _resized(samples, length)
    window = np.hanning(_FRAME + 1)[:-1].astype(np.float32)
    frames = length // _HOP + 2
    padded = np.concatenate([np.zeros(_SEARCH, np.float32), samples, np.zeros(2 * _FRAME + 2 * _SEARCH, np.float32)])
    last = len(padded) - _FRAME - _HOP - _SEARCH
    made = np.zeros((frames + 1) * _HOP, np.float32)
    place = _SEARCH
    for index in range(frames):
        if index:
            due = min(_SEARCH + round((index - 1) * _HOP * speed), last)
            wanted = padded[place + _HOP : place + _HOP + _FRAME]
            place = due - _SEARCH + _most_similar(padded[due - _SEARCH : due + _SEARCH + _FRAME], wanted)
        made[index * _HOP : index * _HOP + _FRAME] += window * padded[place : place + _FRAME]
    # The first half frame fades in alone; the sound proper begins behind it.
    return _resized(made[_HOP:], length)


def _most_similar(region: Samples, wanted: Samples) -> int:
    """Return the offset in `region` at which it correlates best with `wanted`, loudness left aside."""
    products = np.correlate(region, wanted, mode="valid")
    energy = np.cumsum(np.concatenate([[0.0], np.square(region, dtype=np.float64)]))
    norms = np.sqrt(energy[len(wanted) :] - energy[: -len(wanted)] + 1e-6)
    return int(np.argmax(products / norms))


def _resized(samples: Samples, length: int) -> Samples:
    if len(samples) >= length:
        return samples[:length]
    return np.concatenate([samples, np.zeros(length - len(samples), np.float32)])
