"""API keys: who may ask, for what, and how much. The file holds SHA-256 digests; a key is shown once, when made."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import hmac
import json
import os
import re
import secrets
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Any

from gateway.disk import removed_on_error, sync_directory

_PREFIX = "tts_"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9 ._@-]{0,63}")
_ID = re.compile(r"[a-z0-9]{1,32}")
_DIGEST = re.compile(r"[0-9a-f]{64}")
MAX_FILE_BYTES = 16 << 20


class KeysError(Exception):
    """A keys file, or a change to it, that cannot be; the message names the entry and says what it may be."""


class Scope(StrEnum):
    """What a key opens."""

    SPEAK = "speak"
    VOICES = "voices"  # add and delete voices
    ADMIN = "admin"  # workers: look at them, drain, load
    METRICS = "metrics"


@dataclass(frozen=True, slots=True)
class Limits:
    """How much one key may have; 0: as much as there is."""

    characters_per_minute: int = 0
    concurrent: int = 0  # requests at once
    queued_seconds: float = 0.0  # work of its own that may wait in the line


NO_LIMITS = Limits()


@dataclass(frozen=True, slots=True)
class Key:
    """One entry of the keys file. `sha256` is the hexadecimal digest of the key, never the key."""

    id: str
    name: str
    sha256: str = field(repr=False)
    scopes: frozenset[Scope]
    limits: Limits = NO_LIMITS
    created: str = ""


@dataclass(frozen=True, slots=True)
class Caller:
    """Who sent a request, as far as shares, limits and the log go: a key's id where there is a key, else an address."""

    name: str
    limits: Limits = NO_LIMITS


class Keyring:
    """The keys that count now. Never changed: a reload makes a new one."""

    def __init__(
        self, keys: Iterable[Key] = (), *, compare: Callable[[bytes, bytes], bool] = hmac.compare_digest
    ) -> None:
        self._keys = [(key.sha256.encode(), key) for key in keys]
        self._compare = compare

    def find(self, presented: str) -> Key | None:
        """Return the key that was presented, or None.

        Constant in time by construction: digests are compared, not keys, each by `hmac.compare_digest`, and all of
        them whichever matches, so that time tells neither how much of a key was right nor where in the file it stands.
        """
        digest = digest_of(presented).encode()
        found = None
        for stored, key in self._keys:
            if self._compare(digest, stored):
                found = key
        return found

    def __len__(self) -> int:
        return len(self._keys)


def digest_of(key: str) -> str:
    """Return the SHA-256 of a key, in hexadecimal. No salt and no stretching: a key has 256 random bits."""
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).hexdigest()


def make_key(
    name: str, scopes: Iterable[Scope], limits: Limits, taken: Sequence[Key], *, now: datetime | None = None
) -> tuple[str, Key]:
    """Return a new key and its entry for the file. The first is the only copy there is.

    Raises:
        KeysError: the name cannot be, or is taken; no scope.
    """
    if not _NAME.fullmatch(name):
        raise KeysError(f"A name has 1 to 64 letters, digits, blanks or . _ @ -, and begins with one; not {name!r}.")
    if any(key.name == name for key in taken):
        raise KeysError(f"There is a key named {name!r} already. Revoke it first, or take another name.")
    if not (chosen := frozenset(scopes)):
        raise KeysError(f"A key needs at least one scope: {', '.join(Scope)}.")
    secret = _PREFIX + secrets.token_urlsafe(32)
    created = (now or datetime.now(UTC)).strftime("%Y-%m-%dT%H:%M:%SZ")
    return secret, Key(secrets.token_hex(4), name, digest_of(secret), chosen, limits, created)


