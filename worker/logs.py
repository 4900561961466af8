"""Log lines for the person on call: one a change of state, one a finished segment, as key=value; never the text."""

from __future__ import annotations

import logging
import sys


def configure(level: str) -> None:
    """Write the log of the whole process to standard error, from `level` on."""
    logging.basicConfig(
        level=level.upper(),
        stream=sys.stderr,
        format="%(asctime)s %(levelname)s %(name)s %(message)s",
    )
    # The access log would say of every health check what nobody asked; segments have a line of their own.
    logging.getLogger("aiohttp.access").setLevel(logging.WARNING)
