"""An upload made into a clip: spooled to disk within a limit, decoded by a process of its own, its hash taken."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import os
import sys
import tempfile
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from gateway.voices.catalogue import Warned
from wire.errors import ErrorCode, TtsError

MAX_UPLOAD_BYTES = 32 << 20
UPLOAD_FIELD = "audio_sample"
# Decoding is bounded in CPU time by the process itself; this is for a machine that gives it none.
_DECODE_SECONDS = 60.0
_LONGEST_REPORT_BYTES = 64 << 10
_UPLOADS_AT_ONCE = 32
_PROGRAM = "gateway.voices.decode"


class DecoderBroken(Exception):
    """The decoder cannot run here at all, whatever the upload."""


@dataclass(frozen=True, slots=True)
class Clip:
    """A decoded upload, as a WAV file of 24 kHz mono s16le that is safely on disk at `path`."""

    path: Path
    sha256: str
    bytes: int
    seconds: float
    warnings: tuple[Warned, ...]


class Uploads:
    """The room where uploads wait to become clips. `directory` holds nothing that anybody misses after a restart."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._turns = asyncio.Semaphore(2)
        self._present = 0

    @contextlib.asynccontextmanager
    async def clip(self, body: AsyncIterator[bytes]) -> AsyncIterator[Clip]:
        """Read an upload to its end and give the clip for the length of the block; then its file is gone, unless it
        was moved elsewhere.

        Raises:
            TtsError: `body_too_large`, `unusable_clip`, or `overloaded` while many others upload.
            OSError: the disk is full.
            DecoderBroken: nothing can be decoded here.
        """
        if self._present >= _UPLOADS_AT_ONCE:
            raise TtsError(ErrorCode.OVERLOADED, "Too many uploads at once. Try again.", retry_after_seconds=5.0)
        self._present += 1
        try:
            async with self._clip(body) as clip:
                yield clip
        finally:
            self._present -= 1

    @contextlib.asynccontextmanager
    async def _clip(self, body: AsyncIterator[bytes]) -> AsyncIterator[Clip]:
        with tempfile.TemporaryFile(dir=self._directory) as upload:
            await self._spool(body, upload)
            target, name = await asyncio.to_thread(tempfile.mkstemp, ".wav", "clip-", self._directory)
            path = Path(name)
            try:
                try:
                    async with self._turns:
                        report = await _decode(upload, target)
                    sha256 = await asyncio.to_thread(_digest_and_sync, target)
                    size = os.fstat(target).st_size
                finally:
                    os.close(target)
                yield Clip(path, sha256, size, report.seconds, report.warnings)
            finally:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(path)

    async def _spool(self, body: AsyncIterator[bytes], upload: IO[bytes]) -> None:
        size = 0
        async for piece in body:
            size += len(piece)
            if size > MAX_UPLOAD_BYTES:
                raise TtsError(
                    ErrorCode.BODY_TOO_LARGE,
                    f"{UPLOAD_FIELD} is larger than {MAX_UPLOAD_BYTES >> 20} MiB. 10 s of speech are enough.",
                    param=UPLOAD_FIELD,
                )
            await asyncio.to_thread(upload.write, piece)
        await asyncio.to_thread(upload.flush)
        if not size:
            raise _unusable("it is empty")


@dataclass(frozen=True, slots=True)
class _Report:
    seconds: float
    warnings: tuple[Warned, ...]


async def _decode(upload: IO[bytes], target: int) -> _Report:
    """Run the decoder on `upload`; the clip is in the file `target` afterwards."""
    upload.seek(0)
    # -I: nothing of the environment or of the working directory decides what is imported.
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-I", "-m", _PROGRAM, str(target)),
        stdin=upload.fileno(),
        stdout=asyncio.subprocess.PIPE,
        pass_fds=(target,),
        env={},
    )
    assert process.stdout is not None
    try:
        async with asyncio.timeout(_DECODE_SECONDS):
            # No more than a report has: whoever has taken the process over gets no memory of ours.
            written = await process.stdout.read(_LONGEST_REPORT_BYTES)
            code = await process.wait()
    except TimeoutError:
        raise _unusable("it takes too long to decode") from None
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if code < 0:
        # Killed for its time, or by a fault in a decoder: the upload is to blame for either.
        raise _unusable("it cannot be decoded within the limits of an upload")
    if code > 0:
        raise DecoderBroken(f"{_PROGRAM} ended with exit code {code}; what it wrote is above")
    try:
        return _read(json.loads(written))
    except (ValueError, TypeError, KeyError):
        raise _unusable("it cannot be decoded") from None


def _read(report: dict[str, Any]) -> _Report:
    if "errno" in report:
        raise OSError(report["errno"], os.strerror(report["errno"]))
    if "unusable" in report:
        raise _unusable(str(report["unusable"]))
    warnings = tuple(Warned(str(row["code"]), str(row["message"])) for row in report["warnings"])
    return _Report(float(report["seconds"]), warnings)


def _unusable(why: str) -> TtsError:
    return TtsError(ErrorCode.UNUSABLE_CLIP, f"{UPLOAD_FIELD} cannot be used for a voice: {why}.", param=UPLOAD_FIELD)


def _digest_and_sync(target: int) -> str:
    os.fsync(target)
    with os.fdopen(os.dup(target), "rb") as clip:
        clip.seek(0)
        return hashlib.file_digest(clip, "sha256").hexdigest()
