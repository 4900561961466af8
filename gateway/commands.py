"""What an operator types at a running gateway: `tts-gateway top`, `status`, `workers`, `drain`, `undrain`, `load` …"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
from collections import deque
from typing import Any

import aiohttp
from rich.console import Console
from rich.table import Table

from gateway import top, watch
from gateway.config import Config
from wire.link import Command

_LOOKS = ("top", "status", "workers")
NAMES = (*_LOOKS, *Command)
_COLUMNS = ("id", "state", "in_flight", "slots", "model", "device", "address", "segments_spoken", "detail")
_ABLE = ("ready", "probation", "asleep")  # states of workers that a request now would be spoken by


def run(arguments: list[str]) -> int:
    """Run one command against the internal listener; return the exit code: 0 done, 1 the gateway said no or is away."""
    parser = argparse.ArgumentParser(prog="tts-gateway", description="Look at and steer a running gateway.")
    commands = parser.add_subparsers(dest="command", required=True)
    about = {
        "top": "watch the fleet: workers, GPUs, the line, once a second; q leaves",
        "status": "say how the fleet is; exits 1 when no worker can speak",
        "workers": "list the workers",
        "drain": "give a worker nothing new, and wait until it has finished what it has",
        "undrain": "give a drained worker work again",
        "load": "load an unloaded worker's model",
        "unload": "free a worker's memory",
    }
    for name in NAMES:
        command = commands.add_parser(str(name), help=about[name], description=about[name])
        command.add_argument(
            "--internal",
            metavar="HOST:PORT",
            default=os.environ.get("TTS_GATEWAY_INTERNAL_LISTEN", str(Config().internal_listen)),
            help="the gateway's internal listener (default %(default)s)",
        )
        if name in ("status", "workers"):
            command.add_argument("--json", action="store_true", help="print what the gateway answers")
        elif name not in _LOOKS:
            command.add_argument("worker", help="the worker's id, as in tts-gateway workers")
        if name == "drain":
            command.add_argument("--no-wait", action="store_true", help="return when the order is given")
    options = parser.parse_args(arguments)
    # In a pipe nothing wraps, and a table cut to 80 columns would lose the addresses.
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 1000)
    if options.command == "top" and not console.is_terminal:
        console.print("tts-gateway top draws in a terminal, and this is none. Use tts-gateway status.")
        return 2
    try:
        return asyncio.run(_run(options, console))
    except KeyboardInterrupt:
        return 130
    except watch.Refused as error:
        console.print(str(error))
        return 1
    except (aiohttp.ClientError, OSError) as error:
        console.print(f"No gateway answers on {options.internal}: {error}")
        return 1


async def _run(options: argparse.Namespace, console: Console) -> int:
    async with aiohttp.ClientSession(f"http://{options.internal}", trust_env=False) as session:
        if options.command == "top":
            await top.run(session, options.internal, console)
            return 0
        if options.command == "status":
            snapshot = await watch.first(session)
            if options.json:
                console.print_json(json.dumps(snapshot))
            else:
                speeds = {worker["id"]: deque(worker["speeds"]) for worker in snapshot["workers"]}
                console.print(top.draw(snapshot, options.internal, "", speeds, console.width))
            return 0 if any(worker["state"] in _ABLE for worker in snapshot["workers"]) else 1
        if options.command == "workers":
            workers = await _listed(session)
            if options.json:
                console.print_json(json.dumps(workers))
            else:
                console.print(_table(workers))
            return 0
        async with session.post(f"/admin/workers/{options.worker}/{options.command}") as response:
            body = await response.json()
        if "error" in body:
            console.print(body["error"]["message"])
            return 1
        if options.command == "drain" and not options.no_wait:
            await _wait_drained(session, options.worker, console)
        else:
            console.print(f"{options.worker}: told to {options.command}")
        return 0


async def _wait_drained(session: aiohttp.ClientSession, worker: str, console: Console) -> None:
    with console.status("") as status:
        while True:
            seen = next((one for one in await _listed(session) if one["id"] == worker), None)
            if seen is None or max(seen["in_flight"], seen["reported_in_flight"]) == 0:
                console.print(f"{worker}: {'drained; nothing runs on it' if seen else 'gone'}")
                return
            status.update(f"{worker}: {seen['in_flight']} segments still run")
            await asyncio.sleep(0.2)


async def _listed(session: aiohttp.ClientSession) -> list[dict[str, Any]]:
    async with session.get("/admin/workers") as response:
        listed: list[dict[str, Any]] = await response.json()
        return listed


def _table(workers: list[dict[str, Any]]) -> Table:
    table = Table(box=None, title=None if workers else "No worker is linked. Start one with tts-worker.")
    for column in _COLUMNS:
        table.add_column(column.replace("_", " "))
    for worker in workers:
        table.add_row(*(str(worker[column]) for column in _COLUMNS))
    return table
