"""A gateway that nobody watches: no metrics, nothing for the page, no spans. It logs, as any service does.

bench.observing holds the real one against it.
"""

from __future__ import annotations

import contextlib
from typing import Any

from gateway import app
from gateway.__main__ import main
from gateway.journey import Journey
from gateway.observer import log
from wire.logs import fields


class Nobody:
    """Stands where the observer stands, and hears nothing."""

    def __init__(self, *_: object) -> None:
        pass

    def request_done(self, journey: Journey) -> None:
        log.info("request", extra=fields(journey.log_fields()))

    def __getattr__(self, name: str) -> Any:
        return _ignore


def _ignore(*_: object, **__: object) -> contextlib.AbstractContextManager[None]:
    return contextlib.nullcontext()  # what is followed from its beginning to its end is a block


if __name__ == "__main__":
    vars(app)["Observer"] = Nobody
    main()
