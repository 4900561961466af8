"""What workers have computed of clips, kept so that no other worker computes it again: a cache on disk, bounded.

A prepared voice is opaque here: about 165 kB that every worker whose model has the same `voice_format` understands.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import os
import re
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

log = logging.getLogger(__name__)

MAX_PREPARED_BYTES = 4 << 20
_CACHE_BYTES = 512 << 20
# Whoever asks first for what is not there is to compute it; the others wait so long for the result, no longer.
CLAIM_SECONDS = 10.0
_DIGEST_BYTES = 32
_FILE = re.compile(r"([0-9a-f]{64})\.([a-z0-9.-]{1,64})")

Key = tuple[str, str]  # the clip's SHA-256, the format


@dataclass(slots=True)
class _Claim:
    until: float
    done: asyncio.Event


class PreparedVoices:
    """The cache. `is_wanted` says whether a clip is still in use. All methods are for the event loop."""

    def __init__(self, directory: Path, *, is_wanted: Callable[[str], bool], cache_bytes: int = _CACHE_BYTES) -> None:
        self._directory = directory
        self._is_wanted = is_wanted
        self._cache_bytes = cache_bytes
        # Least lately used first. The size is that of the file.
        self._sizes: dict[Key, int] = {}
        self._claims: dict[Key, _Claim] = {}
        self._read_directory()

    async def get(self, sha256: str, format_: str) -> bytes | None:
        """Return the prepared voice, or None: then the caller is the one to compute and `put` it.

        Waits while another caller has been told to, at most until its time for that is over.
        """
        key = (sha256, format_)
        loop = asyncio.get_running_loop()
        while True:
            if key in self._sizes and (data := await asyncio.to_thread(self._read, key)) is not None:
                if key in self._sizes:
                    self._sizes[key] = self._sizes.pop(key)
                return data
            claim = self._claims.get(key)
            if claim is None or claim.until <= loop.time():
                self._claims[key] = _Claim(loop.time() + CLAIM_SECONDS, asyncio.Event())
                if claim is not None:
                    claim.done.set()
                return None
            try:
                async with asyncio.timeout_at(claim.until):
                    await claim.done.wait()
            except TimeoutError:
                pass

    def give_up(self, sha256: str, format_: str) -> None:
        """Whoever was told to compute this could not: the next one may try."""
        claim = self._claims.pop((sha256, format_), None)
        if claim is not None:
            claim.done.set()

    async def put(self, sha256: str, format_: str, data: bytes) -> None:
        """Keep a prepared voice. A disk that is full costs no more than computing it again."""
        key = (sha256, format_)
        try:
            if self._is_wanted(sha256):
                await asyncio.to_thread(self._write, key, data)
                self._sizes.pop(key, None)
                self._sizes[key] = len(data) + _DIGEST_BYTES
                if not self._is_wanted(sha256):  # deleted meanwhile
                    self.forget(sha256)
                self._evict()
        except OSError as error:
            log.warning("prepared voice of clip=%s not kept: %s", sha256[:12], error)
        finally:
            self.give_up(sha256, format_)

    def forget(self, sha256: str) -> None:
        """Remove all that was computed of a clip."""
        for key in [key for key in self._sizes if key[0] == sha256]:
            self._remove(key)

    def _evict(self) -> None:
        while sum(self._sizes.values()) > self._cache_bytes:
            self._remove(next(iter(self._sizes)))

    def _remove(self, key: Key) -> None:
        del self._sizes[key]
        self._path(key).unlink(missing_ok=True)

    # -- the disk

    def _path(self, key: Key) -> Path:
        name = f"{key[0]}.{key[1]}"
        assert _FILE.fullmatch(name), "a key that was checked where it came in"
        return self._directory / name

    def _read_directory(self) -> None:
        found = []
        for path in self._directory.iterdir():
            match = _FILE.fullmatch(path.name)
            if match and self._is_wanted(match[1]):
                status = path.stat()
                found.append((status.st_mtime, (match[1], match[2]), status.st_size))
            else:
                path.unlink()
        self._sizes = {key: size for _, key, size in sorted(found)}
        self._evict()

    def _read(self, key: Key) -> bytes | None:
        """Return what was written, None if it is not there or not what was written: it is never synced."""
        try:
            content = self._path(key).read_bytes()
        except OSError:
            return None
        digest, data = content[:_DIGEST_BYTES], content[_DIGEST_BYTES:]
        return data if hashlib.sha256(data).digest() == digest else None

    def _write(self, key: Key, data: bytes) -> None:
        descriptor, name = tempfile.mkstemp(dir=self._directory, prefix="draft-")
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(hashlib.sha256(data).digest() + data)
            os.replace(name, self._path(key))
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise
