"""What can be seen of a gateway that runs, or should: its listeners, workers, keys, and Prometheus beside it."""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp

from gateway.config import Config
from gateway.keys import KeysError, read_keys
from host.facts import in_words, skew_seconds

ANSWER_SECONDS = 5.0
_MAX_ANSWER_BYTES = 8 << 20


@dataclass(frozen=True, slots=True)
class Answer:
    """What came of one question by HTTP; `trouble` is why nothing did."""

    status: int = 0
    body: bytes = b""
    skew_seconds: float | None = None  # by how much the other clock is ahead, from the answer's date
    trouble: str = ""

    def json(self) -> Any:
        """Return the body, or None where it is no JSON."""
        try:
            return json.loads(self.body)
        except (ValueError, RecursionError):
            return None


@dataclass(frozen=True, slots=True)
class Worker:
    """A worker as the gateway lists it, and what it answers to us at that address."""

    id: str
    state: str
    detail: str
    address: str
    answer: Answer


@dataclass(frozen=True, slots=True)
class Target:
    """What Prometheus says of something that it scrapes."""

    url: str
    is_up: bool
    trouble: str


@dataclass(frozen=True, slots=True)
class Keys:
    """The keys file: how many keys it has, or why it cannot be read."""

    path: str
    count: int = 0
    trouble: str = ""


@dataclass(frozen=True, slots=True)
class Directory:
    """The data directory. `is_writable` is for the user who asks."""

    path: str
    exists: bool
    is_writable: bool


@dataclass(frozen=True, slots=True)
class Facts:
    """`targets` None: no Prometheus answers at `prometheus`."""

    public: Answer
    internal: Answer
    metrics: Answer
    workers: tuple[Worker, ...]
    prometheus: str
    targets: tuple[Target, ...] | None
    keys: Keys | None
    data: Directory | None


async def look(config: Config, prometheus: str) -> Facts:
    """Ask everybody, each for a few seconds at most."""
    timeout = aiohttp.ClientTimeout(total=ANSWER_SECONDS)
    async with aiohttp.ClientSession(timeout=timeout, trust_env=False) as session:
        internal = f"http://{config.internal_listen}"
        public, alive, metrics, listed, targets = await asyncio.gather(
            ask(session, f"http://{config.listen}/readyz"),
            ask(session, f"{internal}/livez"),
            ask(session, f"{internal}/metrics"),
            ask(session, f"{internal}/admin/workers"),
            ask(session, f"{prometheus.rstrip('/')}/api/v1/targets?state=active"),
        )
        workers = await asyncio.gather(*(_worker(session, one) for one in listed.json() or [] if _is_worker(one)))
    return Facts(
        public=public,
        internal=alive,
        metrics=metrics,
        workers=tuple(workers),
        prometheus=prometheus,
        targets=_targets(targets),
        keys=_keys(config.keys_file),
        data=_directory(config.data_directory),
    )


async def ask(session: aiohttp.ClientSession, url: str, headers: Mapping[str, str] | None = None) -> Answer:
    """Return what a GET answers; never raises for want of an answer."""
    try:
        async with session.get(url, headers=headers, allow_redirects=False) as response:
            skew = skew_seconds(response.headers.get("Date"), time.time())
            body = await response.content.read(_MAX_ANSWER_BYTES)
            return Answer(response.status, body, skew)
    except TimeoutError:
        return Answer(trouble=f"no answer within {session.timeout.total or ANSWER_SECONDS:g} s")
    except (aiohttp.ClientError, OSError, ValueError) as error:
        return Answer(trouble=in_words(error))


def _is_worker(listed: Any) -> bool:
    return isinstance(listed, dict) and {"id", "state", "address"} <= listed.keys()


async def _worker(session: aiohttp.ClientSession, listed: Mapping[str, Any]) -> Worker:
    address = str(listed["address"])
    answer = await ask(session, f"http://{address}/metrics")
    return Worker(str(listed["id"]), str(listed["state"]), str(listed.get("detail", "")), address, answer)


def _targets(answer: Answer) -> tuple[Target, ...] | None:
    body = answer.json()
    if answer.status != 200 or not isinstance(body, dict) or body.get("status") != "success":
        return None
    return tuple(
        Target(str(one.get("scrapeUrl", "")), one.get("health") != "down", str(one.get("lastError", "")))
        for one in body["data"]["activeTargets"]
    )


def _keys(path: Path | None) -> Keys | None:
    if path is None:
        return None
    try:
        return Keys(str(path), len(read_keys(path)))
    except KeysError as error:
        return Keys(str(path), trouble=str(error))


def _directory(path: Path | None) -> Directory | None:
    if path is None:
        return None
    # A directory that is not there yet is made at the start, where its parent lets us.
    there = next((one for one in (path, *path.absolute().parents) if one.exists()), path)
    return Directory(str(path), path.is_dir(), os.access(there, os.W_OK | os.X_OK))
