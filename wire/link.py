"""The control link: JSON messages over the WebSocket that a worker dials to a gateway. docs/wire.md lists them all.

An unknown `type` or field is ignored by both sides (`parse` returns None), so that either may be upgraded first.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from enum import StrEnum
from typing import Any, ClassVar

from wire.gpu import MAX_GPUS, Gpu

PROTOCOL_VERSION = 1
LINK_PATH = "/internal/workers"
STATUS_INTERVAL_SECONDS = 1.0
SILENCE_SECONDS = 3.0  # without a message for so long, the worker is gone
MAX_MESSAGE_BYTES = 1 << 20

_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
_EPOCH = re.compile(r"[A-Za-z0-9._-]{1,64}")  # travels in a header
_VOICE = re.compile(r"[a-z0-9_-]{1,64}")  # so does this, and in a path
_WORD = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_MAX_VOICES = 4096
_MAX_WORDS = 256


class LinkError(Exception):
    """A message that breaks the protocol; the link is closed."""


class WorkerState(StrEnum):
    """The life of a worker process, as it reports it. worker/lifecycle.py has the table of its transitions."""

    STARTING = "starting"
    LOADING = "loading"
    WARMING = "warming"
    READY = "ready"
    UNLOADED = "unloaded"
    DRAINING = "draining"
    STOPPED = "stopped"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """One model that a worker serves, and all that a gateway must know to plan for it.

    `scripts` are the first words of Unicode character names (LATIN, CYRILLIC, CJK …) whose letters the model can read;
    empty means any. `parameters` are the names of wire.segment.PARAMETERS, and `speed`, that it heeds. `cloning` models
    speak with uploaded voices too, if the clip is longer than `min_clip_seconds`. `watermark` names the
    inaudible mark on the sound.
    """

    id: str
    sample_rate: int
    voices: tuple[str, ...]
    languages: tuple[str, ...]
    scripts: tuple[str, ...] = ()
    parameters: tuple[str, ...] = ()
    max_segment_characters: int = 280
    cloning: bool = False
    min_clip_seconds: float = 0.0
    watermark: str = ""

    @property
    def default_voice(self) -> str:
        """The first voice: what a request without one gets."""
        return self.voices[0]


@dataclass(frozen=True, slots=True)
class Hello:
    """A worker's first message. `epoch` is new at each start of the process; `port` is on the link's peer address.

    A worker that `loads_on_demand` gives its model's memory back by itself, and is to be ordered to load when a segment
    waits for it.
    """

    TYPE: ClassVar[str] = "hello"
    worker: str
    epoch: str
    port: int
    slots: int
    device: str
    models: tuple[ModelInfo, ...]
    state: WorkerState = WorkerState.STARTING
    protocol: int = PROTOCOL_VERSION
    split: tuple[str, ...] = ()
    versions: Mapping[str, str] = field(default_factory=dict)
    loads_on_demand: bool = False


@dataclass(frozen=True, slots=True)
class Status:
    """A worker's message every second, and at once when its state changes.

    `steps` counts model steps since start (a number that stands still while in_flight > 0 is a hung engine);
    `voices` are those warm in memory; `gpus` has one entry for each GPU that it runs on, none on a CPU.
    """

    TYPE: ClassVar[str] = "status"
    state: WorkerState
    in_flight: int
    steps: int
    slots: int
    models: tuple[ModelInfo, ...] = ()
    voices: tuple[str, ...] = ()
    gpus: tuple[Gpu, ...] = ()
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Welcome:
    """The gateway's answer to a hello that it accepts."""

    TYPE: ClassVar[str] = "welcome"
    gateway: str
    status_interval_seconds: float = STATUS_INTERVAL_SECONDS


@dataclass(frozen=True, slots=True)
class Refused:
    """The gateway's answer to a hello that it does not accept; it closes the link after it."""

    TYPE: ClassVar[str] = "refused"
    code: str
    message: str


class Command(StrEnum):
    """What a gateway may ask of a worker, as the `command` of an `order`."""

    DRAIN = "drain"
    UNDRAIN = "undrain"
    LOAD = "load"
    UNLOAD = "unload"


@dataclass(frozen=True, slots=True)
class Order:
    """The gateway asks the worker for a change of state; the answer is the next status."""

    TYPE: ClassVar[str] = "order"
    command: Command


Message = Hello | Status | Welcome | Refused | Order
_BY_TYPE: dict[str, type[Any]] = {cls.TYPE: cls for cls in (Hello, Status, Welcome, Refused, Order)}


def encode(message: Message) -> str:
    """Return the message as one line of JSON with its `type` first."""
    return json.dumps({"type": message.TYPE} | asdict(message), separators=(",", ":"))


def parse(text: str) -> Message | None:
    """Return the message, or None when its type is not known here.

    Raises:
        LinkError: not a JSON object, or a known type with a missing or impossible field.
    """
    try:
        body = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise LinkError(f"not JSON: {error}") from None
    if not isinstance(body, dict):
        raise LinkError(f"a message is a JSON object, not {type(body).__name__}")
    cls = _BY_TYPE.get(str(body.get("type")))
    if cls is None:
        return None
    known = {f.name: body[f.name] for f in fields(cls) if f.name in body}
    try:
        json.dumps(body, ensure_ascii=False).encode()  # half of a surrogate pair could never be shown to anybody
        message: Message = cls(**{name: _READ.get(name, _same)(value) for name, value in known.items()})
        _check(message)
    # Overflow: Infinity and integers of 400 digits are numbers to JSON. Recursion: from the text of nested lists.
    except (TypeError, ValueError, KeyError, AttributeError, OverflowError, RecursionError) as error:
        raise LinkError(f"bad {cls.TYPE}: {error}") from None
    return message


