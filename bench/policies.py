"""`tts-bench policies`: the same requests against three ways of running a fleet, on tone workers of this machine."""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import shlex
import signal
import sys
import tempfile
import time
from array import array
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import ExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from bench.client import Api, SpeechClient, Target, open_session
from bench.errors import OptionError
from bench.figures import distribution, events_per_second, summarize
from bench.fleet import Fleet, FleetError, total
from bench.generator import OpenLoop, sample_loop_lag
from bench.options import check_writable
from bench.plot import check_plot
from bench.progress import describe
from bench.ratios import check_section, markdown, picture, summary, tables, write_section
from bench.report import host, samples, table_console, versions
from bench.scenario import STUDY_OVERHEAD_SECONDS, STUDY_REALTIME_FACTOR, Scenario, Work, loaded_trace, offered_load
from bench.services import SERVICES, Service, Setting, Started, variant
from bench.trace import Arrival, digest

HELP = "what queue and policy do: nginx least_conn, least connections, and this gateway under the same load"
FORMAT = "tts-bench policies 1"

_SAMPLE_RATE = 24_000  # of the tone model
_LEAD_SECONDS = 0.2
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


@dataclass(frozen=True, slots=True)
class _Turn:
    """One service under one trace."""

    scenario: Scenario
    repeat: int
    service: Service
    trace: list[Arrival]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--workers", type=int, default=4, metavar="N", help="tone workers of each service (default: 4)")
    add("--load", type=float, default=0.85, metavar="R", help="work ÷ what the sound workers can do (default: 0.85)")
    add("--duration", type=float, default=90.0, metavar="S", help="of each trace (default: 90)")
    add("--repeats", type=int, default=3, metavar="N", help="rounds, each of another seed (default: 3)")
    add("--seed", type=int, default=1, metavar="N", help="of the first round (default: 1)")
    add("--scenario", type=Scenario, choices=list(Scenario), action="append", metavar="|".join(Scenario),
        help="may be repeated (default: all)")  # fmt: skip
    add("--policy-names", metavar="NAME[,NAME]", help=f"default: {','.join(service.name for service in SERVICES)}")
    add("--variant", action="append", default=[], metavar="NAME=OPTIONS",
        help="one more service: tts-gateway with these options; may be repeated")  # fmt: skip
    add("--realtime-factor", type=float, default=STUDY_REALTIME_FACTOR / 10, metavar="R",
        help=f"of a worker (default: {STUDY_REALTIME_FACTOR / 10:g}, ten times a GPU of the routing study)")  # fmt: skip
    add("--overhead-seconds", type=float, metavar="S",
        help="fixed work of a segment (default: the study's 0.3 s at its factor of 0.25)")  # fmt: skip
    add("--piece-characters", type=int, default=250, metavar="N",
        help="a server of whole texts pays the fixed work every N characters; 0: once a text (default: 250)")  # fmt: skip
    add("--timeout", type=float, default=90.0, metavar="S", help="of a request (default: 90)")
    add("--add", type=Path, action="append", default=[], metavar="FILE.json",
        help="take in the rounds of an earlier run; with --repeats 0 only those")  # fmt: skip
    add("--json", type=Path, metavar="FILE", help="write every figure")
    add("--plot", type=Path, metavar="FILE.png", help="draw the distributions and the scenarios")
    add("--markdown", type=Path, metavar="FILE", help="replace the tables between the marks in FILE")


def run(arguments: argparse.Namespace) -> int:
    """Measure, write and print what was asked for; 1 when a process of a service ended by itself."""
    options = read_options(arguments)
    earlier = [read_report(path) for path in arguments.add]
    if not options.repeats and not earlier:
        raise OptionError("--repeats 0 is used with --add")
    runs = [one for report in earlier for one in report["runs"]]
    try:
        runs += asyncio.run(_measure_all(options))
    except FleetError as error:
        print(f"tts-bench policies: {error}", file=sys.stderr)
        return 1
    report = build_report(options, runs)
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(report, separators=(",", ":"), allow_nan=False) + "\n", encoding="utf-8")
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
    known = {service.name: service for service in SERVICES}
    wanted = list(known) if names is None else names.split(",")
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


def read_report(path: Path) -> Report:
    """Return what an earlier run wrote.

    Raises:
        OptionError: there is no such file, or it is another kind of file; the message names it.
    """
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise OptionError(f"--add: {path}: {error}") from None
    if not isinstance(report, dict) or report.get("format") != FORMAT:
        raise OptionError(f"--add: {path} is no report of tts-bench policies")
    return report


def build_report(options: Options, runs: Sequence[dict[str, Any]]) -> Report:
    """Return all of it as plain JSON."""
    return {
        "format": FORMAT,
        "options": {
            "workers": options.workers,
            "load": options.load,
            "duration": options.duration,
            "realtime_factor": options.work.realtime_factor,
            "overhead_seconds": options.work.overhead_seconds,
            "piece_characters": options.work.piece_characters,
            "timeout": options.timeout,
        },
        "compression": options.work.compression,
        "versions": versions(),
        "host": host(),
        "runs": list(runs),
        "summary": summary(runs),
    }


