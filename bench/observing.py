"""What it costs to be watched: CPU of one gateway for the same requests with and without metrics, scrapes and open
pages, in turns, and the time of a scrape of a large fleet. Run it as `python -m bench.observing`."""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import aiohttp
import psutil
from aiohttp import web
from rich.console import Console

from bench.fleet import HOST, Fleet, Gateway, total
from wire.frames import FrameType, encode_frame
from wire.headers import SEGMENTS_PATH
from wire.link import Hello, ModelInfo, Status, WorkerState, encode

# As often as the shipped prometheus.yml scrapes at most.
_SCRAPE_EVERY_SECONDS = 5.0
_SETTLE_SECONDS = 1.0
_WARM_UP_SECONDS = 3.0
_WORKERS = 2
_FLEET = 64
_SCRAPES = 20
_REPORTS: set[asyncio.Task[None]] = set()


async def _turn(
    http: aiohttp.ClientSession, gateway: Gateway, pid: int, rate: float, seconds: float, viewers: int | None
) -> float:
    """Send `rate` requests a second, whatever becomes of them; return CPU milliseconds of the gateway for each.

    It is scraped meanwhile and its live figures are read, as by so many pages; None is nobody at all.
    """
    process = psutil.Process(pid)

    async def request() -> None:
        async with http.post(f"{gateway.url}/v1/tts", json={"text": "Hello there.", "format": "pcm"}) as response:
            await response.read()
            if response.status != 200:
                raise SystemExit(f"{response.status} from {gateway.url}: this machine cannot do {rate:g} rps")

    async def scrape() -> None:
        while True:
            async with http.get(f"{gateway.internal_url}/metrics") as response:
                await response.read()
            await asyncio.sleep(_SCRAPE_EVERY_SECONDS)

    async def view() -> None:
        async with http.get(f"{gateway.url}/v1/live") as response:
            async for _ in response.content.iter_any():
                pass

    watchers = [] if viewers is None else [scrape(), *(view() for _ in range(viewers))]
    watching = [asyncio.create_task(watcher) for watcher in watchers]
    await asyncio.sleep(_SETTLE_SECONDS)
    before, began, sent = process.cpu_times(), time.monotonic(), 0
    async with asyncio.TaskGroup() as group:
        while (now := time.monotonic() - began) < seconds:
            while sent < now * rate:
                group.create_task(request())
                sent += 1
            await asyncio.sleep(0.5 / rate)
    after = process.cpu_times()
    for task in watching:
        task.cancel()
    await asyncio.gather(*watching, return_exceptions=True)
    cpu_seconds: float = after.user + after.system - before.user - before.system
    return cpu_seconds / sent * 1000


