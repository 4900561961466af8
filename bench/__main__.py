"""`tts-bench`: one module a subcommand."""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import Sequence
from typing import Protocol

from bench import compare, connections, engine, load, policies, quality, speedup, split
from bench.errors import OptionError
from bench.fleet import TERMINATED, FleetError

INTERRUPTED = 130  # what a shell expects of a command that SIGINT ended


class Subcommand(Protocol):
    """What a module offers to be one. `run` returns the exit code; it raises OptionError before any request is sent."""

    HELP: str

    def add_arguments(self, parser: argparse.ArgumentParser) -> None: ...

    def run(self, arguments: argparse.Namespace) -> int: ...


SUBCOMMANDS: dict[str, Subcommand] = {
    "load": load,
    "compare": compare,
    "policies": policies,
    "speedup": speedup,
    "engine": engine,
    "connections": connections,
    "split": split,
    "quality": quality,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one subcommand and return its exit code; bad options exit with 2 and a message that names them."""
    parser = argparse.ArgumentParser(prog="tts-bench", description="Measure a text-to-speech service.")
    subparsers = parser.add_subparsers(dest="subcommand", required=True, metavar="SUBCOMMAND")
    for name, module in SUBCOMMANDS.items():
        module.add_arguments(subparsers.add_parser(name, help=module.HELP, description=module.HELP))
    arguments = parser.parse_args(argv)
    try:
        return SUBCOMMANDS[arguments.subcommand].run(arguments)
    except OptionError as error:
        print(f"tts-bench {arguments.subcommand}: error: {error}", file=sys.stderr)
        return 2
    except FleetError as error:
        print(f"tts-bench {arguments.subcommand}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return INTERRUPTED
    except asyncio.CancelledError:  # SIGTERM, as `ends_on_sigterm` takes it
        return TERMINATED


if __name__ == "__main__":
    sys.exit(main())
