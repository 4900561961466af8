"""`tts-gateway doctor` and `tts-worker doctor` beside a real fleet: what is wrong is found, and nothing else."""

from __future__ import annotations

import asyncio
import json
import os
import re
import socket
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from tests.deploy.test_nginx import adapted
from tests.e2e.cluster import BIN, Cluster, free_port, until
from tests.e2e.monitoring import monitored
from tests.e2e.nginx import certificate, nginx
from tests.fakes.gpus import FakeGpus

pytestmark = [pytest.mark.e2e, pytest.mark.asyncio(loop_scope="module")]

# What depends on the machine that the tests run on, and not on the fleet.
OF_THE_MACHINE = ("clock", "open files", "systemd", "installation")


@dataclass
class Report:
    """What a doctor said, as JSON."""

    exit_code: int
    findings: list[dict[str, Any]]

    def ailing(self) -> dict[str, dict[str, Any]]:
        """What is not well, by subject, but for the machine's own ailments."""
        return {
            one["subject"]: one
            for one in self.findings
            if one["level"] != "ok" and one["subject"] not in OF_THE_MACHINE
        }

    def about(self, subject: str) -> list[dict[str, Any]]:
        return [one for one in self.findings if one["subject"] == subject]


class Fleet:
    """A gateway, a worker that speaks about as fast as one listens, and the doctors with their addresses."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster

    async def ask_gateway(self, *options: str, **environment: str) -> Report:
        listen = ("--listen", self.cluster.url.removeprefix("http://"))
        internal = ("--internal-listen", self.cluster.internal_url.removeprefix("http://"))
        return await self.ask("tts-gateway", *listen, *internal, *options, **environment)

    async def ask_worker(self, *options: str, **environment: str) -> Report:
        [worker] = await self.cluster.listed()
        port = ("--port", worker["address"].rpartition(":")[2])
        internal = ("--gateways", self.cluster.internal_url.removeprefix("http://"))
        return await self.ask("tts-worker", "--id", "w0", "--model", "tone", *port, *internal, *options, **environment)

    async def ask(self, command: str, *options: str, **environment: str) -> Report:
        clean = {name: value for name, value in os.environ.items() if not name.startswith("TTS_")}
        settings = self.cluster.directory / "settings"
        process = await asyncio.create_subprocess_exec(
            str(BIN / command), "doctor", "--json", "--settings", str(settings), *options,
            env=clean | {"TTS_WORKER_TOKEN": self.cluster.token} | environment, stdout=asyncio.subprocess.PIPE,
        )  # fmt: skip
        said, _ = await process.communicate()
        body = json.loads(said)
        assert process.returncode == body["exit_code"]
        return Report(body["exit_code"], body["findings"])


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def fleet(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Fleet]:
    async with Cluster(tmp_path_factory.mktemp("doctor")) as cluster:
        await cluster.start_gateway()
        await cluster.start_worker("--tone-realtime-factor", "0.35", "--slots", "1")
        await cluster.wait_ready(1)
        yield Fleet(cluster)


async def test_a_fleet_that_is_well_has_nothing_to_mend(fleet: Fleet):
    gateway, worker = await asyncio.gather(fleet.ask_gateway(), fleet.ask_worker())
    assert gateway.ailing() == {}
    assert worker.ailing() == {}
    assert gateway.about("worker w0")[0]["seen"] == "ready"
    [link] = worker.about(f"gateway {fleet.cluster.internal_url.removeprefix('http://')}")
    assert link["seen"] == "can be reached, and takes the workers' token"


async def test_a_wrong_token_is_found_and_told_from_a_gateway_that_is_away(fleet: Fleet):
    internal = fleet.cluster.internal_url.removeprefix("http://")
    refused = (await fleet.ask_worker(TTS_WORKER_TOKEN="another")).ailing()
    assert refused[f"gateway {internal}"]["seen"] == "refuses the workers' token"
    none = (await fleet.ask_worker(TTS_WORKER_TOKEN="")).ailing()
    assert none[f"gateway {internal}"]["seen"] == "wants the workers' token, and there is none here"
    away = f"127.0.0.1:{free_port()}"
    unreached = (await fleet.ask_worker("--gateways", away)).ailing()
    assert unreached[f"gateway {away}"]["seen"] == "cannot be reached: Connection refused"
    public = fleet.cluster.url.removeprefix("http://")
    wrong = await fleet.ask_worker("--gateways", public)
    seen = wrong.ailing()[f"gateway {public}"]["seen"]
    assert seen == "answers with 404 not_found, which no gateway's internal listener does"


async def test_a_taken_port_is_found_with_who_has_it(fleet: Fleet):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        report = await fleet.ask("tts-gateway", "--listen", f"127.0.0.1:{port}", "--internal-listen", "127.0.0.1:0")
        found = report.ailing()[f"port {port}"]
        assert report.exit_code == 2
    assert f"({os.getpid()})" in found["seen"]
    assert "--listen" in found["seen"]


async def test_a_gateway_that_does_not_run_and_an_option_that_cannot_be_are_found(fleet: Fleet):
    nobody = [f"127.0.0.1:{free_port()}" for _ in range(2)]
    report = await fleet.ask("tts-gateway", "--listen", nobody[0], "--internal-listen", nobody[1])
    assert report.ailing()["gateway"]["seen"] == f"nobody answers on {nobody[0]}: Connection refused"
    wrong = (await fleet.ask("tts-gateway", TTS_GATEWAY_QUEUE_TIMEOUT="soon")).ailing()["options"]
    assert "--queue-timeout must be a number" in wrong["seen"]
    wrong = (await fleet.ask("tts-worker", "--slots", "many")).ailing()["options"]
    assert "--slots is 'many'" in wrong["seen"]


async def test_files_that_others_can_read_or_change_are_found(fleet: Fleet, tmp_path: Path):
    (tmp_path / "tls").mkdir()
    names = ("worker-token", "gateway.env", "worker.env", "tls/privkey.pem", "keys.json")
    token, gateway, worker, key, keys = (tmp_path / name for name in names)
    for path in (token, key, gateway, worker):
        path.write_text("")
        path.chmod(0o600)
    token.write_text(fleet.cluster.token)
    keys.write_text('{"keys": []}')
    keys.chmod(0o644)  # as `keys add` makes it: digests open nothing
    options = ("--settings", str(tmp_path), "--keys-file", str(keys))
    report = await fleet.ask_gateway(*options)
    assert "permissions" not in report.ailing()
    assert report.ailing()["keys"]["seen"] == f"{keys} has none"
    for path, mode in ((token, 0o644), (key, 0o640), (gateway, 0o666), (keys, 0o664)):
        path.chmod(mode)
    found = [one for one in (await fleet.ask_gateway(*options)).about("permissions") if one["level"] == "problem"]
    assert {one["seen"].partition(" (")[0] for one in found} == {str(path) for path in (token, key, gateway, keys)}
    for one in found:
        mended = await asyncio.create_subprocess_shell(one["command"])
        assert await mended.wait() == 0
    assert "permissions" not in (await fleet.ask_gateway(*options)).ailing()
    worker.chmod(0o606)
    assert str(worker) in (await fleet.ask_worker("--settings", str(tmp_path))).ailing()["permissions"]["seen"]


async def test_prometheus_beside_it_is_seen_to_read_the_gateway(fleet: Fleet):
    async with monitored(fleet.cluster) as monitoring:

        async def reads() -> bool:
            [found] = (await fleet.ask_gateway("--prometheus", monitoring.url)).about("prometheus")
            return found["level"] == "ok" and "this gateway among them" in found["seen"]

        await until(reads, "Prometheus to read the gateway")
        async with Cluster(fleet.cluster.directory) as other:
            await other.start_gateway()
            found = (await Fleet(other).ask_gateway("--prometheus", monitoring.url)).ailing()
            assert "scrapes nothing of" in found["prometheus"]["seen"]
            assert found["workers"]["seen"] == "none is linked"


async def test_missing_weights_are_named_with_the_place_where_they_were_looked_for(fleet: Fleet, tmp_path: Path):
    (tmp_path / "ve.safetensors").write_text("")
    model = ("--model", "chatterbox", "--device", "cpu", "--checkpoint", str(tmp_path))
    found = (await fleet.ask("tts-worker", "--gateways", "none", *model)).ailing()["weights"]
    assert str(tmp_path) in found["seen"]
    assert "s3gen.safetensors" in found["seen"]
    assert "ve.safetensors of" not in found["seen"]
    cache = {"HF_HOME": str(tmp_path / "hub")}
    model = ("--model", "chatterbox-turbo", "--device", "cpu")
    found = (await fleet.ask("tts-worker", "--gateways", "none", *model, **cache)).ailing()["weights"]
    assert f"are not in {tmp_path}/hub/hub" in found["seen"]


async def test_a_gpu_with_too_little_memory_is_found_with_its_holder(fleet: Fleet, tmp_path: Path):
    gpus = FakeGpus(tmp_path, count=2)
    gpus.set_gpu(1, used_mib=22_000, processes=f"{os.getpid()}:{20_000 << 20}")
    model = ("--model", "chatterbox", "--device", "cuda:0", "--checkpoint", str(tmp_path), "--gateways", "none")

    async def ask(gpu: str) -> Report:
        visible = {"CUDA_VISIBLE_DEVICES": gpu, "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
        return await fleet.ask("tts-worker", *model, **visible, **gpus.environment)

    free, full = await ask("0"), await ask("1")
    assert re.match(r"cuda:0 is NVIDIA .* GPU 0 .*8\.6", free.about("gpu")[0]["seen"])
    assert free.about("gpu memory")[0]["level"] == "ok"
    assert free.about("driver")[0]["seen"] == "580.65.06, for CUDA up to 13.0"
    found = full.ailing()["gpu memory"]
    assert "has 2.52 GiB of 24.00 GiB free" in found["seen"]
    assert f"(pid {os.getpid()}) 19.53 GiB" in found["seen"]
    assert "There is not room for one" in found["seen"]
    gpus.set_gpu(0, error=15)
    assert "lost" in (await ask("0")).ailing()["gpu"]["seen"]
    gpus.set(init_error=9)
    assert (await ask("0")).ailing()["gpu"]["level"] == "problem"


# ── From outside, through a real nginx ───────────────────────────────────────────────────────────────────────────────

PLAIN = "server {{ listen 127.0.0.1:{port}; location / {{ proxy_pass {url}; {more} }} {beside} }}"


async def ask_through(fleet: Fleet, directory: Path, more: str = "", beside: str = "") -> Report:
    """Ask with an nginx in front that has only these lines besides `proxy_pass`."""
    port = free_port()
    site = PLAIN.format(port=port, url=fleet.cluster.url, more=more, beside=beside)
    async with nginx(directory, site, port):
        return await fleet.ask_gateway("--public-url", f"http://127.0.0.1:{port}")


async def test_the_site_that_we_ship_has_nothing_to_mend(fleet: Fleet, tmp_path: Path):
    trusted = await certificate(tmp_path)
    port = free_port()
    listen = fleet.cluster.url.removeprefix("http://")
    async with nginx(tmp_path, adapted(tmp_path, port, free_port(), [listen, listen]), port):
        url = ("--public-url", f"https://127.0.0.1:{port}")
        report = await fleet.ask_gateway(*url, SSL_CERT_FILE=str(trusted))
        assert report.ailing() == {}
        assert {"streaming", "body size", "operator's paths", "websocket"} <= {
            one["subject"] for one in report.findings
        }
        assert "sound comes through" in report.about("streaming")[0]["seen"]
        assert report.about("websocket")[0]["seen"] == "is let through"
        assert re.fullmatch(r"counts for (59|60) more days", report.about("certificate")[0]["seen"])
        stranger = (await fleet.ask_gateway(*url)).ailing()
        assert "the certificate does not count" in stranger["outside"]["seen"]


async def test_a_proxy_that_keeps_sound_back_is_found(fleet: Fleet, tmp_path: Path):
    report = await ask_through(
        fleet, tmp_path, "proxy_ignore_headers X-Accel-Buffering; proxy_buffer_size 8k; proxy_buffers 8 8k;"
    )
    found = report.ailing()["streaming"]
    assert found["level"] == "problem"
    assert re.search(r"up to \d\.\d s later than from the gateway itself", found["seen"])


async def test_a_proxy_that_heeds_the_gateways_header_keeps_nothing_back(fleet: Fleet, tmp_path: Path):
    """nginx buffers by default; X-Accel-Buffering, which each answer has, keeps it from that."""
    report = await ask_through(fleet, tmp_path, "proxy_buffering on;")
    assert report.about("streaming")[0]["level"] == "ok"
    assert report.ailing()["websocket"]["level"] == "warning"  # which nginx does not pass on by itself
    body = report.ailing()["body size"]
    assert body["seen"] == "/v1/voices: a body of 32 MiB is refused with 413"  # nginx' default is 1 MiB
    assert "wanted for /v1/voices: 33m" in body["command"]


async def test_operators_paths_that_are_open_to_the_outside_are_found(fleet: Fleet, tmp_path: Path):
    inside = f"location /metrics {{ proxy_pass {fleet.cluster.internal_url}; }}"
    found = (await ask_through(fleet, tmp_path, beside=inside)).ailing()["operator's paths"]
    assert found["level"] == "problem"
    assert found["seen"] == "reached from outside: /metrics"


async def test_a_proxy_in_front_of_nobody_and_one_that_is_away_are_found(fleet: Fleet, tmp_path: Path):
    port, nobody = free_port(), free_port()
    site = PLAIN.format(port=port, url=f"http://127.0.0.1:{nobody}", more="", beside="")
    async with nginx(tmp_path, site, port):
        report = await fleet.ask_gateway("--public-url", f"http://127.0.0.1:{port}")
        assert report.ailing()["outside"]["seen"] == f"http://127.0.0.1:{port}/readyz answers with 502"
    report = await fleet.ask_gateway("--public-url", f"http://127.0.0.1:{port}")
    assert report.ailing()["outside"]["seen"] == f"http://127.0.0.1:{port}: Connection refused"
