"""Draws runs side by side: how TTFA and completion are distributed, and how many requests were in flight."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bench.errors import OptionError
from bench.figures import SHORT_CHARACTERS
from bench.report import Report

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_PERCENT = 100
_SUFFIXES = (".png", ".svg", ".pdf")


def check_plot(path: Path) -> None:
    """Refuse to plot, before a run and not after it, where that is not possible.

    Raises:
        OptionError: matplotlib is not installed, or `path` ends in no format that it draws.
    """
    if path.suffix not in _SUFFIXES:
        raise OptionError(f"--plot: {path} must end in {', '.join(_SUFFIXES)}")
    if importlib.util.find_spec("matplotlib") is None:
        raise OptionError("--plot needs matplotlib: pip install 'chatterbox-gateway[bench]'")


def draw(reports: Sequence[Report], path: Path) -> None:
    """Write one picture of all `reports`, in the format that the name of `path` says; needs no display."""
    # Not pyplot, which would choose a backend and keep every figure.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogFormatter

    figure = Figure(figsize=(15, 4.6), layout="constrained")
    FigureCanvasAgg(figure)
    ttfa, completion, in_flight = figure.subplots(1, 3)
    for number, report in enumerate(reports):
        colour = f"C{number}"
        columns = report["samples"]
        _draw_distribution(ttfa, columns, "first_audio_at", colour, report["label"])
        _draw_distribution(completion, columns, "finished_at", colour, report["label"])
        _draw_in_flight(in_flight, columns, colour, report["label"])
    for axes, title in ((ttfa, "time to first audio"), (completion, "completion")):
        axes.set(title=title, xlabel="seconds", ylabel="% of requests", ylim=(0, _PERCENT))
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter(LogFormatter())
        axes.xaxis.set_minor_formatter(LogFormatter(labelOnlyBase=False))
        axes.grid(alpha=0.3, which="both")
    in_flight.set(title="requests in flight", xlabel="seconds from the start")
    in_flight.set_ylim(bottom=0)
    in_flight.grid(alpha=0.3)
    for axes in (ttfa, in_flight):
        if axes.get_legend_handles_labels()[0]:
            axes.legend(fontsize="small")
    figure.savefig(path, dpi=110)


def _draw_distribution(axes: Axes, columns: dict[str, list[Any]], end: str, colour: str, label: str) -> None:
    """Draw the share of requests that were no slower: all texts solid, the short and the long ones apart."""
    rows = [
        (characters, ended - sent)
        for characters, sent, ended, ok in zip(
            columns["characters"], columns["sent_at"], columns[end], columns["ok"], strict=True
        )
        if ok
    ]
    lines = (
        ("-", label, [seconds for _, seconds in rows]),
        (":", f"{label}, short", [seconds for characters, seconds in rows if characters <= SHORT_CHARACTERS]),
        ("--", f"{label}, long", [seconds for characters, seconds in rows if characters > SHORT_CHARACTERS]),
    )
    for style, name, seconds in lines:
        if seconds:
            share = np.arange(1, len(seconds) + 1) * _PERCENT / len(seconds)
            axes.plot(np.sort(seconds), share, style, color=colour, label=name, drawstyle="steps-post")


def _draw_in_flight(axes: Axes, columns: dict[str, list[Any]], colour: str, label: str) -> None:
    spans = [
        (sent, ended)
        for sent, ended in zip(columns["sent_at"], columns["finished_at"], strict=True)
        if sent is not None and ended is not None
    ]
    if not spans:
        return
    sent, ended = np.array(spans).T
    at = np.concatenate((sent, ended))
    step = np.concatenate((np.ones(len(sent)), -np.ones(len(ended))))
    order = np.argsort(at, kind="stable")  # at one instant, starts come before ends
    axes.plot(at[order], np.cumsum(step[order]), color=colour, label=label, drawstyle="steps-post", linewidth=1)
