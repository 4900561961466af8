"""Stands in for tts-worker: keeps a link to its gateway and is ready at once. `--crash` and `--deaf` are its vices."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import signal
import sys

import aiohttp
from journal import note

from wire.link import LINK_PATH, Hello, ModelInfo, Status, WorkerState, encode

MODEL = ModelInfo(id="silent", sample_rate=24_000, voices=("none",), languages=("en",))


async def keep_link(gateway: str, name: str, port: int, token: str) -> None:
    hello = Hello(worker=name, epoch=str(os.getpid()), port=port, slots=1, device="cpu", models=(MODEL,))
    status = Status(state=WorkerState.READY, in_flight=0, steps=0, slots=1)
    async with aiohttp.ClientSession(headers={"Authorization": f"Bearer {token}"}) as session:
        while True:
            with contextlib.suppress(aiohttp.ClientError, ConnectionError):
                async with session.ws_connect(f"http://{gateway}{LINK_PATH}") as socket:
                    await socket.send_str(encode(hello))
                    await socket.receive_str()
                    await socket.send_str(encode(status))
                    async for _ in socket:
                        pass
            await asyncio.sleep(0.05)


async def main() -> None:
    parser = argparse.ArgumentParser()
    for flag in ("--index", "--port", "--gateways", "--model", "--drain-timeout"):
        parser.add_argument(flag, required=True)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--crash", action="store_true")
    parser.add_argument("--deaf", action="store_true")
    options = parser.parse_args()
    name, token = f"worker-{options.index}", os.environ["TTS_WORKER_TOKEN"]
    if options.crash:
        sys.exit("the voice is not there")
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, (lambda: None) if options.deaf else stop.set)
    gpu = os.environ.get("CUDA_VISIBLE_DEVICES", "-")
    note(name, "began", os.getpid(), token, options.model, options.device, gpu)
    link = asyncio.create_task(keep_link(options.gateways, name, int(options.port), token))
    await stop.wait()
    note(name, "was-asked-to-stop", os.getpid())
    link.cancel()
    await asyncio.wait([link])
    note(name, "ended", os.getpid())


if __name__ == "__main__":
    asyncio.run(main())
