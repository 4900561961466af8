"""Takes docs/page.png anew: `python -m tests.e2e.picture docs/page.png [dark]`. Real workers, pretended GPUs."""

from __future__ import annotations

import asyncio
import random
import sys
import tempfile
from pathlib import Path

from tests.e2e.browser import chromium, visit
from tests.e2e.cluster import Cluster
from tests.fakes.gpus import FakeGpus

WORKERS = 4
CROWD_SECONDS = 45
TEXT = (
    "The first words are heard while the rest is still being made. Each sentence goes to a worker that is free; "
    "they are spoken at the same time, and heard in order. When a worker dies in mid-sentence, another one goes "
    "on at the next sample, and nobody hears it."
)
OTHERS = "It is somebody else's text, and nobody needs to know what it says; how long it is shows well enough. "


async def main(path: str, scheme: str) -> None:
    with tempfile.TemporaryDirectory() as directory:
        gpus = FakeGpus(Path(directory), WORKERS)
        for index in range(WORKERS):
            gpus.set_gpu(index, temperature=58 + 4 * index, utilization=61 + 9 * index)
            gpus.set_gpu(index, power_watts=210 + 23 * index, used_mib=5200 + 900 * index)
        async with Cluster(Path(directory)) as fleet:
            await fleet.start_gateway()
            for index in range(WORKERS):
                seen = {"CUDA_DEVICE_ORDER": "PCI_BUS_ID", "CUDA_VISIBLE_DEVICES": str(index)}
                fleet.environment = gpus.environment | seen
                await fleet.start_worker("--device", "cuda:0", "--slots", "2", name=f"gpu-{index}", model="embedded")
            await fleet.wait_ready(WORKERS)
            await take(fleet, path, scheme)


async def take(fleet: Cluster, path: str, scheme: str) -> None:
    size = {"width": 1320, "height": 900}
    async with chromium() as browser, visit(browser, fleet.url, color_scheme=scheme, viewport=size) as visiting:
        crowd = asyncio.create_task(speak_for(fleet, CROWD_SECONDS))
        await crowd
        await visiting.type(TEXT)
        more = asyncio.create_task(speak_for(fleet, 10))
        await visiting.page.click("#speak")
        await visiting.wait_true("parseFloat(document.getElementById('clock').textContent) > 4")
        await visiting.page.evaluate("document.activeElement.blur()")
        await visiting.page.evaluate("document.getElementById('text').scrollTo(0, 0)")
        await visiting.page.screenshot(path=path, full_page=True)
        await more


async def speak_for(fleet: Cluster, seconds: float) -> None:
    chance = random.Random(1)
    async with asyncio.TaskGroup() as group:
        end = asyncio.get_running_loop().time() + seconds
        while asyncio.get_running_loop().time() < end:
            group.create_task(fleet.speak(OTHERS * chance.choice((1, 1, 2, 4, 8))))
            await asyncio.sleep(chance.expovariate(0.7))


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2] if len(sys.argv) > 2 else "light"))
