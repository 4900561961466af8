"""Prometheus and Alertmanager of Debian beside a fleet: the committed files, but for addresses and intervals."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import yaml
from aiohttp import web

from tests.e2e.cluster import Cluster, Running, free_port, until

DEPLOYED = Path(__file__).parents[2] / "deploy" / "prometheus"
# A scrape may take as long as the interval: on a busy machine a second is not always enough for it.
_INTERVAL = "2s"
# After a change of its targets Prometheus waits 5 s by itself, and a rate needs two looks.
_PATIENCE_SECONDS = 120.0


@dataclass
class Monitoring:
    """Use through `monitored`. `alerts` are Alertmanager's messages, each with the time at which it came."""

    url: str
    session: aiohttp.ClientSession
    alerts: list[tuple[float, dict[str, Any]]] = field(default_factory=list)
    began_at: float = field(default_factory=time.time)

    async def ask(self, path: str, **parameters: str) -> Any:
        """Return the `data` of one call of Prometheus' API.

        Raises:
            AssertionError: Prometheus refuses the question; with its words.
        """
        async with self.session.get(f"{self.url}/api/v1/{path}", params=parameters) as response:
            answer = await response.json()
        assert answer["status"] == "success", f"{parameters}: {answer.get('error')}"
        return answer["data"]

    async def value(self, expression: str) -> float | None:
        """Return the value of an instant query's only series, or None when there is none."""
        result = (await self.ask("query", query=expression))["result"]
        assert len(result) <= 1, f"{expression} has {len(result)} series"
        return float(result[0]["value"][1]) if result else None

    async def wait_value(self, expression: str, wanted: Callable[[float], bool], what: str) -> float:
        """Wait until the expression has a value as wanted; return it."""

        async def there() -> tuple[float] | None:
            value = await self.value(expression)
            return (value,) if value is not None and wanted(value) else None

        seen: tuple[float] = await until(there, f"{what}: {expression}", _PATIENCE_SECONDS)
        return seen[0]

    async def wait_alert(
        self, name: str, status: str, after: float = 0.0, **labels: str
    ) -> tuple[float, dict[str, Any]]:
        """Wait until Alertmanager has told of this alert; return when it did and the alert."""

        async def told() -> tuple[float, dict[str, Any]] | None:
            wanted = {"alertname": name, **labels}.items()
            return next(
                (
                    (at, alert)
                    for at, alert in self.alerts
                    if at >= after and alert["status"] == status and wanted <= alert["labels"].items()
                ),
                None,
            )

        found: tuple[float, dict[str, Any]] = await until(told, f"{name} to be {status}", _PATIENCE_SECONDS)
        return found


@contextlib.asynccontextmanager
async def monitored(cluster: Cluster) -> AsyncIterator[Monitoring]:
    """Watch the fleet for the length of the block; its gateway must run."""
    directory = cluster.directory / "monitoring"
    directory.mkdir()
    watching = Monitoring(f"http://127.0.0.1:{free_port()}", cluster.session)
    alertmanager = f"127.0.0.1:{free_port()}"
    async with contextlib.AsyncExitStack() as stack:
        receiver = await _receiver(stack, watching)
        (directory / "alertmanager.yml").write_text(yaml.safe_dump(_alertmanager(receiver)))
        (directory / "prometheus.yml").write_text(
            yaml.safe_dump(_prometheus(cluster.internal_url.removeprefix("http://"), alertmanager))
        )
        await _start(
            stack,
            directory,
            "prometheus-alertmanager",
            f"--config.file={directory / 'alertmanager.yml'}",
            f"--storage.path={directory / 'alertmanager'}",
            f"--web.listen-address={alertmanager}",
            "--cluster.listen-address=",
        )
        prometheus = await _start(
            stack,
            directory,
            "prometheus",
            f"--config.file={directory / 'prometheus.yml'}",
            f"--storage.tsdb.path={directory / 'tsdb'}",
            f"--web.listen-address={watching.url.removeprefix('http://')}",
        )

        async def ready() -> bool:
            assert prometheus.is_running, prometheus.log_text()
            with contextlib.suppress(aiohttp.ClientConnectionError):
                async with cluster.session.get(f"{watching.url}/-/ready") as response:
                    return response.status == 200
            return False

        await until(ready, "Prometheus to be ready")
        yield watching


async def _start(stack: contextlib.AsyncExitStack, directory: Path, command: str, *arguments: str) -> Running:
    log = directory / f"{command}.log"
    with log.open("wb") as out:
        process = await asyncio.create_subprocess_exec(command, *arguments, stdout=out, stderr=out, cwd=directory)
    running = Running(command, process, log)
    stack.push_async_callback(running.kill)
    return running


async def _receiver(stack: contextlib.AsyncExitStack, watching: Monitoring) -> str:
    """Listen for Alertmanager's messages; return where."""

    async def take(request: web.Request) -> web.Response:
        now = time.monotonic()
        watching.alerts.extend((now, alert) for alert in (await request.json())["alerts"])
        return web.Response()

    app = web.Application()
    app.router.add_post("/", take)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    stack.push_async_callback(runner.cleanup)
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    return f"http://127.0.0.1:{runner.addresses[0][1]}/"


def _prometheus(gateway: str, alertmanager: str) -> dict[str, Any]:
    """The committed configuration with the fleet's addresses and short intervals; its rules are the committed files."""
    config: dict[str, Any] = yaml.safe_load((DEPLOYED / "prometheus.yml").read_text())
    config["global"] = dict.fromkeys(config["global"], _INTERVAL)
    config["rule_files"] = [str(DEPLOYED / path) for path in config["rule_files"]]
    config["alerting"]["alertmanagers"][0]["static_configs"][0]["targets"] = [alertmanager]
    for job in config["scrape_configs"]:
        for static in job.get("static_configs", []):
            static["targets"] = [gateway]
        for discovery in job.get("http_sd_configs", []):
            discovery["url"] = f"http://{gateway}/{discovery['url'].split('/', 3)[3]}"
            discovery["refresh_interval"] = _INTERVAL
    return config


def _alertmanager(receiver: str) -> dict[str, Any]:
    """The committed configuration with a receiver that the test reads, told at once."""
    config: dict[str, Any] = yaml.safe_load((DEPLOYED / "alertmanager.yml").read_text())
    config["route"] |= {"receiver": "test", "group_wait": "0s", "group_interval": _INTERVAL}
    config["receivers"].append({"name": "test", "webhook_configs": [{"url": receiver, "send_resolved": True}]})
    return config
