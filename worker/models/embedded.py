"""The voice in the wheel: hibari-tts on the CPU, in English, far faster than real time."""

from __future__ import annotations

import json
import logging
import re
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import av
import numpy as np
from numpy.typing import NDArray

from wire.errors import ErrorCode, TtsError
from wire.link import ModelInfo
from wire.segment import Resume, SegmentRequest
from worker.figures import ModelFigures
from worker.models.base import StepOutput
from worker.models.stretch import stretch

log = logging.getLogger("worker.models.embedded")

Samples = NDArray[np.float32]

SAMPLE_RATE = 24_000
CHUNK_SAMPLES = SAMPLE_RATE // 5

# A voice is the one that comes with hibari, spoken faster by 1/k and played slower by k: deeper, at the same pace.
_PITCH = {"heart": 1.0, "warm": 0.90, "deep": 0.82}
_GAIN = 1.8  # hibari speaks at -28 dBFS; this is -22, and its loudest peaks stay below full scale
_FRAME = SAMPLE_RATE // 100
_SILENCE = 10 ** (-55 / 20)  # rms of a 10 ms frame
_LEAD_SAMPLES = SAMPLE_RATE * 60 // 1000
_TAIL_SAMPLES = SAMPLE_RATE * 120 // 1000
_SENTENCE_TAIL_SAMPLES = SAMPLE_RATE * 300 // 1000  # between the sentences of one segment
_NETWORK_SPEED = (0.5, 2.0)
# Memory grows with the phonemes of one call and is never given back: 400 take 0.3 GB, 10,000 take 6. hibari splits
# only at punctuation, and 250 characters of digits are 1,900 phonemes.
_MAX_PHONEMES = 400

_MODEL = ModelInfo(
    id="embedded",
    sample_rate=SAMPLE_RATE,
    voices=tuple(_PITCH),
    languages=("en",),
    scripts=("LATIN", "GREEK"),
    parameters=("speed",),
    max_segment_characters=250,
)


class _Piece(NamedTuple):
    """What one call of the network speaks. `ends_sentence` where a breath belongs behind it."""

    phonemes: str
    ends_sentence: bool


@dataclass(slots=True)
class EmbeddedState:
    """A segment in progress: the pieces that are not yet spoken, and the audio that is not yet given out."""

    request: SegmentRequest
    pieces: deque[_Piece]
    piece: int = 0  # number of the next one
    piece_start: int = 0  # the sample of the segment at which the next one begins
    skip: int = 0  # samples that an earlier worker has delivered of what comes next
    ready: bytes = b""


