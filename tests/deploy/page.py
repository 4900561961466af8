"""docs/operations.md as an operator reads it: its commands, by section."""

from __future__ import annotations

import re

from deploy.options import ROOT

PAGE = (ROOT / "docs" / "operations.md").read_text()


def section(heading: str) -> str:
    """Return the text below a heading of the second level."""
    return PAGE.split(f"\n## {heading}\n", 1)[1].split("\n## ", 1)[0]


def commands(heading: str) -> list[str]:
    """Return the blocks of commands of a section, in order."""
    return re.findall(r"^```sh\n(.*?)^```", section(heading), re.MULTILINE | re.DOTALL)
