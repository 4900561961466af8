"""Chatterbox before torch is there: importing it takes ten seconds, and a worker should show before that.

What a gateway is told needs no torch. The rest begins with `load`, in the engine's thread, when the worker has long
been listening and registered.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from wire.link import ModelInfo
from wire.segment import SegmentRequest
from worker.config import ChatterboxOptions
from worker.figures import ModelFigures
from worker.models.base import Clip, StepOutput
from worker.models.chatterbox.family import FAMILIES

if TYPE_CHECKING:
    from worker.models.chatterbox.model import ChatterboxModel
    from worker.models.chatterbox.utterance import Utterance


class NotInstalled(Exception):
    """A package that the model needs is not there; the message names it and says what to install."""


class LateModel:
    """Implements `CloningModel[Utterance]` by a `ChatterboxModel` that is made at the first `load`, and kept."""

    def __init__(
        self, options: ChatterboxOptions, model: str, device: str, batch: int | None, sound_device: str | None = None
    ) -> None:
        self._options = options
        self._family = FAMILIES[model]
        self._device = device
        self._batch = batch
        self._sound_device = sound_device
        # Written once, by the engine's thread; the event loop sees none of it or all.
        self._model: ChatterboxModel | None = None

    def info(self) -> ModelInfo:
        return self._family.info(watermark=self._options.watermark)

    def figures(self) -> ModelFigures:
        return ModelFigures() if self._model is None else self._model.figures()

    def settings(self) -> Mapping[str, Any]:
        return {} if self._model is None else self._model.settings()

    def load(self) -> int | None:
        if self._model is None:
            self._model = self._make()
        return self._model.load()

    def warm_up(self) -> None:
        self._made().warm_up()

    def unload(self) -> None:
        self._made().unload()

    def voice_format(self) -> str:
        return self._made().voice_format()

    def prepare_voice(self, clip: Clip) -> bytes:
        return self._made().prepare_voice(clip)

    def prefill(self, request: SegmentRequest, voice: bytes | None = None) -> Utterance:
        return self._made().prefill(request, voice)

    def step(self, states: Sequence[Utterance]) -> list[StepOutput]:
        return self._made().step(states)

    def cancel(self, state: Utterance) -> None:
        self._made().cancel(state)

    def _make(self) -> ChatterboxModel:
        try:
            from worker.models.chatterbox.model import ChatterboxModel
        except ModuleNotFoundError as error:
            raise NotInstalled(
                f"{self._family.id} needs the package {error.name}, which is not installed here: "
                "pip install 'chatterbox-gateway[chatterbox]', or as docs/chatterbox.md has it"
            ) from error
        return ChatterboxModel(self._options, self._family.id, self._device, self._batch, self._sound_device)

    def _made(self) -> ChatterboxModel:
        assert self._model is not None, "used before load"
        return self._model
