"""`tts-bench load`: send a trace of requests to a running service, open loop, and report how they fared."""

from __future__ import annotations

import argparse
import asyncio
import gc
import signal
import time
from array import array
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import aiohttp
from rich.console import Console

from bench.client import SpeechClient, Target, open_session
from bench.decode import decoded_seconds
from bench.errors import OptionError
from bench.figures import Alone, distribution, events_per_second, fit_alone, summarize
from bench.generator import OpenLoop, sample_loop_lag
from bench.journey import Journey, Problem, ProblemKind
from bench.options import LoadOptions, add_arguments, read_options
from bench.plot import check_plot, draw
from bench.progress import show_progress
from bench.report import FORMAT, Report, host, print_report, samples, table_console, versions, write_report
from bench.trace import (
    Arrival,
    TraceError,
    arrival_times,
    digest,
    fixed_texts,
    from_lines,
    listed_texts,
    make_trace,
    standard_texts,
    to_lines,
)
from bench.watch import Watch

__all__ = ["HELP", "add_arguments", "run"]

HELP = "open-loop load: requests at the instants of a trace, whether or not earlier ones were answered"

_LEAD_SECONDS = 0.1  # from the start of the clock's use to its zero: the first request shall not be late


@dataclass(slots=True)
class Measured:
    """What a run leaves behind besides its journeys."""

    journeys: list[Journey]
    alone: Alone | None
    watch: Watch | None
    cpu_seconds: float
    loop_lags_seconds: array[float] = field(default_factory=lambda: array("d"))
    interrupted: bool = False


def run(arguments: argparse.Namespace) -> int:
    """Measure, write and print what was asked for; return the exit code.

    Raises:
        OptionError: nothing was sent.
        KeyboardInterrupt: the run was cut short; what there was of it is written and printed.
    """
    options = read_options(arguments)
    if options.plot is not None:
        check_plot(options.plot)
    watch = Watch(options.watch_pid) if options.watch_pid else None
    trace = build_trace(options)
    if options.trace_out is not None:
        with options.trace_out.open("w", encoding="utf-8") as file:
            file.writelines(to_lines(trace))
    started = datetime.now(UTC)
    measured = asyncio.run(_measure(options, trace, watch))
    if options.decode:
        _decode(measured.journeys)
    report = build_report(options, trace, measured, started)
    if options.json is not None:
        write_report(report, options.json)
    if options.plot is not None:
        draw([report], options.plot)
    if not options.quiet:
        print_report(report, table_console())
    if measured.interrupted:
        raise KeyboardInterrupt  # as it would have been without a report to finish
    return int(options.fail_on_error and any(journey.problem for journey in measured.journeys))


def build_trace(options: LoadOptions) -> list[Arrival]:
    """Make, or read, the arrivals of a run.

    Raises:
        OptionError: a file cannot be used, or not one request falls into the run.
    """
    if options.trace_in is not None:
        try:
            saved = list(from_lines(_read_lines("--trace-in", options.trace_in)))
        except TraceError as error:
            raise OptionError(f"--trace-in: {options.trace_in}: {error}") from None
        trace = make_trace(
            [arrival.at_seconds for arrival in saved],
            [arrival.text for arrival in saved],
            duration_seconds=options.duration,
            requests=len(saved) if options.requests is None else options.requests,
        )
        if not trace:
            raise OptionError(f"--trace-in: {options.trace_in} holds no request that falls into the run")
        return trace
    assert options.rate is not None, "read_options asks for it"
    if options.texts is not None:
        lines = [line.strip() for line in _read_lines("--texts", options.texts) if line.strip()]
        if not lines:
            raise OptionError(f"--texts: {options.texts} holds no text")
        texts = listed_texts(options.seed, lines)
    elif options.characters is not None:
        texts = fixed_texts(options.seed, options.characters)
    else:
        texts = standard_texts(options.seed, longest=options.longest)
    times = arrival_times(options.arrivals, options.rate, options.seed)
    trace = make_trace(times, texts, duration_seconds=options.duration, requests=options.requests)
    if not trace:
        raise OptionError(f"--duration: no request falls into {options.duration:g} s at --rate {options.rate:g}")
    return trace


