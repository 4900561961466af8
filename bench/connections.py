"""`tts-bench connections`: what each listener gets when 1, 30, 50 and 100 of them listen at once."""

from __future__ import annotations

import argparse
import asyncio
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.table import Table

from bench.client import SpeechClient
from bench.closed import speak_all
from bench.errors import OptionError
from bench.figures import summarize
from bench.fleet import ends_on_sigterm
from bench.gpu_load import GpuLoad, watched_gpus
from bench.journey import Journey
from bench.options import check_writable
from bench.progress import Steps
from bench.report import host, shown, table_console, versions, write_report
from bench.section import check_section, write_section
from bench.speakers import Speaker, add_speaker_arguments, client_of, read_speaker, serving, texts_for, with_weights

HELP = "what a listener gets while 1, 30, 50 and 100 listen: first audio, the whole, underruns, load of the GPU"
FORMAT = "tts-bench connections 1"


@dataclass(frozen=True, slots=True)
class Options:
    """What is measured: a running service at `url`, or one of our own."""

    url: str | None
    token: str | None
    speaker: Speaker
    device: str
    slots: int
    connections: tuple[int, ...]
    each: int
    seed: int


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--url", help="a running gateway (default: one of our own with one worker)")
    add("--token", help="bearer token of --url")
    add("--device", default="cpu", help="of the worker: cpu or cuda:0 (default: cpu)")
    add("--slots", type=int, default=8, metavar="N", help="of the worker (default: 8)")
    add_speaker_arguments(parser, model="tone")
    add("--connections", default="1,30,50,100", metavar="N[,N]", help="at once (default: 1,30,50,100)")
    add("--each", type=int, default=2, metavar="N", help="texts that each asks for, one by one (default: 2)")
    add("--seed", type=int, default=1, metavar="N", help="of the texts (default: 1)")
    add("--json", type=Path, metavar="FILE", help="write every figure")
    add("--markdown", type=Path, metavar="FILE", help="replace the table between the marks in FILE")


def run(arguments: argparse.Namespace) -> int:
    """Measure, write and print; 1 when a request failed or a process ended by itself."""
    options = read_options(arguments)
    rows = asyncio.run(_measure(options))
    report = build_report(options, rows)
    if arguments.json is not None:
        write_report(report, arguments.json)
    if arguments.markdown is not None:
        write_section(arguments.markdown, "connections", markdown(report))
    table_console().print(_table(report))
    return int(any(row["failed"] for row in rows))


def read_options(arguments: argparse.Namespace) -> Options:
    """Return what to measure.

    Raises:
        OptionError: an option is impossible.
    """
    try:
        connections = tuple(int(part) for part in arguments.connections.split(","))
    except ValueError:
        raise OptionError(
            f"--connections must be whole numbers with commas between, not {arguments.connections!r}"
        ) from None
    if min(connections) < 1:
        raise OptionError(f"--connections must be at least 1, not {arguments.connections}")
    for name in ("each", "slots"):
        if vars(arguments)[name] < 1:
            raise OptionError(f"--{name} must be at least 1")
    if arguments.url is not None and arguments.checkpoint is not None:
        raise OptionError("--checkpoint cannot be used with --url, which has weights of its own")
    check_writable("--json", arguments.json)
    if arguments.markdown is not None:
        check_section(arguments.markdown, "connections")
    return Options(
        url=arguments.url,
        token=arguments.token,
        speaker=read_speaker(arguments, "connections"),
        device=arguments.device,
        slots=arguments.slots,
        connections=connections,
        each=arguments.each,
        seed=arguments.seed,
    )


async def _measure(options: Options) -> list[dict[str, Any]]:
    ends_on_sigterm()
    if options.url is not None:
        return await _measure_at(options, options.url, options.token)
    with tempfile.TemporaryDirectory(prefix="tts-bench-") as folder:
        speaker = with_weights(options.speaker, Path(folder))
        device = () if speaker.model == "tone" else ("--device", options.device)
        async with serving(speaker, [("--slots", str(options.slots), *device)]) as service:
            return await service.fleet.guard(_measure_at(options, service.gateway.url, None))


async def _measure_at(options: Options, url: str, token: str | None) -> list[dict[str, Any]]:
    """Measure each number of connections, the fewest texts last heard first.

    Raises:
        FleetError: not even one text was spoken.
    """
    rows = []
    model = None if options.url is not None else options.speaker.model
    async with client_of(url, model, token) as client:
        with Steps(sum(options.connections) * options.each) as steps:
            for connections in options.connections:
                rows.append(await _measure_row(options, client, connections, steps))
    return rows


async def _measure_row(options: Options, client: SpeechClient, connections: int, steps: Steps) -> dict[str, Any]:
    texts = texts_for(options.speaker, connections * options.each, options.seed)
    origin = time.monotonic()
    async with watched_gpus() as load:
        journeys = await speak_all(
            client.speak, texts, connections, time.monotonic, lambda: steps.begin(f"{connections} connections")
        )
    return row_of(connections, journeys, time.monotonic() - origin, load)


def row_of(connections: int, journeys: Sequence[Journey], elapsed_seconds: float, load: GpuLoad) -> dict[str, Any]:
    """Return the figures of one number of connections."""
    figures = summarize(journeys, offered_per_second=0.0, alone=None)["groups"]["all"]
    ok = figures["ok"]
    return {
        "connections": connections,
        "requests": len(journeys),
        "failed": len(journeys) - ok,
        "ttfa_seconds": figures["ttfa_seconds"],
        "completion_seconds": figures["completion_seconds"],
        "underrun_share": (figures["stalled_requests"] or 0) / ok if ok else None,
        "audio_seconds_per_second": figures["audio_seconds"] / elapsed_seconds,
        "gpu_load": load.mean,
    }


def build_report(options: Options, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return all of it as plain JSON, without the token."""
    return {
        "format": FORMAT,
        "options": {
            "url": options.url,
            "model": None if options.url else options.speaker.model,
            "size": options.speaker.size,
            "device": options.device,
            "slots": options.slots,
            "characters": options.speaker.characters,
            "each": options.each,
            "seed": options.seed,
        },
        "versions": versions(),
        "host": host(),
        "rows": list(rows),
    }


_HEADS = (
    "connections",
    "TTFA p50, s",
    "TTFA p95, s",
    "whole p50, s",
    "whole p95, s",
    "audio-s/s",
    "with underruns, %",
    "failed",
    "GPU load, %",
)


def _cells(report: dict[str, Any]) -> list[list[str]]:
    return [
        [
            str(row["connections"]),
            *(
                shown(None if row[key] is None else row[key][column])
                for key in ("ttfa_seconds", "completion_seconds")
                for column in ("p50", "p95")
            ),
            shown(row["audio_seconds_per_second"]),
            _percent(row["underrun_share"]),
            str(row["failed"]),
            _percent(row["gpu_load"]),
        ]
        for row in report["rows"]
    ]


def _percent(share: float | None) -> str:
    return "–" if share is None else shown(100 * share)


def markdown(report: dict[str, Any]) -> str:
    """Return the table in Markdown."""
    return "\n".join(f"| {' | '.join(row)} |" for row in (_HEADS, ["---:"] * len(_HEADS), *_cells(report)))


def _table(report: dict[str, Any]) -> Table:
    table = Table()
    for head in _HEADS:
        table.add_column(head, justify="right")
    for row in _cells(report):
        table.add_row(*row)
    return table
