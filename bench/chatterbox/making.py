"""Random checkpoints to measure with, where no weights were named."""

from __future__ import annotations

import json
from pathlib import Path

from worker.models.chatterbox.family import FAMILIES
from worker.models.chatterbox.shapes import DESCRIPTION
from worker.models.chatterbox.tiny import make


def checkpoint_of(directory: Path, model: str, size: str, tokens: int, characters: int) -> Path:
    """Write random weights that say `tokens` tokens for every text of so many characters; return where they are."""
    family = FAMILIES[model]
    # Turbo counts the text in.
    make(directory, family, size=size, end_at=tokens + (characters if family.is_turbo else 0))
    return directory


def is_tiny(directory: Path) -> bool:
    """The weights are random, and smaller than the published ones."""
    path = directory / DESCRIPTION
    return path.exists() and json.loads(path.read_text())["size"] == "tiny"
