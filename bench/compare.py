"""`tts-bench compare`: the reports of several runs in one table and one plot, each beside the first."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from bench.errors import OptionError
from bench.options import check_writable
from bench.plot import check_plot, draw
from bench.report import Report, read_report, shown, table_console

HELP = "compare reports of tts-bench load: every figure, and its ratio to the first report's"

# What a table leaves out unless --all is given: the sizes of samples, and percentiles between the telling ones.
_MINOR = (".count", ".p90", ".max")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("reports", nargs="+", type=Path, metavar="FILE.json", help="written by tts-bench load --json")
    parser.add_argument("--plot", type=Path, metavar="FILE.png", help="draw all of them in one picture")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write figures and ratios")
    parser.add_argument("--all", action="store_true", help="show every percentile")


def run(arguments: argparse.Namespace) -> int:
    """Print the comparison; 0 whatever it says."""
    if len(arguments.reports) < 2:
        raise OptionError("FILE.json: two reports or more are needed")
    check_writable("--json", arguments.json)
    if arguments.plot is not None:
        check_writable("--plot", arguments.plot)
        check_plot(arguments.plot)
    reports = [read_report(path) for path in arguments.reports]
    flat = [flatten(report["figures"]) for report in reports]
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(as_json(reports, flat), indent=1) + "\n", encoding="utf-8")
    if arguments.plot is not None:
        draw(reports, arguments.plot)
    console = table_console()
    console.print(comparison_table(reports, flat, with_all=arguments.all))
    if len({report["trace"]["digest"] for report in reports}) > 1:
        console.print("These runs had different traces: --trace-out and --trace-in give each the same.")
    return 0


def flatten(figures: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
    """Return every number in nested figures under its path, "groups.all.ttfa_seconds.p95"."""
    return dict(_numbers(figures, prefix))


def _numbers(figures: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, float]]:
    for key, value in figures.items():
        if isinstance(value, Mapping):
            yield from _numbers(value, f"{prefix}{key}.")
        elif isinstance(value, int | float):
            yield f"{prefix}{key}", value


def ratio(first: float | None, other: float | None) -> float | None:
    """Return other ÷ first; None where a figure is missing or the first is 0."""
    return other / first if first and other is not None else None


def as_json(reports: Sequence[Report], flat: Sequence[Mapping[str, float]]) -> dict[str, Any]:
    """Return labels, figures and ratios to the first report, figure by figure."""
    return {
        "labels": [report["label"] for report in reports],
        "traces": [report["trace"]["digest"] for report in reports],
        "figures": {
            name: {
                "values": [figures.get(name) for figures in flat],
                "ratios": [ratio(flat[0].get(name), figures.get(name)) for figures in flat[1:]],
            }
            for name in _names(flat)
        },
    }


def comparison_table(reports: Sequence[Report], flat: Sequence[Mapping[str, float]], *, with_all: bool) -> Table:
    """Return one row a figure: its value in each report, and the ratio of each later one to the first."""
    table = Table()
    table.add_column("figure")
    for report in reports:
        table.add_column(Text(str(report["label"])), justify="right")
    for report in reports[1:]:
        table.add_column(Text(f"{report['label']} ÷ {reports[0]['label']}"), justify="right")
    for name in _names(flat):
        if with_all or not name.endswith(_MINOR):
            values = [figures.get(name) for figures in flat]
            ratios = [ratio(values[0], value) for value in values[1:]]
            table.add_row(name.removeprefix("groups."), *map(shown, values), *map(shown, ratios))
    return table


def _names(flat: Sequence[Mapping[str, float]]) -> list[str]:
    """Every figure that any report has, in the order of their first appearance."""
    return list(dict.fromkeys(name for figures in flat for name in figures))
