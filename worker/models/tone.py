"""A deterministic voice for tests: it plays each character as three tones, and `decode` reads the text back.

A code point has 21 bits, three symbols of 7. A symbol is a cosine of one of 128 frequencies from 300 to 7920 Hz. What
was spoken twice, lost or cut can be told from the samples alone; and so can the voice, from how loud they are: an
uploaded one speaks at an amplitude of ten times the pitch of its clip, in hertz.
"""

from __future__ import annotations

import functools
import json
import os
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wire.errors import ErrorCode, TtsError
from wire.link import ModelInfo
from wire.segment import SegmentRequest
from worker.config import ToneOptions
from worker.figures import ModelFigures
from worker.models.base import Clip, DeviceLost, StepOutput

SAMPLE_RATE = 24_000
SAMPLES_A_CHARACTER = 1_600  # at speed 1: fifteen characters a second, as people speak
CHARACTERS_A_CHUNK = 4

_SYMBOLS = 128
_FREQUENCIES_HZ = 300.0 + 60.0 * np.arange(_SYMBOLS)
_LOUDNESS_A_HERTZ = 10
_PITCH_HZ = (50, 1_600)
_AMPLITUDES = {"alto": 9_000, "tenor": 12_000, "bass": 15_000}
# Pacing sleeps in the engine thread; a newcomer or a cancelled sequence waits no longer than this for its turn.
_LONGEST_SLEEP_SECONDS = 0.005
_REJECT_SECONDS = 0.02
_EXIT_CODE = 70

_MODEL = ModelInfo(
    id="tone",
    sample_rate=SAMPLE_RATE,
    voices=tuple(_AMPLITUDES),
    languages=("en",),
    scripts=(),
    parameters=("speed",),
    max_segment_characters=280,
    cloning=True,
)


class Undecodable(Exception):
    """The samples are not what the tone model says: something was cut, doubled inside a character, or mixed in."""


class StagedFailure(Exception):
    """The failure that a test asked for."""


@dataclass(slots=True)
class ToneState:
    """A segment in progress. `position` is the number of the next sample within the whole segment."""

    text: str
    samples_a_character: int
    amplitude: int
    position: int
    staged: ToneOptions
    due: float  # instant at which the next chunk may come out
    chunks: int = 0  # that came out of this attempt

    @property
    def end(self) -> int:
        return len(self.text) * self.samples_a_character


class ToneModel:
    """Speaks at the pace and with the faults that `ToneOptions` ask for. Implements `CloningModel[ToneState]`.

    A text may stage a fault for itself: `{tone:fail-after=3}`, `exit-after`, `lose-device-after`, `stall-after`,
    `hang-after`, `reject`. The braces are spoken like any text. A resumed segment heeds its own directives no more,
    so that a test of failover needs no second kind of worker; the process's options apply to every attempt.
    """

    def __init__(self, options: ToneOptions) -> None:
        self._options = options
        self._segments = 0
        # Totals, written by the engine thread: what a real model would count, as far as this one has it.
        self._characters = 0
        self._stage_seconds = {"decode": 0.0, "vocode": 0.0}
        self._warm_voices: set[str] = set()
        self._hits = self._misses = 0

    def info(self) -> ModelInfo:
        return _MODEL

    def figures(self) -> ModelFigures:
        return ModelFigures(
            tokens=self._characters,
            stage_seconds=dict(self._stage_seconds),
            conditionals_hits=self._hits,
            conditionals_misses=self._misses,
        )

    def settings(self) -> Mapping[str, Any]:
        return {}

    def load(self) -> None:
        time.sleep(self._options.load_seconds)

    def warm_up(self) -> None:
        _spoken("warm", samples_a_character(1.0), _AMPLITUDES["alto"])

    def unload(self) -> None:
        _symbols.cache_clear()
        self._warm_voices.clear()

    def prefill(self, request: SegmentRequest, voice: bytes | None = None) -> ToneState:
        self._segments += 1
        staged = _staged(request, self._options)
        if self._segments <= self._options.fail_first_segments:
            raise StagedFailure(f"segment {self._segments} of the first {self._options.fail_first_segments}")
        if request.voice in self._warm_voices:
            self._hits += 1
        else:
            self._misses += 1
            self._warm_voices.add(request.voice)
        per_character = samples_a_character(request.speed)
        position = 0
        if request.resume is not None:
            _check_checkpoint(request.resume.checkpoint)
            position = request.resume.delivered_samples
        amplitude = _AMPLITUDES[request.voice] if voice is None else _LOUDNESS_A_HERTZ * json.loads(voice)["pitch_hz"]
        state = ToneState(request.text, per_character, amplitude, position, staged, time.monotonic())
        state.due += _REJECT_SECONDS if staged.reject else staged.overhead_seconds + self._pace(state)
        return state

    def voice_format(self) -> str:
        return "tone-1"

    def prepare_voice(self, clip: Clip) -> bytes:
        time.sleep(self._options.prepare_seconds)
        return json.dumps({"pitch_hz": pitch_hz(clip)}).encode()

    def step(self, states: Sequence[ToneState]) -> list[StepOutput]:
        began = time.monotonic()
        wait = min(state.due for state in states) - began
        if wait > 0:
            time.sleep(min(wait, _LONGEST_SLEEP_SECONDS))
        now = time.monotonic()
        outputs = [self._advance(state) if state.due <= now else StepOutput() for state in states]
        self._stage_seconds["decode"] += now - began
        self._stage_seconds["vocode"] += time.monotonic() - now
        return outputs

    def cancel(self, state: ToneState) -> None:
        pass

    def _advance(self, state: ToneState) -> StepOutput:
        staged, done = state.staged, state.chunks
        if staged.reject or _reached(staged.fail_after_chunks, done):
            return StepOutput(error=StagedFailure(f"after {done} chunks"))
        if _reached(staged.exit_after_chunks, done):
            os._exit(_EXIT_CODE)
        if _reached(staged.lose_device_after_chunks, done):
            raise DeviceLost(f"as staged, after {done} chunks")
        if _reached(staged.hang_after_chunks, done):
            while True:
                time.sleep(3_600)
        if _reached(staged.stall_after_chunks, done):
            state.due = time.monotonic() + _LONGEST_SLEEP_SECONDS
            return StepOutput()
        if state.position >= state.end:  # an empty tail: everything had been delivered before
            return StepOutput(finished=True)
        audio = self._chunk(state)
        state.chunks += 1
        # From the instant at which this one was due, not from now: a late step is made up for, as on a real device.
        state.due += self._pace(state)
        characters = state.position // state.samples_a_character
        checkpoint = json.dumps({"characters": characters}).encode()
        return StepOutput(audio, checkpoint, finished=state.position >= state.end and not _faults_ahead(state))

    def _chunk(self, state: ToneState) -> bytes:
        """Return the samples from the position to the end of its chunk, and move there."""
        first = state.position // state.samples_a_character
        last = _chunk_end(state) // state.samples_a_character
        audio = _spoken(state.text[first:last], state.samples_a_character, state.amplitude)
        self._characters += last - first
        skipped = state.position - first * state.samples_a_character
        state.position = last * state.samples_a_character
        return audio[2 * skipped :]

    def _pace(self, state: ToneState) -> float:
        """Return the seconds that the next chunk takes."""
        samples = max(0, _chunk_end(state) - state.position)
        return self._options.realtime_factor * samples / SAMPLE_RATE


def pitch_hz(clip: Clip) -> int:
    """Return the loudest frequency of a clip, to the hertz.

    Raises:
        TtsError: `unusable_clip` when it is silent.
    """
    spectrum = np.abs(np.fft.rfft(clip.samples, n=clip.sample_rate))  # of its first second: a bin a hertz
    low, high = _PITCH_HZ
    loudest = int(spectrum[low:high].argmax()) + low
    if spectrum[loudest] < 1.0:
        raise TtsError(ErrorCode.UNUSABLE_CLIP, "the clip of this voice is silent", param="voice")
    return loudest


def heard_pitch_hz(pcm: bytes) -> int:
    """Return the pitch of the clip whose voice spoke `pcm`; the voices of the model's own are 900, 1200 and 1500."""
    return round(int(np.frombuffer(pcm[: len(pcm) // 2 * 2], dtype="<i2").max()) / _LOUDNESS_A_HERTZ)


def samples_a_character(speed: float) -> int:
    """Return how long one character lasts at `speed`."""
    return max(240, round(SAMPLES_A_CHARACTER / speed))


def decode(pcm: bytes, speed: float = 1.0) -> str:
    """Return the text that was spoken in `pcm` (s16le, 24 kHz); samples of silence between characters are skipped.

    Raises:
        Undecodable: a character is cut short, or a window is not the sound of one character.
    """
    samples = np.frombuffer(pcm[: len(pcm) // 2 * 2], dtype="<i2")
    width = samples_a_character(speed)
    text: list[str] = []
    start = 0
    # A character begins with the top of a cosine, so its first sample is never 0.
    while (gap := _first(samples[start:] != 0)) is not None:
        start += gap
        count = (len(samples) - start) // width
        heads = samples[start : start + count * width : width]
        run = _first(heads == 0)
        run = count if run is None else run
        if run == 0:
            raise Undecodable(f"{len(samples) - start} samples at {start} are less than a character of {width}")
        windows = samples[start : start + run * width].reshape(run, width)
        text += _characters(windows, start)
        start += run * width
    return "".join(text)


def _characters(windows: NDArray[np.int16], start: int) -> list[str]:
    """Return the character of each row; `start` is where the first row lies, for the message."""
    width = windows.shape[1]
    points = np.zeros(len(windows), dtype=np.int64)
    for begin, end in _symbol_bounds(width):
        part = windows[:, begin:end].astype(np.float32)
        likeness = part @ _templates(end - begin)
        symbols = likeness.argmax(axis=1)
        # 1 for the very sound, up to the rounding to 16 bits; less for anything else.
        share = likeness.max(axis=1) / np.maximum(np.linalg.norm(part, axis=1), 1.0)
        bad = _first(share < 0.99)
        if bad is not None:
            raise Undecodable(f"no character at sample {start + bad * width}: best match {share[bad]:.3f}")
        points = points * _SYMBOLS + symbols
    bad = _first(points > 0x10FFFF)
    if bad is not None:
        raise Undecodable(f"sample {start + bad * width} holds {points[bad]:#x}, which is no character")
    return [chr(point) for point in points]


def _first(mask: NDArray[np.bool_]) -> int | None:
    """Return the index of the first true entry, if there is one."""
    index = int(mask.argmax()) if mask.size else 0
    return index if mask.size and mask[index] else None


@functools.lru_cache(maxsize=64)
def _templates(width: int) -> NDArray[np.float32]:
    """Return one column of unit length for each symbol."""
    waves = np.cos(2 * np.pi * np.outer(np.arange(width) / SAMPLE_RATE, _FREQUENCIES_HZ))
    unit: NDArray[np.float32] = (waves / np.linalg.norm(waves, axis=0)).astype(np.float32)
    return unit


def _symbol_bounds(width: int) -> tuple[tuple[int, int], ...]:
    third = width // 3
    return ((0, third), (third, 2 * third), (2 * third, width))


@functools.lru_cache(maxsize=64)
def _symbols(width: int, amplitude: int) -> tuple[bytes, ...]:
    """Return the sound of each symbol over `width` samples."""
    waves = np.cos(2 * np.pi * np.outer(_FREQUENCIES_HZ, np.arange(width) / SAMPLE_RATE))
    return tuple(wave.tobytes() for wave in np.round(waves * amplitude).astype("<i2"))


def _spoken(text: str, width: int, amplitude: int) -> bytes:
    (a, b), (c, d), (e, f) = _symbol_bounds(width)
    high, middle, low = _symbols(b - a, amplitude), _symbols(d - c, amplitude), _symbols(f - e, amplitude)
    parts: list[bytes] = []
    for point in map(ord, text):
        parts += (high[point >> 14], middle[point >> 7 & 127], low[point & 127])
    return b"".join(parts)


def _chunk_end(state: ToneState) -> int:
    """Return the sample at which the chunk ends that holds the position."""
    step = CHARACTERS_A_CHUNK * state.samples_a_character
    return min((state.position // step + 1) * step, state.end)


def _reached(limit: int | None, chunks: int) -> bool:
    return limit is not None and chunks >= limit


def _faults_ahead(state: ToneState) -> bool:
    """A fault is staged for just behind the last chunk, so the segment must not end with it."""
    staged = state.staged
    return any(_reached(getattr(staged, fault), state.chunks) for fault in _FAULTS.values())


_DIRECTIVE = re.compile(r"\{tone:([a-z-]+)(?:=([0-9]{1,6}))?\}")
_FAULTS = {
    "fail-after": "fail_after_chunks",
    "exit-after": "exit_after_chunks",
    "lose-device-after": "lose_device_after_chunks",
    "stall-after": "stall_after_chunks",
    "hang-after": "hang_after_chunks",
}


def _staged(request: SegmentRequest, options: ToneOptions) -> ToneOptions:
    """Return the process's options as the directives in the text change them.

    Raises:
        TtsError: `invalid_value` for a directive that does not exist; a test with a slip of the pen must not pass.
    """
    if request.resume is not None:
        return options
    changes: dict[str, int | bool] = {}
    for name, value in _DIRECTIVE.findall(request.text):
        if name == "reject" and not value:
            changes["reject"] = True
        elif name in _FAULTS and value:
            changes[_FAULTS[name]] = int(value)
        else:
            raise TtsError(ErrorCode.INVALID_VALUE, f"{{tone:{name}}} is no directive of the tone model", param="text")
    return _replaced(options, changes) if changes else options


def _replaced(options: ToneOptions, changes: dict[str, int | bool]) -> ToneOptions:
    return ToneOptions(**({name: getattr(options, name) for name in ToneOptions.__slots__} | changes))


def _check_checkpoint(checkpoint: bytes) -> None:
    """Refuse what this model did not write. It could do without, but a gateway that mangles checkpoints must be seen.

    Raises:
        TtsError: `invalid_value`.
    """
    if not checkpoint:
        return
    try:
        body = json.loads(checkpoint)
        if body.keys() != {"characters"} or not isinstance(body["characters"], int):
            raise ValueError("other fields than expected")
    except (ValueError, AttributeError) as error:
        message = f"resume.checkpoint is not one of the tone model: {error}"
        raise TtsError(ErrorCode.INVALID_VALUE, message, param="resume.checkpoint") from None
