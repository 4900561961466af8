"""`tts-gateway top`: the fleet in a terminal, once a second. What it draws is made by plain functions of a snapshot."""

from __future__ import annotations

import asyncio
import contextlib
import sys
import termios
import tty
from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any

import aiohttp
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from gateway.watch import Snapshot, follow

_BARS = "▁▂▃▄▅▆▇█"
_SPARK_WIDTH = 20
_MOST_SLOTS_DRAWN = 8
_GIB = 2**30
_STYLES = {
    "ready": "green", "draining": "yellow", "unloaded": "yellow", "asleep": "blue", "starting": "cyan",
    "loading": "cyan", "warming": "cyan", "probation": "yellow",
}  # fmt: skip
# Columns that a narrow terminal does without, and the width from which they are there.
_NOW_FROM, _SPARK_FROM = 120, 90


async def run(session: aiohttp.ClientSession, address: str, console: Console) -> None:
    """Draw until `q` or Ctrl-C. A gateway that goes away is waited for; what was last seen stays, and says how old."""
    with _quit_key() as quit_pressed, Live(console=console, screen=True, auto_refresh=False) as display:
        drawing = asyncio.create_task(_draw_forever(session, address, display))
        quitting = asyncio.create_task(quit_pressed.wait())
        try:
            done, _ = await asyncio.wait((drawing, quitting), return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (drawing, quitting):
                task.cancel()
            await asyncio.wait((drawing, quitting))
        if drawing in done:
            drawing.result()  # it never ends by itself: this raises what went wrong


async def _draw_forever(session: aiohttp.ClientSession, address: str, display: Live) -> None:
    loop = asyncio.get_running_loop()
    speeds: dict[str, deque[float]] = {}
    seen: Snapshot | None = None
    seen_at = loop.time()
    async with contextlib.aclosing(follow(session)) as stream:
        async for came in stream:
            trouble = ""
            if not isinstance(came, str):
                seen, seen_at = came, loop.time()
                _remember(speeds, came)
            elif seen is not None:
                trouble = f"{came} What is shown is {loop.time() - seen_at:.0f} s old."
            else:
                trouble = came
            display.update(draw(seen, address, trouble, speeds, display.console.width), refresh=True)


@contextlib.contextmanager
def _quit_key() -> Iterator[asyncio.Event]:
    """Yield an event that is set when q is pressed; without a terminal there is no key to press."""
    pressed = asyncio.Event()
    if not sys.stdin.isatty():
        yield pressed
        return
    terminal, loop = sys.stdin.fileno(), asyncio.get_running_loop()
    before = termios.tcgetattr(terminal)

    def read() -> None:
        key = sys.stdin.read(1)
        if key in ("q", "Q", ""):
            pressed.set()

    try:
        tty.setcbreak(terminal)
        loop.add_reader(terminal, read)
        yield pressed
    finally:
        loop.remove_reader(terminal)
        termios.tcsetattr(terminal, termios.TCSADRAIN, before)


def _remember(speeds: dict[str, deque[float]], snapshot: Snapshot) -> None:
    for worker in snapshot["workers"]:
        known = speeds.setdefault(worker["id"], deque(maxlen=60))
        if "speeds" in worker:  # the first one has the whole last minute
            known.clear()
            known.extend(worker["speeds"])
        else:
            known.append(worker["speed"])


# ── Drawing ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def draw(
    snapshot: Snapshot | None, address: str, trouble: str, speeds: dict[str, deque[float]], width: int
) -> RenderableType:
    """Return the whole picture, for a terminal of `width` columns."""
    if snapshot is None:
        return Text(f"tts-gateway {address}  {trouble}" if trouble else f"tts-gateway {address}  …")
    parts: list[RenderableType] = [_title(snapshot, address), Text(snapshot["summary"], "bold")]
    if trouble:
        parts.append(Text(trouble, "bold red"))
    parts += [traffic(snapshot), line(snapshot), Text(""), workers(snapshot, speeds, width)]
    return Group(*parts)


def _title(snapshot: Snapshot, address: str) -> Text:
    return Text(f"tts-gateway {snapshot['version']} on {address}, up {_duration(snapshot['uptime_seconds'])}", "dim")


def traffic(snapshot: Snapshot) -> Text:
    """Return the line of figures about requests."""
    figures = snapshot["traffic"]
    last = figures["last_minute"]
    first_p50, first_p95 = figures["first_audio_p50_seconds"], figures["first_audio_p95_seconds"]
    parts = [
        f"speaks {figures['speed']:.1f}× real time",
        f"{figures['requests_per_second']:.1f} requests/s",
        f"first audio p50 {_seconds(first_p50)} p95 {_seconds(first_p95)}",
        f"last minute {last['ok']} ok, {last['refused']} refused, {last['failed']} failed, {last['cancelled']} left",
    ]
    return Text(" · ".join(parts))


