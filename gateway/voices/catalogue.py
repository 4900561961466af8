"""Which model and voice a request means: names, aliases, and who may speak what. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from wire.errors import ErrorCode, TtsError
from wire.link import ModelInfo

# OpenAI's names, which some clients cannot leave (Pipecat checks them on its own side).
OPENAI_VOICES = (
    "alloy", "ash", "ballad", "coral", "echo", "fable", "onyx", "nova", "sage", "shimmer", "verse", "marin", "cedar",
)  # fmt: skip
OPENAI_MODELS = ("tts-1", "tts-1-hd", "gpt-4o-mini-tts", "gpt-4o-mini-tts-2025-12-15")


# Of so many voices an error message names the first.
_TOLD = 30


class Warned(NamedTuple):
    """What is wrong with a clip that can be used all the same: a stable code, and a sentence for people."""

    code: str
    message: str


@dataclass(frozen=True, slots=True)
class UploadedVoice:
    """A voice that somebody uploaded. `id` is for life, `name` may be changed; `clip` is the clip's SHA-256."""

    id: str
    name: str
    clip: str
    clip_bytes: int
    seconds: float
    created_at: int
    warnings: tuple[Warned, ...] = ()

    def why_not(self, model: ModelInfo) -> str | None:
        """Return why this model cannot speak with the voice, None when it can."""
        if not model.cloning:
            return "it has voices of its own only"
        if self.seconds <= model.min_clip_seconds:
            return f"it needs a clip of more than {model.min_clip_seconds:g} s, and this one lasts {self.seconds:.1f} s"
        return None


def handle(name: str) -> str:
    """Return what an uploaded voice is found by: its name, or its id, whatever the case and the blanks."""
    return " ".join(name.split()).casefold()


@dataclass(frozen=True, slots=True)
class Cast:
    """Who speaks: a model that is known, and one of its voices or, with the SHA-256 of its clip, an uploaded one."""

    model: ModelInfo
    voice: str
    clip: str | None = None


class Catalogue:
    """Models and voices by name. `models` are those known now, `aliases` the operator's own names for voices, and
    `uploaded` the voices that people uploaded, by handle."""

    def __init__(
        self,
        models: Mapping[str, ModelInfo],
        *,
        default_model: str | None,
        aliases: Mapping[str, str],
        uploaded: Mapping[str, UploadedVoice] | None = None,
    ) -> None:
        self._models = models
        self._default_model = default_model
        self._aliases = aliases
        self._uploaded = uploaded or {}

    @property
    def models(self) -> list[ModelInfo]:
        """The models, the default one first, then by name."""
        if not self._models:
            return []
        default = self._default()
        return [default, *(self._models[name] for name in sorted(self._models) if name != default.id)]

    def cast(self, *, model: str | None, voice: str | None) -> Cast:
        """Return who speaks for these names; None means the default.

        A voice that several models have goes to the default model first. An uploaded voice goes before a model's own of
        the same name: who uploaded it must not hear another one because a worker has joined.

        Raises:
            TtsError: `model_not_found` or `voice_not_found`, listing the names there are; `invalid_value` for an
                uploaded voice that these models cannot speak with. Never another voice instead.
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
        if (uploaded := self.uploaded(voice)) is not None:
            return self._cast_uploaded(uploaded, candidates)
        for candidate in candidates:
            if (name := self._voice_of(candidate, voice)) is not None:
                return Cast(candidate, name)
        raise TtsError(
            ErrorCode.VOICE_NOT_FOUND,
            f"There is no voice {voice[:64]!r} for {' or '.join(m.id for m in candidates)}. "
            f"Known here: {_listed(self.voice_names(candidates[0]))}.",
            param="voice",
        )

    def uploaded(self, name: str) -> UploadedVoice | None:
        """Return the uploaded voice that has this id or name, or that the operator's alias means."""
        found = self._uploaded.get(handle(name))
        if found is None and name in self._aliases and not any(name in m.voices for m in self._models.values()):
            found = self._uploaded.get(handle(self._aliases[name]))
        return found

    def meaning(self, name: str) -> str | None:
        """Say what a name means here beside the uploaded voices, None for nothing: nobody may upload a voice of it."""
        wanted = handle(name)
        for model in self._models.values():
            if wanted in map(handle, model.voices):
                return f"a voice of model {model.id!r}"
        if wanted in map(handle, self._aliases):
            return "the operator's name for another voice"
        if wanted in OPENAI_VOICES:
            return "one of OpenAI's names, for which a voice is here already (--voice-alias gives it another one)"
        return None

    def _cast_uploaded(self, voice: UploadedVoice, candidates: list[ModelInfo]) -> Cast:
        reasons = []
        for model in candidates:
            reason = voice.why_not(model)
            if reason is None:
                return Cast(model, voice.id, voice.clip)
            reasons.append(f"{model.id}: {reason}")
        others = [m.id for m in self.models if voice.why_not(m) is None]
        raise TtsError(
            ErrorCode.INVALID_VALUE,
            f"The uploaded voice {voice.id!r} cannot be used with {'; '.join(reasons)}. "
            + (f"Ask for model {' or '.join(others)}." if others else "No worker here has a model that could use it."),
            param="voice",
        )

    def voice_names(self, model: ModelInfo) -> list[str]:
        """Return every name that means a voice of this model: its own, the ids of those uploaded, the operator's
        aliases, OpenAI's."""
        uploaded = dict.fromkeys(voice.id for voice in self._uploaded.values() if voice.why_not(model) is None)
        names = [*model.voices, *uploaded, *self._aliases, *OPENAI_VOICES]
        return [name for name in dict.fromkeys(names) if self._voice_of(model, name) is not None]

    def alias_of(self, model: ModelInfo, name: str) -> str | None:
        """Return the voice that `name` is another name of, None when it is a voice itself."""
        voice = self._voice_of(model, name)
        return None if voice == name else voice

    def _voice_of(self, model: ModelInfo, name: str) -> str | None:
        if (uploaded := self.uploaded(name)) is not None:
            return uploaded.id if uploaded.why_not(model) is None else None
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


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - _TOLD} more" if len(names) > _TOLD else ""
    return ", ".join(names[:_TOLD]) + more
