"""`tts-bench speedup`: how much sooner one long text is spoken by more workers."""

from __future__ import annotations

import argparse
import asyncio
import json
import shlex
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from bench.client import Api, SpeechClient, Target, open_session
from bench.errors import OptionError
from bench.fleet import Fleet, FleetError, ends_on_sigterm
from bench.journey import Journey
from bench.options import check_writable
from bench.ratios import Spread, spread
from bench.report import host, table_console, versions
from bench.scenario import Scenario, Work
from bench.section import check_section, write_section
from bench.services import OneGateway, Setting
from bench.trace import fixed_texts

HELP = "how much sooner one long text is spoken by 2, 4 and 8 workers than by one"
FORMAT = "tts-bench speedup 1"


@dataclass(frozen=True, slots=True)
class Options:
    """What is measured."""

    workers: tuple[int, ...]
    characters: int
    texts: int
    repeats: int
    seed: int
    work: Work
    gateway_options: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Spoken:
    """One text, spoken alone. Times in seconds."""

    repeat: int
    text: int
    workers: int
    completion: float
    ttfa: float


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--workers", default="1,2,4,8", metavar="N[,N]", help="sizes of the fleet, 1 first (default: 1,2,4,8)")
    add("--characters", type=int, default=3000, metavar="N", help="of a text (default: 3000)")
    add("--texts", type=int, default=5, metavar="N", help="different ones (default: 5)")
    add("--repeats", type=int, default=2, metavar="N", help="times that each is spoken (default: 2)")
    add("--seed", type=int, default=1, metavar="N", help="of the texts (default: 1)")
    add("--realtime-factor", type=float, default=0.1, metavar="R", help="of a worker (default: 0.1)")
    add("--overhead-seconds", type=float, default=0.0, metavar="S", help="fixed work of a segment (default: 0)")
    add("--gateway-options", default="", metavar="OPTIONS", help="of tts-gateway, in one argument (default: none)")
    add("--json", type=Path, metavar="FILE", help="write every figure")
    add("--markdown", type=Path, metavar="FILE", help="replace the table between the marks in FILE")


def run(arguments: argparse.Namespace) -> int:
    """Measure, write and print; 1 when a text was not spoken or a process ended by itself."""
    options = read_options(arguments)
    spoken = asyncio.run(_measure_all(options))
    report = build_report(options, spoken)
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(report, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    if arguments.markdown is not None:
        write_section(arguments.markdown, "speedup", markdown(report))
    table_console().print(_table(report))
    return 0


def read_options(arguments: argparse.Namespace) -> Options:
    """Return what to measure.

    Raises:
        OptionError: an option is impossible.
    """
    try:
        workers = tuple(int(part) for part in arguments.workers.split(","))
    except ValueError:
        raise OptionError(f"--workers must be whole numbers with commas between, not {arguments.workers!r}") from None
    if workers[0] != 1 or min(workers) < 1 or len(set(workers)) < len(workers):
        raise OptionError(f"--workers must begin with 1 and name no number twice, not {arguments.workers}")
    for name in ("characters", "texts", "repeats"):
        if getattr(arguments, name) < 1:
            raise OptionError(f"--{name} must be at least 1")
    if not arguments.realtime_factor > 0 or arguments.overhead_seconds < 0:
        raise OptionError("--realtime-factor must be above 0, and --overhead-seconds not below")
    check_writable("--json", arguments.json)
    if arguments.markdown is not None:
        check_section(arguments.markdown, "speedup")
    return Options(
        workers=workers,
        characters=arguments.characters,
        texts=arguments.texts,
        repeats=arguments.repeats,
        seed=arguments.seed,
        work=Work(arguments.realtime_factor, arguments.overhead_seconds),
        gateway_options=tuple(shlex.split(arguments.gateway_options)),
    )


async def _measure_all(options: Options) -> list[Spoken]:
    ends_on_sigterm()
    texts = list(islice(fixed_texts(options.seed, options.characters), options.texts))
    spoken: list[Spoken] = []
    with Console(stderr=True).status("") as status:
        for repeat in range(options.repeats):
            for workers in options.workers:
                status.update(f"round {repeat + 1} of {options.repeats}: {len(texts)} texts on {workers} workers")
                spoken += await _measure(options, texts, workers, repeat)
    return spoken


async def _measure(options: Options, texts: Sequence[str], workers: int, repeat: int) -> list[Spoken]:
    """Speak each text alone on a fleet of so many workers.

    Raises:
        FleetError: a text was not spoken, or a process ended by itself.
    """
    service = OneGateway("default", "", options.gateway_options)
    with tempfile.TemporaryDirectory(prefix="tts-bench-") as folder:
        async with Fleet(Path(folder)) as fleet, open_session() as session:
            setting = Setting(Scenario.HOMOGENEOUS, options.work, workers)
            started = await service.start(fleet, Path(folder), setting)
            target = Target(url=started.url, api=Api.TTS, model="tone", timeout_seconds=600)
            client = SpeechClient(session, target, time.monotonic)

            async def speak(number: int, text: str) -> Spoken:
                journey = Journey(number, len(text), time.monotonic())
                await client.speak(journey, text)
                if not journey.is_ok or journey.completion_seconds is None or journey.ttfa_seconds is None:
                    raise FleetError(f"text {number} was not spoken by {workers} workers: {journey.problem}")
                return Spoken(repeat, number, workers, journey.completion_seconds, journey.ttfa_seconds)

            # What opens the connections, and imports what is imported late, is not measured.
            await fleet.guard(speak(0, texts[0][:200]))
            return [await fleet.guard(speak(number, text)) for number, text in enumerate(texts)]


def speedups(spoken: Sequence[Spoken], workers: int) -> Spread | None:
    """Return completion with one worker ÷ completion with so many, of the same text in the same round."""
    alone = {(one.repeat, one.text): one.completion for one in spoken if one.workers == 1}
    return spread(alone[one.repeat, one.text] / one.completion for one in spoken if one.workers == workers)


def build_report(options: Options, spoken: Sequence[Spoken]) -> dict[str, Any]:
    """Return all of it as plain JSON."""
    fleets = []
    for workers in options.workers:
        found = speedups(spoken, workers)
        assert found is not None, "every size was measured"
        mine = [one for one in spoken if one.workers == workers]
        fleets.append(
            {
                "workers": workers,
                "completion_seconds": statistics.median(one.completion for one in mine),
                "ttfa_seconds": statistics.median(one.ttfa for one in mine),
                "speedup": found._asdict(),
                "of_ideal": found.median / workers,
            }
        )
    return {
        "format": FORMAT,
        "options": {
            "characters": options.characters,
            "texts": options.texts,
            "repeats": options.repeats,
            "seed": options.seed,
            "realtime_factor": options.work.realtime_factor,
            "overhead_seconds": options.work.overhead_seconds,
            "gateway_options": list(options.gateway_options),
        },
        "versions": versions(),
        "host": host(),
        "fleets": fleets,
        "spoken": [[one.repeat, one.text, one.workers, one.completion, one.ttfa] for one in spoken],
    }


_HEADS = ("workers", "completion, s", "TTFA, s", "speed-up", "of ideal")


def _cells(report: dict[str, Any]) -> list[list[str]]:
    return [
        [
            str(fleet["workers"]),
            f"{fleet['completion_seconds']:.2f}",
            f"{fleet['ttfa_seconds']:.2f}",
            "{median:.2f} ({low:.2f}–{high:.2f})".format(**fleet["speedup"]),
            f"{fleet['of_ideal']:.2f}",
        ]
        for fleet in report["fleets"]
    ]


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