class EmbeddedModel:
    """Implements `SpeechModel[EmbeddedState]`. The same request gives the same samples, whoever else is speaking."""

    def __init__(self) -> None:
        self._hibari: Any = None
        # Totals, written by the engine thread.
        self._phonemes_spoken = 0
        self._stage_seconds = {"phonemes": 0.0, "network": 0.0}

    def info(self) -> ModelInfo:
        return _MODEL

    def figures(self) -> ModelFigures:
        return ModelFigures(tokens=self._phonemes_spoken, stage_seconds=dict(self._stage_seconds))

    def settings(self) -> Mapping[str, Any]:
        return {}

    def load(self) -> None:
        # Here, not at the top: it brings onnxruntime, and the listener should answer before that.
        from hibari import Hibari

        self._hibari = Hibari()

    def warm_up(self) -> None:
        # The unknown word and the digit each load a part of the pronunciation that is not loaded otherwise.
        for voice in _PITCH:
            request = SegmentRequest("warm-up", 0, "Warm xylotriq 7.", _MODEL.id, voice, seed=0)
            state = self.prefill(request)
            while not self.step([state])[0].finished:
                pass

    def unload(self) -> None:
        self._hibari = None

    def prefill(self, request: SegmentRequest, voice: bytes | None = None) -> EmbeddedState:
        with self._counting("phonemes"):
            state = EmbeddedState(request, deque(self._pieces(request.text)))
        if request.resume is not None:
            _resume(state, request.resume)
        return state

    def step(self, states: Sequence[EmbeddedState]) -> list[StepOutput]:
        """Speak one piece of the first state that has none ready, and give out a chunk of every one that has."""
        for state in states:
            if not state.ready:
                try:
                    self._speak_next(state)
                except Exception as error:  # boundary: it belongs to one sequence, not to the batch
                    failed = state
                    return [StepOutput(error=error) if s is failed else _next_chunk(s) for s in states]
                break
        return [_next_chunk(state) for state in states]

    def cancel(self, state: EmbeddedState) -> None:
        pass

    def _pieces(self, text: str) -> list[_Piece]:
        pieces: list[_Piece] = []
        readable = _LONG_WORD.sub(r"\g<0> ", separate_digits(text))
        for sentence in self._hibari.split_sentences(readable):
            for phonemes in self._phonemes(sentence):
                if not any(map(str.isalpha, phonemes)):
                    continue  # of punctuation alone the network makes a breath
                parts = _cut(phonemes)
                pieces += [_Piece(part, ends_sentence=part is parts[-1]) for part in parts]
        if not pieces:
            raise _unspeakable(text)
        return pieces

    def _phonemes(self, sentence: str) -> list[str]:
        # hibari trips over what it cannot count, such as numbers of a hundred digits grouped by commas.
        for attempt in (sentence, _DIGITS_AND_MARKS.sub(_one_by_one, sentence)):
            try:
                phonemes: list[str] = self._hibari.phonemize(attempt)
            except (IndexError, KeyError, ValueError) as error:
                log.debug("phonemize failed: %r", error)
            else:
                return phonemes
        raise _unspeakable(sentence)

    def _speak_next(self, state: EmbeddedState) -> None:
        """Put the sound of the next piece into `ready`, less what was delivered before."""
        if not state.pieces:
            if not state.piece_start:
                raise _unspeakable(state.request.text)
            return
        piece = state.pieces.popleft()
        is_last = not state.pieces
        audio = self._sound(piece, state.request, state.piece, is_last)
        samples = len(audio) // 2
        skipped = min(state.skip, samples)
        state.ready = audio[2 * skipped :]
        state.skip -= skipped
        state.piece += 1
        state.piece_start += samples
        if is_last and not state.piece_start:
            raise _unspeakable(state.request.text)

    def _sound(self, piece: _Piece, request: SegmentRequest, number: int, is_last: bool) -> bytes:
        """Return a piece as PCM; a function of the request and the number of the piece alone."""
        pitch = _PITCH[request.voice]
        tail = _SENTENCE_TAIL_SAMPLES if piece.ends_sentence and not is_last else _TAIL_SAMPLES
        seed = (request.seed, number)
        plain = 1.0 / pitch
        speed = min(max(plain * request.speed, _NETWORK_SPEED[0]), _NETWORK_SPEED[1])
        sound = _trimmed(self._network(piece.phonemes, speed, seed), tail)
        if request.speed != 1.0 and len(sound):
            # The network rounds each phoneme to whole frames, so at 1.3 it is 13 % late, and it ends at 0.5 and 2.
            # Only its own pace at 1 tells how long the piece should be; the rest is stretched.
            length = len(_trimmed(self._network(piece.phonemes, plain, seed), tail)) / request.speed
            sound = stretch(sound, len(sound) / length) if length >= 1 else sound
        if pitch != 1.0 and len(sound):
            sound = _resampled(sound, round(SAMPLE_RATE * pitch))
        pcm: bytes = (np.clip(sound * _GAIN, -1.0, 1.0) * 32767.0).astype("<i2").tobytes()
        return pcm

    def _network(self, phonemes: str, speed: float, seed: tuple[int, int]) -> Samples:
        with self._counting("network"):
            sound: Samples = self._hibari.from_ids(self._hibari.ids(phonemes), speed, np.random.default_rng(seed))
        self._phonemes_spoken += len(phonemes)
        return sound

    @contextmanager
    def _counting(self, stage: str) -> Iterator[None]:
        began = time.monotonic()
        try:
            yield
        finally:
            self._stage_seconds[stage] += time.monotonic() - began


