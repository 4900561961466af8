"""Every error a client or the other side can see: its code, HTTP status, type, and whether another try may help."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Any, NamedTuple


class ErrorCode(StrEnum):
    """The `code` of the error envelope. Codes are never renamed; new ones may be added."""

    # The caller's request is wrong.
    INVALID_BODY = "invalid_body"
    BODY_TOO_LARGE = "body_too_large"
    UNSUPPORTED_MEDIA_TYPE = "unsupported_media_type"
    INVALID_VALUE = "invalid_value"
    EMPTY_TEXT = "empty_text"
    TEXT_TOO_LONG = "text_too_long"
    UNSPEAKABLE_TEXT = "unspeakable_text"
    MODEL_NOT_FOUND = "model_not_found"
    VOICE_NOT_FOUND = "voice_not_found"
    VOICE_CONFLICT = "voice_conflict"
    UNUSABLE_CLIP = "unusable_clip"
    UPLOADS_OFF = "uploads_off"
    WORKER_NOT_FOUND = "worker_not_found"
    NOT_FOUND = "not_found"
    METHOD_NOT_ALLOWED = "method_not_allowed"
    UNAUTHORIZED = "unauthorized"
    FORBIDDEN = "forbidden"
    BODY_TIMEOUT = "body_timeout"
    # The service cannot take the request now.
    RATE_LIMITED = "rate_limited"
    OVERLOADED = "overloaded"
    NO_WORKER = "no_worker"
    QUEUE_TIMEOUT = "queue_timeout"
    SHUTTING_DOWN = "shutting_down"
    # The service took the request and failed.
    DEADLINE_EXCEEDED = "deadline_exceeded"
    SLOW_READER = "slow_reader"
    WORKER_FAILED = "worker_failed"
    STORAGE_FULL = "storage_full"
    INTERNAL = "internal_error"
    # Between gateway and worker only; a client never sees these.
    WORKER_FULL = "worker_full"
    WORKER_NOT_READY = "worker_not_ready"
    SEGMENT_FAILED = "segment_failed"
    LINK_REFUSED = "link_refused"
    WRONG_WORKER = "wrong_worker"


class Traits(NamedTuple):
    """What a code implies; `retryable`: the same request may succeed elsewhere or later."""

    status: int
    type: str
    retryable: bool


_CALLER = "invalid_request_error"
_BUSY = "overloaded_error"
_SERVER = "server_error"

TRAITS: dict[ErrorCode, Traits] = {
    ErrorCode.INVALID_BODY: Traits(400, _CALLER, False),
    ErrorCode.BODY_TOO_LARGE: Traits(413, _CALLER, False),
    ErrorCode.UNSUPPORTED_MEDIA_TYPE: Traits(415, _CALLER, False),
    ErrorCode.INVALID_VALUE: Traits(422, _CALLER, False),
    ErrorCode.EMPTY_TEXT: Traits(422, _CALLER, False),
    ErrorCode.TEXT_TOO_LONG: Traits(422, _CALLER, False),
    ErrorCode.UNSPEAKABLE_TEXT: Traits(422, _CALLER, False),
    ErrorCode.MODEL_NOT_FOUND: Traits(404, _CALLER, False),
    ErrorCode.VOICE_NOT_FOUND: Traits(404, _CALLER, False),
    ErrorCode.VOICE_CONFLICT: Traits(409, _CALLER, False),
    ErrorCode.UNUSABLE_CLIP: Traits(422, _CALLER, False),
    ErrorCode.UPLOADS_OFF: Traits(403, _CALLER, False),
    ErrorCode.WORKER_NOT_FOUND: Traits(404, _CALLER, False),
    ErrorCode.NOT_FOUND: Traits(404, _CALLER, False),
    ErrorCode.METHOD_NOT_ALLOWED: Traits(405, _CALLER, False),
    ErrorCode.UNAUTHORIZED: Traits(401, "authentication_error", False),
    ErrorCode.FORBIDDEN: Traits(403, "permission_error", False),
    ErrorCode.BODY_TIMEOUT: Traits(408, _CALLER, True),
    ErrorCode.RATE_LIMITED: Traits(429, "rate_limit_error", True),
    ErrorCode.OVERLOADED: Traits(503, _BUSY, True),
    ErrorCode.NO_WORKER: Traits(503, _BUSY, True),
    ErrorCode.QUEUE_TIMEOUT: Traits(503, _BUSY, True),
    ErrorCode.SHUTTING_DOWN: Traits(503, _BUSY, True),
    ErrorCode.DEADLINE_EXCEEDED: Traits(504, _SERVER, True),
    ErrorCode.SLOW_READER: Traits(408, _CALLER, True),
    ErrorCode.WORKER_FAILED: Traits(502, _SERVER, True),
    ErrorCode.STORAGE_FULL: Traits(507, _SERVER, True),
    ErrorCode.INTERNAL: Traits(500, _SERVER, True),
    ErrorCode.WORKER_FULL: Traits(429, _BUSY, True),
    ErrorCode.WORKER_NOT_READY: Traits(503, _BUSY, True),
    ErrorCode.SEGMENT_FAILED: Traits(500, _SERVER, True),
    ErrorCode.LINK_REFUSED: Traits(409, _CALLER, False),
    ErrorCode.WRONG_WORKER: Traits(503, _BUSY, True),
}


class TtsError(Exception):
    """An error with an owner: raised where it is found, turned into HTTP in one place a side.

    `message` is a sentence for the person who made the call: what was wrong, in which field, what to do.
    `param` names the offending field; `retry_after_seconds` is set where waiting helps.
    """

    def __init__(
        self,
        code: ErrorCode,
        message: str,
        *,
        param: str | None = None,
        retry_after_seconds: float | None = None,
    ) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.param = param
        self.retry_after_seconds = retry_after_seconds

    def __repr__(self) -> str:
        return f"<TtsError {self.code}: {self.message}>"

    @property
    def status(self) -> int:
        return TRAITS[self.code].status

    @property
    def retryable(self) -> bool:
        return TRAITS[self.code].retryable

    def envelope(self) -> dict[str, Any]:
        """Return OpenAI's error body: `{"error": {"message", "type", "param", "code"}}`."""
        return {
            "error": {
                "message": self.message,
                "type": TRAITS[self.code].type,
                "param": self.param,
                "code": str(self.code),
            }
        }

    @classmethod
    def from_envelope(cls, body: object) -> TtsError:
        """Read an error envelope of the other side; anything unreadable becomes `segment_failed`.

        An unknown code (a newer worker's) keeps its message and counts as `segment_failed`, which is retryable.
        """
        error = body.get("error") if isinstance(body, Mapping) else None
        if not isinstance(error, Mapping):
            # Only text is quoted: the text of deeply nested lists exhausts the stack.
            shown = body[:200] if isinstance(body, str) else type(body).__name__
            return cls(ErrorCode.SEGMENT_FAILED, f"unreadable error from the other side: {shown}")
        code, message, param = (_text(error.get(name)) for name in ("code", "message", "param"))
        return cls(_BY_TEXT.get(code or "", ErrorCode.SEGMENT_FAILED), (message or "")[:500], param=param)


_BY_TEXT = {str(code): code for code in ErrorCode}


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None
