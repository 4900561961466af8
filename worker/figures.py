"""What a model has counted since the process started; read at every scrape of the metrics."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class ModelFigures:
    """Totals that only ever grow. `stage_seconds` names every stage of the model from the start, with 0.

    `conditionals` are the prepared voices: a miss is one that had to be made from its recording, an eviction one that
    made room for another.
    """

    tokens: int = 0
    stage_seconds: Mapping[str, float] = field(default_factory=dict)
    conditionals_hits: int = 0
    conditionals_misses: int = 0
    conditionals_evictions: int = 0
