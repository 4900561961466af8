"""Chatterbox, Turbo and Multilingual as the engine sees them: tokens on its own thread, sound on another."""

from __future__ import annotations

import gc
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from wire.errors import TtsError
from wire.link import ModelInfo
from wire.segment import SegmentRequest
from worker.config import ChatterboxOptions
from worker.figures import ModelFigures
from worker.models.base import Clip, StepOutput
from worker.models.chatterbox import conditionals, memory
from worker.models.chatterbox.clock import StageClock
from worker.models.chatterbox.conditionals import VoiceCache
from worker.models.chatterbox.devices import device_faults, find_room, precision_of
from worker.models.chatterbox.family import DEFAULT_VOICE, FAMILIES, SILENCE, TOKENS_A_SECOND
from worker.models.chatterbox.guards import Guard
from worker.models.chatterbox.narrator import Narrator
from worker.models.chatterbox.s3gen import SoundStage
from worker.models.chatterbox.sounding import STAGE as SOUND_STAGE
from worker.models.chatterbox.sounding import SoundThread
from worker.models.chatterbox.t3 import TokenStage
from worker.models.chatterbox.text import to_ids
from worker.models.chatterbox.upstream import Parts, Precision, load_parts
from worker.models.chatterbox.utterance import Part, Utterance, resumed
from worker.models.chatterbox.watermark import Marker

log = logging.getLogger("worker.models.chatterbox")

CHUNK_TOKENS = 25
STAGES = ("decode", SOUND_STAGE, "prepare")

_BYTES_A_SAMPLE = 2
_SOUND_WAIT_SECONDS = 0.005
# A GPU has work enough with so many in a step of the flow (42 ms on an H200 for 18 seconds each, and 30 for one where
# its host launches each operation); more would only be later. A CPU takes as much longer as they are more.
_SOUND_BATCH_GPU = 16
_SOUND_BATCH_CPU = 1


