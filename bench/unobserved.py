"""A gateway whose observer can be made deaf: SIGUSR1 does it, and the next one ends it. Meanwhile there are no metrics,
nothing for the page and no spans; it logs, as any service does. bench.observing holds its two sides against each other.
"""

from __future__ import annotations

import contextlib
import signal
from typing import Any

from gateway import app
from gateway.__main__ import main
from gateway.journey import Journey
from gateway.observer import Observer, log
from wire.logs import fields

_NOTHING = contextlib.nullcontext()


class Hearing(Observer):
    """The gateway's own observer, until the signal.

    To be signalled while no request is under way: one that is heard only half stays in the live figures for ever.
    """

    def __init__(self, *told: Any) -> None:
        super().__init__(*told)
        # The class is changed under those who hold the observer: to ask at each call would cost on both sides.
        signal.signal(signal.SIGUSR1, lambda *_: _turn(self))


class Deaf:
    """Stands where the observer stands, and hears nothing."""

    def request_done(self, journey: Journey) -> None:
        log.info("request", extra=fields(journey.log_fields()))


def _ignore(*_: object, **__: object) -> contextlib.AbstractContextManager[None]:
    return _NOTHING  # what is followed from its beginning to its end is a block


for _name in vars(Observer).keys() - vars(Deaf).keys():
    if not _name.startswith("_"):
        setattr(Deaf, _name, _ignore)


def _turn(observer: object) -> None:
    observer.__class__ = Hearing if isinstance(observer, Deaf) else Deaf


if __name__ == "__main__":
    vars(app)["Observer"] = Hearing
    main()
