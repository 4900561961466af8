"""The site of deploy/nginx under a real nginx, in front of two gateways that share nothing but their workers."""

import asyncio
import io
import json
import re
import signal
import ssl
import subprocess
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import pytest
import pytest_asyncio
from yarl import URL

from deploy.options import ROOT
from tests.e2e.cluster import Cluster, Running, free_port, until
from tests.e2e.talk import Talk
from worker.models.tone import decode

pytestmark = [pytest.mark.e2e, pytest.mark.asyncio(loop_scope="module")]

SITE = (ROOT / "deploy" / "nginx" / "tts-gateway.conf").read_text()
PACE = ("--tone-realtime-factor", "0.5", "--slots", "16")


@dataclass
class Site:
    """nginx with the site, and what is behind it."""

    cluster: Cluster
    second: Running
    port: int
    insecure: ssl.SSLContext

    @property
    def url(self) -> str:
        return f"https://127.0.0.1:{self.port}"


def adapted(directory: Path, port: int, plain_port: int, gateways: list[str]) -> str:
    """Return the site as an operator fills it in: addresses and certificates."""
    text = re.sub(r"^\s*listen \[::\].*\n", "", SITE, flags=re.MULTILINE)
    text = text.replace("listen 443 ", f"listen 127.0.0.1:{port} ").replace(
        "listen 80;", f"listen 127.0.0.1:{plain_port};"
    )
    text = text.replace("server 127.0.0.1:8080", f"server {gateways[0]}")
    text = text.replace("# server 10.0.0.2:8080", f"server {gateways[1]}")
    text = text.replace("/etc/tts/tls", str(directory))
    return text.replace("tts_connections 256;", "tts_connections 4096;")  # all callers have one address here


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def site(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Site]:
    directory = tmp_path_factory.mktemp("nginx")
    make = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=tts.example.com"
    keys = ["-keyout", str(directory / "privkey.pem"), "-out", str(directory / "fullchain.pem")]
    await asyncio.to_thread(subprocess.run, [*make.split(), *keys], check=True, capture_output=True)
    async with Cluster(directory) as cluster:
        await cluster.start_gateway()
        public, internal = (f"127.0.0.1:{free_port()}" for _ in range(2))
        second = await cluster.start("second", "tts-gateway", "--listen", public, "--internal-listen", internal)
        first = cluster.internal_url.removeprefix("http://")
        await cluster.start_workers(2, *PACE, "--gateways", f"{first},{internal}")
        port, plain_port = free_port(), free_port()
        (directory / "site.conf").write_text(
            adapted(directory, port, plain_port, [cluster.url.removeprefix("http://"), public])
        )
        temporary = " ".join(
            f"{kind}_temp_path {directory}/{kind};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        )
        (directory / "nginx.conf").write_text(
            f"daemon off; pid {directory}/pid; error_log stderr; worker_processes 1; events {{}}"
            f"http {{ access_log off; {temporary} include {directory}/site.conf; }}"
        )
        with (directory / "nginx.log").open("wb") as log:
            nginx = await asyncio.create_subprocess_exec("nginx", "-c", str(directory / "nginx.conf"), stderr=log)
        insecure = ssl.create_default_context()
        insecure.check_hostname, insecure.verify_mode = False, ssl.CERT_NONE
        made = Site(cluster, second, port, insecure)
        try:

            async def is_up() -> bool:
                assert nginx.returncode is None, (directory / "nginx.log").read_text()
                try:
                    async with cluster.session.get(f"{made.url}/readyz", ssl=insecure) as answer:
                        return answer.status == 200
                except aiohttp.ClientConnectionError:
                    return False

            await until(is_up, "nginx to answer")
            yield made
        finally:
            nginx.terminate()
            await nginx.wait()
            await second.kill()


@pytest.mark.parametrize(
    "path",
    [
        "/metrics", "/metrics/", "/admin/workers", "/admin/workers/w0/drain", "/internal/workers", "//admin/workers",
        "/%61dmin/workers", "/v1/../admin/workers", "/v1/%2e%2e/metrics", "/ADMIN/workers", "/./metrics",
        "/metrics?x=/v1", "/internal/voices/heart",
    ],
)  # fmt: skip
async def test_what_is_the_operators_cannot_be_reached_from_outside(site: Site, path: str):
    async with site.cluster.session.get(URL(site.url + path, encoded=True), ssl=site.insecure) as answer:
        assert answer.status == 404
        assert b"tts_" not in await answer.read()


async def test_http_2_is_spoken_with_those_who_can(site: Site):
    said = await asyncio.to_thread(
        subprocess.run,
        ["curl", "-sk", "--http2", "-o", "/dev/null", "-w", "%{http_version} %{http_code}", f"{site.url}/readyz"],
        capture_output=True,
        text=True,
    )
    assert said.stdout == "2 200"


async def spoken_now(site: Site) -> int:
    """Return how many segments the workers hold, by their own word: either gateway may have sent them."""
    held = 0
    for worker in await site.cluster.listed():
        async with site.cluster.session.get(f"http://{worker['address']}/health") as answer:
            held += (await answer.json())["in_flight"]
    return held


async def test_audio_is_passed_on_while_it_is_spoken(site: Site):
    text = "This takes a while to speak, and its beginning is heard at once. " * 8
    body = {"text": text, "format": "pcm"}
    async with site.cluster.session.post(f"{site.url}/v1/tts", json=body, ssl=site.insecure) as answer:
        await answer.content.readexactly(3200)
        assert await spoken_now(site) > 0, "the beginning came before the end was made"
        await answer.read()


async def test_text_in_pieces_and_its_audio_pass_both_ways_while_it_is_spoken(site: Site):
    address = f"{site.url}/v1/tts/stream"
    async with site.cluster.session.ws_connect(address, ssl=site.insecure, origin=site.url) as socket:
        talk = Talk(socket)
        await talk.start()
        await talk.say("The beginning is heard while the rest is not written yet. And ")
        await talk.hear_audio(1)
        await talk.say("here is the rest.")
        await talk.tell("end")
        await talk.hear("done")
    assert "".join(decode(bytes(talk.audio)).split()) == (
        "Thebeginningisheardwhiletherestisnotwrittenyet.Andhereistherest."
    )


async def send_slowly(site: Site, data: bytes) -> bytes:
    """Open a connection, send a part of a request, and return what comes before nginx hangs up."""
    reader, writer = await asyncio.open_connection("127.0.0.1", site.port, ssl=site.insecure)
    writer.write(data)
    try:
        async with asyncio.timeout(30):
            return await reader.read()
    finally:
        writer.close()


async def test_who_sends_headers_or_a_body_too_slowly_is_hung_up_on(site: Site):
    headers = b"POST /v1/tts HTTP/1.1\r\nHost: x\r\nX-Slow"
    body = b"POST /v1/tts HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n{"
    for said in await asyncio.gather(send_slowly(site, headers), send_slowly(site, body)):
        assert said == b"" or b" 408 " in said.splitlines()[0]


async def test_too_large_a_request_is_refused(site: Site):
    async with site.cluster.session.post(
        f"{site.url}/v1/tts", data=io.BytesIO(b"x" * (5 << 20)), ssl=site.insecure
    ) as answer:
        assert answer.status == 413
    said = await send_slowly(site, b"GET /readyz HTTP/1.1\r\nHost: x\r\nX-Long: " + b"x" * 40_000 + b"\r\n\r\n")
    assert b" 400 " in said.splitlines()[0]


async def test_a_gateway_that_is_killed_under_load_fails_nobody_before_the_first_audio(
    site: Site, capsys: pytest.CaptureFixture[str]
):
    """The last test here: it leaves one gateway."""
    command = [sys.executable, "-m", "tests.deploy.callers", site.url, "--rate", "50"]
    callers = await asyncio.create_subprocess_exec(
        *command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, limit=1 << 20
    )

    async def served() -> bool:
        return await site.cluster.metric("tts_requests_total") > 50

    await until(served, "callers to be served by the first gateway")
    [killed] = [one for one in [site.cluster.gateway] if one is not None]
    killed.signal(signal.SIGKILL)
    before = {line for line in site.second.log_text().splitlines() if "outcome=" in line}

    async def taken_over() -> bool:
        now = {line for line in site.second.log_text().splitlines() if "outcome=" in line}
        return len(now - before) > 100

    await until(taken_over, "the second gateway to serve everybody")
    said, _ = await callers.communicate(b"")
    tally = json.loads(said)
    with capsys.disabled():
        sys.stderr.write(f"\n  gateway killed behind nginx under 50 requests/s: {tally}")
    outcomes: dict[str, int] = tally["outcomes"]
    assert [name for name in outcomes if name != "whole" and not name.startswith("mid-stream")] == []
    assert outcomes["whole"] > 100
