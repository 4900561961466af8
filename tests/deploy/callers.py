"""Open-loop callers, as a program: `python -m tests.deploy.callers URL --rate 50`, until standard input ends.

Prints one JSON object at the end: how many requests ended how, and the longest waits. Run it in a host's network.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import ssl
import sys
import time
from collections import Counter

import aiohttp

from worker.models.tone import decode

TEXT = "Call {n}."


async def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("url")
    parser.add_argument("--rate", type=float, default=50.0)
    parser.add_argument("--key", default="")
    parser.add_argument("--keep-alive", action="store_true")
    options = parser.parse_args()
    ended = asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    outcomes: Counter[str] = Counter()
    waits: list[float] = []
    trusting = ssl.create_default_context()
    trusting.check_hostname, trusting.verify_mode = False, ssl.CERT_NONE
    headers = {"Authorization": f"Bearer {options.key}"} if options.key else {}

    async def call(session: aiohttp.ClientSession, n: int) -> None:
        began = time.monotonic()
        text = TEXT.format(n=n)
        body = {"text": text, "format": "pcm", "voice": "alto"}
        audio = b""
        try:
            async with session.post(f"{options.url}/v1/tts", json=body) as response:
                if response.status != 200:
                    outcome = f"status {response.status}: {(await response.text())[:200]}"
                else:
                    async for piece in response.content.iter_any():
                        audio += piece
                    outcome = "whole" if decode(audio) == text else "other words"
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            outcome = f"{'mid-stream' if audio else 'before audio'}: {type(error).__name__}: {error}"
        outcomes[outcome] += 1
        waits.append(time.monotonic() - began)

    # A connection each: one that is kept alive may be closed by a stop in the very moment in which it is used again;
    # then the client has to try again (HTTP has nothing better; nginx in front does it by itself).
    connector = aiohttp.TCPConnector(limit=0, ssl=trusting, force_close=not options.keep_alive)
    timeout = aiohttp.ClientTimeout(total=120)
    async with aiohttp.ClientSession(connector=connector, timeout=timeout, headers=headers) as session:
        calls: list[asyncio.Task[None]] = []
        began = time.monotonic()
        while not ended.done():
            calls.append(asyncio.create_task(call(session, len(calls))))
            await asyncio.sleep(max(0.0, began + len(calls) / options.rate - time.monotonic()))
        await asyncio.gather(*calls)
    waits.sort()
    summary = {"outcomes": outcomes, "longest_seconds": round(waits[-1], 2), "median_seconds": waits[len(waits) // 2]}
    sys.stdout.write(json.dumps(summary) + "\n")


if __name__ == "__main__":
    asyncio.run(main())
