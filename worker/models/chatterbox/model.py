"""Chatterbox, Turbo and Multilingual as the engine sees them: tokens first, sound second."""

from __future__ import annotations

import concurrent.futures
import gc
import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from wire.errors import ErrorCode, TtsError
from wire.link import ModelInfo
from wire.segment import SegmentRequest
from worker.config import ChatterboxOptions
from worker.figures import ModelFigures
from worker.models.base import Clip, DeviceLost, StepOutput
from worker.models.chatterbox import conditionals, guards, memory
from worker.models.chatterbox.conditionals import VoiceCache
from worker.models.chatterbox.family import DEFAULT_VOICE, FAMILIES, SILENCE, SPEECH_IDS, TOKENS_A_SECOND
from worker.models.chatterbox.guards import Guard
from worker.models.chatterbox.noise import reseeded
from worker.models.chatterbox.s3gen import SoundRun, SoundStage
from worker.models.chatterbox.sampler import Sampling
from worker.models.chatterbox.t3 import TokenStage
from worker.models.chatterbox.text import to_ids
from worker.models.chatterbox.upstream import Parts, Precision, load_parts
from worker.models.chatterbox.utterance import Part, Utterance, checkpoint_of, resumed
from worker.models.chatterbox.watermark import Marker

log = logging.getLogger("worker.models.chatterbox")

CHUNK_TOKENS = 25
STAGES = ("decode", "vocode", "prepare")

_BYTES_A_SAMPLE = 2
_WATERMARK_WAIT_SECONDS = 0.005
_PART_SEEDS = 1000  # attempts at the first part come before these


