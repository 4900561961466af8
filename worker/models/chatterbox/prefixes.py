"""What every segment of a voice begins with, read once: its keys and values, kept for the voices used last.

They are the same for all texts, and for both rows of guidance. A prefix is always read by itself, whether it is kept
afterwards or was before, so that the same segment comes from the same numbers.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

import torch
from torch import Tensor

from worker.models.chatterbox.backbone import Backbone
from worker.models.chatterbox.cache import Cache
from worker.models.chatterbox.conditionals import Voice

# 60 voices of English in bfloat16, 7 of Turbo, whose prefix is 376 positions long.
LIMIT_BYTES = 256 << 20


@dataclass(slots=True)
class Prefix:
    """A voice and an emotion. `cache` has one row, whole once `read` is the length of `embeddings`."""

    voice: Tensor  # the voice's own; also holds it alive, since it is known by its address
    embeddings: Tensor  # (1, n, hidden)
    cache: Cache
    read: int = 0

    @property
    def length(self) -> int:
        return self.embeddings.shape[1]

    @property
    def is_whole(self) -> bool:
        return self.read == self.length


class Prefixes:
    """The prefixes, the least recently used ones given up first. One writer: the engine thread."""

    def __init__(self, t3: torch.nn.Module, backbone: Backbone, limit_bytes: int = LIMIT_BYTES) -> None:
        self._t3 = t3
        self._backbone = backbone
        self._limit = limit_bytes
        self._kept: OrderedDict[tuple[int, float], Prefix] = OrderedDict()

    def __repr__(self) -> str:
        return f"<Prefixes kept={len(self._kept)} bytes={self.bytes}/{self._limit}>"

    @property
    def bytes(self) -> int:
        return sum(prefix.cache.bytes for prefix in self._kept.values())

    def take(self, voice: Voice, exaggeration: float) -> Prefix:
        """Return the prefix, which may have to be read yet. One in use outlives its being given up."""
        key = (id(voice.prefix), exaggeration)
        prefix = self._kept.get(key)
        if prefix is None:
            embeddings = self._embeddings(voice, exaggeration)
            cache = self._backbone.cache()
            cache.grow(1, embeddings.shape[1])
            prefix = self._kept[key] = Prefix(voice.prefix, embeddings, cache)
        self._kept.move_to_end(key)
        while self.bytes > self._limit and len(self._kept) > 1:
            self._kept.popitem(last=False)
        return prefix

    def read_on(self, prefix: Prefix, most: int) -> None:
        """Read the next `most` positions, or what there is left."""
        end = min(prefix.length, prefix.read + most)
        embeddings = prefix.embeddings[:, prefix.read : end]
        positions = self._backbone.positions(prefix.read, end)
        self._backbone.read(embeddings, prefix.cache, slice(0, 1), positions, prefix.length)
        prefix.read = end

    def _embeddings(self, voice: Voice, exaggeration: float) -> Tensor:
        t3 = self._t3
        if not t3.hp.emotion_adv:
            return voice.prefix
        emotion = t3.cond_enc.emotion_adv_fc(torch.full((1, 1, 1), exaggeration, device=t3.device))
        return torch.cat([voice.prefix, emotion], dim=1)