def _read_lines(flag: str, path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as error:
        raise OptionError(f"{flag}: {path}: {error}") from None


async def _measure(options: LoadOptions, trace: Sequence[Arrival], watch: Watch | None) -> Measured:
    target = Target(
        url=options.url,
        api=options.api,
        model=options.model,
        voice=options.voice,
        format=options.format,
        stream_format=options.stream_format,
        token=options.token,
        sample_rate=options.sample_rate,
        timeout_seconds=options.timeout,
        prebuffer_seconds=options.prebuffer,
        keep_recordings=options.decode,
        seed=options.seed,
    )
    async with open_session() as session:
        alone = await _alone(options, trace, session, target)
        clock = clock_from(time.monotonic() + _LEAD_SECONDS)
        client = SpeechClient(session, target, clock)
        load = OpenLoop(trace, client.speak, clock, max_in_flight=options.max_in_flight)
        measured = Measured([], alone, watch, cpu_seconds=time.process_time())
        if watch is not None:
            watch.look()
        # The trace and the imports stay: later collections need not walk through them between two requests.
        gc.collect()
        gc.freeze()
        async with _beside(load, options, measured, clock):
            measured.journeys = await load.run()
        measured.cpu_seconds = time.process_time() - measured.cpu_seconds
        if watch is not None:
            watch.look()
        return measured


@asynccontextmanager
async def _beside(
    load: OpenLoop, options: LoadOptions, measured: Measured, clock: Callable[[], float]
) -> AsyncIterator[None]:
    """Sample and draw while the block runs; the first SIGINT ends the run, and what there is of it is reported."""

    def interrupt() -> None:
        measured.interrupted = True
        load.stop()

    work: list[Coroutine[Any, Any, None]] = [sample_loop_lag(measured.loop_lags_seconds, clock)]
    if not options.quiet:
        work.append(show_progress(load, Console(stderr=True)))
    if measured.watch is not None:
        work.append(measured.watch.run())
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGINT, interrupt)
    tasks = [asyncio.create_task(each) for each in work]
    try:
        yield
    finally:
        loop.remove_signal_handler(signal.SIGINT)
        for task in tasks:
            task.cancel()
        for task in tasks:
            with suppress(asyncio.CancelledError):
                await task


async def _alone(
    options: LoadOptions, trace: Sequence[Arrival], session: aiohttp.ClientSession, target: Target
) -> Alone | None:
    """Return the time that a text needs on an idle service, as given or measured now, one request after the other."""
    if options.alone_per_character is not None:
        return Alone(options.alone_per_request, options.alone_per_character)
    client = SpeechClient(session, target, clock_from(time.monotonic()))
    measured: list[tuple[int, float]] = []
    for number, text in enumerate(calibration_texts(trace, options.calibrate)):
        journey = Journey(len(trace) + number, len(text), due_at=0.0)
        await client.speak(journey, text)
        if journey.is_ok and journey.completion_seconds is not None:
            measured.append((journey.characters, journey.completion_seconds))
    return fit_alone(measured)


def calibration_texts(trace: Sequence[Arrival], count: int) -> list[str]:
    """Return `count` texts of the trace that are spread evenly over its lengths, the shortest first."""
    by_length = sorted((arrival.text for arrival in trace), key=len)
    return [by_length[int((number + 0.5) / count * len(by_length))] for number in range(count)]


def clock_from(origin: float) -> Callable[[], float]:
    """Return a clock of seconds since `origin`, an instant of the monotonic clock."""
    return lambda: time.monotonic() - origin


def _decode(journeys: Sequence[Journey]) -> None:
    """Measure the audio of compressed answers; one that does not decode was no answer."""
    for journey in journeys:
        if journey.recording is not None and journey.is_ok:
            journey.audio_seconds = decoded_seconds(journey.recording)
            if journey.audio_seconds is None:
                journey.problem = Problem(ProblemKind.MALFORMED, 200, "does_not_decode")
        journey.recording = None


def build_report(options: LoadOptions, trace: Sequence[Arrival], measured: Measured, started: datetime) -> Report:
    """Return the whole of a run as plain JSON."""
    figures = summarize(
        measured.journeys,
        offered_per_second=events_per_second([arrival.at_seconds for arrival in trace]),
        alone=measured.alone,
    )
    in_flight, elapsed = figures["in_flight"], figures["elapsed_seconds"]
    watch = measured.watch
    return {
        "format": FORMAT,
        "label": options.label,
        "started_at": started.isoformat(timespec="seconds"),
        "interrupted": measured.interrupted,
        "options": options.to_json(),
        "seed": options.seed,
        "trace": {"requests": len(trace), "digest": digest(trace)},
        "versions": versions(),
        "host": host(),
        "alone": None if measured.alone is None else measured.alone._asdict(),
        "figures": figures,
        "generator": {
            "cpu_seconds": measured.cpu_seconds,
            "cpu_share": measured.cpu_seconds / elapsed if elapsed else 0.0,
            "loop_lag_seconds": distribution(measured.loop_lags_seconds),
        },
        "processes": watch.report(in_flight_peak=in_flight["peak"], in_flight_mean=in_flight["mean"]) if watch else [],
        "samples": samples(measured.journeys),
    }
