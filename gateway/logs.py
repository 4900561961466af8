"""Log lines for the person on call: one a finished request, one a change of state, `key=value`."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Mapping

from aiohttp.http import HttpProcessingError


def set_up_logging(level: str) -> None:
    """Log to standard error, where systemd and a terminal both look."""
    logging.basicConfig(
        level=level.upper(), stream=sys.stderr, format="%(asctime)s %(levelname)s %(name)s %(message)s", force=True
    )
    # One line a request is ours; aiohttp's own access log would be a second.
    logging.getLogger("aiohttp.access").setLevel(logging.WARNING)
    # What is no HTTP gets its 400. Without this, whoever can connect writes forty lines to the log with each such byte.
    for name in ("gateway", "aiohttp.server"):
        logging.getLogger(name).addFilter(_is_no_parse_error)


def _is_no_parse_error(record: logging.LogRecord) -> bool:
    return not (record.exc_info and isinstance(record.exc_info[1], HttpProcessingError))


def pairs(fields: Mapping[str, object]) -> str:
    """Return `key=value key="value with blanks"`."""
    return " ".join(f"{name}={_shown(value)}" for name, value in fields.items())


def _shown(value: object) -> str:
    text = str(value)
    return text if text and not any(c.isspace() or c in '"=' or not c.isprintable() for c in text) else json.dumps(text)
