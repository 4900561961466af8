"""Speaks a set of texts by upstream's `generate` and by our pipeline in its modes, and measures each recording."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import librosa
import numpy as np
import torch

from bench.chatterbox.ours import Whole
from bench.chatterbox.published import Published
from bench.listening import Sound, seam_decibels
from bench.recogniser import SAMPLE_RATE as HEARD_RATE
from bench.recogniser import Recogniser, lacking
from worker.config import ChatterboxOptions
from worker.models.base import Clip
from worker.models.chatterbox.family import FAMILIES, SAMPLE_RATE

UPSTREAM = "upstream"


@dataclass(frozen=True, slots=True)
class Mode:
    """One way in which our pipeline speaks."""

    stream: str
    precision: str

    @property
    def name(self) -> str:
        return f"ours, {self.stream}, {self.precision}"


@dataclass(frozen=True, slots=True)
class Take:
    """One text as one of them spoke it: the recording, and what was measured of it."""

    sound: Sound
    figures: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Session:
    """What is spoken, with which weights and voice. Without `clip` the voice is the checkpoint's own."""

    directory: Path
    model: str
    device: str
    clip: Path | None
    texts: Sequence[str]
    modes: Sequence[Mode]
    seed: int


def record(session: Session, advance: Callable[[str], None]) -> dict[str, list[Take]]:
    """Return the takes of every text by name of what spoke it, upstream's first.

    `advance` is told of each utterance, and of each loading, before it begins.
    """
    family = FAMILIES[session.model]
    advance("loading upstream")
    published = Published(session.directory, family, session.device)
    judge = _Judge(published)
    takes: dict[str, list[Take]] = {UPSTREAM: []}
    for number, text in enumerate(session.texts):
        advance(f"{UPSTREAM}: text {number + 1}")
        torch.manual_seed(session.seed + number)
        spoken = published.speak(text, session.clip)
        takes[UPSTREAM].append(judge.judged(text, spoken.samples, [], spoken.seconds))
    for mode in session.modes:
        advance(f"loading {mode.name}")
        options = ChatterboxOptions(checkpoint=str(session.directory), precision=mode.precision, stream=mode.stream)
        whole = Whole(session.directory, family, session.device, options)
        try:
            if session.clip is not None:
                samples, rate = librosa.load(session.clip, sr=None)
                whole.take_voice(Clip(samples, int(rate)))
            takes[mode.name] = []
            for number, text in enumerate(session.texts):
                advance(f"{mode.name}: text {number + 1}")
                together = whole.speak([text], session.seed + number)
                sound = np.frombuffer(together.pcm[0], "<i2").astype(np.float32) / np.float32(32767)
                takes[mode.name].append(judge.judged(text, sound, together.seams[0], together.seconds))
        finally:
            whole.close()
    return takes


def count_steps(session: Session) -> int:
    """Return how often `record` calls `advance`."""
    return (1 + len(session.modes)) * (1 + len(session.texts))


class _Judge:
    """Measures recordings, all with the same ears: upstream's voice encoder, and the recogniser where there is one."""

    def __init__(self, published: Published) -> None:
        self._published = published
        self._recogniser = None if lacking() else Recogniser()

    def judged(self, text: str, sound: Sound, seams: Sequence[int], seconds: float) -> Take:
        low = librosa.resample(sound, orig_sr=SAMPLE_RATE, target_sr=HEARD_RATE)
        duration = len(sound) / SAMPLE_RATE
        figures: dict[str, Any] = {
            "duration_seconds": duration,
            "seconds": seconds,
            "real_time_factor": seconds / duration,
            "similarity": self._similarity(low),
            "seams": len(seams),
            "seam_decibels": seam_decibels(sound, seams),
            "heard": None,
            "word_error_rate": None,
        }
        if self._recogniser is not None:
            heard = self._recogniser.hear(low)
            figures |= {"heard": heard, "word_error_rate": self._recogniser.error_rate(text, heard)}
        return Take(sound, figures)

    def _similarity(self, low: Sound) -> float:
        """Return the cosine between the speaker that is heard and the one that the token model was given."""
        tts = self._published.tts
        heard = np.asarray(tts.ve.embeds_from_wavs([low], sample_rate=HEARD_RATE)).mean(axis=0)
        given = tts.conds.t3.speaker_emb.float().cpu().numpy().reshape(-1)
        return float(heard @ given / (np.linalg.norm(heard) * np.linalg.norm(given)))
