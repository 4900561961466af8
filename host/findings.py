"""What `doctor` finds, each with the command that mends it; shown to people or as JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum

from rich.console import Console
from rich.text import Text


class Level(StrEnum):
    OK = "ok"
    WARNING = "warning"  # it works, and not as well or as safely as it could
    ERROR = "error"  # it does not work


@dataclass(frozen=True, slots=True)
class Finding:
    """`subject` is what was looked at, `command` what to type; the command of a finding that is well is empty."""

    level: Level
    subject: str
    message: str
    command: str = ""


def ok(subject: str, message: str) -> Finding:
    return Finding(Level.OK, subject, message)


def warning(subject: str, message: str, command: str) -> Finding:
    return Finding(Level.WARNING, subject, message, command)


def error(subject: str, message: str, command: str) -> Finding:
    return Finding(Level.ERROR, subject, message, command)


def exit_code(findings: Sequence[Finding]) -> int:
    """Return 0 when everything works, 1 when something does not. A warning is no failure."""
    return int(any(finding.level is Level.ERROR for finding in findings))


def as_json(findings: Sequence[Finding]) -> str:
    return json.dumps(
        {"exit_code": exit_code(findings), "findings": [asdict(finding) for finding in findings]}, indent=2
    )


_MARKS = {Level.OK: ("ok", "green"), Level.WARNING: ("!!", "yellow"), Level.ERROR: ("no", "bold red")}


def show(findings: Sequence[Finding], console: Console) -> None:
    """Print one line a finding, and under it what mends it."""
    width = max((len(finding.subject) for finding in findings), default=0)
    for finding in findings:
        mark, style = _MARKS[finding.level]
        console.print(Text.assemble((mark, style), f"  {finding.subject:<{width}}  {finding.message}"), soft_wrap=True)
        if finding.command:
            console.print(Text(f"{'':<{width + 4}}  → {finding.command}", style="bold"), soft_wrap=True)
    counts = [f"{sum(one.level is level for one in findings)} {level}" for level in Level]
    console.print(", ".join(counts))