def read_keys(path: Path) -> list[Key]:
    """Return the keys of a file.

    Raises:
        KeysError: it cannot be read, or an entry of it cannot be; nothing of such a file is used.
    """
    try:
        with path.open("rb") as file:
            data = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise KeysError(f"The keys file {path} cannot be read: {error.strerror}.") from None
    if len(data) > MAX_FILE_BYTES:
        raise KeysError(f"The keys file {path} is larger than {MAX_FILE_BYTES} bytes.")
    try:
        body = json.loads(data)
        keys = [_key(number, item) for number, item in enumerate(body["keys"])]
    except (ValueError, RecursionError, KeyError, TypeError) as error:
        raise KeysError(f"The keys file {path} is not one: {error}. See tts-gateway keys --help.") from None
    for name in ("id", "name", "sha256"):
        values = [getattr(key, name) for key in keys]
        if len(set(values)) != len(values):
            raise KeysError(f"The keys file {path} has two keys of the same {name}.")
    return keys


def write_keys(path: Path, keys: Iterable[Key]) -> None:
    """Write the file anew, so that whoever reads meanwhile, or after a crash, sees the old one or the new one, whole.

    A new file is readable to all on this host, since the gateway's user must be able to read what root wrote, and a
    digest opens nothing. The mode of a file that exists is kept.

    Raises:
        KeysError: it cannot be written.
    """
    text = json.dumps({"keys": [_entry(key) for key in keys]}, indent=2) + "\n"
    try:
        path = path.resolve()
        mode = path.stat().st_mode & 0o777 if path.exists() else 0o644
        descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        with removed_on_error(Path(temporary)):
            with open(descriptor, "w") as file:
                file.write(text)
                file.flush()
                os.fchmod(file.fileno(), mode)
                os.fsync(file.fileno())
            os.replace(temporary, path)
        sync_directory(path.parent)
    except OSError as error:
        raise KeysError(f"The keys file {path} cannot be written: {error.strerror}.") from None


@contextlib.contextmanager
def changing(path: Path) -> Iterator[None]:
    """Keep others who change the keys of this directory out for the length of the block: two adds lose none.

    Raises:
        KeysError: there is no such directory.
    """
    try:
        descriptor = os.open(path.resolve().parent, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise KeysError(f"The directory of {path} cannot be opened: {error.strerror}.") from None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _entry(key: Key) -> dict[str, Any]:
    return {
        "id": key.id,
        "name": key.name,
        "sha256": key.sha256,
        "scopes": sorted(key.scopes),
        "limits": {name: value for name, value in asdict(key.limits).items() if value},
        "created": key.created,
    }


def _key(number: int, item: Mapping[str, Any]) -> Key:
    where = f"entry {number}"
    if not isinstance(item, dict):
        raise ValueError(f"{where} is not an object")
    if unknown := set(item) - {f.name for f in fields(Key)}:
        raise ValueError(f"{where} has an unknown field {min(unknown)!r}")
    key = Key(
        id=str(item["id"]),
        name=str(item["name"]),
        sha256=str(item["sha256"]),
        scopes=frozenset(Scope(scope) for scope in item["scopes"]),
        limits=_limits(where, item.get("limits", {})),
        created=str(item.get("created", ""))[:64],
    )
    for name, pattern in (("id", _ID), ("name", _NAME), ("sha256", _DIGEST)):
        if not pattern.fullmatch(getattr(key, name)):
            raise ValueError(f"{where} has a bad {name}")
    if not key.scopes:
        raise ValueError(f"{where} has no scopes")
    return key


def _limits(where: str, given: Mapping[str, Any]) -> Limits:
    known = {f.name for f in fields(Limits)}
    for name, value in given.items():
        if name not in known:
            raise ValueError(f"{where} has an unknown limit {name!r}; there are {', '.join(sorted(known))}")
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1e12:
            raise ValueError(f"{where} has a limit {name} that is no number from 0")
    return Limits(
        characters_per_minute=int(given.get("characters_per_minute", 0)),
        concurrent=int(given.get("concurrent", 0)),
        queued_seconds=float(given.get("queued_seconds", 0.0)),
    )
