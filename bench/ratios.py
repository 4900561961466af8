"""What rounds of several services come to: medians, the ratio of one service to another, tables of both. Pure."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

from rich.table import Table
from rich.text import Text

from bench import services
from bench.compare import ratio
from bench.report import shown
from bench.scenario import Scenario

Run = dict[str, Any]

# What all other services are measured by.
BASELINES = tuple(service.name for service in services.BASELINES)


# A service that failed a larger share than this is not compared: the times of those it did answer say nothing.
_LARGEST_FAILED_SHARE = 0.05


class Figure(NamedTuple):
    """A figure of a run; one that may well be 0 has no ratio."""

    key: str
    title: str
    read: Callable[[Run], float | None]
    has_ratio: bool = True


class Spread(NamedTuple):
    """The median of a figure over rounds, and the smallest and largest of them."""

    median: float
    low: float
    high: float


def _group(group: str, what: str, column: str) -> Callable[[Run], float | None]:
    def read(run: Run) -> float | None:
        figures = run["figures"]["groups"][group][what]
        return None if figures is None else float(figures[column])

    return read


def _share(count: float, of: float) -> float | None:
    return 100 * count / of if of else None


FIGURES: tuple[Figure, ...] = (
    Figure("completion_mean", "completion mean, s", _group("all", "completion_seconds", "mean")),
    Figure("completion_p50", "completion p50, s", _group("all", "completion_seconds", "p50")),
    Figure("completion_p95", "completion p95, s", _group("all", "completion_seconds", "p95")),
    Figure("completion_p99", "completion p99, s", _group("all", "completion_seconds", "p99")),
    Figure("ttfa_p50", "TTFA p50, s", _group("all", "ttfa_seconds", "p50")),
    Figure("ttfa_p95", "TTFA p95, s", _group("all", "ttfa_seconds", "p95")),
    Figure("ttfa_p99", "TTFA p99, s", _group("all", "ttfa_seconds", "p99")),
    Figure("short_p99", "short texts p99, s", _group("short", "completion_seconds", "p99")),
    Figure("long_p99", "long texts p99, s", _group("long", "completion_seconds", "p99")),
    Figure("slowdown_mean", "slowdown mean, ×", _group("all", "slowdown", "mean")),
    Figure(
        "failed_percent",
        "failed, %",
        lambda run: _share(run["figures"]["requests"]["failed"], run["figures"]["requests"]["sent"]),
        has_ratio=False,
    ),
    Figure(
        "underrun_percent",
        "with underruns, %",
        lambda run: _share(
            run["figures"]["groups"]["all"]["stalled_requests"] or 0, run["figures"]["groups"]["all"]["ok"]
        ),
        has_ratio=False,
    ),
    Figure("carried_load", "load carried", lambda run: run["load"]["carried"], has_ratio=False),
    Figure(
        "send_lag_p99",
        "send lag p99, s",
        lambda run: (run["figures"]["send_lag_seconds"] or {}).get("p99"),
        has_ratio=False,
    ),
)


def spread(values: Iterable[float | None]) -> Spread | None:
    """Return median, least and greatest of the values that are known; None of none."""
    known = [value for value in values if value is not None]
    return Spread(statistics.median(known), min(known), max(known)) if known else None


def summarize_runs(runs: Sequence[Run]) -> dict[str, Any]:
    """Return, by scenario, each service's figures and the ratios of each that is no baseline to the baselines.

    A ratio is of two runs of one trace; its spread is over traces.
    """
    summary = {}
    for scenario in dict.fromkeys(run["scenario"] for run in runs):
        here = [run for run in runs if run["scenario"] == scenario]
        names = list(dict.fromkeys(run["service"] for run in here))
        pairs = [(ours, theirs) for ours in names if ours not in BASELINES for theirs in names if theirs in BASELINES]
        requests = {run["trace"]["digest"]: run["trace"]["requests"] for run in here}
        summary[scenario] = {
            "rounds": len(requests),
            "requests": sum(requests.values()),
            "services": {
                name: {figure.key: _as_json(spread(map(figure.read, _of(here, name)))) for figure in FIGURES}
                for name in names
            },
            "ratios": {
                f"{ours}/{theirs}": {
                    figure.key: _as_json(_ratio_spread(_of(here, ours), _of(here, theirs), figure))
                    for figure in FIGURES
                    if figure.has_ratio
                }
                for ours, theirs in pairs
            },
        }
    return summary


def _of(runs: Iterable[Run], service: str) -> list[Run]:
    return [run for run in runs if run["service"] == service]


def _mostly_answered(run: Run) -> bool:
    requests = run["figures"]["requests"]
    return bool(requests["failed"] <= _LARGEST_FAILED_SHARE * requests["sent"])


def _ratio_spread(ours: Sequence[Run], theirs: Sequence[Run], figure: Figure) -> Spread | None:
    by_trace = {run["trace"]["digest"]: figure.read(run) for run in theirs if _mostly_answered(run)}
    return spread(
        ratio(by_trace[run["trace"]["digest"]], figure.read(run)) for run in ours if run["trace"]["digest"] in by_trace
    )


def _as_json(value: Spread | None) -> dict[str, float] | None:
    return None if value is None else value._asdict()


def rows(summary: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Return the headings and the cells of one scenario's table: a figure a row, its value by service, its ratios."""
    services, ratios = summary["services"], summary["ratios"]
    heads = ["figure", *services, *(name.replace("/", " ÷ ") for name in ratios)]
    cells = []
    for figure in FIGURES:
        values = [one[figure.key] for one in services.values()]
        if any(value is not None for value in values):
            quotients = [one.get(figure.key) for one in ratios.values()]
            cells.append([figure.title, *map(_median, values), *map(_with_range, quotients)])
    return heads, cells


def _median(value: dict[str, float] | None) -> str:
    return "–" if value is None else shown(round(value["median"], 4))


def _with_range(value: dict[str, float] | None) -> str:
    if value is None:
        return ""
    is_one = value["low"] == value["high"]
    return f"{value['median']:.2f}" + ("" if is_one else f" ({value['low']:.2f}–{value['high']:.2f})")


def _caption(scenario: str, summary: dict[str, Any]) -> str:
    return (
        f"{scenario}: {Scenario(scenario).meaning}. {summary['requests']} requests a service in "
        f"{summary['rounds']} {'round' if summary['rounds'] == 1 else 'rounds'}"
    )


def tables(report: dict[str, Any]) -> list[Table]:
    """Return one table a scenario for a person at a terminal."""
    made = []
    for scenario, summary in report["summary"].items():
        heads, cells = rows(summary)
        table = Table(title=Text(_caption(scenario, summary)), title_justify="left")
        table.add_column(heads[0])
        for head in heads[1:]:
            table.add_column(Text(head), justify="right")
        for row in cells:
            table.add_row(*row)
        made.append(table)
    return made


def markdown(report: dict[str, Any]) -> str:
    """Return the same tables in Markdown."""
    parts = []
    for scenario, summary in report["summary"].items():
        heads, cells = rows(summary)
        lines = [f"**{_caption(scenario, summary)}.**", ""]
        lines += [f"| {' | '.join(row)} |" for row in (heads, ["---", *["---:"] * (len(heads) - 1)], *cells)]
        parts.append("\n".join(lines))
    return "\n\n".join(parts)
