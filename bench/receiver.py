"""Finds the audio in an answer's bytes, however the network cut them: plain, WAV, events, worker frames. No I/O."""

from __future__ import annotations

import base64
import binascii
import json
import struct
from typing import Protocol

from bench.journey import Problem, ProblemKind
from wire.errors import TtsError
from wire.frames import Frame, FrameError, FrameReader, FrameType

_PCM_BYTES_PER_SAMPLE = 2
_WAV_HEADER_BYTES = 44
_LONGEST_WAV_HEADER_BYTES = 4096
_LONGEST_EVENT_BYTES = 8 << 20
# A stream's length is not known when its header is sent; these, and zero, stand for that.
_UNKNOWN_SIZES = (0, 0x7FFFFFFF, 0xFFFFFFFF)
_NEAR_UNKNOWN = 64  # some writers subtract the header from the placeholder


class ReceiveError(Exception):
    """The answer is an error or broken; nothing after it counts."""

    def __init__(self, kind: ProblemKind, code: str) -> None:
        super().__init__(f"{kind}: {code}")
        self.problem = Problem(kind, code=code)


class Receiver(Protocol):
    """One answer's reader."""

    @property
    def recording(self) -> bytes:
        """The file so far, where it is to be kept; else empty."""

    @property
    def bytes_per_second(self) -> float | None:
        """Of the audio that `feed` counts; None when bytes do not tell time (compressed formats)."""

    def feed(self, data: bytes) -> int:
        """Return how many bytes of audio have arrived with `data`.

        Raises:
            ReceiveError: the answer is broken, or tells an error.
        """

    def finish(self) -> None:
        """Check that the end of the answer is where it may end.

        Raises:
            ReceiveError: it is not.
        """


class PcmReceiver:
    """Headerless PCM s16le mono."""

    recording = b""

    def __init__(self, sample_rate: int) -> None:
        self.bytes_per_second: float | None = float(_PCM_BYTES_PER_SAMPLE * sample_rate)
        self._bytes = 0

    def feed(self, data: bytes) -> int:
        self._bytes += len(data)
        return len(data)

    def finish(self) -> None:
        if self._bytes % _PCM_BYTES_PER_SAMPLE:
            raise ReceiveError(ProblemKind.TRUNCATED, "half_a_sample")


class CompressedReceiver:
    """Any other format: every byte counts as audio, its container's header too."""

    bytes_per_second: float | None = None

    def __init__(self, *, keep: bool = False) -> None:
        self.recording = b""
        self._keep = keep

    def feed(self, data: bytes) -> int:
        if self._keep:
            self.recording += data
        return len(data)

    def finish(self) -> None:
        pass


class WavReceiver:
    """A WAV file with PCM in it; its header is no audio."""

    recording = b""

    def __init__(self) -> None:
        self.bytes_per_second: float | None = None
        self._header = b""
        self._bytes_per_frame = 1
        self._announced: int | None = None
        self._bytes = 0

    def feed(self, data: bytes) -> int:
        if self.bytes_per_second is not None:
            self._bytes += len(data)
            return len(data)
        self._header += data
        audio = self._read_header()
        self._bytes += audio
        return audio

    def finish(self) -> None:
        if self.bytes_per_second is None:
            raise ReceiveError(ProblemKind.TRUNCATED, "wav_header")
        if self._bytes % self._bytes_per_frame:
            raise ReceiveError(ProblemKind.TRUNCATED, "half_a_sample")
        if self._announced is not None and self._bytes < self._announced:
            raise ReceiveError(ProblemKind.TRUNCATED, "wav_shorter_than_its_header")

    def _read_header(self) -> int:
        """Return the bytes of audio behind the header, as soon as it is complete."""
        if len(self._header) < _WAV_HEADER_BYTES:
            return 0
        if self._header[:4] != b"RIFF" or self._header[8:16] != b"WAVEfmt ":
            raise ReceiveError(ProblemKind.MALFORMED, "not_wav")
        at = self._header.find(b"data", 36)
        if at < 0 or len(self._header) < at + 8:
            if len(self._header) > _LONGEST_WAV_HEADER_BYTES:
                raise ReceiveError(ProblemKind.MALFORMED, "wav_without_data")
            return 0
        byte_rate, self._bytes_per_frame = struct.unpack_from("<IH", self._header, 28)
        if not byte_rate or not self._bytes_per_frame:
            raise ReceiveError(ProblemKind.MALFORMED, "wav_byte_rate")
        (size,) = struct.unpack_from("<I", self._header, at + 4)
        if not any(unknown - _NEAR_UNKNOWN <= size <= unknown for unknown in _UNKNOWN_SIZES):
            self._announced = size
        self.bytes_per_second = float(byte_rate)
        return len(self._header) - at - 8


