"""Work that is admitted and has no slot yet, counted in characters: by model, and by caller."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass


@dataclass(eq=False, slots=True)
class Admitted:
    """A request's part of the waiting work: the characters that it has not yet brought to a slot."""

    model: str
    caller: str
    waiting_characters: int = 0


class WaitingWork:
    """The counts. They change only here, in methods that do not await."""

    def __init__(self) -> None:
        self.by_model: Counter[str] = Counter()
        self.by_caller: Counter[str] = Counter()

    @contextmanager
    def counting(self, model: str, caller: str, characters: int) -> Iterator[Admitted]:
        """Count a request's characters for the length of the block, less what it brings to slots."""
        admitted = Admitted(model, caller)
        self._count(admitted, characters)
        try:
            yield admitted
        finally:
            self._count(admitted, -admitted.waiting_characters)

    def grew(self, admitted: Admitted, characters: int) -> None:
        """Count characters more of a request whose text is still arriving."""
        self._count(admitted, characters)

    def started(self, admitted: Admitted, characters: int) -> None:
        """Take characters out: their segment has its slot for the first time."""
        assert characters <= admitted.waiting_characters, f"started more than was admitted: {admitted!r}"
        self._count(admitted, -characters)

    def _count(self, admitted: Admitted, characters: int) -> None:
        admitted.waiting_characters += characters
        for counts, key in ((self.by_model, admitted.model), (self.by_caller, admitted.caller)):
            counts[key] += characters
            assert counts[key] >= 0, f"counted below nothing: {key!r} {counts[key]}"
            if not counts[key]:
                del counts[key]  # callers come and go: the table must not grow with their number
