"""`tts-bench policies`: the same requests against three ways of running a fleet, on tone workers of this machine."""

from __future__ import annotations

import argparse
import asyncio
import json
import shlex
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bar

from bench.errors import OptionError
from bench.fleet import ends_on_sigterm
from bench.options import check_writable
from bench.picture import picture
from bench.plot import check_plot
from bench.progress import describe
from bench.ratios import markdown, summarize_runs, tables
from bench.report import host, table_console, versions
from bench.scenario import STUDY_OVERHEAD_SECONDS, STUDY_REALTIME_FACTOR, Scenario, Work, loaded_trace
from bench.section import check_section, write_section
from bench.services import ON_DEMAND, SERVICES, Service, Setting, variant
from bench.turn import Progress, Turn, measure

HELP = "what queue and policy do: nginx least_conn, least connections, and this gateway under the same load"
FORMAT = "tts-bench policies 1"

_DRAW_EVERY_SECONDS = 0.5

Report = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Options:
    """What is measured. Durations are in seconds of the clock on the wall."""

    workers: int
    load: float
    duration: float
    repeats: int
    seed: int
    scenarios: tuple[Scenario, ...]
    services: tuple[Service, ...]
    work: Work
    timeout: float


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--workers", type=int, default=4, metavar="N", help="tone workers of each service (default: 4)")
    add("--load", type=float, default=0.85, metavar="R", help="work ÷ what the sound workers can do (default: 0.85)")
    add("--duration", type=float, default=90.0, metavar="S", help="of each trace (default: 90)")
    add("--repeats", type=int, default=3, metavar="N", help="rounds, each of another seed (default: 3)")
    add("--seed", type=int, default=1, metavar="N", help="of the first round (default: 1)")
    add("--scenario", type=Scenario, choices=list(Scenario), action="append", metavar="|".join(Scenario),
        help="may be repeated (default: all)")  # fmt: skip
    usual, others = (",".join(service.name for service in services) for services in (SERVICES, ON_DEMAND))
    add("--policy-names", metavar="NAME[,NAME]", help=f"default: {usual}; there is also {others}")
    add("--variant", action="append", default=[], metavar="NAME=OPTIONS",
        help="one more service: tts-gateway with these options; may be repeated")  # fmt: skip
    add("--realtime-factor", type=float, default=STUDY_REALTIME_FACTOR / 10, metavar="R",
        help=f"of a worker (default: {STUDY_REALTIME_FACTOR / 10:g}, a tenth of the routing study's)")  # fmt: skip
    add("--overhead-seconds", type=float, metavar="S",
        help="fixed work of a segment (default: the study's 0.3 s at its factor of 0.25)")  # fmt: skip
    add("--piece-characters", type=int, default=250, metavar="N",
        help="whole texts cost the fixed work every N characters, with 0 once (default: 250)")  # fmt: skip
    add("--timeout", type=float, default=90.0, metavar="S", help="of a request (default: 90)")
    add("--add", type=Path, action="append", default=[], metavar="FILE.json",
        help="take in the rounds of an earlier run; with --repeats 0 only those")  # fmt: skip
    add("--json", type=Path, metavar="FILE", help="write every figure")
    add("--plot", type=Path, metavar="FILE.png", help="draw the distributions and the scenarios")
    add("--markdown", type=Path, metavar="FILE", help="replace the tables between the marks in FILE")


def run(arguments: argparse.Namespace) -> int:
    """Measure, write and print what was asked for; 1 when a process of a service ended by itself.

    However it ends, the runs that were complete are in --json, and --add takes them in.
    """
    options = read_options(arguments)
    earlier = [read_report(path, options) for path in arguments.add]
    if not options.repeats and not earlier:
        raise OptionError("--repeats 0 is used with --add")
    turns = plan_turns(options)
    runs = [one for report in earlier for one in report["runs"]]
    try:
        asyncio.run(_measure_all(turns, runs))
    finally:
        report = build_report(options, runs)
        if arguments.json is not None:
            arguments.json.write_text(json.dumps(report, separators=(",", ":"), allow_nan=False) + "\n", "utf-8")
    if arguments.plot is not None:
        picture(report, arguments.plot)
    if arguments.markdown is not None:
        write_section(arguments.markdown, "policies", markdown(report))
    console = table_console()
    for table in tables(report):
        console.print(table)
    return 0


def read_options(arguments: argparse.Namespace) -> Options:
    """Return what to measure.

    Raises:
        OptionError: an option is impossible here.
    """
    for name, low in (("workers", 2), ("repeats", 0), ("seed", 0), ("piece_characters", 0)):
        if getattr(arguments, name) < low:
            raise OptionError(f"--{name.replace('_', '-')} must be at least {low}")
    for name in ("load", "duration", "realtime_factor", "timeout"):
        if not getattr(arguments, name) > 0:
            raise OptionError(f"--{name.replace('_', '-')} must be above 0")
    for flag, path in (("--json", arguments.json), ("--plot", arguments.plot), ("--markdown", arguments.markdown)):
        check_writable(flag, path)
    if arguments.plot is not None:
        check_plot(arguments.plot)
    if arguments.markdown is not None:
        check_section(arguments.markdown, "policies")
    services = _services(arguments.policy_names, arguments.variant)
    if arguments.repeats:
        for service in services:
            service.check()
    overhead = arguments.overhead_seconds
    if overhead is not None and not overhead >= 0:
        raise OptionError("--overhead-seconds must be at least 0")
    if overhead is None:
        overhead = STUDY_OVERHEAD_SECONDS * arguments.realtime_factor / STUDY_REALTIME_FACTOR
    return Options(
        workers=arguments.workers,
        load=arguments.load,
        duration=arguments.duration,
        repeats=arguments.repeats,
        seed=arguments.seed,
        scenarios=tuple(arguments.scenario or Scenario),
        services=services,
        work=Work(arguments.realtime_factor, overhead, arguments.piece_characters),
        timeout=arguments.timeout,
    )


