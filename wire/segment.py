"""One segment of text on its way to a worker: the body of `POST /v1/segments`."""

from __future__ import annotations

import base64
import binascii
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from wire.errors import ErrorCode, TtsError


@dataclass(frozen=True, slots=True)
class Range:
    """The closed interval a parameter may lie in."""

    low: float
    high: float

    def check(self, name: str, value: object) -> float:
        """Return `value` as a float.

        Raises:
            TtsError: `invalid_value`, naming the field, when it is no finite number or outside the range.
        """
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise TtsError(
                ErrorCode.INVALID_VALUE,
                f"{name} must be a number from {self.low:g} to {self.high:g}, not {_shown(value)}.",
                param=name,
            )
        try:
            number = float(value)
        except OverflowError:  # an integer of 400 digits is valid JSON
            number = math.inf
        if not self.low <= number <= self.high:  # also false for NaN
            raise TtsError(
                ErrorCode.INVALID_VALUE,
                f"{name} must lie between {self.low:g} and {self.high:g}; it is {number:g}.",
                param=name,
            )
        return number


def _shown(value: object) -> str:
    # Lists and objects by type only: the text of deeply nested ones exhausts the stack.
    flat = value is None or isinstance(value, str | bool)
    return f"{type(value).__name__} {str(value)[:40]!r}" if flat else type(value).__name__


SPEED = Range(0.25, 4.0)

# How a voice may be bent. Which of them a model heeds is in its `ModelInfo.parameters`; bounds are the widest that any
# known Chatterbox client sends (temperature 0 means greedy, cfg_weight 0 means without guidance).
PARAMETERS: dict[str, Range] = {
    "temperature": Range(0.0, 5.0),
    "exaggeration": Range(0.0, 2.0),
    "cfg_weight": Range(0.0, 2.0),
    "top_p": Range(0.0, 1.0),
    "min_p": Range(0.0, 1.0),
    "repetition_penalty": Range(1.0, 10.0),
}

MAX_SEED = 2**32 - 1
MAX_SEGMENT_CHARACTERS = 8192
MAX_CHECKPOINT_BYTES = 64 * 1024

_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class Resume:
    """Where another worker left off: its newest checkpoint (may be empty) and the samples that were delivered.

    The new worker's first sample is number `delivered_samples` of the segment, so that the listener hears no join.
    """

    checkpoint: bytes
    delivered_samples: int


@dataclass(frozen=True, slots=True)
class SegmentRequest:
    """What a worker needs to speak one segment. The gateway decides `seed`, so that any worker speaks the same.

    `voice_sha256` is None for a voice of the model's own; else `voice` was cloned from the recording of that hash.
    """

    request_id: str
    index: int
    text: str
    model: str
    voice: str
    seed: int
    voice_sha256: str | None = None
    language: str | None = None
    speed: float = 1.0
    parameters: Mapping[str, float] = field(default_factory=dict)
    resume: Resume | None = None

    def to_json(self) -> dict[str, Any]:
        body: dict[str, Any] = {
            "request_id": self.request_id,
            "index": self.index,
            "text": self.text,
            "model": self.model,
            "voice": self.voice,
            "seed": self.seed,
            "voice_sha256": self.voice_sha256,
            "language": self.language,
            "speed": self.speed,
            "parameters": dict(self.parameters),
        }
        if self.resume is not None:
            body["resume"] = {
                "checkpoint": base64.b64encode(self.resume.checkpoint).decode("ascii"),
                "delivered_samples": self.resume.delivered_samples,
            }
        return body

    @classmethod
    def from_json(cls, body: object) -> SegmentRequest:
        """Read a segment; unknown fields and parameters are ignored.

        Raises:
            TtsError: `invalid_body` or `invalid_value`, naming the field.
        """
        if not isinstance(body, Mapping):
            raise TtsError(ErrorCode.INVALID_BODY, "the body must be a JSON object")
        parameters = _typed(body, "parameters", dict, {})
        language = body.get("language")
        if language is not None and not isinstance(language, str):
            raise _invalid("language", "must be a string or null")
        text = _typed(body, "text", str)
        try:
            text.encode()
        except UnicodeEncodeError:
            raise _invalid("text", "holds half of a surrogate pair") from None
        if not 0 < len(text) <= MAX_SEGMENT_CHARACTERS:
            raise _invalid("text", f"must have 1 to {MAX_SEGMENT_CHARACTERS} characters, has {len(text)}")
        return cls(
            request_id=_typed(body, "request_id", str),
            index=_whole(body, "index", 0, 1_000_000),
            text=text,
            model=_typed(body, "model", str),
            voice=_typed(body, "voice", str),
            seed=_whole(body, "seed", 0, MAX_SEED),
            voice_sha256=_sha256(body.get("voice_sha256")),
            language=language,
            speed=SPEED.check("speed", body.get("speed", 1.0)),
            parameters={
                name: PARAMETERS[name].check(name, parameters[name]) for name in PARAMETERS if name in parameters
            },
            resume=_resume(body.get("resume")),
        )


_MISSING = object()


def _invalid(name: str, why: str) -> TtsError:
    return TtsError(ErrorCode.INVALID_VALUE, f"{name} {why}", param=name)


def _typed(body: Mapping[str, Any], name: str, type_: type, default: object = _MISSING) -> Any:
    value = body.get(name, default)
    if value is _MISSING:
        raise _invalid(name, "is missing")
    if not isinstance(value, type_):
        raise _invalid(name, f"must be {type_.__name__}, not {type(value).__name__}")
    return value


def _whole(body: Mapping[str, Any], name: str, low: int, high: int) -> int:
    value = _typed(body, name, int)
    if isinstance(value, bool) or not low <= value <= high:
        raise _invalid(name, f"must be a whole number from {low} to {high}")
    return int(value)


def _sha256(value: object) -> str | None:
    if value is None:
        return None
    if not isinstance(value, str) or not _SHA256.fullmatch(value):
        raise _invalid("voice_sha256", "must be 64 hexadecimal digits in lower case, or null")
    return value


def _resume(value: object) -> Resume | None:
    if value is None:
        return None
    if not isinstance(value, Mapping):
        raise _invalid("resume", "must be an object")
    try:
        checkpoint = base64.b64decode(_typed(value, "checkpoint", str), validate=True)
    except (binascii.Error, ValueError):
        raise _invalid("resume.checkpoint", "is not base64") from None
    if len(checkpoint) > MAX_CHECKPOINT_BYTES:
        raise _invalid("resume.checkpoint", f"exceeds {MAX_CHECKPOINT_BYTES} bytes")
    return Resume(checkpoint, _whole(value, "delivered_samples", 0, 2**40))
