"""Log lines: fields that can be searched for, lines that cannot be forged, and no text that was to be spoken."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterator

import pytest
from aiohttp.http_exceptions import BadHttpMessage, BadStatusLine

from wire.logs import fields, set_up_logging

log = logging.getLogger("under.test")


@pytest.fixture(autouse=True)
def _root_as_before() -> Iterator[None]:
    root = logging.getLogger()
    before, level = list(root.handlers), root.level
    root.handlers.clear()  # the set-up closes those that it finds
    yield
    root.handlers[:], root.level = before, level


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("plain", "plain"),
        (1.5, "1.5"),
        ("two words", '"two words"'),
        ("", '""'),
        ('a"b', r'"a\"b"'),
        ("a=b", '"a=b"'),
        ("line\nend", r'"line\nend"'),
        ("\x1b[31m", r'"\u001b[31m"'),
    ],
)
def test_a_value_cannot_be_taken_for_another_field_or_line(
    capsys: pytest.CaptureFixture[str], value: object, shown: str
) -> None:
    set_up_logging("info")
    log.info("request", extra=fields({"a": 1, "b": value}))
    found = re.fullmatch(r"\S+ \S+ INFO under\.test request a=1 b=(.*)\n", capsys.readouterr().err)
    assert found is not None
    assert found[1] == shown


def test_a_message_is_one_line_whatever_it_quotes(capsys: pytest.CaptureFixture[str]) -> None:
    set_up_logging("info")
    log.info("refused: %s", "a\n2026-01-01 00:00:00,000 INFO gateway request outcome=ok\x1b[2J")
    out = capsys.readouterr().err
    assert out.count("\n") == 1
    assert r"refused: a\n2026" in out
    assert "\x1b" not in out


def test_json_is_an_object_a_line_with_the_fields_at_its_top(capsys: pytest.CaptureFixture[str]) -> None:
    set_up_logging("info", "json")
    log.info("request", extra=fields({"request_id": "r-1", "audio_seconds": 1.5, "text": "line\nend"}))
    try:
        raise ValueError("as wanted")
    except ValueError:
        log.exception("broken: %s", "here")
    first, second = map(json.loads, capsys.readouterr().err.splitlines())
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", first.pop("time"))
    assert first == {
        "level": "info",
        "logger": "under.test",
        "message": "request",
        "request_id": "r-1",
        "audio_seconds": 1.5,
        "text": "line\nend",
    }
    assert (second["message"], second["level"]) == ("broken: here", "error")
    assert "Traceback" in second["exception"]
    assert "ValueError: as wanted" in second["exception"]


def test_what_a_level_leaves_out_is_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    set_up_logging("warning")
    log.info("request")
    log.warning("worker lost")
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize("error", [BadStatusLine("my secret diary"), BadHttpMessage("my secret diary")])
@pytest.mark.parametrize("format_", ["text", "json"])
def test_what_aiohttp_cannot_parse_is_no_line_and_so_not_quoted(
    capsys: pytest.CaptureFixture[str], format_: str, error: Exception
) -> None:
    set_up_logging("info", format_)
    try:
        raise error
    except Exception as raised:
        log.error("Error handling request from %s", "10.0.0.1", exc_info=raised)
    assert capsys.readouterr().err == ""