class SseReceiver:
    """OpenAI's `text/event-stream`: base64 audio in `speech.audio.delta` events, for another receiver to read."""

    def __init__(self, inner: Receiver) -> None:
        self._inner = inner
        self._rest = b""
        self._is_done = False

    @property
    def bytes_per_second(self) -> float | None:
        return self._inner.bytes_per_second

    @property
    def recording(self) -> bytes:
        return self._inner.recording

    def feed(self, data: bytes) -> int:
        *lines, self._rest = (self._rest + data).split(b"\n")
        if len(self._rest) > _LONGEST_EVENT_BYTES:
            raise ReceiveError(ProblemKind.MALFORMED, "endless_event")
        # Each event has one line of data; its name and the blank line behind it say nothing more.
        return sum(self._read_event(line[5:].strip()) for line in lines if line.startswith(b"data:"))

    def finish(self) -> None:
        if not self._is_done:
            raise ReceiveError(ProblemKind.TRUNCATED, "no_done_event")
        self._inner.finish()

    def _read_event(self, data: bytes) -> int:
        if data == b"[DONE]":
            self._is_done = True
            return 0
        try:
            event = json.loads(data)
            kind = event.get("type")
            audio = base64.b64decode(event["audio"], validate=True) if kind == "speech.audio.delta" else b""
        except (ValueError, TypeError, KeyError, AttributeError, binascii.Error):
            raise ReceiveError(ProblemKind.MALFORMED, "event") from None
        if kind == "speech.audio.done":
            self._is_done = True
        elif kind == "error" or "error" in event:
            raise ReceiveError(ProblemKind.FAILED, error_code(event))
        return self._inner.feed(audio) if audio else 0


class FrameReceiver:
    """A worker's frames, as docs/wire.md has them."""

    recording = b""

    def __init__(self) -> None:
        self.bytes_per_second: float | None = None
        self._reader = FrameReader()
        self._is_done = False

    def feed(self, data: bytes) -> int:
        try:
            return sum(self._read(frame) for frame in self._reader.feed(data))
        except FrameError:
            raise ReceiveError(ProblemKind.MALFORMED, "frame") from None

    def finish(self) -> None:
        if not self._is_done:
            raise ReceiveError(ProblemKind.TRUNCATED, "no_done_frame")

    def _read(self, frame: Frame) -> int:
        match frame.type:
            case FrameType.META:
                rate = frame.json().get("sample_rate")
                if not isinstance(rate, int) or rate <= 0:
                    raise ReceiveError(ProblemKind.MALFORMED, "sample_rate")
                self.bytes_per_second = float(_PCM_BYTES_PER_SAMPLE * rate)
            case FrameType.AUDIO:
                if self.bytes_per_second is None:
                    raise ReceiveError(ProblemKind.MALFORMED, "audio_before_meta")
                return len(frame.payload)
            case FrameType.ERROR:
                raise ReceiveError(ProblemKind.FAILED, str(TtsError.from_envelope(frame.json()).code))
            case FrameType.DONE:
                self._is_done = True
            case FrameType.CHECKPOINT:
                pass
        return 0


def error_code(body: object) -> str:
    """Return the code (or else the type) of an error envelope, cut to 64 characters; empty when there is none."""
    error = body.get("error") if isinstance(body, dict) else None
    if not isinstance(error, dict):
        return ""
    return str(error.get("code") or error.get("type") or "")[:64]