class ChatterboxModel:
    """Implements `CloningModel[Utterance]`. The same segment gives the same samples, whoever else is speaking.

    The engine thread owns the token stage and all utterances; the sound stage has a thread of its own, and its own
    device where one is given. `batch` is how many segments there are at once, in both stages together.
    """

    def __init__(
        self,
        options: ChatterboxOptions,
        model: str,
        device: str,
        batch: int | None = 1,
        sound_device: str | None = None,
    ) -> None:
        self._options = options
        self._batch = batch  # None: as many as there is memory for
        self._memory = ""
        self._family = FAMILIES[model]
        self._device = device
        self._sound_device = sound_device or device
        self._sound_batch = options.sound_batch or (
            _SOUND_BATCH_GPU if self._sound_device.startswith("cuda") else _SOUND_BATCH_CPU
        )
        self._chunk = CHUNK_TOKENS if options.stream == "chunk" else None
        self._precision = precision_of(options.precision, device)
        self._loaded: _Loaded | None = None
        self._voices = VoiceCache(options.voice_cache_bytes, options.reference_seconds)
        # Plain totals since the start, written by the engine thread and read by anybody.
        self.tokens = 0
        self._watermark_seconds = 0.0  # of the markers before this one
        self.guards: dict[Guard, int] = dict.fromkeys(Guard, 0)
        # Both threads tell it when they work.
        self.clock = StageClock(STAGES)

    def info(self) -> ModelInfo:
        return self._family.info(watermark=self._options.watermark)

    def figures(self) -> ModelFigures:
        stages, busy, overlap = self.clock.read()
        return ModelFigures(
            tokens=self.tokens,
            stage_seconds={**stages, "watermark": self._watermark_seconds + _marking(self._loaded)},
            busy_seconds=busy,
            overlap_seconds=overlap,
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
            "kernels": self._kernels(),
            "memory": self._memory,
            "cfm_steps": self._options.cfm_steps or self._family.flow_steps,
            "reference_seconds": self._options.reference_seconds,
            "sound_batch": self._sound_batch,
            "token_device": self._device,
            "sound_device": self._sound_device,
            "torch": torch.__version__,
        }

    def _kernels(self) -> str:
        if self._loaded is None:
            return ""
        stages = (("tokens", self._loaded.token_stage), ("sound", self._loaded.sound_stage.flow))
        return ", ".join(name for name, stage in stages if stage.has_kernels) or "none"

    def load(self) -> int | None:
        from worker.models.chatterbox.checkpoint import locate

        directory = locate(self._options.checkpoint, self._family)
        # First what takes no time and may say no; the rest takes a minute.
        room = self._find_room()
        with device_faults():
            marker = Marker(enabled=self._options.watermark, device=torch.device(self._sound_device))
            parts = load_parts(directory, self._family, self._device, self._sound_device, self._precision)
        token_stage = TokenStage(parts.t3, self._family, room or self._batch or 1)
        sound_stage = SoundStage(parts.s3gen, self._family, self._chunk, self._options.cfm_steps)
        sound = SoundThread(sound_stage, marker, self.clock, parts.s3gen.device, self._sound_batch)
        sound.start()
        self._loaded = _Loaded(
            parts=parts,
            token_stage=token_stage,
            sound_stage=sound_stage,
            sound=sound,
            narrator=Narrator(parts, self._family, token_stage, sound, self._chunk, self.guards),
            marker=marker,
            default_voice=conditionals.prepared_default(parts),
        )
        return room

    def _find_room(self) -> int | None:
        """Return how many segments at once there is memory for, of those that were asked for; None for a CPU.

        Raises:
            NoRoom: a device has not so much.
        """
        needs = memory.by_device(
            self._family,
            (self._device, self._sound_device),
            is_half=self._precision is Precision.BF16,
            slots=self._batch or 1,
        )
        found = {
            device: find_room(device, self._family.id, need, fill=self._batch is None)
            for device, need in needs.items()
            if device.startswith("cuda")
        }
        self._memory = "; ".join(words for _, words in found.values())
        if self._memory:
            log.info("memory: %s", self._memory)
        # The slots are the token stage's: what it keeps of each text is what grows with them.
        return found[self._device][0].slots if self._device in found else None

    def warm_up(self) -> None:
        request = SegmentRequest("warm-up", 0, "Warming up.", self._family.id, DEFAULT_VOICE, seed=1)
        utterance = self.prefill(request)
        self.step([utterance])
        # Then tokens that are given: even a model that comes to no end with this text gets ready.
        self.cancel(utterance)
        utterance = Utterance(
            request,
            utterance.voice,
            [Part(request.text, request.seed, [SILENCE] * TOKENS_A_SECOND, is_whole=True)],
            skip_bytes=0,
        )
        self._get().narrator.begin(utterance)
        while not (output := self.step([utterance])[0]).finished:
            if output.error is not None:
                raise output.error
        self._get().token_stage.warm_up(memory.positions(self._family))

    def unload(self) -> None:
        loaded, self._loaded = self._loaded, None
        if loaded is not None:
            loaded.sound.stop()
            loaded.marker.close()
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
        with self.clock.at_work("prepare"), device_faults():
            return conditionals.prepare(clip, self._get().parts, self._family)

    def prefill(self, request: SegmentRequest, voice: bytes | None = None) -> Utterance:
        loaded = self._get()
        # Refuses what cannot be spoken before anything is computed.
        to_ids(request.text, request.language, loaded.parts, self._family)
        with device_faults():
            held = self._voices.take(request.voice_sha256 or "", voice or loaded.default_voice, loaded.parts)
            parts = [Part(request.text, request.seed)]
            skip = 0
            if request.resume is not None:
                skip = request.resume.delivered_samples * _BYTES_A_SAMPLE
                parts = resumed(request.resume.checkpoint, request) or parts
            utterance = Utterance(request, held, parts, skip)
            loaded.narrator.begin(utterance)
        return utterance

    def step(self, states: Sequence[Utterance]) -> list[StepOutput]:
        """Draw a token for all that have more to say, and collect what the sound stage has made meanwhile.

        Raises:
            DeviceLost: a device, or the sound stage, is of no use any more.
        """
        loaded = self._get()
        loaded.sound.check()
        decoding = [u for u in states if u.run is not None]
        failed: dict[int, TtsError] = {}
        if decoding:
            runs = [u.run for u in decoding if u.run is not None]
            before = sum(len(run.tokens) for run in runs)
            with device_faults(), self.clock.at_work("decode"):
                loaded.token_stage.step(runs)
            self.tokens += sum(len(run.tokens) for run in runs) - before
            for utterance in decoding:
                try:
                    with device_faults():
                        loaded.narrator.after_token(utterance)
                except TtsError as error:
                    loaded.narrator.drop(utterance)
                    failed[id(utterance)] = error
        else:
            # No longer: somebody new may have come, or somebody may have left.
            loaded.sound.wait(_SOUND_WAIT_SECONDS)
        return [StepOutput(error=failed[id(u)]) if id(u) in failed else loaded.narrator.collect(u) for u in states]

    def cancel(self, state: Utterance) -> None:
        self._get().narrator.drop(state)

    def _get(self) -> _Loaded:
        if self._loaded is None:
            raise RuntimeError("the model is not loaded")
        return self._loaded


@dataclass(frozen=True, slots=True)
class _Loaded:
    parts: Parts
    token_stage: TokenStage
    sound_stage: SoundStage
    sound: SoundThread
    narrator: Narrator
    marker: Marker
    default_voice: bytes


def _marking(loaded: _Loaded | None) -> float:
    return loaded.marker.seconds if loaded is not None else 0.0
