"""The true length of a compressed answer, by decoding it."""

from __future__ import annotations

import io

import av


def decoded_seconds(recording: bytes) -> float | None:
    """Return the audio seconds of a whole file of any format; None when it does not decode."""
    samples, rate = 0, 0
    try:
        with av.open(io.BytesIO(recording), mode="r") as container:
            for frame in container.decode(audio=0):
                samples += frame.samples
                rate = frame.sample_rate
    except (av.error.FFmpegError, IndexError):
        return None
    return samples / rate if rate else None