class ChatterboxModel:
    """Implements `CloningModel[Utterance]`. The same segment gives the same samples, whoever else is speaking."""

    def __init__(self, options: ChatterboxOptions, model: str, device: str, batch: int | None = 1) -> None:
        self._options = options
        self._batch = batch  # None: as many as there is memory for
        self._memory = ""
        self._family = FAMILIES[model]
        self._device = device
        self._chunk = CHUNK_TOKENS if options.stream == "chunk" else None
        self._precision = _precision(options.precision, device)
        self._loaded: _Loaded | None = None
        self._voices = VoiceCache(options.voice_cache_bytes)
        # Plain totals since the start, written by the engine thread and read by anybody.
        self.tokens = 0
        self._watermark_seconds = 0.0  # of the markers before this one
        self.stage_seconds = dict.fromkeys(STAGES, 0.0)
        self.guards: dict[Guard, int] = dict.fromkeys(Guard, 0)

    def info(self) -> ModelInfo:
        return self._family.info(watermark=self._options.watermark)

    def figures(self) -> ModelFigures:
        return ModelFigures(
            tokens=self.tokens,
            stage_seconds={**self.stage_seconds, "watermark": self._watermark_seconds + _marking(self._loaded)},
            conditionals_hits=self._voices.hits,
            conditionals_misses=self._voices.misses,
            conditionals_evictions=self._voices.evictions,
            guards={guard.value: count for guard, count in self.guards.items()},
        )

    def settings(self) -> Mapping[str, Any]:
        return {
            "precision": self._precision.value,
            "stream": self._options.stream,
            "watermark": "perth" if self._options.watermark else "off",
            "checkpoint": self._options.checkpoint,
            "memory": self._memory,
            "torch": torch.__version__,
        }

    def load(self) -> int | None:
        from worker.models.chatterbox.checkpoint import locate

        directory = locate(self._options.checkpoint, self._family)
        # First what takes no time and may say no; the rest takes a minute.
        marker = Marker(enabled=self._options.watermark)
        room = self._find_room() if self._device.startswith("cuda") else None
        with _device_faults():
            parts = load_parts(directory, self._family, self._device, self._precision, self._chunk)
        self._loaded = _Loaded(
            parts=parts,
            token_stage=TokenStage(parts.t3, self._family),
            sound_stage=SoundStage(parts.s3gen, self._family, self._chunk),
            marker=marker,
            default_voice=conditionals.prepared_default(parts),
        )
        return room

    def _find_room(self) -> int:
        """Return how many segments at once there is memory for, of those that were asked for.

        Raises:
            NoRoom: there is not so much.
        """
        free, total = torch.cuda.mem_get_info(self._device)
        need = memory.needed(self._family, is_half=self._precision is Precision.BF16, slots=self._batch or 1)
        if self._batch is None:
            need = memory.filled(need, free)
        holders = _holders(str(torch.cuda.get_device_properties(self._device).uuid))
        memory.check(self._device, self._family.id, need, free=free, total=total, holders=holders)
        self._memory = memory.sum_of(need, free)
        log.info("device=%s memory: %s", self._device, self._memory)
        return need.slots

    def warm_up(self) -> None:
        request = SegmentRequest("warm-up", 0, "Warming up.", self._family.id, DEFAULT_VOICE, seed=1)
        utterance = self.prefill(request)
        self.step([utterance])
        # Then tokens that are given: even a model that comes to no end with this text gets ready.
        utterance.run = utterance.sound = None
        utterance.parts = [Part(request.text, request.seed, [SILENCE] * TOKENS_A_SECOND, is_whole=True)]
        self._begin_sound(utterance)
        while not self.step([utterance])[0].finished:
            pass

    def unload(self) -> None:
        if self._loaded is not None:
            self._loaded.marker.close()
        loaded, self._loaded = self._loaded, None
        self._watermark_seconds += _marking(loaded)
        del loaded
        self._voices.clear()
        # The modules refer to each other in circles; without this their memory comes back some time or never.
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def voice_format(self) -> str:
        return self._get().parts.format

    def prepare_voice(self, clip: Clip) -> bytes:
        with self._spent("prepare"), _device_faults():
            return conditionals.prepare(clip, self._get().parts, self._family)

    def prefill(self, request: SegmentRequest, voice: bytes | None = None) -> Utterance:
        loaded = self._get()
        # Refuses what cannot be spoken before anything is computed.
        to_ids(request.text, request.language, loaded.parts, self._family)
        with _device_faults():
            held = self._voices.take(request.voice_sha256 or "", voice or loaded.default_voice, loaded.parts)
            parts = [Part(request.text, request.seed)]
            skip = 0
            if request.resume is not None:
                skip = request.resume.delivered_samples * _BYTES_A_SAMPLE
                parts = resumed(request.resume.checkpoint, request) or parts
            utterance = Utterance(request, held, parts, skip)
            self._begin_part(utterance)
            self._begin_sound(utterance)
        return utterance

    def step(self, states: Sequence[Utterance]) -> list[StepOutput]:
        """Draw a token for all that have more to say, and do one piece of sound work for the oldest that can."""
        with _device_faults():
            decoding = [u for u in states if u.run is not None]
            failed: dict[int, Exception] = {}
            if decoding:
                with self._spent("decode"):
                    self._get().token_stage.step([u.run for u in decoding if u.run is not None])
                self.tokens += len(decoding)
                for utterance in decoding:
                    try:
                        self._after_token(utterance)
                    except TtsError as error:
                        failed[id(utterance)] = error
            oldest = next((u for u in states if id(u) not in failed and self._can_sound(u)), None)
            if oldest is not None:
                with self._spent("vocode"):
                    self._sound(oldest)
        if not decoding and oldest is None:
            self._wait_for_marks(states)
        return [StepOutput(error=failed[id(u)]) if id(u) in failed else self._collect(u) for u in states]

    def cancel(self, state: Utterance) -> None:
        for future in state.marking:
            future.cancel()
        state.run = state.sound = None

    def _get(self) -> _Loaded:
        if self._loaded is None:
            raise RuntimeError("the model is not loaded")
        return self._loaded

    # -- tokens

    def _begin_part(self, utterance: Utterance) -> None:
        """Begin, or begin again, with the first part that is not whole; nothing where all are."""
        utterance.run = None
        part = utterance.decoding
        if part is None:
            return
        loaded, request = self._get(), utterance.request
        ids: Tensor = to_ids(part.text, request.language, loaded.parts, self._family)
        sampling = Sampling.of(self._family, request.parameters, reseeded(part.seed, part.attempt))
        exaggeration = request.parameters.get("exaggeration", self._family.defaults.get("exaggeration", 0.0))
        utterance.run = loaded.token_stage.begin(utterance.voice, ids, sampling, exaggeration, part.tokens)
        part.tokens = utterance.run.tokens

    def _after_token(self, utterance: Utterance) -> None:
        """Judge what there is of the part, and go on to the next when it is whole.

        Raises:
            TtsError: `segment_failed`: the model makes nothing of this text that could be its speech.
        """
        part, run = utterance.decoding, utterance.run
        assert part is not None
        assert run is not None
        if not run.has_ended:
            if len(part.tokens) >= guards.most_tokens(part.text):
                self._lost(utterance, part)
            return
        if (guard := guards.judge(part.text, part.tokens)) is not None:
            self.guards[guard] += 1
            if part.attempt < guards.MAX_REROLLS and not utterance.has_sounded:
                self._reroll(utterance, part)
                return
            if not part.tokens:
                raise _failed("the model ends at once, without a sound", part.text)
            if not utterance.has_sounded and self._chunk is None:
                part.tokens = guards.without_trailing_silence(part.tokens)
        part.is_whole = True
        self._begin_part(utterance)
        self._begin_sound(utterance)

    def _lost(self, utterance: Utterance, part: Part) -> None:
        """The model does not come to an end: cut the text in two, or try again; never cut the sound."""
        self.guards[Guard.NO_END] += 1
        if utterance.has_sounded:
            raise _failed("the model did not come to an end, after its sound was on the way", part.text)
        cut = guards.halves(part.text)
        if cut is not None and len(utterance.parts) < guards.MAX_PARTS:
            number = utterance.parts.index(part)
            first = len(utterance.parts) + _PART_SEEDS
            seeds = [reseeded(utterance.request.seed, first + i) for i in range(2)]
            utterance.parts[number : number + 1] = [Part(text, seed) for text, seed in zip(cut, seeds, strict=True)]
            self._begin_part(utterance)
            self._begin_sound(utterance)
        elif part.attempt < guards.MAX_REROLLS:
            self._reroll(utterance, part)
        else:
            raise _failed(f"the model did not come to an end within {len(part.tokens)} tokens", part.text)

    def _reroll(self, utterance: Utterance, part: Part) -> None:
        part.attempt += 1
        part.tokens = []
        utterance.sound = None
        self._begin_part(utterance)
        self._begin_sound(utterance)

    # -- sound

    def _begin_sound(self, utterance: Utterance) -> None:
        """Point the sound stage at the part whose turn it is: at once in chunks, else when all are whole.

        All, so that a later part that cannot be spoken is known before the first byte.
        """
        if utterance.sounding == len(utterance.parts):
            utterance.sound = None
            return
        if self._chunk is None and utterance.decoding is not None:
            return
        part = utterance.parts[utterance.sounding]
        if utterance.sound is None:
            number = utterance.sounding
            seed = utterance.request.seed if number == 0 else reseeded(utterance.request.seed, _PART_SEEDS + number)
            utterance.sound = SoundRun(utterance.voice, seed)
        utterance.sound.tokens = part.tokens
        utterance.sound.is_whole = part.is_whole

    def _can_sound(self, utterance: Utterance) -> bool:
        return utterance.sound is not None and self._get().sound_stage.can_advance(utterance.sound)

    def _sound(self, utterance: Utterance) -> None:
        assert utterance.sound is not None
        # An index beyond the flow's table is a fault of the device. The sampler cannot draw one; a checkpoint may lie.
        assert all(0 <= token < SPEECH_IDS for token in utterance.sound.tokens[utterance.sound.rendered :])
        piece = self._get().sound_stage.advance(utterance.sound)
        if piece is not None:
            utterance.has_sounded = True
            utterance.marking.append(self._get().marker.mark(piece))
        if utterance.sound.has_ended:
            utterance.sound = None
            utterance.sounding += 1
            self._begin_sound(utterance)

    def _wait_for_marks(self, states: Sequence[Utterance]) -> None:
        pending = [u.marking[0] for u in states if u.marking]
        concurrent.futures.wait(
            pending, timeout=_WATERMARK_WAIT_SECONDS, return_when=concurrent.futures.FIRST_COMPLETED
        )

    def _collect(self, utterance: Utterance) -> StepOutput:
        """Give out the sound that has its mark, in order."""
        pcm = b""
        while utterance.marking and utterance.marking[0].done():
            pcm += utterance.marking.popleft().result()
        finished = utterance.sounding == len(utterance.parts) and not utterance.marking
        skipped = min(utterance.skip_bytes, len(pcm))
        utterance.skip_bytes -= skipped
        pcm = pcm[skipped:]
        return StepOutput(pcm, checkpoint_of(utterance) if pcm and not finished else None, finished)

    @contextmanager
    def _spent(self, stage: str) -> Iterator[None]:
        began = time.monotonic()
        try:
            yield
        finally:
            self.stage_seconds[stage] += time.monotonic() - began


