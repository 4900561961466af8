"""Draws what the policies did: how long requests of the first scenario took, and two figures of every scenario."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_PERCENT = 100
_BARS = (("ttfa_p95", "TTFA p95, by scenario"), ("completion_mean", "completion mean, by scenario"))
_TIMES = (("first_audio_at", "time to first audio"), ("finished_at", "completion"))


def picture(report: dict[str, Any], path: Path) -> None:
    """Write one picture of a report of `tts-bench policies`, in the format that the name of `path` says."""
    # Not pyplot, which would choose a backend and keep every figure.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogFormatter

    figure = Figure(figsize=(13, 8), layout="constrained")
    FigureCanvasAgg(figure)
    (upper, lower) = figure.subplots(2, 2)
    scenario = next(iter(report["summary"]))
    for axes, (column, title) in zip(upper, _TIMES, strict=True):
        _draw_times(axes, report, scenario, column)
        axes.set(title=f"{title}, {scenario}", xlabel="seconds", ylabel="% of requests", ylim=(0, _PERCENT))
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter(LogFormatter())
        axes.grid(alpha=0.3, which="both")
    upper[0].legend(fontsize="small")
    for axes, (key, title) in zip(lower, _BARS, strict=True):
        _draw_bars(axes, report, key)
        axes.set(title=title, ylabel="seconds")
        axes.grid(alpha=0.3, axis="y")
    figure.savefig(path, dpi=100)


def _draw_times(axes: Axes, report: dict[str, Any], scenario: str, column: str) -> None:
    """Draw, for each service, the share of requests that took no longer, all rounds together."""
    for number, service in enumerate(report["summary"][scenario]["services"]):
        seconds = [
            ended - sent
            for run in report["runs"]
            if (run["scenario"], run["service"]) == (scenario, service)
            for sent, ended, ok in zip(
                run["samples"]["sent_at"], run["samples"][column], run["samples"]["ok"], strict=True
            )
            if ok
        ]
        if seconds:
            share = np.arange(1, len(seconds) + 1) * _PERCENT / len(seconds)
            axes.plot(np.sort(seconds), share, color=f"C{number}", label=service, drawstyle="steps-post")


def _draw_bars(axes: Axes, report: dict[str, Any], key: str) -> None:
    """Draw the median over rounds of each service, with the smallest and largest as its error bar."""
    summary = report["summary"]
    services = list(dict.fromkeys(service for one in summary.values() for service in one["services"]))
    width = 0.8 / len(services)
    for number, service in enumerate(services):
        for place, one in enumerate(summary.values()):
            value = one["services"].get(service, {}).get(key)
            if value is not None:
                spread = [[value["median"] - value["low"]], [value["high"] - value["median"]]]
                at = place + (number - (len(services) - 1) / 2) * width
                axes.bar(at, value["median"], width, yerr=spread, color=f"C{number}", capsize=3)
    axes.set_xticks(range(len(summary)), list(summary))
