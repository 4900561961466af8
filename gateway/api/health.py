"""Is it alive, can it speak, how is it: `/livez`, `/readyz`, `/health`, on both listeners."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from aiohttp import web

from gateway.pool import Pool
from gateway.replica import Replica


@dataclass(frozen=True, slots=True)
class HealthRoutes:
    pool: Pool
    version: str
    started: float
    is_stopping: Callable[[], bool]

    def add_to(self, app: web.Application) -> None:
        app.router.add_get("/livez", self.livez)
        app.router.add_get("/readyz", self.readyz)
        app.router.add_get("/health", self.health)

    async def livez(self, request: web.Request) -> web.Response:
        """The event loop turns. A full queue or a fleet that is away is no reason to restart the gateway."""
        return web.json_response({"status": "ok"})

    async def readyz(self, request: web.Request) -> web.Response:
        """200 when a request sent now would be spoken: at least one worker takes segments, or sleeps."""
        ready = sum(replica.can_speak for replica in self.pool.replicas)
        if self.is_stopping():
            return web.json_response({"status": "stopping", "workers_ready": ready}, status=503)
        if not ready:
            return web.json_response({"status": "no worker is ready", "workers_ready": 0}, status=503)
        return web.json_response({"status": "ok", "workers_ready": ready})

    async def health(self, request: web.Request) -> web.Response:
        backlog = self.pool.backlog()
        workers = [describe(replica) for replica in sorted(self.pool.replicas, key=lambda r: r.id)]
        ready = sum(replica.can_speak for replica in self.pool.replicas)
        return web.json_response(
            {
                "status": "stopping" if self.is_stopping() else "ok" if ready else "no worker is ready",
                "version": self.version,
                "uptime_seconds": round(time.monotonic() - self.started, 1),
                "workers": [
                    {name: worker[name] for name in ("id", "state", "in_flight", "slots", "model", "device", "gpus")}
                    for worker in workers
                ],
                "queue": {
                    "segments": self.pool.waiting,
                    "characters": backlog.waiting_characters,
                    "seconds": round(backlog.seconds, 3) if backlog.characters_per_second else None,
                },
            }
        )


def describe(replica: Replica) -> dict[str, Any]:
    """Return everything that is known of a worker, for people and for `tts-gateway workers`."""
    return {
        "id": replica.id,
        "state": replica.state,
        "in_flight": replica.in_flight,
        "slots": replica.slots,
        "model": next(iter(replica.models), None),
        "models": list(replica.models),
        "device": replica.device,
        "split": list(replica.split),
        "address": f"{replica.host}:{replica.port}",
        "epoch": replica.epoch,
        "reported_state": str(replica.reported),
        "reported_in_flight": replica.reported_in_flight,
        "health": str(replica.health),
        "detail": replica.detail,
        "steps": replica.steps,
        "segments_spoken": replica.segments_spoken,
        "consecutive_failures": replica.consecutive_failures,
        "seconds_per_character": round(replica.pace.seconds_per_character, 6),
        "warm_voices": sorted(replica.warm_voices),
        "status_age_seconds": round(max(0.0, time.monotonic() - replica.status_at), 3),
        "linked_seconds": round(time.monotonic() - replica.joined_at, 1),
        "gpus": [asdict(gpu) for gpu in replica.gpus],
        "versions": replica.versions,
    }
