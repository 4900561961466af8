from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.e2e.cluster import Cluster


@pytest.fixture
async def cluster(tmp_path: Path) -> AsyncIterator[Cluster]:
    async with Cluster(tmp_path) as made:
        yield made


@pytest.fixture(scope="session")
def ears():
    """The recogniser, loaded once; only the tests that listen need it."""
    from tests.e2e.ears import Ears

    return Ears()
