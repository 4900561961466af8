"""The internal listener's routes: workers, metrics."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from aiohttp import web

from gateway.api.health import describe
from gateway.metrics import Metrics
from gateway.pool import Pool
from gateway.registry import Registry
from gateway.replica import Replica
from wire.errors import ErrorCode, TtsError
from wire.link import Command


@dataclass(frozen=True, slots=True)
class AdminRoutes:
    pool: Pool
    registry: Registry
    metrics: Metrics

    def add_to(self, app: web.Application) -> None:
        app.router.add_get("/metrics", self.scrape)
        app.router.add_get("/admin/workers", self.workers)
        app.router.add_get("/admin/prometheus-targets", self.targets)
        app.router.add_post("/admin/workers/{id}/{command}", self.order)

    async def scrape(self, request: web.Request) -> web.Response:
        body, content_type = self.metrics.scrape(request.headers.get("Accept", ""))
        return web.Response(body=body, headers={"Content-Type": content_type})

    async def workers(self, request: web.Request) -> web.Response:
        return web.json_response([describe(replica) for replica in sorted(self.pool.replicas, key=lambda r: r.id)])

    async def targets(self, request: web.Request) -> web.Response:
        """Say where Prometheus finds the workers' own metrics, in the form of its HTTP service discovery. One whose
        link broke stays listed while it is missed: whether it still answers tells a dead process from a dead link."""
        missing = (loss.replica for loss in self.pool.missing)
        return web.json_response([_target(replica) for replica in (*self.pool.replicas, *missing)])

    async def order(self, request: web.Request) -> web.Response:
        try:
            command = Command(request.match_info["command"])
        except ValueError:
            raise TtsError(
                ErrorCode.NOT_FOUND, f"A worker can be told to {', '.join(Command)}, nothing else."
            ) from None
        replica = await self.registry.order(request.match_info["id"], command)
        return web.json_response(describe(replica), status=202)


def _target(replica: Replica) -> dict[str, Any]:
    host = f"[{replica.host}]" if ":" in replica.host else replica.host
    return {"targets": [f"{host}:{replica.port}"], "labels": {"worker": replica.id, "device": replica.device}}