def _same(value: Any) -> Any:
    return value


def _string(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(f"expected a string, got {str(value)[:80]}")
    return value


def _strings(value: Any) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise ValueError(f"expected a list of strings, got {str(value)[:80]}")
    return tuple(value)


def _models(value: Any) -> tuple[ModelInfo, ...]:
    if not isinstance(value, list) or len(value) > 16:
        raise ValueError("models must be a list of at most 16")
    return tuple(_model(item) for item in value)


def _model(item: Mapping[str, Any]) -> ModelInfo:
    model = ModelInfo(
        id=str(item["id"]),
        sample_rate=int(item["sample_rate"]),
        voices=_strings(item["voices"]),
        languages=_strings(item["languages"]),
        scripts=_strings(item.get("scripts", [])),
        parameters=_strings(item.get("parameters", [])),
        max_segment_characters=int(item.get("max_segment_characters", 280)),
        cloning=bool(item.get("cloning", False)),
        min_clip_seconds=float(item.get("min_clip_seconds", 0.0)),
        watermark=str(item.get("watermark", "")),
    )
    if not _NAME.fullmatch(model.id):
        raise ValueError(f"model id {model.id!r} is not [a-z0-9._-]{{1,64}}")
    if not 8_000 <= model.sample_rate <= 48_000:
        raise ValueError(f"sample_rate {model.sample_rate} of {model.id} is not from 8000 to 48000")
    if model.watermark and not _NAME.fullmatch(model.watermark):
        raise ValueError(f"watermark {model.watermark[:64]!r} of {model.id} is not [a-z0-9._-]{{1,64}}")
    if not model.voices:
        raise ValueError(f"model {model.id} has no voice")
    _check_words("voice", model.voices, _VOICE, _MAX_VOICES)
    for name in ("languages", "scripts", "parameters"):
        _check_words(name, getattr(model, name), _WORD, _MAX_WORDS)
    if not 16 <= model.max_segment_characters <= 8192:
        raise ValueError(f"max_segment_characters {model.max_segment_characters} is not from 16 to 8192")
    if not 0 <= model.min_clip_seconds <= 60:  # also false for NaN
        raise ValueError(f"min_clip_seconds {model.min_clip_seconds} of {model.id} is not from 0 to 60")
    return model


def _gpus(value: Any) -> tuple[Gpu, ...]:
    if not isinstance(value, list) or len(value) > MAX_GPUS:
        raise ValueError(f"gpus must be a list of at most {MAX_GPUS}")
    return tuple(Gpu.from_json(item) for item in value)


def _check_words(what: str, words: tuple[str, ...], pattern: re.Pattern[str], most: int) -> None:
    if len(words) > most:
        raise ValueError(f"{len(words)} of {what} are more than {most}")
    for word in words:
        if not pattern.fullmatch(word):
            raise ValueError(f"{what} {word[:80]!r} is not {pattern.pattern}")


def _texts(value: Any) -> dict[str, str]:
    return {str(name)[:64]: str(text)[:128] for name, text in list(dict(value).items())[:64]}


_READ: dict[str, Any] = {
    "state": WorkerState,
    "command": Command,
    "models": _models,
    "voices": _strings,
    "split": _strings,
    "versions": _texts,
    "gpus": _gpus,
    "port": int,
    "slots": int,
    "in_flight": int,
    "steps": int,
    "protocol": int,
    "loads_on_demand": bool,
    "worker": _string,
    "epoch": _string,
    "device": lambda value: _string(value)[:64],
    "gateway": str,
    "status_interval_seconds": float,
    "code": str,
    "message": lambda value: str(value)[:500],
    "detail": lambda value: str(value)[:500],
}


def _check(message: Message) -> None:
    if isinstance(message, Hello):
        if not _NAME.fullmatch(message.worker):
            raise ValueError(f"worker {message.worker!r} is not [a-z0-9][a-z0-9._-]{{0,63}}")
        if not 1 <= message.port <= 65535:
            raise ValueError(f"port {message.port} is not from 1 to 65535")
        if not _EPOCH.fullmatch(message.epoch):
            raise ValueError("epoch must be 1 to 64 of A-Z a-z 0-9 . _ -")
        for device in (message.device, *message.split):
            if not 0 < len(device) <= 128 or not device.isprintable():
                raise ValueError("device and split must be names of 1 to 128 printable characters")
        if not message.models:
            raise ValueError("models is empty")
    if isinstance(message, Hello | Status) and not 1 <= message.slots <= 4096:
        raise ValueError(f"slots {message.slots} is not from 1 to 4096")
    if isinstance(message, Status):
        _check_words("voice", message.voices, _VOICE, _MAX_VOICES)
    if isinstance(message, Status) and (message.in_flight < 0 or message.steps < 0):
        raise ValueError("in_flight and steps count from 0")
    if isinstance(message, Welcome) and not 0.01 <= message.status_interval_seconds <= 60:  # also false for NaN
        raise ValueError(f"status_interval_seconds {message.status_interval_seconds} is not from 0.01 to 60")
