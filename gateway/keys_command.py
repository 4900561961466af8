"""`tts-gateway keys add | list | revoke`: the keys file, for the one who runs the gateway."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from rich.console import Console
from rich.table import Table

from gateway.keys import Key, KeysError, Limits, Scope, changing, make_key, read_keys, write_keys

_RELOAD = "A running gateway reads it on SIGHUP: systemctl reload tts-gateway, or kill -HUP its process."


def run(arguments: list[str]) -> int:
    """Run one command; return the exit code: 0 done, 1 it cannot be done, and why is on standard error."""
    options = _parser().parse_args(arguments)
    # In a pipe nothing wraps, and what goes wrong must not be taken for a key.
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    try:
        match options.command:
            case "add":
                _add(options, console)
            case "list":
                _list(options)
            case _:
                _revoke(options, console)
    except KeysError as error:
        console.print(f"tts-gateway keys: {error}", markup=False)
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="tts-gateway keys", description="API keys: make, list and revoke them.")
    commands = parser.add_subparsers(dest="command", required=True)
    add = commands.add_parser("add", help="make a key and print it, this once", description="Make a key.")
    add.add_argument("--name", required=True, help="whose it is, for people; shown in lists, never needed to speak")
    add.add_argument(
        "--scope", action="append", choices=[*map(str, Scope)], help="what it opens; may be repeated (default speak)"
    )
    add.add_argument("--characters-per-minute", type=_count, default=0, metavar="N", help="(default 0: no limit)")
    add.add_argument("--concurrent", type=_count, default=0, metavar="N", help="requests at once (default 0: no limit)")
    add.add_argument(
        "--queued-seconds",
        type=_count,
        default=0,
        metavar="S",
        help="work that may wait in line (default 0: half of it)",
    )
    revoke = commands.add_parser("revoke", help="take a key back", description="Take a key back.")
    revoke.add_argument("key", help="its id or its name, as in tts-gateway keys list")
    for command in (add, revoke, commands.add_parser("list", help="show all keys", description="Show all keys.")):
        variable = os.environ.get("TTS_GATEWAY_KEYS_FILE")
        command.add_argument(
            "--keys-file",
            metavar="FILE",
            type=Path,
            default=variable,
            required=not variable,
            help="the file that the gateway is started with (or TTS_GATEWAY_KEYS_FILE)",
        )
    return parser


def _count(text: str) -> int:
    if not text.isdecimal() or len(text) > 12:
        raise argparse.ArgumentTypeError(f"must be a whole number from 0; it is {text!r}")
    return int(text)


def _add(options: argparse.Namespace, console: Console) -> None:
    path: Path = options.keys_file
    limits = Limits(options.characters_per_minute, options.concurrent, float(options.queued_seconds))
    with changing(path):
        keys = read_keys(path) if path.exists() else []
        secret, key = make_key(options.name, [Scope(scope) for scope in options.scope or ["speak"]], limits, keys)
        write_keys(path, [*keys, key])
    # The key alone on standard output, so that a script can take it; the rest is for people.
    sys.stdout.write(secret + "\n")
    console.print(
        f"Key {key.id} ({key.name}), for {', '.join(sorted(key.scopes))}, is in {path}. The line above is the key "
        f"itself; it is shown this once. Send it as: Authorization: Bearer KEY. {_RELOAD}",
        markup=False,
    )


def _list(options: argparse.Namespace) -> None:
    keys = read_keys(options.keys_file)
    table = Table(box=None, title=None if keys else "No key. Make one with tts-gateway keys add.")
    for column in ("id", "name", "scopes", "characters/minute", "concurrent", "queued seconds", "created"):
        table.add_column(column)
    for key in keys:
        limits = (key.limits.characters_per_minute, key.limits.concurrent, key.limits.queued_seconds)
        shown = [f"{limit:g}" if limit else "-" for limit in limits]
        table.add_row(key.id, key.name, ",".join(sorted(key.scopes)), *shown, key.created)
    Console(highlight=False, width=None if sys.stdout.isatty() else 1000).print(table)


def _revoke(options: argparse.Namespace, console: Console) -> None:
    path: Path = options.keys_file
    with changing(path):
        keys = read_keys(path)
        gone = [key for key in keys if options.key in (key.id, key.name)]
        if not gone:
            raise KeysError(f"There is no key {options.key!r} in {path}. See tts-gateway keys list.")
        write_keys(path, [key for key in keys if key not in gone])
    console.print(f"Revoked {', '.join(map(_shown, gone))}. {_RELOAD}", markup=False)


def _shown(key: Key) -> str:
    return f"{key.id} ({key.name})"
