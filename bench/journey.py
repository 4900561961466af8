"""What one request of a run lived through: its instants, its audio, and what went wrong. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple


class ProblemKind(StrEnum):
    """Why a request counts as failed."""

    CAPPED = "capped"  # never sent: --max-in-flight were under way
    UNREACHABLE = "unreachable"  # no connection, or it ended before the headers
    REFUSED = "refused"  # an HTTP status other than 200
    FAILED = "failed"  # an error that was told inside the stream
    TRUNCATED = "truncated"  # the answer ended before its end
    MALFORMED = "malformed"  # not the format that was asked for
    SILENT = "silent"  # a whole answer without audio
    TIMEOUT = "timeout"  # not complete within --timeout
    CANCELLED = "cancelled"  # the run was interrupted


class Problem(NamedTuple):
    """A failure as reports count it: few different values. `code` is the service's word, or the exception's name."""

    kind: ProblemKind
    status: int | None = None
    code: str = ""


@dataclass(slots=True)
class Journey:
    """One request. Instants (`…_at`) are seconds from the start of the run, on the monotonic clock.

    `stalls` and `stall_seconds` stay None where the length of a chunk cannot be told from its bytes.
    """

    index: int
    characters: int
    due_at: float
    sent_at: float | None = None
    first_audio_at: float | None = None
    finished_at: float | None = None
    audio_bytes: int = 0
    audio_seconds: float | None = None
    stalls: int | None = None
    stall_seconds: float | None = None
    problem: Problem | None = None
    recording: bytes | None = None  # the compressed answer, kept for `--decode`

    @property
    def is_ok(self) -> bool:
        """It was sent, and answered to the end."""
        return self.problem is None and self.finished_at is not None

    @property
    def send_lag_seconds(self) -> float | None:
        """How late the generator was."""
        return None if self.sent_at is None else self.sent_at - self.due_at

    @property
    def ttfa_seconds(self) -> float | None:
        """Request sent → first byte of audio received."""
        if self.sent_at is None or self.first_audio_at is None:
            return None
        return self.first_audio_at - self.sent_at

    @property
    def completion_seconds(self) -> float | None:
        """Request sent → last byte received."""
        if self.sent_at is None or self.finished_at is None:
            return None
        return self.finished_at - self.sent_at
