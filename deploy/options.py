"""`make options`: writes the environment files and the option tables of docs/operations.md from the parsers.

The parsers are the one place where an option, its default and its sentence are written.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from gateway.config import add_options
from worker.config import OPTIONS

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "operations.md"
_WIDTH = 118

_INTRODUCTION = """\
# Options of {command}; read by its unit at each start: `systemctl restart {unit}` after a change.
# A line that begins with # shows the default, or nothing where there is none. A value that cannot be is refused at the
# start, and `systemctl status {unit}` says why. Anybody on this machine may read this file: keys and
# tokens have files of their own.
"""
# What the units set. A line in the environment file would go before it.
_SET_BY_UNITS = {
    "TTS_GATEWAY_LISTEN": "Not here: tts-gateway.socket listens for the gateway (systemctl edit tts-gateway.socket).",
    "TTS_GATEWAY_INTERNAL_LISTEN": "Not here: tts-gateway-internal.socket listens for the gateway.",
    "TTS_WORKER_TOKEN_FILE": "The unit hands over /etc/tts/worker-token.",
    "TTS_WORKER_INDEX": "The unit sets the number of the instance.",
    "TTS_WORKER_MODEL": "The unit sets chatterbox, its drop-in cpu.conf embedded.",
    "TTS_WORKER_DEVICE": "The unit sets cuda:0, the one GPU that it shows; its drop-in cpu.conf sets cpu.",
    "TTS_WORKER_SPLIT": "The drop-in split.conf sets cuda:0,cuda:1 and shows both GPUs to the worker.",
}


class Option(NamedTuple):
    """`default` is as it would be written; empty where there is none."""

    flag: str
    variable: str
    default: str
    help: str


def gateway_options() -> list[Option]:
    """Return the options of tts-gateway, in the order of its --help."""
    parser = argparse.ArgumentParser(add_help=False)
    add_options(parser)
    found = []
    for action in parser._actions:
        flag = action.option_strings[0]
        name = flag.removeprefix("--").replace("-", "_").upper()
        variable = name if name == "WORKER_TOKEN_FILE" else f"GATEWAY_{name}"
        text = str(action.help)
        if action.choices:
            text = f"{', '.join(map(str, action.choices))}: {text}".replace(": (", " (")
        found.append(_option(flag, f"TTS_{variable}", text))
    return found


def worker_options() -> list[Option]:
    """Return the options of tts-worker that an operator may set; those that bend the tone model are for tests."""
    return [_option(option.flag, option.variable, option.help) for option in OPTIONS if option.variable is not None]


def _option(flag: str, variable: str, text: str) -> Option:
    """Read the default out of the help, where a person reads it too: `(default 30)`, `(default 2 for …)`."""
    found = re.search(r"\(default ([^\s<]+?)(?:\)|[;:] )", text)
    return Option(flag, variable, found[1] if found else "", text)


def environment_file(command: str, unit: str, options: Sequence[Option]) -> str:
    """Return an EnvironmentFile with every option, commented out."""
    blocks = [_INTRODUCTION.format(command=command, unit=unit)]
    for option in options:
        sentences = f"{option.help[0].upper()}{option.help[1:]}. {_SET_BY_UNITS.get(option.variable, '')}"
        blocks.append(f"{_comment(sentences)}#{option.variable}={option.default}\n")
    return "\n".join(blocks)


def _comment(text: str) -> str:
    lines, line = [], "#"
    for word in text.split():
        if len(line) + 1 + len(word) > _WIDTH:
            lines.append(line)
            line = "#"
        line += f" {word}"
    return "\n".join([*lines, line]) + "\n"


def table(options: Sequence[Option]) -> str:
    """Return the options as a table for the page."""
    rows = [f"| `{one.flag}` | `{one.variable}` | {one.help} |" for one in options]
    return "\n".join(["| flag | variable | |", "| --- | --- | --- |", *rows]) + "\n"


def page(text: str) -> str:
    """Return docs/operations.md with its tables written anew, each between its two marks."""
    for name, options in (("tts-gateway", gateway_options()), ("tts-worker", worker_options())):
        begin, end = f"<!-- options of {name} -->\n", "<!-- end of options -->\n"
        before, _, rest = text.partition(begin)
        if end not in rest:
            raise ValueError(f"{PAGE.name} has no place between {begin.strip()} and {end.strip()}")
        text = before + begin + "\n" + table(options) + "\n" + end + rest.partition(end)[2]
    return text


def written() -> dict[Path, str]:
    """Return what every file should hold."""
    units = ROOT / "deploy" / "systemd"
    return {
        units / "gateway.env": environment_file("tts-gateway", "tts-gateway", gateway_options()),
        units / "worker.env": environment_file("tts-worker", "'tts-worker@*'", worker_options()),
        PAGE: page(PAGE.read_text(encoding="utf-8")),
    }


def main() -> None:
    for path, text in written().items():
        path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
