"""Where the weights are: a directory that was named, or the hub's cache, filled once from the network."""

from __future__ import annotations

import logging
from pathlib import Path

from huggingface_hub import constants, snapshot_download
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

from worker.models.chatterbox.family import Family

log = logging.getLogger("worker.models.chatterbox")


class CheckpointMissing(Exception):
    """Files that the model needs are not there; the message names them and where they were looked for."""


def locate(checkpoint: str, family: Family) -> Path:
    """Return a directory with all files of the family; without `checkpoint`, fetch what the cache lacks, with progress.

    Raises:
        CheckpointMissing: they are not in `checkpoint`, or neither in the cache nor to be had.
    """
    if checkpoint:
        directory = Path(checkpoint)
        if lacking := missing(directory, family):
            raise CheckpointMissing(
                f"--checkpoint {checkpoint} lacks {', '.join(lacking)} of {family.id}. "
                f"It must hold {', '.join(family.weights)}."
            )
        return directory
    cached = _cached(family)
    if cached is not None and not missing(cached, family):
        return cached
    return _fetched(family)


def missing(directory: Path, family: Family) -> list[str]:
    """Return the names of the files that the model needs and the directory has not."""
    return [name for name in family.weights if not (directory / name).is_file()]


def _cached(family: Family) -> Path | None:
    try:
        return Path(snapshot_download(family.repository, local_files_only=True))
    except (LocalEntryNotFoundError, FileNotFoundError):
        return None


def _fetched(family: Family) -> Path:
    log.info("model=%s fetching from=%s into=%s", family.id, family.repository, constants.HF_HUB_CACHE)
    try:
        directory = Path(snapshot_download(family.repository, allow_patterns=[*family.weights, *family.extras]))
    except (HfHubHTTPError, OSError, ValueError) as error:
        cached = _cached(family)
        lacking = missing(cached, family) if cached is not None else list(family.weights)
        raise CheckpointMissing(
            f"{family.id} needs {', '.join(lacking)} of {family.repository}. They are not in {constants.HF_HUB_CACHE}, "
            f"and could not be fetched: {str(error).splitlines()[0][:200]} "
            "Start it once with a network, or copy them here and name the directory with --checkpoint."
        ) from error
    if lacking := missing(directory, family):
        raise CheckpointMissing(f"{family.repository} no longer has {', '.join(lacking)}; looked in {directory}.")
    return directory