_DIGITS_AND_MARKS = re.compile(r"\d[\d.,]*")
# A price or a fraction is read as one, as long as it can be; a longer run of digits is a number to dial or to type.
_LONG_NUMBER = re.compile(r"(?<![$€£¥\d])(?<!\d[.,])\d{7,}|(?<!\d)(?<!\d\.)\d{13,}")
# The time for one word grows with the square of its length: 240 characters of "1/1/1" took 8 s.
_LONG_WORD = re.compile(r"\S{40}(?=\S)")


def separate_digits(text: str) -> str:
    """Return `text` with long runs of digits in groups of three, to be read digit by digit."""
    return _LONG_NUMBER.sub(_one_by_one, text)


def _one_by_one(match: re.Match[str]) -> str:
    digits = [character for character in match.group() if character.isdigit()]
    groups = [" ".join(digits[i : i + 3]) for i in range(0, len(digits), 3)]
    return f" {', '.join(groups)} "


def _cut(phonemes: str) -> list[str]:
    """Cut at spaces so that no part is longer than the network may get."""
    parts: list[str] = []
    while len(phonemes) > _MAX_PHONEMES:
        space = phonemes.rfind(" ", 1, _MAX_PHONEMES)
        end = space if space > 0 else _MAX_PHONEMES
        parts.append(phonemes[:end])
        phonemes = phonemes[end:].lstrip()
    parts.append(phonemes)
    return parts


def _unspeakable(text: str) -> TtsError:
    return TtsError(
        ErrorCode.UNSPEAKABLE_TEXT,
        f"the model embedded cannot speak {text.strip()[:80]!r}: it reads English words and numbers.",
        param="text",
    )


def _next_chunk(state: EmbeddedState) -> StepOutput:
    """Give out the next chunk, if there is one. Its checkpoint is the piece that follows what is ready by now."""
    audio, state.ready = state.ready[: 2 * CHUNK_SAMPLES], state.ready[2 * CHUNK_SAMPLES :]
    finished = not state.ready and not state.pieces and state.piece_start > 0
    checkpoint = None
    if audio and not state.ready and not finished:
        checkpoint = json.dumps({"piece": state.piece, "start": state.piece_start}).encode()
    return StepOutput(audio, checkpoint, finished)


def _resume(state: EmbeddedState, resume: Resume) -> None:
    """Move to where the segment goes on. Without a checkpoint the beginning is spoken once more, and skipped."""
    piece, start = 0, 0
    try:
        checkpoint = json.loads(resume.checkpoint or b"{}")
        piece, start = int(checkpoint.get("piece", 0)), int(checkpoint.get("start", 0))
    except (ValueError, TypeError, AttributeError):
        log.warning("request_id=%s checkpoint unreadable, starting over", state.request.request_id)
    # A checkpoint may lie ahead of what was delivered: the gateway had received more than it could pass on.
    if not (0 <= piece < len(state.pieces) and 0 <= start <= resume.delivered_samples):
        piece, start = 0, 0
    for _ in range(piece):
        state.pieces.popleft()
    state.piece, state.piece_start = piece, start
    state.skip = resume.delivered_samples - start


def _trimmed(sound: Samples, tail: int) -> Samples:
    """Cut the silence at both ends, but for a short lead and `tail` samples; nothing is left of silence alone."""
    frames = sound[: len(sound) // _FRAME * _FRAME].reshape(-1, _FRAME)
    loud = np.flatnonzero(np.sqrt(np.mean(np.square(frames), axis=1)) > _SILENCE)
    if not loud.size:
        return sound[:0]
    return sound[max(0, loud[0] * _FRAME - _LEAD_SAMPLES) : (loud[-1] + 1) * _FRAME + tail]


def _resampled(sound: Samples, rate: int) -> Samples:
    """Play what was made as if it were at `rate`, at the model's own rate."""
    frame = av.AudioFrame.from_ndarray(sound.reshape(1, -1), format="flt", layout="mono")
    frame.sample_rate = rate
    resampler = av.AudioResampler(format="flt", layout="mono", rate=SAMPLE_RATE)
    frames = [*resampler.resample(frame), *resampler.resample(None)]
    return np.concatenate([part.to_ndarray().reshape(-1) for part in frames]).astype(np.float32, copy=False)