def line(snapshot: Snapshot) -> Text:
    """Return the line of what waits."""
    queue = snapshot["queue"]
    if not queue["segments"]:
        return Text("Nothing waits.")
    work = "no worker takes them" if queue["seconds"] is None else f"about {_seconds(queue['seconds'])} of work"
    return Text(f"{queue['segments']} segments of {queue['requests']} requests wait, {work}.", "yellow")


def workers(snapshot: Snapshot, speeds: dict[str, deque[float]], width: int) -> Table:
    """Return a row for each worker, and one for each that is gone."""
    has_gpus = any(worker["gpus"] for worker in snapshot["workers"])
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("worker", no_wrap=True)
    table.add_column("state")
    table.add_column("slots", no_wrap=True)
    table.add_column("speed", justify="right", no_wrap=True)
    if width >= _SPARK_FROM:
        table.add_column("last minute", no_wrap=True)
    if has_gpus:
        table.add_column("gpu")
    if width >= _NOW_FROM:
        table.add_column("now", no_wrap=True, overflow="ellipsis")
    for worker in snapshot["workers"]:
        cells: list[RenderableType] = [
            worker["id"],
            _state(worker),
            _slots(worker["in_flight"], worker["slots"]),
            f"{worker['speed']:.1f}×",
        ]
        if width >= _SPARK_FROM:
            cells.append(Text(spark(speeds.get(worker["id"], ()), _SPARK_WIDTH), "cyan"))
        if has_gpus:
            cells.append(Text("\n".join(map(gpu, worker["gpus"]))))
        if width >= _NOW_FROM:
            cells.append(Text(_now(snapshot, worker["id"])))
        table.add_row(*cells)
    for worker in snapshot["gone"]:
        table.add_row(worker["id"], Text(worker["words"], "bold red"))
    return table


def _state(worker: dict[str, Any]) -> Text:
    text = Text(worker["words"], _STYLES.get(worker["state"], "bold red"))
    for trouble in worker["troubles"]:
        text.append(f"\n▲ {trouble}", "bold red")
    return text


def _slots(in_flight: int, slots: int) -> str:
    drawn = "●" * in_flight + "○" * (slots - in_flight) + " " if slots <= _MOST_SLOTS_DRAWN else ""
    return f"{drawn}{in_flight}/{slots}"


def spark(figures: Sequence[float] | deque[float], width: int) -> str:
    """Return the figures as bars, the newest at the right; each bar is the mean of its share of them."""
    values = list(figures)
    if not values:
        return ""
    size = max(1, -(-len(values) // width))
    means = [sum(part) / len(part) for part in (values[i : i + size] for i in range(0, len(values), size))]
    top = max(max(means), 1e-9)
    return "".join(_BARS[min(len(_BARS) - 1, int(mean / top * len(_BARS)))] if mean else " " for mean in means)


def gpu(figures: dict[str, Any]) -> str:
    """Return a GPU's figures in one line; what it does not tell is left out."""
    parts = [figures["name"] or figures["device"]]
    if figures["utilization_ratio"] is not None:
        parts.append(f"{figures['utilization_ratio']:.0%}")
    if figures["memory_used_bytes"] is not None and figures["memory_total_bytes"]:
        parts.append(f"{figures['memory_used_bytes'] / _GIB:.1f}/{figures['memory_total_bytes'] / _GIB:.0f} GiB")
    if figures["temperature_celsius"] is not None:
        parts.append(f"{figures['temperature_celsius']:.0f} °C")
    if figures["power_watts"] is not None:
        parts.append(f"{figures['power_watts']:.0f} W")
    return " ".join(parts)


def _now(snapshot: Snapshot, worker: str) -> str:
    fields = snapshot["run_fields"]
    runs = (dict(zip(fields, row, strict=True)) for row in snapshot["runs"])
    running = [run for run in runs if run["worker"] == worker and run["ended"] is None]
    return ", ".join(f"{run['request']} segment {run['index'] + 1} ({run['characters']})" for run in running)


def _seconds(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f} s" if value < 10 else f"{value:.0f} s"


def _duration(seconds: float) -> str:
    return (
        f"{seconds:.0f} s"
        if seconds < 100
        else f"{seconds / 60:.0f} min"
        if seconds < 6000
        else f"{seconds / 3600:.0f} h"
    )
