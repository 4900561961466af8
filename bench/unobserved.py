"""A gateway that nobody watches: no metrics, no log lines, no spans. bench.observing holds the real one against it."""

from __future__ import annotations

import contextlib
from typing import Any

from gateway import app
from gateway.__main__ import main


class Nobody:
    """Stands where the observer stands, and hears nothing."""

    def __init__(self, *_: object) -> None:
        pass

    def __getattr__(self, name: str) -> Any:
        return _ignore


def _ignore(*_: object, **__: object) -> contextlib.AbstractContextManager[None]:
    return contextlib.nullcontext()  # what is followed from its beginning to its end is a block


if __name__ == "__main__":
    vars(app)["Observer"] = Nobody
    main()
