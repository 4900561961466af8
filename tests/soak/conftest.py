from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.e2e.cluster import Cluster


@dataclass(frozen=True)
class Scale:
    """How much of it: `make test` runs a sample, `make soak` all."""

    is_full: bool

    def of(self, sample: int, full: int) -> int:
        return full if self.is_full else sample


@pytest.fixture(scope="session")
def scale(request: pytest.FixtureRequest) -> Scale:
    return Scale(request.config.getoption("--soak"))


@pytest.fixture
async def cluster(tmp_path: Path) -> AsyncIterator[Cluster]:
    async with Cluster(tmp_path) as made:
        yield made
