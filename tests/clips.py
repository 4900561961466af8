"""Clips to upload: a pitch that the tone model finds again, in any format, and files that mean ill."""

from __future__ import annotations

import io
import wave
from typing import Any

import av
import numpy as np

from gateway.encoder import AudioFormat, encode_whole

RATE = 24_000
Samples = np.ndarray[Any, np.dtype[np.int16]]


def tone(
    seconds: float = 6.0, *, hz: float = 220.0, amplitude: int = 12_000, rate: int = RATE, channels: int = 1
) -> Samples:
    """Return a pitch, a row a channel."""
    wave_ = np.round(amplitude * np.sin(2 * np.pi * hz * np.arange(round(seconds * rate)) / rate)).astype(np.int16)
    return np.tile(wave_, (channels, 1))


def wav(samples: Samples, rate: int = RATE) -> bytes:
    file = io.BytesIO()
    with wave.open(file, "wb") as out:
        out.setnchannels(len(samples))
        out.setsampwidth(2)
        out.setframerate(rate)
        out.writeframes(samples.T.tobytes())
    return file.getvalue()


def clip(hz: float = 220.0, seconds: float = 6.0) -> bytes:
    """Return a WAV file whose voice the tone model can tell from others."""
    return wav(tone(seconds, hz=hz))


def encoded(samples: Samples, container: str, codec: str, rate: int = RATE) -> bytes:
    """Return the samples in any container and codec that FFmpeg can write."""
    file = io.BytesIO()
    with av.open(file, "w", format=container) as out:
        stream = out.add_stream(codec, rate)
        stream.layout = "mono"
        frame = av.AudioFrame.from_ndarray(samples, format="s16p", layout="mono")
        frame.sample_rate = rate
        resampler = av.AudioResampler(format=stream.codec_context.format.name, layout="mono", rate=rate)
        for made in [*resampler.resample(frame), *resampler.resample(None)]:
            out.mux(stream.encode(made))
        out.mux(stream.encode(None))
    return file.getvalue()


def in_format(samples: Samples, form: AudioFormat) -> bytes:
    return encode_whole(samples.tobytes(), form, RATE)


def endless_opus(hours: float) -> bytes:
    """Return hours of silence in less than a megabyte an hour: one packet, over and over."""
    file = io.BytesIO()
    with av.open(file, "w", format="ogg") as out:
        stream = out.add_stream("libopus", 48_000, options={"frame_duration": "60"})
        stream.layout = "mono"
        frame = av.AudioFrame(format="s16", layout="mono", samples=2_880)
        frame.sample_rate = 48_000
        frame.planes[0].update(bytes(frame.planes[0].buffer_size))
        [packet] = [packet for _ in range(3) for packet in stream.encode(frame)][-1:]
        data = bytes(packet)
        for number in range(round(hours * 3_600 / 0.06)):
            copy = av.Packet(data)
            copy.stream, copy.time_base = stream, packet.time_base
            copy.pts = copy.dts = number * packet.duration
            copy.duration = packet.duration
            out.mux(copy)
    return file.getvalue()