def plan_turns(options: Options) -> Iterator[_Turn]:
    """Yield what is measured, in order: within a round and scenario all services meet the very same trace in turn, so
    that what the machine does besides is spread over them.

    Raises:
        OptionError: a trace is empty.
    """
    for repeat in range(options.repeats):
        for scenario in options.scenarios:
            trace = loaded_trace(
                scenario,
                options.work,
                workers=options.workers,
                load=options.load,
                duration_seconds=options.duration,
                seed=options.seed + repeat,
            )
            if not trace:
                raise OptionError(f"--duration: not one text fits into {options.duration:g} s at --load {options.load:g}")
            for service in options.services:
                yield _Turn(scenario, repeat, service, trace)


async def _measure_all(options: Options) -> list[dict[str, Any]]:
    task = asyncio.current_task()
    assert task is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    turns = list(plan_turns(options))
    runs = []
    console = Console(stderr=True)
    columns = (BarColumn(bar_width=24), TextColumn("{task.description}"), TimeElapsedColumn())
    progress = Progress(*columns, console=console, auto_refresh=False, transient=True, disable=not console.is_terminal)
    with progress:
        bar = progress.add_task("", total=len(turns))
        for number, turn in enumerate(turns):
            where = f"{number + 1}/{len(turns)} {turn.scenario} · {turn.service.name}"
            async with _drawn(progress, bar, where, number) as watch:
                one = await _measure(options, turn, watch)
            if not console.is_terminal:
                print(f"{where} · {_brief(one)}", file=sys.stderr, flush=True)
            runs.append(one)
    return runs


class _Watch:
    """What the progress line shows: the run that is on, once there is one."""

    run: OpenLoop | None = None


@asynccontextmanager
async def _drawn(progress: Progress, bar: Any, where: str, number: int) -> AsyncIterator[_Watch]:
    watch = _Watch()

    async def draw() -> None:
        while True:
            now = "starting" if watch.run is None else describe(watch.run)
            part = watch.run.done / watch.run.planned if watch.run is not None else 0.0
            progress.update(bar, completed=number + part, description=f"{where} · {now}", refresh=True)
            await asyncio.sleep(_DRAW_EVERY_SECONDS)

    task = asyncio.create_task(draw())
    try:
        yield watch
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


async def _measure(options: Options, turn: _Turn, watch: _Watch) -> dict[str, Any]:
    setting = Setting(turn.scenario, options.work, options.workers)
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="tts-bench-")))
        async with Fleet(directory) as fleet:
            started = await turn.service.start(fleet, directory, setting)
            return await fleet.guard(_load(options, turn, fleet, started, watch))


async def _load(options: Options, turn: _Turn, fleet: Fleet, started: Started, watch: _Watch) -> dict[str, Any]:
    """Send the trace, and return everything that is known of the run."""
    work = options.work
    target = Target(
        url=started.url,
        api=Api.TTS,
        model="tone",
        # The listener of a fleet that is ten times faster than real GPUs listens ten times faster.
        sample_rate=round(_SAMPLE_RATE * work.compression),
        timeout_seconds=options.timeout,
        seed=options.seed + turn.repeat,
    )
    lags = array("d")
    async with open_session() as session:
        origin = time.monotonic() + _LEAD_SECONDS

        def clock() -> float:
            return time.monotonic() - origin

        load = watch.run = OpenLoop(turn.trace, SpeechClient(session, target, clock).speak, clock)
        sampler = asyncio.create_task(sample_loop_lag(lags, clock))
        cpu_seconds = time.process_time()
        gc.collect()
        gc.freeze()
        try:
            async with asyncio.timeout(options.duration + 2 * options.timeout):
                journeys = await load.run()
        finally:
            gc.unfreeze()
            sampler.cancel()
    figures = summarize(
        journeys,
        offered_per_second=events_per_second([arrival.at_seconds for arrival in turn.trace]),
        alone=work.alone,
    )
    capacity = turn.scenario.capacity(options.workers)
    return {
        "scenario": str(turn.scenario),
        "repeat": turn.repeat,
        "seed": options.seed + turn.repeat,
        "service": turn.service.name,
        "title": turn.service.title,
        "trace": {"requests": len(turn.trace), "digest": digest(turn.trace)},
        "offered_load": offered_load(turn.trace, work, capacity=capacity, duration_seconds=options.duration),
        "fleet": await _fleet_figures(fleet, started, figures["elapsed_seconds"]),
        "figures": figures,
        "generator": {
            "cpu_share": (time.process_time() - cpu_seconds) / figures["elapsed_seconds"],
            "loop_lag_seconds": distribution(lags),
        },
        "samples": samples(journeys),
    }
