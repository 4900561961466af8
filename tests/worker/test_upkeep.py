"""When a worker does something by itself."""

from collections.abc import Iterator

import pytest

from wire.gpu import Gpu, GpuState
from worker.upkeep import Limits, outgrown, wait_unused

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


@pytest.mark.parametrize(
    ("limits", "resident", "own", "reason"),
    [
        (Limits(0, 0), 1 << 40, 1 << 40, ""),
        (Limits(100, 100), 100, 100, ""),
        (Limits(100, 0), 101, 1 << 40, "memory=101 exceeds --max-memory-mb"),
        (Limits(0, 100), 1 << 40, 101, "memory=101 on cuda:0 exceeds --max-gpu-memory-mb"),
        (Limits(0, 100), 1, None, ""),  # the driver does not tell
    ],
)
def test_a_process_has_outgrown_the_limit_that_it_passed(
    limits: Limits, resident: int, own: int | None, reason: str
) -> None:
    assert outgrown(limits, resident, [Gpu("cuda:0", GpuState.OK, memory_own_bytes=own)]) == reason
