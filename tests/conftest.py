import os

# Before numpy reads it. Two threads of OpenBLAS on a busy machine wait for each other by spinning: where a text is read
# out of its sounds, that is ten times slower than one thread.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import pytest
from hypothesis import HealthCheck, settings

# A machine that is busy fails no test.
settings.register_profile("unhurried", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("unhurried")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--soak", action="store_true", help="run the soak tests in full: hours, not minutes")
