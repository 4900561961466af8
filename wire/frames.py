"""The worker's answer to one segment: typed, length-prefixed frames in a chunked HTTP body.

A frame is one byte of type, four bytes of payload length (big-endian), the payload. docs/wire.md is the specification.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator, Mapping
from enum import IntEnum
from typing import Any, NamedTuple

from wire.segment import MAX_CHECKPOINT_BYTES

_HEADER = struct.Struct(">BI")

# One second of 24 kHz PCM is 48 kB and a checkpoint is "small": a longer announcement is a broken or hostile peer.
MAX_PAYLOAD_BYTES = 1 << 20


class FrameType(IntEnum):
    META = ord("M")  # JSON: sample_rate first of all, model, voice
    AUDIO = ord("A")  # PCM s16le mono, an even number of bytes
    CHECKPOINT = ord("C")  # opaque to the gateway; a worker given it back continues from there
    PROGRESS = ord("P")  # empty: work is being done, and nothing has come of it for a second
    ERROR = ord("E")  # JSON: the error envelope; nothing follows
    DONE = ord("D")  # JSON: timings; nothing follows


class Frame(NamedTuple):
    type: FrameType
    payload: bytes

    def json(self) -> dict[str, Any]:
        """Return the payload as a JSON object.

        Raises:
            FrameError: it is not one.
        """
        try:
            value = json.loads(self.payload)
        except (ValueError, RecursionError) as error:
            raise FrameError(f"{self.type.name} frame holds no JSON: {error}") from None
        if not isinstance(value, dict):
            raise FrameError(f"{self.type.name} frame holds {type(value).__name__}, not an object")
        return value


class FrameError(Exception):
    """The peer broke the framing; the stream cannot be trusted from here on."""


def encode_frame(type_: FrameType, payload: bytes | Mapping[str, Any]) -> bytes:
    """Return the bytes of one frame; a mapping is written as JSON.

    Raises:
        FrameError: the payload is longer than a frame of this type may be.
    """
    data = payload if isinstance(payload, bytes) else json.dumps(payload, separators=(",", ":")).encode()
    if len(data) > _limit(type_):
        raise FrameError(f"a payload of {len(data)} bytes exceeds the {_limit(type_)} of {type_.name}")
    return _HEADER.pack(type_, len(data)) + data


def _limit(type_: int) -> int:
    # The gateway hands a checkpoint on in a JSON request, so that one is held shorter than audio.
    return MAX_CHECKPOINT_BYTES if type_ == FrameType.CHECKPOINT else MAX_PAYLOAD_BYTES


class FrameReader:
    """Turns received bytes into frames, however the network cut them. No I/O."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[Frame]:
        """Yield each frame that is complete by now; frames of an unknown type are skipped.

        Raises:
            FrameError: a frame announces more than its type may have, or audio of an odd number of bytes.
        """
        self._buffer += data
        while len(self._buffer) >= _HEADER.size:
            type_byte, length = _HEADER.unpack_from(self._buffer)
            if length > _limit(type_byte):
                raise FrameError(f"frame {chr(type_byte)!r} announces {length} bytes, more than {_limit(type_byte)}")
            end = _HEADER.size + length
            if len(self._buffer) < end:
                return
            payload = bytes(self._buffer[_HEADER.size : end])
            del self._buffer[:end]
            try:
                type_ = FrameType(type_byte)
            except ValueError:
                continue  # a newer worker's frame: it may add types, never change the meaning of these
            if type_ is FrameType.AUDIO and length % 2:
                raise FrameError(f"audio frame of {length} bytes: 16-bit samples come in pairs of bytes")
            yield Frame(type_, payload)

    @property
    def is_empty(self) -> bool:
        """No part of a frame is waiting for its rest."""
        return not self._buffer
