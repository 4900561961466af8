"""The live line of a run on standard error: sent, done, failed, in flight, TTFA so far."""

from __future__ import annotations

import asyncio
from typing import Self

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from bench.generator import OpenLoop

_INTERVAL_SECONDS = 0.5


async def show_progress(run: OpenLoop, console: Console) -> None:
    """Draw twice a second until cancelled; nothing where `console` is no terminal.

    Drawn from the event loop, between requests: a thread of its own would take the interpreter in the midst of one.
    """
    if not console.is_terminal:
        return
    columns = (BarColumn(bar_width=24), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=console, auto_refresh=False, transient=True) as progress:
        task = progress.add_task("", total=run.planned)
        while True:
            progress.update(task, completed=run.done, description=describe(run), refresh=True)
            await asyncio.sleep(_INTERVAL_SECONDS)


def describe(run: OpenLoop) -> str:
    """Return the line of a run as it stands."""
    ttfa = f"{np.percentile(run.first_audio_seconds, 95):.3f} s" if run.first_audio_seconds else "–"
    return (
        f"sent {len(run.journeys)}/{run.planned} · done {run.done} · errors {run.failed} · "
        f"in flight {run.in_flight} · TTFA p95 {ttfa}"
    )


class Steps:
    """The live line of a measurement that blocks: which of its steps is under way. Use as `with`; counts to `total`."""

    def __init__(self, total: int) -> None:
        columns = (BarColumn(bar_width=24), MofNCompleteColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
        self._progress = Progress(*columns, console=Console(stderr=True), transient=True)
        self._task = self._progress.add_task("", total=total)
        self._begun = 0

    def __enter__(self) -> Self:
        if self._progress.console.is_terminal:
            self._progress.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._progress.stop()

    def begin(self, what: str) -> None:
        """Show that the next step is under way, and the one before it done."""
        self._progress.update(self._task, completed=self._begun, description=what)
        self._begun += 1
