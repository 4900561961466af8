"""What it costs to be watched: CPU of the gateway for the same requests with and without metrics, scrapes and open
pages, in turns, and the time of a scrape of a large fleet. Run it as `python -m bench.observing`."""

from __future__ import annotations

import argparse
import asyncio
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

from bench.fleet import HOST, Fleet, Gateway
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
    http: aiohttp.ClientSession, gateway: Gateway, pid: int, rate: float, seconds: float, viewers: int
) -> float:
    """Send `rate` requests a second, whatever becomes of them, scrape, and read the live figures as so many pages do;
    return CPU milliseconds for each request."""
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

    watching = [asyncio.create_task(scrape()), *(asyncio.create_task(view()) for _ in range(viewers))]
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


async def _compare(options: argparse.Namespace, watched_first: bool) -> tuple[float, float]:
    """Return CPU milliseconds a request of a gateway that is watched and of one that is not, one after the other.

    Both are new: where a process happens to lie in memory makes a tenth of its cost, for as long as it lives.
    """
    with tempfile.TemporaryDirectory() as folder:
        async with (
            Fleet(Path(folder)) as fleet,
            aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), trust_env=False) as http,
        ):
            sides: list[tuple[Gateway, int, int]] = []
            for name, module, viewers in (("watched", "gateway", options.viewers), ("alone", "bench.unobserved", 0)):
                gateway, pid = await fleet.start_gateway_as(name, module)
                for number in range(_WORKERS):
                    await fleet.start_worker(f"{name}-{number}", gateway, "--slots", "32", module=("worker",))
                await fleet.wait_ready(gateway, _WORKERS)
                sides.append((gateway, pid, viewers))
            for gateway, pid, viewers in sides:
                await _turn(http, gateway, pid, options.rate, _WARM_UP_SECONDS, viewers)
            cost = {}
            for gateway, pid, viewers in sides if watched_first else sides[::-1]:
                cost[pid] = await _turn(http, gateway, pid, options.rate, options.seconds, viewers)
                await asyncio.sleep(_SETTLE_SECONDS)
            watched, alone = (cost[pid] for _, pid, _ in sides)
            return watched, alone


async def _run(options: argparse.Namespace, console: Console) -> None:
    ratios: list[float] = []
    for turn in range(options.turns):
        watched, alone = await _compare(options, watched_first=turn % 2 == 0)
        ratios.append(watched / alone)
        console.print(f"turn {turn + 1}: {watched:.3f} ms a request watched, {alone:.3f} alone, ratio {ratios[-1]:.3f}")
    console.print(
        f"CPU at {options.rate:g} rps, watched ÷ alone: median {statistics.median(ratios):.3f}, "
        f"{min(ratios):.3f} to {max(ratios):.3f} over {len(ratios)} turns of {options.seconds:g} s"
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
    parser.add_argument("--turns", type=int, default=8, metavar="N", help="of each side (default: 8)")
    parser.add_argument("--seconds", type=float, default=12.0, metavar="S", help="of a turn (default: 12)")
    parser.add_argument("--viewers", type=int, default=10, metavar="N", help="pages open on it (default: 10)")
    asyncio.run(_run(parser.parse_args(arguments), Console(highlight=False)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
