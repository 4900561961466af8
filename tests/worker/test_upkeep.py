"""When a worker does something by itself."""

from collections.abc import Iterator

from worker.upkeep import wait_unused

PATIENCE_SECONDS = 0.02


class Uses:
    """Counts as written down, then stands still; remembers how often it was asked."""

    def __init__(self, *counts: int | None) -> None:
        self.asked = 0
        self._counts: Iterator[int | None] = iter(counts)
        self._last: int | None = 0

    def __call__(self) -> int | None:
        self.asked += 1
        self._last = next(self._counts, self._last)
        return self._last


async def test_what_is_in_use_is_waited_for_however_long() -> None:
    uses = Uses(*[None] * 20, 1)
    await wait_unused(PATIENCE_SECONDS, uses)
    assert uses.asked > 21


async def test_a_use_that_came_and_went_between_two_looks_starts_the_wait_anew() -> None:
    uses = Uses(*range(20))
    await wait_unused(PATIENCE_SECONDS, uses)
    assert uses.asked > 20
