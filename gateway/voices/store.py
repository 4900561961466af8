"""The voices that people uploaded: added, renamed, deleted one at a time, and kept for whoever speaks with them."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import re
import time
import unicodedata
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from gateway.voices.catalogue import UploadedVoice, handle
from gateway.voices.clip import Clip, Uploads
from gateway.voices.directory import VoiceDirectory
from gateway.voices.prepared import PreparedVoices
from wire.errors import ErrorCode, TtsError

log = logging.getLogger(__name__)

MAX_VOICES = 1_000
MAX_NAME_CHARACTERS = 64
_NAME_MARKS = " _-.'()&,+!"

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Stored:
    """What an upload came to: the voice, and whether it is new."""

    voice: UploadedVoice
    is_new: bool


@dataclass(frozen=True, slots=True)
class _Disk:
    directory: VoiceDirectory
    uploads: Uploads
    prepared: PreparedVoices


class VoiceStore:
    """The uploaded voices of one gateway. Without a data directory there are none, and nothing can be uploaded.

    The books change on the event loop only, under one lock, after the disk has changed: of two uploads of one name the
    second finds the first. `reserved` says what a name means beside the uploaded voices, None for nothing.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._disk: _Disk | None = None
        self._records: dict[str, Path] = {}  # id → file of the voice
        self._handles: dict[str, UploadedVoice] = {}
        self._held: Counter[str] = Counter()  # clips that running requests need
        self._unwanted: set[str] = set()  # of these, the clips of no voice any more
        self._lock = asyncio.Lock()
        self._changes: set[asyncio.Task[Any]] = set()  # keeps them from being collected

    def open(self) -> None:
        """Take the directory and read what is there. Blocks; call it before anybody is served.

        Raises:
            DirectoryInUse: it cannot be had.
        """
        if self._path is None:
            return
        directory = VoiceDirectory(self._path)
        found, is_complete = directory.read()
        for record, voice in found:
            if voice.id in self._handles or handle(voice.name) in self._handles:
                log.error("voice record=%s cannot be used: another voice has its id or name", record)
                is_complete = False
            else:
                self._enter(voice, record)
        if is_complete:
            directory.remove_clips_but({voice.clip for voice in self._handles.values()})
        uploads = Uploads(directory.incoming)
        self._disk = _Disk(directory, uploads, PreparedVoices(directory.prepared, is_wanted=self.has_clip))
        log.info("voices=%d directory=%s", len(self._records), self._path)

    def close(self) -> None:
        """Let another gateway have the directory."""
        if self._disk is not None:
            self._disk.directory.close()
            self._disk = None

    # -- looking

    @property
    def by_handle(self) -> Mapping[str, UploadedVoice]:
        """Every voice, by its id and by its name as `handle` makes it."""
        return self._handles

    @property
    def prepared(self) -> PreparedVoices | None:
        return self._disk.prepared if self._disk else None

    @property
    def takes_uploads(self) -> bool:
        return self._disk is not None

    def voices(self) -> list[UploadedVoice]:
        """All voices, the oldest first."""
        found = {voice.id: voice for voice in self._handles.values()}
        return sorted(found.values(), key=lambda voice: (voice.created_at, voice.id))

    def get(self, id_: str) -> UploadedVoice | None:
        """Return the voice of this very id."""
        voice = self._handles.get(id_)
        return voice if voice is not None and voice.id == id_ else None

    def has_clip(self, sha256: str) -> bool:
        """A voice, or a request that runs, needs this clip."""
        return sha256 in self._held or any(voice.clip == sha256 for voice in self._handles.values())

    def clip(self, sha256: str) -> Path | None:
        """Return the WAV file of a clip that is needed."""
        return self._disk.directory.clip(sha256) if self._disk and self.has_clip(sha256) else None

    @contextlib.contextmanager
    def holding(self, sha256: str | None) -> Iterator[None]:
        """Keep a clip for the length of the block, even if its voice is deleted meanwhile. None holds nothing."""
        if sha256 is None:
            yield
            return
        self._held[sha256] += 1
        try:
            yield
        finally:
            self._held[sha256] -= 1
            if not self._held[sha256]:
                del self._held[sha256]
                if sha256 in self._unwanted:
                    self._unwanted.discard(sha256)
                    self._remove_clip(sha256)

    # -- changing

    @contextlib.asynccontextmanager
    async def receive(self, body: AsyncIterator[bytes]) -> AsyncIterator[Clip]:
        """Read and decode an upload; the clip is gone at the end of the block, unless `add` has taken it.

        Raises:
            TtsError: `uploads_off`, `body_too_large`, `unusable_clip`, `storage_full`.
        """
        disk = self._opened()
        with _storage_errors():
            async with disk.uploads.clip(body) as clip:
                yield clip

    async def add(self, name: str, clip: Clip, *, reserved: Callable[[str], str | None]) -> Stored:
        """Store a voice. The same clip under the same name is the voice that is there already.

        Raises:
            TtsError: `invalid_value` for the name, `voice_conflict`, `storage_full`.
        """
        name = checked_name(name)
        return await self._change(lambda: self._add(name, clip, reserved))

    async def rename(self, id_: str, name: object, *, reserved: Callable[[str], str | None]) -> UploadedVoice:
        """Give a voice another name; its id stays.

        Raises:
            TtsError: `voice_not_found`, `invalid_value`, `voice_conflict`, `storage_full`.
        """
        checked = checked_name(name)
        return await self._change(lambda: self._rename(id_, checked, reserved))

    async def delete(self, id_: str) -> None:
        """Forget a voice. Requests that run keep it to their end.

        Raises:
            TtsError: `voice_not_found`.
        """
        await self._change(lambda: self._delete(id_))

    async def _change(self, change: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Carry out one change at a time, to its end: a client who hangs up must not leave disk and books at odds."""

        async def in_turn() -> T:
            async with self._lock:
                with _storage_errors():
                    return await change()

        task = asyncio.create_task(in_turn())
        self._changes.add(task)
        task.add_done_callback(self._changes.discard)
        return await asyncio.shield(task)

    async def _add(self, name: str, clip: Clip, reserved: Callable[[str], str | None]) -> Stored:
        directory = self._opened().directory
        same = self._handles.get(handle(name))
        if same is not None and same.clip == clip.sha256 and handle(same.name) == handle(name):
            return Stored(same, is_new=False)
        self._check_free(name, reserved)
        if len(self._records) >= MAX_VOICES:
            raise TtsError(
                ErrorCode.VOICE_CONFLICT, f"There are {MAX_VOICES} voices, as many as are kept. Delete one first."
            )
        voice = UploadedVoice(
            id=self._new_id(name, reserved),
            name=name,
            clip=clip.sha256,
            clip_bytes=clip.bytes,
            seconds=clip.seconds,
            created_at=int(time.time()),
            warnings=clip.warnings,
        )
        record = directory.new_record()
        self._unwanted.discard(clip.sha256)  # from here on the end of a request does not remove the clip
        try:
            await asyncio.to_thread(directory.write_clip, clip.path, clip.sha256)
            await asyncio.to_thread(directory.write_record, record, voice)
        except BaseException:
            with contextlib.suppress(OSError):
                directory.remove_record(record)
            self._remove_clip_unless_needed(clip.sha256)
            raise
        self._enter(voice, record)
        log.info("voice=%s uploaded clip=%s seconds=%.1f", voice.id, voice.clip[:12], voice.seconds)
        return Stored(voice, is_new=True)

    async def _rename(self, id_: str, name: str, reserved: Callable[[str], str | None]) -> UploadedVoice:
        voice = self._known(id_)
        if handle(name) != handle(voice.name):
            self._check_free(name, reserved, besides=voice)
        renamed = replace(voice, name=name)
        await asyncio.to_thread(self._opened().directory.write_record, self._records[id_], renamed)
        self._handles.pop(handle(voice.name), None)
        self._enter(renamed, self._records[id_])
        return renamed

    async def _delete(self, id_: str) -> None:
        voice = self._known(id_)
        await asyncio.to_thread(self._opened().directory.remove_record, self._records[id_])
        del self._records[id_]
        for key in {id_, handle(voice.name)}:
            self._handles.pop(key, None)
        self._remove_clip_unless_needed(voice.clip)
        log.info("voice=%s deleted", id_)

    def _remove_clip_unless_needed(self, sha256: str) -> None:
        if not self.has_clip(sha256):
            self._remove_clip(sha256)
        elif not any(voice.clip == sha256 for voice in self._handles.values()):
            self._unwanted.add(sha256)

    def _remove_clip(self, sha256: str) -> None:
        disk = self._opened()
        disk.directory.remove_clip(sha256)
        disk.prepared.forget(sha256)

    def _opened(self) -> _Disk:
        if self._disk is None:
            raise TtsError(
                ErrorCode.UPLOADS_OFF,
                "This gateway keeps no voices. Start it with --data-directory DIR (TTS_GATEWAY_DATA_DIRECTORY).",
            )
        return self._disk

    def _known(self, id_: str) -> UploadedVoice:
        voice = self.get(id_)
        if voice is None:
            raise TtsError(ErrorCode.VOICE_NOT_FOUND, f"There is no uploaded voice {id_[:64]!r}.", param="id")
        return voice

    def _check_free(
        self, name: str, reserved: Callable[[str], str | None], *, besides: UploadedVoice | None = None
    ) -> None:
        taken = self._handles.get(handle(name))
        if taken is not None and taken is not besides:
            raise TtsError(
                ErrorCode.VOICE_CONFLICT,
                f"There is a voice {taken.name!r} (id {taken.id!r}) already. Delete it first, or choose another name.",
                param="name",
            )
        meaning = reserved(name)
        if meaning is not None:
            raise TtsError(ErrorCode.VOICE_CONFLICT, f"{name!r} is {meaning} here. Choose another name.", param="name")

    def _new_id(self, name: str, reserved: Callable[[str], str | None]) -> str:
        """Return an id made of the name, as far as that has letters which an id may have, and of nobody else's."""
        plain = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode().lower()
        stem = re.sub(r"[^a-z0-9_]+", "-", plain).strip("-_")[:56] or "voice"
        candidates = [stem, *(f"{stem}-{number}" for number in range(2, 2 * MAX_VOICES))]
        return next(id_ for id_ in candidates if id_ not in self._handles and reserved(id_) is None)

    def _enter(self, voice: UploadedVoice, record: Path) -> None:
        self._records[voice.id] = record
        self._handles[voice.id] = voice
        self._handles[handle(voice.name)] = voice


def checked_name(name: object) -> str:
    """Return a name as it is kept.

    Raises:
        TtsError: `invalid_value`.
    """
    if isinstance(name, str):
        clean = " ".join(unicodedata.normalize("NFC", name).split())
        signs = set(clean) - set(_NAME_MARKS)
        is_readable = all(unicodedata.category(sign)[0] in "LMN" for sign in signs)
        if len(clean) <= MAX_NAME_CHARACTERS and is_readable and any(map(str.isalnum, clean)):
            return clean
    raise TtsError(
        ErrorCode.INVALID_VALUE,
        f"name must be 1 to {MAX_NAME_CHARACTERS} letters, digits, blanks or {_NAME_MARKS.strip()}, with a letter or "
        "digit among them.",
        param="name",
    )


@contextlib.contextmanager
def _storage_errors() -> Iterator[None]:
    """Tell the caller that the disk is full; every other trouble of the disk is ours."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        log.error("storage full: %s", error)
        raise TtsError(
            ErrorCode.STORAGE_FULL,
            "The gateway's data directory is full, so the voice was not stored; those that were there still are.",
        ) from None
