"""Log lines of both commands: one a finished request or segment, one a change of state, as text or as JSON.

The line has a message of a few words and fields beside it. The text that is spoken is never among them.
"""

from __future__ import annotations

import json
import logging
import re
import sys
import time
from collections.abc import Mapping

FORMATS = ("text", "json")


def set_up_logging(level: str, format_: str = "text") -> None:
    """Log the whole process to standard error, where systemd and a terminal both look, from `level` on."""
    handler = logging.StreamHandler(sys.stderr)
    handler.addFilter(_is_no_parse_error)
    handler.setFormatter(_JsonFormatter() if format_ == "json" else _TextFormatter())
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    # What no line shows need not be found out for each: the logging module's documented switches.
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    # One line a request is ours; aiohttp's own access log would be a second.
    logging.getLogger("aiohttp.access").setLevel(logging.WARNING)


def fields(values: Mapping[str, object]) -> dict[str, Mapping[str, object]]:
    """Return the `extra` of a log call with these fields: `log.info("request", extra=fields({...}))`."""
    return {"fields": values}


def _is_no_parse_error(record: logging.LogRecord) -> bool:
    """What is no HTTP gets its 400 and no line: whoever can connect could write forty with each such byte. And aiohttp
    quotes what it cannot parse, which is text to be spoken when a caller counts its length wrong."""
    error = record.exc_info[0] if record.exc_info else None
    return error is None or error.__module__ != "aiohttp.http_exceptions"


class _TextFormatter(logging.Formatter):
    """`2026-11-21 18:00:00,000 INFO gateway request request_id=… outcome=ok`, and a traceback below it."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:
        # A message may quote what came from outside; that must not look like another line.
        if not record.message.isprintable():
            record.message = "".join(c if c.isprintable() else repr(c)[1:-1] for c in record.message)
        line = super().formatMessage(record)
        pairs = (f"{name}={_shown(value)}" for name, value in _fields_of(record).items())
        return " ".join((line, *pairs))


class _JsonFormatter(logging.Formatter):
    """One object a line: time (UTC), level, logger, message, then the fields; `exception` holds a traceback."""

    def format(self, record: logging.LogRecord) -> str:
        seconds = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        line: dict[str, object] = {
            "time": f"{seconds}.{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        line |= _fields_of(record)
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


def _fields_of(record: logging.LogRecord) -> Mapping[str, object]:
    given: Mapping[str, object] = getattr(record, "fields", {})
    return given


def _shown(value: object) -> str:
    text = str(value)
    if isinstance(value, int | float):
        return text
    return text if _PLAIN.fullmatch(text) and text.isprintable() else json.dumps(text)


_PLAIN = re.compile(r'[^\s"=]+')
