"""What a model has counted since the process started; read at every scrape of the metrics."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class ModelFigures:
    """Totals that only ever grow. `stage_seconds` and `guards` name all that there are before the first segment.

    `busy_seconds` are those in which a stage was at work, for a model that counts them; `overlap_seconds` two at once.

    `conditionals` are what the model derives from a voice: a miss is one that was not in memory, an eviction one that
    made room for another. `guards` are the model's defences against its own failures, such as no end of speech.
    """

    tokens: int = 0
    stage_seconds: Mapping[str, float] = field(default_factory=dict)
    busy_seconds: float = 0.0
    overlap_seconds: float = 0.0
    guards: Mapping[str, int] = field(default_factory=dict)
    conditionals_hits: int = 0
    conditionals_misses: int = 0
    conditionals_evictions: int = 0
