"""How much each key has had, against what it may have. Pure: the clock is passed in."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from gateway.bucket import Bucket
from gateway.keys import Limits
from wire.errors import ErrorCode, TtsError

_MINUTE_SECONDS = 60.0


@dataclass(eq=False, slots=True)
class _Meter:
    characters: Bucket
    requests: int = 0


class Quotas:
    """Counts what callers with limits are given. One writer: the speech service, through `hold`."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        # One entry a key that has limits and was used: bounded by the keys that the operator made.
        self._meters: dict[str, _Meter] = {}

    @contextmanager
    def hold(
        self, caller: str, limits: Limits, characters: int, *, was_heard: Callable[[], bool]
    ) -> Iterator[Callable[[int], None]]:
        """Count one request of `characters` for the length of the block; its characters are given back when nothing of
        it was heard. Yields a function that charges more of them, for a text that is still arriving.

        A bucket of one minute's characters that fills evenly. A text goes through whole while anything is left, and
        what it takes beyond that is paid for with time: a long text is possible, and the rate holds in the long run.

        Raises:
            TtsError: `rate_limited`; `param` names the limit, and Retry-After says when it opens.
        """
        if not limits.characters_per_minute and not limits.concurrent:
            yield lambda characters: None
            return
        meter = self._filled(caller, limits)
        self._check(meter, limits)
        meter.requests += 1
        charged = 0

        def charge(characters: int) -> None:
            nonlocal charged
            charged += characters
            meter.characters.level -= characters

        charge(characters)
        try:
            yield charge
        finally:
            meter.requests -= 1
            assert meter.requests >= 0, f"more requests ended than began: {caller}"
            if not was_heard():
                meter.characters.level += charged

    def _filled(self, caller: str, limits: Limits) -> _Meter:
        """Return the caller's meter, filled up to now. A key whose limits were changed keeps what it owes."""
        now = self._clock()
        full = float(limits.characters_per_minute)
        meter = self._meters.setdefault(caller, _Meter(Bucket(full, now)))
        meter.characters.fill(full, full / _MINUTE_SECONDS, now)
        return meter

    def _check(self, meter: _Meter, limits: Limits) -> None:
        if limits.concurrent and meter.requests >= limits.concurrent:
            raise TtsError(
                ErrorCode.RATE_LIMITED,
                f"This key may have {limits.concurrent} requests at once, and has them. Send the next when one has "
                "ended.",
                param="concurrent",
                retry_after_seconds=1.0,
            )
        if limits.characters_per_minute and meter.characters.level <= 0:
            wait_seconds = (1.0 - meter.characters.level) * _MINUTE_SECONDS / limits.characters_per_minute
            raise TtsError(
                ErrorCode.RATE_LIMITED,
                f"This key may have {limits.characters_per_minute} characters a minute, and has had them. Try again in "
                f"{wait_seconds:.0f} s (Retry-After).",
                param="characters_per_minute",
                retry_after_seconds=wait_seconds,
            )
