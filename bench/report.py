"""What a run tells: one JSON document with every figure, and a table made from it."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Iterable, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from bench.errors import OptionError
from bench.figures import SHORT_CHARACTERS
from bench.journey import Journey

FORMAT = "tts-bench load 1"

Report = dict[str, Any]

_VERSIONS = ("chatterbox-gateway", "aiohttp", "numpy")
_WIDTH_OF_FILES = 160
_COLUMNS = ("p50", "p90", "p95", "p99", "mean", "max")
# Figures of the table, as (key, what it is called).
_ROWS = (
    ("ttfa_seconds", "TTFA, s"),
    ("completion_seconds", "completion, s"),
    ("slowdown", "slowdown, ×"),
    ("completion_per_audio_second", "completion ÷ audio"),
    ("stall_seconds", "stalls, s"),
)
_GROUPS = (
    ("all", "all texts"),
    ("short", f"short (≤ {SHORT_CHARACTERS} characters)"),
    ("long", f"long (> {SHORT_CHARACTERS} characters)"),
)


def host() -> dict[str, Any]:
    """Return what of this machine a figure hangs on."""
    return {
        "cores": os.cpu_count(),
        "cores_usable": len(os.sched_getaffinity(0)),
        "machine": platform.machine(),
        "system": platform.system(),
    }


def versions() -> dict[str, str]:
    """Return the versions of what measured; a package that runs without being installed is "unknown"."""
    found = {"python": platform.python_version()}
    for name in _VERSIONS:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "unknown"
    return found


def samples(journeys: Iterable[Journey]) -> dict[str, list[Any]]:
    """Return the requests as columns, in order of arrival; instants are seconds from the start of the run."""
    rows = list(journeys)
    return {
        "characters": [journey.characters for journey in rows],
        "due_at": [_rounded(journey.due_at) for journey in rows],
        "sent_at": [_rounded(journey.sent_at) for journey in rows],
        "first_audio_at": [_rounded(journey.first_audio_at) for journey in rows],
        "finished_at": [_rounded(journey.finished_at) for journey in rows],
        "audio_seconds": [_rounded(journey.audio_seconds) for journey in rows],
        "stall_seconds": [_rounded(journey.stall_seconds) for journey in rows],
        "problem": [None if journey.problem is None else str(journey.problem.kind) for journey in rows],
        "ok": [journey.is_ok for journey in rows],
    }


def write_report(report: Report, path: Path) -> None:
    path.write_text(json.dumps(report, separators=(",", ":"), allow_nan=False) + "\n", encoding="utf-8")


def read_report(path: Path) -> Report:
    """Return what `write_report` wrote.

    Raises:
        OptionError: there is no such file, or it is another kind of file; the message names it.
    """
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise OptionError(f"{path}: {error}") from None
    if not isinstance(report, dict) or report.get("format") != FORMAT:
        raise OptionError(f"{path} is no report of tts-bench load")
    return report


def print_report(report: Report, console: Console) -> None:
    """Print the figures of one run for a person."""
    console.print(figures_table(report))
    for line in summary_lines(report):
        console.print(line, markup=False, highlight=False)


def table_console() -> Console:
    """Return a console whose tables keep all their columns where they go to a file or a pipe."""
    console = Console()
    return console if console.is_terminal else Console(width=_WIDTH_OF_FILES)


def figures_table(report: Report) -> Table:
    """Return the percentiles by length of text; figures that were not measured have no row."""
    table = Table(title=Text(str(report["label"])), title_justify="left")
    table.add_column("")
    for name in _COLUMNS:
        table.add_column(name, justify="right")
    for group, title in _GROUPS:
        figures = report["figures"]["groups"][group]
        if not figures["requests"]:
            continue
        table.add_row(f"[bold]{title}[/]: {figures['ok']} of {figures['requests']} ok")
        for key, name in _ROWS:
            if figures[key] is not None:
                table.add_row(f"  {name}", *(shown(figures[key][column]) for column in _COLUMNS))
        table.add_section()
    return table


def summary_lines(report: Report) -> Sequence[str]:
    """Return the figures that are no percentiles, one subject a line."""
    figures, generator = report["figures"], report["generator"]
    requests, rates, in_flight = figures["requests"], figures["rates"], figures["in_flight"]
    lines = [
        f"requests   planned {report['trace']['requests']} · sent {requests['sent']} · ok {requests['ok']} · "
        f"failed {requests['failed']} · not sent for --max-in-flight {requests['capped']}",
        f"rates      offered {shown(rates['offered_per_second'])}/s · sent {shown(rates['sent_per_second'])}/s · "
        f"completed {shown(rates['completed_per_second'])}/s · "
        f"audio {shown(rates['audio_seconds_per_second'])} s/s · elapsed {shown(figures['elapsed_seconds'])} s",
        f"in flight  peak {in_flight['peak']} · mean {shown(in_flight['mean'])}",
        f"generator  send lag p99 {_milliseconds(figures['send_lag_seconds'])} · "
        f"loop lag p99 {_milliseconds(generator['loop_lag_seconds'])} · CPU {generator['cpu_share']:.0%} of a core",
    ]
    stalled = figures["groups"]["all"]["stalled_requests"]
    if stalled is not None:
        lines.append(f"underruns  {figures['groups']['all']['stalls']} in {stalled} requests")
    if alone := report["alone"]:
        base, slope = alone["per_request_seconds"], alone["per_character_seconds"]
        lines.append(f"alone      {shown(base)} s a request + {shown(slope)} s a character")
    elif report["options"]["calibrate"]:
        lines.append("alone      not known: no request of --calibrate succeeded")
    lines += [_error_line(error) for error in figures["errors"]]
    lines += [_process_line(process) for process in report["processes"]]
    if report["interrupted"]:
        lines.append("interrupted: the trace was not sent to its end")
    return lines


def shown(value: float | None) -> str:
    """Return a figure for a table: four significant digits, a dash for none."""
    if value is None:
        return "–"
    return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def _error_line(error: dict[str, Any]) -> str:
    what = " ".join(str(error[key]) for key in ("kind", "status", "code") if error[key])
    return f"error      {error['count']} × {what}"


def _process_line(process: dict[str, Any]) -> str:
    name = f"process    {process['name']} ({process['pid']})"
    if "cpu_share" not in process:
        return f"{name}: ended too early to measure"
    rss, stream = process["rss_bytes"], process["per_stream"]
    share, memory = stream["cpu_share"], stream["rss_bytes"]
    return (
        f"{name}: CPU {process['cpu_share']:.0%} of a core ({'–' if share is None else f'{share:.2%}'} a stream) · "
        f"memory {rss['first'] / 1e6:.0f} → {rss['max'] / 1e6:.0f} MB "
        f"({'–' if memory is None else f'{memory / 1e3:.0f} kB'} a stream) · "
        f"descriptors {process['fds']['max']} · threads {process['threads']['max']}"
    )


def _milliseconds(figures: dict[str, float] | None) -> str:
    return "–" if figures is None else f"{figures['p99'] * 1000:.1f} ms"


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 6)
