"""What `doctor` finds, each with the command that mends it; shown to people or as JSON."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum

from rich.console import Console
from rich.text import Text


class Level(StrEnum):
    OK = "ok"
    WARNING = "warning"  # it works, and not as well or as safely as it could
    PROBLEM = "problem"  # it does not work, or strangers get in


@dataclass(frozen=True, slots=True)
class Finding:
    """`subject` is what was looked at, `seen` what was seen there, `why` what that leads to, `command` what to type.

    A finding that is well has neither `why` nor `command`; any other has both.
    """

    level: Level
    subject: str
    seen: str
    why: str = ""
    command: str = ""


def ok(subject: str, seen: str) -> Finding:
    return Finding(Level.OK, subject, seen)


def warning(subject: str, seen: str, why: str, command: str) -> Finding:
    return Finding(Level.WARNING, subject, seen, why, command)


def problem(subject: str, seen: str, why: str, command: str) -> Finding:
    return Finding(Level.PROBLEM, subject, seen, why, command)


def tell(findings: Sequence[Finding], *, to_programs: bool) -> int:
    """Print the findings, as JSON for programs or for people; return the exit code of the doctor."""
    if to_programs:
        sys.stdout.write(as_json(findings) + "\n")
    else:
        show(findings, Console(highlight=False))
    return exit_code(findings)


def exit_code(findings: Sequence[Finding]) -> int:
    """Return 0 when all is well, 1 when there are warnings and no problem, 2 when there is a problem."""
    return max((list(Level).index(finding.level) for finding in findings), default=0)


def as_json(findings: Sequence[Finding]) -> str:
    return json.dumps(
        {"exit_code": exit_code(findings), "findings": [asdict(finding) for finding in findings]}, indent=2
    )


_STYLES = {Level.OK: "green", Level.WARNING: "yellow", Level.PROBLEM: "bold red"}


def show(findings: Sequence[Finding], console: Console) -> None:
    """Print a line a finding, what it leads to and what mends it; then how many there are of each level."""
    width = max((len(finding.subject) for finding in findings), default=0)
    level_width = max(map(len, Level))
    margin = " " * (level_width + width + 4)
    for finding in findings:
        level = Text(f"{finding.level:<{level_width}}", style=_STYLES[finding.level])
        console.print(level + Text(f"  {finding.subject:<{width}}  {finding.seen}"), soft_wrap=True)
        if finding.why:
            console.print(Text(f"{margin}{finding.why}", style="dim"), soft_wrap=True)
        if finding.command:
            console.print(Text(f"{margin}→ {finding.command}", style="bold"), soft_wrap=True)
    console.print(", ".join(f"{sum(one.level is level for one in findings)} {level}" for level in Level))
