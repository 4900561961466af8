"""Which model and voice a request means: names, aliases, and who may speak what. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from wire.errors import ErrorCode, TtsError
from wire.link import ModelInfo

# OpenAI's names, which some clients cannot leave (Pipecat checks them on its own side).
OPENAI_VOICES = (
    "alloy", "ash", "ballad", "coral", "echo", "fable", "onyx", "nova", "sage", "shimmer", "verse", "marin", "cedar",
)  # fmt: skip
OPENAI_MODELS = ("tts-1", "tts-1-hd", "gpt-4o-mini-tts", "gpt-4o-mini-tts-2025-12-15")


@dataclass(frozen=True, slots=True)
class Cast:
    """Who speaks: a model that is known, and one of its voices."""

    model: ModelInfo
    voice: str


class Catalogue:
    """Models and voices by name. `models` are those known now, `aliases` the operator's own names for voices."""

    def __init__(
        self, models: Mapping[str, ModelInfo], *, default_model: str | None, aliases: Mapping[str, str]
    ) -> None:
        self._models = models
        self._default_model = default_model
        self._aliases = aliases

    @property
    def models(self) -> list[ModelInfo]:
        """The models, the default one first, then by name."""
        if not self._models:
            return []
        default = self._default()
        return [default, *(self._models[name] for name in sorted(self._models) if name != default.id)]

    def cast(self, *, model: str | None, voice: str | None) -> Cast:
        """Return who speaks for these names; None means the default.

        A voice that several models have goes to the default model first.

        Raises:
            TtsError: `model_not_found` or `voice_not_found`, listing the names there are. Never another voice instead.
        """
        if model is not None and model not in self._models and model not in OPENAI_MODELS:
            raise TtsError(
                ErrorCode.MODEL_NOT_FOUND,
                f"There is no model {model[:64]!r}. Known here: {', '.join(m.id for m in self.models)}.",
                param="model",
            )
        candidates = [self._models[model]] if model is not None and model in self._models else self.models
        if voice is None:
            return Cast(candidates[0], candidates[0].default_voice)
        for candidate in candidates:
            if (name := self._voice_of(candidate, voice)) is not None:
                return Cast(candidate, name)
        raise TtsError(
            ErrorCode.VOICE_NOT_FOUND,
            f"There is no voice {voice[:64]!r} for {' or '.join(m.id for m in candidates)}. "
            f"Known here: {', '.join(self.voice_names(candidates[0]))}.",
            param="voice",
        )

    def voice_names(self, model: ModelInfo) -> list[str]:
        """Return every name that means a voice of this model: its own, the operator's aliases, OpenAI's."""
        names = [*model.voices, *self._aliases, *OPENAI_VOICES]
        return [name for name in dict.fromkeys(names) if self._voice_of(model, name) is not None]

    def alias_of(self, model: ModelInfo, name: str) -> str | None:
        """Return the voice that `name` is another name of, None when it is a voice itself."""
        return None if name in model.voices else self._voice_of(model, name)

    def _voice_of(self, model: ModelInfo, name: str) -> str | None:
        if name in model.voices:
            return name
        if name in self._aliases:
            return self._aliases[name] if self._aliases[name] in model.voices else None
        if name in OPENAI_VOICES:
            return model.voices[OPENAI_VOICES.index(name) % len(model.voices)]
        return None

    def _default(self) -> ModelInfo:
        if self._default_model is not None and self._default_model in self._models:
            return self._models[self._default_model]
        # A real voice before a test double, then by name, so that every gateway of a fleet picks the same.
        return min(self._models.values(), key=lambda m: (m.id == "tone", m.id))
