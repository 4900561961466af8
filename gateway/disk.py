"""What makes a change of files last: whole or not at all, and still there after a power cut."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def removed_on_error(path: Path) -> Iterator[None]:
    """Remove a draft when the block that writes it and puts it in its place raises."""
    try:
        yield
    except BaseException:
        path.unlink(missing_ok=True)
        raise


def sync_directory(path: Path) -> None:
    """Wait until the names in a directory are on disk; `fsync` of a file says nothing of its name.

    Raises:
        OSError: the directory is gone, or the disk fails.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
