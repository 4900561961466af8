"""What a caller asks for: the fields of `POST /v1/tts`, checked. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from gateway.encoder import AudioFormat
from gateway.queue import Priority
from gateway.text import clean_text
from wire.errors import ErrorCode, TtsError
from wire.segment import MAX_SEED, PARAMETERS, SPEED, Range

TIMEOUT = Range(0.1, 3600.0)


@dataclass(frozen=True, slots=True)
class SpeechRequest:
    """One request, valid as far as it can be judged without knowing the workers. `seed` None: a random one."""

    text: str
    text_field: str
    keep_markup: bool = False
    voice: str | None = None
    model: str | None = None
    format: AudioFormat = AudioFormat.WAV
    stream: bool = True
    seed: int | None = None
    speed: float = 1.0
    language: str | None = None
    parameters: Mapping[str, float] = field(default_factory=dict)
    timeout_seconds: float | None = None
    priority: Priority = Priority.INTERACTIVE
    given: frozenset[str] = frozenset()  # the tuning fields that the caller set, to tell those that are not heeded


def parse_speech(body: Mapping[str, Any], *, text_field: str, max_characters: int) -> SpeechRequest:
    """Read a request by the names of `POST /v1/tts` (`text_field` apart); unknown fields and nulls are ignored.

    Raises:
        TtsError: naming the first field that cannot be, and what it may be.
    """
    given = {name: value for name, value in body.items() if value is not None}
    if text_field not in given:
        raise TtsError(ErrorCode.EMPTY_TEXT, f"{text_field} is missing: the text to speak.", param=text_field)
    text = given[text_field]
    if not isinstance(text, str):
        raise TtsError(
            ErrorCode.INVALID_VALUE, f"{text_field} must be a string, not {type(text).__name__}.", param=text_field
        )
    keep_markup = _boolean(given, "keep_markup", default=False)
    cleaned = clean_text(text, max_characters=max_characters, param=text_field, keep_markup=keep_markup)
    return replace(parse_manner(given, text_field=text_field), text=cleaned)


def parse_manner(body: Mapping[str, Any], *, text_field: str = "text") -> SpeechRequest:
    """Read how a text is to be spoken, as `parse_speech` does; the text itself is left empty.

    Raises:
        TtsError: naming the first field that cannot be, and what it may be.
    """
    given = {name: value for name, value in body.items() if value is not None}
    timeout = given.get("timeout_seconds")
    return SpeechRequest(
        text="",
        text_field=text_field,
        keep_markup=_boolean(given, "keep_markup", default=False),
        voice=_voice(given.get("voice")),
        model=_name(given, "model"),
        format=_format(given.get("format", AudioFormat.WAV), "format"),
        stream=_boolean(given, "stream", default=True),
        seed=_seed(given.get("seed")),
        speed=SPEED.check("speed", given.get("speed", 1.0)),
        language=_language(given),
        parameters={name: PARAMETERS[name].check(name, given[name]) for name in PARAMETERS if name in given},
        timeout_seconds=None if timeout is None else TIMEOUT.check("timeout_seconds", timeout),
        priority=_priority(given.get("priority", "interactive")),
        given=frozenset(name for name in (*PARAMETERS, "speed", "language") if name in given),
    )


def _invalid(name: str, why: str) -> TtsError:
    return TtsError(ErrorCode.INVALID_VALUE, f"{name} {why}", param=name)


def _name(given: Mapping[str, Any], field_name: str) -> str | None:
    value = given.get(field_name)
    if value is None:
        return None
    if not isinstance(value, str) or not 0 < len(value.strip()) <= 128:
        raise _invalid(field_name, "must be a name of 1 to 128 characters.")
    return value.strip()


def _voice(value: object) -> str | None:
    # OpenAI's newer clients send {"id": "voice_…"} for a voice of their own.
    name = value.get("id") if isinstance(value, Mapping) else value
    return _name({"voice": name if name is not None else value}, "voice")


def _format(value: object, name: str) -> AudioFormat:
    try:
        return AudioFormat(value)  # type: ignore[arg-type]
    except ValueError:
        raise _invalid(name, f"must be one of {', '.join(AudioFormat)}; it is {str(value)[:40]!r}.") from None


def _priority(value: object) -> Priority:
    names = [priority.name.lower() for priority in Priority]
    if value not in names:
        raise _invalid("priority", f"must be {' or '.join(names)}; it is {str(value)[:40]!r}.")
    return Priority[str(value).upper()]


def _boolean(given: Mapping[str, Any], name: str, *, default: bool) -> bool:
    value = given.get(name, default)
    if not isinstance(value, bool):
        raise _invalid(name, f"must be true or false, not {str(value)[:40]!r}.")
    return value


def _seed(value: object) -> int | None:
    """Absent, 0 and -1 all mean random: clients disagree on which of them does."""
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or not -1 <= value <= MAX_SEED:
        raise _invalid("seed", f"must be a whole number from 1 to {MAX_SEED}, or 0 or -1 for a random one.")
    return value if value > 0 else None


def _language(given: Mapping[str, Any]) -> str | None:
    """Return the bare lower-case code: `en-US` and `EN` are `en`."""
    value = _name(given, "language")
    if value is None:
        return None
    code = value.replace("_", "-").split("-")[0].lower()
    if not (2 <= len(code) <= 8 and code.isascii() and code.isalpha()):
        raise _invalid("language", f"must be a language code such as en or pt-BR; it is {value[:40]!r}.")
    return code
