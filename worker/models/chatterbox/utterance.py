"""One segment in progress, and what another worker needs to go on with it."""

from __future__ import annotations

import base64
import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from wire.segment import SegmentRequest
from worker.models.chatterbox.conditionals import Voice
from worker.models.chatterbox.family import SPEECH_IDS
from worker.models.chatterbox.reading import TokenRun
from worker.models.chatterbox.s3gen import SoundRun

log = logging.getLogger("worker.models.chatterbox")


@dataclass(slots=True)
class Part:
    """A piece of a segment's text: all of it, unless that never came to an end. `tokens` are final once `is_whole`.

    `sound` is what the sound stage makes of it, once it was given the first `rendered` tokens.
    """

    text: str
    seed: int
    tokens: list[int] = field(default_factory=list)
    is_whole: bool = False
    attempt: int = 0
    sound: SoundRun | None = None
    rendered: int = 0


@dataclass(slots=True)
class Utterance:
    """One segment in progress. The engine thread writes all of it."""

    request: SegmentRequest
    voice: Voice
    parts: list[Part]
    skip_bytes: int  # of the sound, that was delivered by another worker
    run: TokenRun | None = None  # of the first part that is not whole
    sounding: int = 0  # number of the part whose sound is given out
    work: int = 0  # pieces of work that had been done for it at the last look

    @property
    def decoding(self) -> Part | None:
        return next((part for part in self.parts if not part.is_whole), None)

    @property
    def has_sounded(self) -> bool:
        """The sound stage has tokens of it, so that some of its sound may be on the way."""
        return any(part.sound is not None for part in self.parts)

    @property
    def is_spoken(self) -> bool:
        return self.sounding == len(self.parts)


def checkpoint_of(utterance: Utterance) -> bytes:
    """Return what another worker needs to make the same sound: the tokens, which are all that chance has decided."""
    parts = [
        {
            "text": part.text,
            "seed": part.seed,
            "attempt": part.attempt,
            "is_whole": part.is_whole,
            "tokens": base64.b64encode(np.array(part.tokens, "<u2").tobytes()).decode("ascii"),
        }
        for part in utterance.parts
    ]
    return json.dumps({"parts": parts}, separators=(",", ":")).encode()


def resumed(checkpoint: bytes, request: SegmentRequest) -> list[Part]:
    """Return the parts that a checkpoint holds; none where it is empty or not one of ours, and all is made anew."""
    if not checkpoint:
        return []
    try:
        parts = [_part(body) for body in json.loads(checkpoint)["parts"]]
    except (ValueError, KeyError, TypeError) as error:
        log.warning("request_id=%s checkpoint unreadable, starting over: %s", request.request_id, error)
        return []
    return parts


def _part(body: Mapping[str, Any]) -> Part:
    tokens = np.frombuffer(base64.b64decode(body["tokens"], validate=True), "<u2").tolist()
    if any(token >= SPEECH_IDS for token in tokens):
        raise ValueError("tokens that are no sound")
    if body["is_whole"] and not tokens:
        raise ValueError("a whole part without a sound")
    return Part(str(body["text"]), int(body["seed"]), tokens, bool(body["is_whole"]), int(body["attempt"]))