@dataclass(frozen=True, slots=True)
class _Loaded:
    parts: Parts
    token_stage: TokenStage
    sound_stage: SoundStage
    marker: Marker
    default_voice: bytes


def _marking(loaded: _Loaded | None) -> float:
    return loaded.marker.seconds if loaded is not None else 0.0


@contextmanager
def _device_faults() -> Iterator[None]:
    """Turn a fault of the device into `DeviceLost`: its context is gone, and every later call in this process fails."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except torch.AcceleratorError as error:
        raise DeviceLost(f"{type(error).__name__}: {str(error)[:200]}") from error


def _holders(uuid: str) -> list[str]:
    """Name the processes on a GPU and what they hold; none where the driver does not tell."""
    import pynvml

    try:
        pynvml.nvmlInit()
        handle = pynvml.nvmlDeviceGetHandleByUUID(uuid if uuid.startswith("GPU-") else f"GPU-{uuid}")
        running = pynvml.nvmlDeviceGetComputeRunningProcesses(handle)
    except pynvml.NVMLError:
        return []
    return [f"{_name(one.pid)} (pid {one.pid}) {(one.usedGpuMemory or 0) / (1 << 30):.2f} GiB" for one in running]


def _name(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return "a process elsewhere"


def _precision(asked: str, device: str) -> Precision:
    if asked == "auto":
        return Precision.BF16 if device.startswith("cuda") else Precision.FP32
    return Precision(asked)


def _failed(why: str, text: str) -> TtsError:
    return TtsError(ErrorCode.SEGMENT_FAILED, f"{why}: {text[:60]!r}")
