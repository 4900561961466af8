"""What can be seen of a worker: the one that runs on its port, its gateways, and the model's files on the disk."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import json
import shutil
import sysconfig
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp

from host.facts import in_words, skew_seconds
from wire.headers import CLIP_PATH
from worker.config import CHATTERBOX_MODELS, Address, Config

ANSWER_SECONDS = 5.0
# A clip that nobody has: to ask for it takes the fleet's token, and with that the answer is voice_not_found.
_NO_CLIP = CLIP_PATH.replace("{sha256}", "0" * 64)


@dataclass(frozen=True, slots=True)
class Running:
    """The worker that answers on our port, by its own word."""

    id: str
    state: str
    reason: str


@dataclass(frozen=True, slots=True)
class Gateway:
    """A gateway as this worker reaches it. `status` and `code` are its answer to a question that needs the token."""

    address: str
    status: int = 0
    code: str = ""
    skew_seconds: float | None = None
    trouble: str = ""


@dataclass(frozen=True, slots=True)
class Weights:
    """The files of a model. `place` is where they were looked for; `trouble` why they could not be."""

    place: str = ""
    missing: tuple[str, ...] = ()
    repository: str = ""
    is_named: bool = False  # by --checkpoint; else it is the hub's cache
    trouble: str = ""


@dataclass(frozen=True, slots=True)
class Compiler:
    """What the model's kernels are compiled with when a worker starts: Triton, which calls a C compiler."""

    has_triton: bool
    command: str = ""
    has_headers: bool = False  # Python's own


@dataclass(frozen=True, slots=True)
class Facts:
    """`running` None: no worker answers on the port."""

    running: Running | None
    gateways: tuple[Gateway, ...]
    weights: Weights | None  # None for a model whose weights come with its package


def compiler(environment: Mapping[str, str]) -> Compiler:
    """Look for it where Triton does."""
    path = environment.get("PATH")
    names = (environment.get("CC"), "gcc", "clang")
    return Compiler(
        importlib.util.find_spec("triton") is not None,
        next((name for name in names if name and shutil.which(name, path=path)), ""),
        Path(sysconfig.get_path("include"), "Python.h").exists(),
    )


async def look(config: Config, environment: Mapping[str, str]) -> Facts:
    """Ask everybody, each for a few seconds at most."""
    timeout = aiohttp.ClientTimeout(total=ANSWER_SECONDS)
    async with aiohttp.ClientSession(timeout=timeout, trust_env=False) as session:
        running, *gateways = await asyncio.gather(
            _running(session, Address(config.host, config.port)),
            *(_gateway(session, address, config.token) for address in config.gateways),
        )
    return Facts(running, tuple(gateways), weights(config, environment))


async def _running(session: aiohttp.ClientSession, address: Address) -> Any:
    try:
        async with session.get(f"http://{address}/health") as response:
            told = await response.json()
            return Running(str(told["id"]), str(told["state"]), str(told["reason"]))
    except (TimeoutError, aiohttp.ClientError, OSError, ValueError, KeyError, TypeError):
        return None


async def _gateway(session: aiohttp.ClientSession, address: Address, token: str) -> Any:
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    try:
        async with session.get(f"http://{address}{_NO_CLIP}", headers=headers, allow_redirects=False) as response:
            skew = skew_seconds(response.headers.get("Date"), time.time())
            return Gateway(str(address), response.status, _code(await response.content.read(1 << 16)), skew)
    except TimeoutError:
        return Gateway(str(address), trouble=f"no answer within {ANSWER_SECONDS:g} s")
    except (aiohttp.ClientError, OSError) as error:
        return Gateway(str(address), trouble=in_words(error))


def _code(body: bytes) -> str:
    """Return the code in an error's envelope; nothing where the body is none."""
    with contextlib.suppress(ValueError, KeyError, TypeError):
        return str(json.loads(body)["error"]["code"])
    return ""


def weights(config: Config, environment: Mapping[str, str]) -> Weights | None:
    """Look for the files of the model, without fetching any."""
    if config.model not in CHATTERBOX_MODELS:
        return None
    from worker.models.chatterbox.family import FAMILIES

    family = FAMILIES[config.model]
    if config.chatterbox.checkpoint:
        place, is_named = Path(config.chatterbox.checkpoint), True
    else:
        if importlib.util.find_spec("huggingface_hub") is None:
            return Weights(trouble="Chatterbox is not installed: there is no huggingface_hub")
        place, is_named = _in_cache(family.repository, environment), False
    missing = tuple(name for name in family.weights if not (place / name).is_file())
    return Weights(str(place), missing, family.repository, is_named)


def _in_cache(repository: str, environment: Mapping[str, str]) -> Path:
    """Return the directory of the cached snapshot, or of the cache where there is none.

    As huggingface_hub names them; it reads the variables once, at its import, and they may be the unit's here.
    """
    home = environment.get("XDG_CACHE_HOME") or str(Path(environment.get("HOME", "~")).expanduser() / ".cache")
    home = environment.get("HF_HOME") or f"{home}/huggingface"
    cache = Path(environment.get("HF_HUB_CACHE") or f"{home}/hub")
    there = cache / f"models--{repository.replace('/', '--')}"
    with contextlib.suppress(OSError):
        return there / "snapshots" / (there / "refs" / "main").read_text().strip()
    return cache
