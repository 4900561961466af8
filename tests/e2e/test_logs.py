"""One line a request, findable by its id in every log, and nowhere a word of what was spoken."""

from __future__ import annotations

import asyncio
import contextlib
import json
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.e2e.cluster import Cluster, Running, until

pytestmark = pytest.mark.e2e

SECRET = "xylophone"
TEXT = f"My {SECRET} diary begins here. It goes on with a {SECRET}. And so it ends."


def lines(running: Running) -> list[dict[str, Any]]:
    return [json.loads(line) for line in running.log_text().splitlines()]


async def wait_line(running: Running, **wanted: object) -> dict[str, Any]:
    async def found() -> dict[str, Any] | None:
        return next((one for one in lines(running) if wanted.items() <= one.items()), None)

    line: dict[str, Any] = await until(found, f"{running.name} to log {wanted}")
    return line


async def test_a_request_is_one_line_of_json_and_its_id_is_in_the_logs_of_gateway_and_workers(tmp_path: Path) -> None:
    async with Cluster(tmp_path) as cluster:
        gateway = await cluster.start_gateway()  # its ports are read from a line of text
        await gateway.kill()
        ports = [int(url.rpartition(":")[2]) for url in (cluster.url, cluster.internal_url)]
        gateway = await cluster.start(
            "gateway-json", "tts-gateway", "--log-format", "json",
            "--listen", f"127.0.0.1:{ports[0]}", "--internal-listen", f"127.0.0.1:{ports[1]}",
        )  # fmt: skip
        cluster.gateway = gateway
        await wait_line(gateway, message=f"listening public=127.0.0.1:{ports[0]} internal=127.0.0.1:{ports[1]}")
        await cluster.start_workers(2, "--log-format", "json", "--tone-realtime-factor", "0.01")
        async with cluster.session.post(
            f"{cluster.url}/v1/tts", json={"text": TEXT, "format": "pcm"}, headers={"X-Request-Id": "my-own.id_1"}
        ) as response:
            assert response.headers["X-Request-Id"] == "my-own.id_1"
            seconds = len(await response.read()) / 48_000
        line = await wait_line(gateway, message="request", request_id="my-own.id_1")
        assert (line["level"], line["logger"], line["endpoint"], line["outcome"]) == (
            "info",
            "gateway",
            "/v1/tts",
            "ok",
        )
        assert (line["characters"], line["retries"], line["format"], line["voice"]) == (len(TEXT), 0, "pcm", "alto")
        assert line["caller"]
        assert 0 <= line["queue_wait_seconds"] <= line["first_audio_seconds"] <= line["duration_seconds"]
        assert line["audio_seconds"] == pytest.approx(seconds, abs=1e-3)
        assert line["real_time_factor"] == pytest.approx(line["duration_seconds"] / seconds, abs=1e-3)
        assert sum(one.get("request_id") == "my-own.id_1" for one in lines(gateway)) == 1
        spoken: list[dict[str, Any]] = []
        for name in line["workers"].split(","):
            worker = cluster.workers[name]
            await wait_line(worker, message="segment", request_id="my-own.id_1", outcome="done")
            spoken += [one for one in lines(worker) if one.get("request_id") == "my-own.id_1"]
        assert sorted(one["segment"] for one in spoken) == list(range(line["segments"]))
        assert sum(one["audio_seconds"] for one in spoken) <= seconds + 1e-3


@pytest.mark.parametrize("given", ["", "two words", "x" * 65, "ümlaut", "a,b"])
async def test_an_id_that_could_break_a_log_is_replaced(cluster: Cluster, given: str) -> None:
    await cluster.start_gateway()
    async with cluster.session.post(
        f"{cluster.url}/v1/tts", json={"text": ""}, headers={"X-Request-Id": given}
    ) as response:
        assert response.headers["X-Request-Id"] not in ("", given)


async def test_no_word_of_a_text_is_in_any_log_whatever_becomes_of_it(cluster: Cluster) -> None:
    gateway = await cluster.start_gateway("--max-tries", "2", "--queue-timeout", "1", "--max-characters", "2000")
    await cluster.start_workers(2, "--tone-realtime-factor", "0.01")
    bodies: list[dict[str, Any]] = [
        {"text": TEXT},
        {"text": TEXT, "format": "mp3", "stream": False},
        {"text": TEXT, "voice": "nobody"},
        {"text": TEXT, "model": "none"},
        {"text": TEXT, "language": "zz"},
        {"text": TEXT, "speed": 99},
        {"text": SECRET * 1000},
        {"text": TEXT + "\ud800"},
        {"text": [TEXT]},
        {"text": TEXT + " {tone:reject}"},
        {"text": TEXT + " {tone:fail-after=1}"},
        {"text": TEXT + " {tone:no-such-fault}"},
    ]

    async def status_of(body: dict[str, Any]) -> int:
        async with cluster.session.post(f"{cluster.url}/v1/tts", json=body) as response:
            with contextlib.suppress(aiohttp.ClientPayloadError):  # one that fails in the middle looks cut off
                await response.read()
            return response.status

    assert {*await asyncio.gather(*map(status_of, bodies))} >= {200, 404, 422}
    async with cluster.streaming(TEXT * 20) as response:  # hung up in the middle
        await response.content.readexactly(100)
    # Its length is too small by a sentence, so that the rest of it reads as the next request.
    host, _, port = cluster.url.removeprefix("http://").rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    body = json.dumps({"text": "Short."}).encode()
    head = f"POST /v1/tts HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    writer.write(head.encode() + body)
    assert b"200 OK" in await reader.readline()
    writer.write(f"{TEXT}\r\n\r\n".encode())
    await reader.read()
    writer.close()

    async def all_told() -> bool:
        return gateway.log_text().count(" gateway request ") >= len(bodies) + 2

    await until(all_told, "a line for every request")
    await cluster.wait_idle()
    for running in (gateway, *cluster.workers.values()):
        assert SECRET not in running.log_text()
