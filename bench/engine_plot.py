"""Draws what `tts-bench engine` measured: tokens and audio a second by how many are spoken at once."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_PARTS = (
    ("tokens_per_second", "token stage", "tokens a second"),
    ("audio_seconds_per_second", "whole engine", "seconds of audio a second"),
)


def draw_engine(report: dict[str, Any], path: Path) -> None:
    """Write one picture, in the format that the name of `path` says; needs no display."""
    # Not pyplot, which would choose a backend and keep every figure.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.4), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, (key, title, unit) in zip(figure.subplots(1, 2), _PARTS, strict=True):
        _draw_rates(axes, report["summary"][key], report["summary"]["upstream"][key])
        axes.set(title=f"{title}, {report['device']}", xlabel="requests at once", ylabel=unit)
    figure.savefig(path, dpi=110)


def _draw_rates(axes: Axes, ours: dict[str, Any], upstream: float) -> None:
    batches = [int(batch) for batch in ours]
    axes.plot(batches, [one["median"] for one in ours.values()], "o-", color="C0", label="ours")
    axes.axhline(upstream, color="C1", label="upstream, one by one")
    best = [one["best"] for one in ours.values()]
    if all(value is not None for value in best):
        axes.plot(batches, best, ":", color="C7", label="best possible")
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xticks(batches, [str(batch) for batch in batches])
    axes.grid(alpha=0.3, which="both")
    axes.legend(fontsize="small")