async def _speak(request: web.Request) -> web.StreamResponse:
    """Answer as a worker does, with no more than it takes."""
    await request.read()
    pcm = bytes(4800)
    frames = [encode_frame(FrameType.META, {"sample_rate": 24_000}), encode_frame(FrameType.AUDIO, pcm)]
    frames.append(encode_frame(FrameType.DONE, {"samples": len(pcm) // 2}))
    return web.Response(body=b"".join(frames))


async def _join(http: aiohttp.ClientSession, gateway: Gateway, number: int, port: int) -> None:
    """Link a worker that is nothing but its link and a port that it shares with others, for as long as `http` lives."""
    socket = await http.ws_connect(f"{gateway.internal_url}/internal/workers")
    model = ModelInfo("tone", 24_000, ("alto",), ("en",))
    await socket.send_str(encode(Hello(f"large-{number}", "1", port, 4, "cuda:0", (model,), WorkerState.READY)))
    await socket.receive()

    async def report() -> None:
        while not socket.closed:
            await socket.send_str(encode(Status(WorkerState.READY, 0, 0, 4)))
            await asyncio.sleep(1.0)

    _REPORTS.add(asyncio.create_task(report()))


async def _scrape_seconds(http: aiohttp.ClientSession, gateway: Gateway) -> list[float]:
    """Return the times of scrapes of a gateway with `_FLEET` workers, each of which has spoken, on the clock, with
    the request and its answer."""
    app = web.Application()
    app.router.add_post(SEGMENTS_PATH, _speak)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, HOST, 0).start()
    for number in range(_FLEET):
        await _join(http, gateway, number, runner.addresses[0][1])

    async def speak() -> None:
        async with http.post(f"{gateway.url}/v1/tts", json={"text": "Hello.", "format": "pcm"}) as response:
            await response.read()

    text = ""
    while text.count("tts_segment_duration_seconds_count{") < _FLEET:
        await asyncio.gather(*(speak() for _ in range(_FLEET)))
        async with http.get(f"{gateway.internal_url}/metrics") as response:
            text = await response.text()
    took = []
    accept = {"Accept": "application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5,*/*;q=0.1"}
    for _ in range(_SCRAPES):
        await asyncio.sleep(0.1)
        began = time.monotonic()
        async with http.get(f"{gateway.internal_url}/metrics", headers=accept) as response:
            await response.read()
        took.append(time.monotonic() - began)
    for task in _REPORTS:
        task.cancel()
    await runner.cleanup()
    return took


async def _compare(options: argparse.Namespace, console: Console) -> list[float]:
    """Return, for each turn, what a request costs a gateway that is watched by what it costs the same one unwatched.

    Both sides are one process: where a process happens to lie in memory makes a tenth of its cost for as long as it
    lives, which is more than what is sought here.
    """
    ratios: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        async with (
            Fleet(Path(folder)) as fleet,
            aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), trust_env=False) as http,
        ):
            gateway, pid = await fleet.start_gateway_as("watched", "bench.unobserved")
            for number in range(_WORKERS):
                await fleet.start_worker(f"worker-{number}", gateway, "--slots", "32", module=("worker",))
            await fleet.wait_ready(gateway, _WORKERS)

            async def heard() -> float:
                return total(await fleet.metrics(gateway.internal_url), "tts_requests_total")

            await _turn(http, gateway, pid, options.rate, _WARM_UP_SECONDS, options.viewers)
            is_watched = True
            for turn in range(1, options.turns + 1):
                cost = {}
                for side in (is_watched, not is_watched):  # the second of a turn is the first of the next
                    if side != is_watched:
                        os.kill(pid, signal.SIGUSR1)
                        is_watched = side
                    before, viewers = await heard(), options.viewers if side else None
                    cost[side] = await _turn(http, gateway, pid, options.rate, options.seconds, viewers)
                    if (await heard() > before) != side:
                        raise SystemExit(f"a gateway that is {'' if side else 'not '}watched counts as if it were not")
                ratios.append(cost[True] / cost[False])
                console.print(
                    f"turn {turn}: {cost[True]:.3f} ms a request watched, {cost[False]:.3f} alone, "
                    f"ratio {ratios[-1]:.3f}"
                )
    return ratios


async def _run(options: argparse.Namespace, console: Console) -> None:
    ratios = [ratio for _ in range(options.gateways) for ratio in await _compare(options, console)]
    console.print(
        f"CPU at {options.rate:g} rps, watched ÷ alone: median {statistics.median(ratios):.3f}, "
        f"{min(ratios):.3f} to {max(ratios):.3f} over {options.gateways} gateways of {options.turns} turns each, "
        f"{options.seconds:g} s a side"
    )
    with tempfile.TemporaryDirectory() as folder:
        async with Fleet(Path(folder)) as fleet, aiohttp.ClientSession(trust_env=False) as http:
            gateway, _ = await fleet.start_gateway_as("large", "gateway", token="")
            took = sorted(await _scrape_seconds(http, gateway))
            console.print(
                f"scrape with {_FLEET} workers: median {statistics.median(took) * 1000:.0f} ms, "
                f"longest {took[-1] * 1000:.0f} ms of {len(took)}"
            )


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.observing", description=__doc__)
    parser.add_argument("--rate", type=float, default=200.0, metavar="RPS", help="requests a second (default: 200)")
    parser.add_argument("--gateways", type=int, default=3, metavar="N", help="one after the other (default: 3)")
    parser.add_argument("--turns", type=int, default=10, metavar="N", help="of each gateway (default: 10)")
    parser.add_argument("--seconds", type=float, default=6.0, metavar="S", help="of each side in a turn (default: 6)")
    parser.add_argument("--viewers", type=int, default=10, metavar="N", help="pages open on it (default: 10)")
    asyncio.run(_run(parser.parse_args(arguments), Console(highlight=False)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
