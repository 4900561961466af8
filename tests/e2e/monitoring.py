"""Prometheus and Alertmanager of Debian beside a fleet: the committed files, but for addresses and intervals."""

from __future__ import annotations

import asyncio
import contextlib
import re
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
# What takes an hour then takes 72 s, and the shortest duration in the rules is still a whole number of milliseconds.
HURRY = 50
_WINDOW = re.compile(r"(?<=\[)\w+(?=\])")
_MILLISECONDS = {"s": 1000, "m": 60_000, "h": 3_600_000}


@dataclass
class Monitoring:
    """Use through `monitored`. `alerts` are Alertmanager's messages, each with the time at which it came."""

    url: str
    session: aiohttp.ClientSession
    directory: Path
    config: dict[str, Any]
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
    async def hurried(self) -> AsyncIterator[None]:
        """Have Prometheus go by the committed rules, but `HURRY` times as fast, for the length of the block.

        An alert that waits for minutes before it is raised is so seen to be raised and to end. That the minutes
        themselves are as meant is what `promtool test rules` looks at.
        """
        hurry = self.directory / "hurry"
        hurry.mkdir(exist_ok=True)
        for path in DEPLOYED.glob("rules/*.yml"):
            rules = yaml.safe_load(path.read_text())
            for group in rules["groups"]:
                group["rules"] = [hurried(rule) for rule in group["rules"]]
            (hurry / path.name).write_text(yaml.safe_dump(rules))
        await self._go_by(self.config | {"rule_files": [str(hurry / "*.yml")]})
        try:
            yield
        finally:
            await self._go_by(self.config)

    async def _go_by(self, config: dict[str, Any]) -> None:
        (self.directory / "prometheus.yml").write_text(yaml.safe_dump(config))
        async with self.session.post(f"{self.url}/-/reload") as response:
            assert response.status == 200, await response.text()

        # It forgets for some seconds where Alertmanager is. What is raised then is told a minute later.
        async def known() -> bool:
            return bool((await self.ask("alertmanagers"))["activeAlertmanagers"])

        await until(known, "Prometheus to find Alertmanager again")


def hurried(rule: dict[str, Any]) -> dict[str, Any]:
    """Return a rule with its waiting time and the windows of its expression shortened, and nothing else changed."""
    waiting = {"for": shortened(rule["for"])} if "for" in rule else {}
    return rule | waiting | {"expr": _WINDOW.sub(lambda window: shortened(window[0]), rule["expr"])}


def shortened(duration: str) -> str:
    """Return a duration of Prometheus, of one unit, divided by `HURRY`."""
    milliseconds, rest = divmod(int(duration[:-1]) * _MILLISECONDS[duration[-1]], HURRY)
    assert rest == 0, f"{duration} cannot be divided by {HURRY}"
    return f"{milliseconds}ms"


@contextlib.asynccontextmanager
async def monitored(cluster: Cluster) -> AsyncIterator[Monitoring]:
    """Watch the fleet for the length of the block; its gateway must run."""
    directory = cluster.directory / "monitoring"
    directory.mkdir()
    alertmanager = f"127.0.0.1:{free_port()}"
    config = _prometheus(cluster.internal_url.removeprefix("http://"), alertmanager)
    watching = Monitoring(f"http://127.0.0.1:{free_port()}", cluster.session, directory, config)
    async with contextlib.AsyncExitStack() as stack:
        receiver = await _receiver(stack, watching)
        (directory / "alertmanager.yml").write_text(yaml.safe_dump(_alertmanager(receiver)))
        (directory / "prometheus.yml").write_text(yaml.safe_dump(config))
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
            "--web.enable-lifecycle",
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
