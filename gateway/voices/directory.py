"""Uploaded voices on disk.

    DIRECTORY/lock                 held by the one gateway that writes here
    DIRECTORY/incoming/            uploads on their way; emptied at every start
    DIRECTORY/clips/SHA256.wav     one a clip, named by its content
    DIRECTORY/voices/RANDOM.json   one a voice: the index is made of these at every start
    DIRECTORY/prepared/            gateway/voices/prepared.py

Whatever appears under its name is whole and on disk: written elsewhere, synced, renamed. A clip is there before the
voice that needs it, and leaves after it. No name that a client chose is ever part of a path.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
import re
import secrets
from collections.abc import Container
from dataclasses import asdict
from pathlib import Path

from gateway.disk import removed_on_error, sync_directory
from gateway.voices.catalogue import UploadedVoice, Warned

log = logging.getLogger(__name__)

_ID = re.compile(r"[a-z0-9_-]{1,64}")
_SHA256 = re.compile(r"[0-9a-f]{64}")


class DirectoryInUse(Exception):
    """The data directory cannot be had; the message names it and says why."""


class VoiceDirectory:
    """The data directory of one gateway, locked from here to `close`. All methods block.

    Raises:
        DirectoryInUse: it cannot be written, or another gateway has it.
    """

    def __init__(self, path: Path) -> None:
        self.incoming, self.prepared = path / "incoming", path / "prepared"
        self._clips, self._voices = path / "clips", path / "voices"
        try:
            for directory in (self.incoming, self.prepared, self._clips, self._voices):
                directory.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._lock = os.open(path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise DirectoryInUse(f"--data-directory {path}: {error.strerror}") from None
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._lock)
            raise DirectoryInUse(f"--data-directory {path} is in use by another gateway") from None
        for left in self.incoming.iterdir():
            left.unlink()

    def close(self) -> None:
        """Let another gateway have it."""
        os.close(self._lock)

    def new_record(self) -> Path:
        """Return a path for a voice that is not there yet."""
        return self._voices / f"{secrets.token_hex(16)}.json"

    def clip(self, sha256: str) -> Path:
        assert _SHA256.fullmatch(sha256), "a hash of our own making"
        return self._clips / f"{sha256}.wav"

    def read(self) -> tuple[list[tuple[Path, UploadedVoice]], bool]:
        """Return every voice with its record, and whether that is all of them: a record that cannot be used is left
        where it is, for whoever can mend it."""
        found, is_complete = [], True
        for record in sorted(self._voices.glob("*.json")):
            try:
                voice = _read_record(record)
                size = self.clip(voice.clip).stat().st_size
                if size != voice.clip_bytes:
                    raise ValueError(f"its clip has {size} bytes, not {voice.clip_bytes}")
            except (OSError, ValueError, TypeError, KeyError) as error:
                log.error("voice record=%s cannot be used: %s", record, error)
                is_complete = False
            else:
                found.append((record, voice))
        return found, is_complete

    def remove_clips_but(self, wanted: Container[str]) -> None:
        """Remove what an upload left that was broken off before its voice was stored."""
        for clip in self._clips.iterdir():
            if clip.stem not in wanted:
                log.info("clip=%s removed: no voice has it", clip.stem[:12])
                clip.unlink()

    def write_clip(self, upload: Path, sha256: str) -> None:
        """Move a synced file in as the clip; where there was one, it was of the same content."""
        os.replace(upload, self.clip(sha256))
        sync_directory(self._clips)

    def write_record(self, record: Path, voice: UploadedVoice) -> None:
        """Write a voice, new or changed; when this raises, the disk is as before."""
        draft = self.incoming / record.name
        with removed_on_error(draft):
            with draft.open("w", encoding="utf-8") as file:
                json.dump(asdict(voice), file)
                file.flush()
                os.fsync(file.fileno())
            os.replace(draft, record)
        sync_directory(self._voices)

    def remove_record(self, record: Path) -> None:
        record.unlink(missing_ok=True)
        sync_directory(self._voices)

    def remove_clip(self, sha256: str) -> None:
        """Remove a clip that no voice has any more; if the disk will not have it, the next start tries again."""
        with contextlib.suppress(OSError):
            self.clip(sha256).unlink(missing_ok=True)


def _read_record(record: Path) -> UploadedVoice:
    body = json.loads(record.read_text(encoding="utf-8"))
    voice = UploadedVoice(
        id=str(body["id"]),
        name=str(body["name"]),
        clip=str(body["clip"]),
        clip_bytes=int(body["clip_bytes"]),
        seconds=float(body["seconds"]),
        created_at=int(body["created_at"]),
        warnings=tuple(Warned(str(code), str(message)) for code, message in body["warnings"]),
    )
    if not _ID.fullmatch(voice.id) or not _SHA256.fullmatch(voice.clip):
        raise ValueError("its id or the hash of its clip is none")
    return voice
