"""Segments and voices for the random checkpoints, and a way to speak without an engine."""

from __future__ import annotations

import hashlib
import io
import math
import wave
from collections.abc import Sequence
from itertools import count
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wire.segment import SegmentRequest
from worker.models.base import Clip
from worker.models.chatterbox.conditionals import Voice
from worker.models.chatterbox.family import FAMILIES
from worker.models.chatterbox.model import ChatterboxModel
from worker.models.chatterbox.s3gen import SoundRun, next_rendering
from worker.models.chatterbox.utterance import Utterance

ALL = tuple(FAMILIES)
# Turbo counts the text in: see `tiny.make`.
END_AT = {"chatterbox": 20, "chatterbox-multilingual": 20, "chatterbox-turbo": 45}
# Of a clip. Turbo's position of the end counts a prompt of 15 seconds, too.
LENGTH = {"chatterbox": 2.0, "chatterbox-multilingual": 2.0, "chatterbox-turbo": 15.5}
RATE = 24_000


def segment(model: str, text: str = "Hello there, friend.", **changes: Any) -> SegmentRequest:
    fields: dict[str, Any] = {"request_id": "test", "index": 0, "voice": "default", "seed": 7, "language": "en"}
    return SegmentRequest(text=text, model=model, **(fields | changes))


def clip(pitch: float = 120.0, seconds: float = 6.0) -> Clip:
    """Something like a vowel, sung up and down: it has pitch, overtones and loudness that change."""
    t = np.arange(int(seconds * RATE)) / RATE
    phase = 2 * math.pi * np.cumsum(pitch + 0.2 * pitch * np.sin(2 * math.pi * 0.7 * t)) / RATE
    vowel = sum(np.sin(k * phase) / k for k in range(1, 20)) * (0.55 + 0.45 * np.sin(2 * math.pi * 4 * t))
    hiss = np.random.default_rng(0).standard_normal(len(t))
    return Clip((0.1 * vowel + 0.003 * hiss).astype(np.float32), RATE)


def wav(recording: Clip) -> bytes:
    """Return a recording as the file that somebody would upload."""
    file = io.BytesIO()
    with wave.open(file, "wb") as writer:
        writer.setnchannels(1)
        writer.setsampwidth(2)
        writer.setframerate(recording.sample_rate)
        writer.writeframes((recording.samples * 32767).astype("<i2").tobytes())
    return file.getvalue()


def name_of(recording: Clip) -> str:
    return hashlib.sha256(recording.samples.tobytes()).hexdigest()


def speak(
    model: ChatterboxModel, requests: Sequence[SegmentRequest], voices: Sequence[bytes | None] = ()
) -> list[bytes]:
    """Speak all at once, as the engine does; return the PCM of each. Raises the first error."""
    return [pcm for _, pcm in speak_with_tokens(model, requests, voices)]


def speak_with_tokens(
    model: ChatterboxModel, requests: Sequence[SegmentRequest], voices: Sequence[bytes | None] = (), *, apart: int = 0
) -> list[tuple[list[int], bytes]]:
    """As `speak`, with the tokens that each sound was made of; each begins so many steps after the one before."""
    states: list[Utterance] = []
    pcm = [b""] * len(requests)
    running: dict[int, Utterance] = {}
    for step in count():
        while len(states) < len(requests) and step >= apart * len(states):
            number = len(states)
            running[number] = model.prefill(requests[number], voices[number] if voices else None)
            states.append(running[number])
        if not running and len(states) == len(requests):
            break
        for number, output in zip(list(running), model.step(list(running.values())), strict=True):
            if output.error is not None:
                raise output.error
            pcm[number] += output.audio
            if output.finished:
                del running[number]
    return [([token for part in state.parts for token in part.tokens], pcm[n]) for n, state in enumerate(states)]


def render(
    model: ChatterboxModel, voice: Voice, tokens: Sequence[int], seed: int, *, chunk: int | None = None
) -> list[NDArray[np.float32]]:
    """Return the pieces of sound of tokens that come one by one, without the watermark; in chunks if there are any."""
    stage, family = model._get().sound_stage, model._family
    run, rendered, pieces = SoundRun(voice, seed), 0, []
    for known in range(1, len(tokens) + 1):
        is_whole = known == len(tokens)
        while found := next_rendering(voice, tokens[:known], rendered, is_whole=is_whole, family=family, chunk=chunk):
            rendered, rendering = found
            run.renderings.append(rendering)
            while run.is_due:
                pieces += [piece for piece in stage.advance([run]) if piece is not None]
    return pieces


def samples(pcm: bytes) -> NDArray[np.float64]:
    return np.frombuffer(pcm, "<i2").astype(np.float64) / 32767


def distance(one: Any, other: Any) -> float:
    """Return the norm of the difference over the norm of `other`; infinite for other lengths."""
    one, other = np.asarray(one, np.float64).ravel(), np.asarray(other, np.float64).ravel()
    return float(np.linalg.norm(one - other) / np.linalg.norm(other)) if len(one) == len(other) else math.inf