def _services(names: str | None, variants: Sequence[str]) -> tuple[Service, ...]:
    known = {service.name: service for service in (*SERVICES, *ON_DEMAND)}
    wanted = [service.name for service in SERVICES] if names is None else names.split(",")
    for name in wanted:
        if name not in known:
            raise OptionError(f"--policy-names: {name!r} is none of {', '.join(known)}")
    services = [known[name] for name in wanted]
    for given in variants:
        name, equals, text = given.partition("=")
        if not equals or not name or name in known:
            raise OptionError(f"--variant must be NAME=OPTIONS with a name of its own; it is {given!r}")
        services.append(variant(name, shlex.split(text)))
    return tuple(services)


def read_report(path: Path, options: Options) -> Report:
    """Return what an earlier run with these options wrote.

    Raises:
        OptionError: there is no such file, or it is another kind of file or run; the message names it.
    """
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise OptionError(f"--add: {path}: {error}") from None
    if not isinstance(report, dict) or report.get("format") != FORMAT:
        raise OptionError(f"--add: {path} is no report of tts-bench policies")
    for name, value in _settings(options).items():
        if report["options"][name] != value:
            raise OptionError(f"--add: {path} has {name} {report['options'][name]}, not {value}")
    return report


def build_report(options: Options, runs: Sequence[dict[str, Any]]) -> Report:
    """Return all of it as plain JSON."""
    return {
        "format": FORMAT,
        "options": _settings(options),
        "compression": options.work.compression,
        "versions": versions(),
        "host": host(),
        "runs": list(runs),
        "summary": summarize_runs(runs),
    }


def _settings(options: Options) -> dict[str, Any]:
    """Return what two runs must have in common for their rounds to stand in one table."""
    return {
        "workers": options.workers,
        "load": options.load,
        "duration": options.duration,
        "realtime_factor": options.work.realtime_factor,
        "overhead_seconds": options.work.overhead_seconds,
        "piece_characters": options.work.piece_characters,
        "timeout": options.timeout,
    }


def plan_turns(options: Options) -> list[Turn]:
    """Return what is measured, in order: within a round and scenario all services meet the very same trace in turn, so
    that whatever else the machine does is spread over them.

    Raises:
        OptionError: a trace is empty.
    """
    turns = []
    for repeat in range(options.repeats):
        for scenario in options.scenarios:
            seed = options.seed + repeat
            trace = loaded_trace(
                scenario,
                options.work,
                workers=options.workers,
                load=options.load,
                duration_seconds=options.duration,
                seed=seed,
            )
            if not trace:
                raise OptionError(
                    f"--duration: not one text fits into {options.duration:g} s at --load {options.load:g}"
                )
            setting = Setting(scenario, options.work, options.workers)
            turns += [
                Turn(service, setting, trace, repeat, seed, options.duration, options.timeout)
                for service in options.services
            ]
    return turns


async def _measure_all(turns: Sequence[Turn], runs: list[dict[str, Any]]) -> None:
    """Measure one turn after the other, and append what came of each to `runs`."""
    ends_on_sigterm()
    console = Console(stderr=True)
    columns = (BarColumn(bar_width=24), TextColumn("{task.description}"), TimeElapsedColumn())
    with Bar(*columns, console=console, auto_refresh=False, transient=True, disable=not console.is_terminal) as bar:
        line = bar.add_task("", total=len(turns))
        for number, turn in enumerate(turns):
            async with _drawn(bar, line, number, turn) as progress:
                runs.append(await measure(turn, progress))
            if not console.is_terminal:
                print(f"{number + 1} of {len(turns)}: {turn.title}", file=sys.stderr, flush=True)


@asynccontextmanager
async def _drawn(bar: Bar, line: TaskID, number: int, turn: Turn) -> AsyncIterator[Progress]:
    """Draw how a turn goes while the block runs."""
    progress = Progress()

    async def draw() -> None:
        while True:
            load = progress.load
            text = "starting" if load is None else describe(load)
            done = 0.0 if load is None else load.done / load.planned
            bar.update(line, completed=number + done, description=f"{turn.title} · {text}", refresh=True)
            await asyncio.sleep(_DRAW_EVERY_SECONDS)

    drawing = asyncio.create_task(draw())
    try:
        yield progress
    finally:
        drawing.cancel()
        with suppress(asyncio.CancelledError):
            await drawing
