"""Names of models and voices: who speaks for which, and what is said when nobody does."""

from __future__ import annotations

from typing import Any

import pytest

from gateway.voices.catalogue import OPENAI_MODELS, OPENAI_VOICES, Cast, Catalogue
from wire.errors import ErrorCode, TtsError
from wire.link import ModelInfo

TONE = ModelInfo("tone", 24_000, ("alto", "tenor", "bass"), ("en",))
EMBEDDED = ModelInfo("embedded", 24_000, ("heart", "warm"), ("en",))
ZEBRA = ModelInfo("zebra", 16_000, ("heart", "stripe"), ("en", "fr"))


def catalogue(*models: ModelInfo, default: str | None = None, aliases: dict[str, str] | None = None) -> Catalogue:
    return Catalogue({model.id: model for model in models}, default_model=default, aliases=aliases or {})


def refusal(of: Catalogue, **names: Any) -> TtsError:
    with pytest.raises(TtsError) as caught:
        of.cast(**{"model": None, "voice": None} | names)
    return caught.value


def test_without_names_the_default_models_first_voice_speaks():
    assert catalogue(TONE).cast(model=None, voice=None) == Cast(TONE, "alto")


def test_a_real_voice_is_the_default_before_the_test_double_and_then_the_name_decides():
    assert catalogue(TONE, ZEBRA, EMBEDDED).cast(model=None, voice=None).model is EMBEDDED
    assert catalogue(TONE, ZEBRA).cast(model=None, voice=None).model is ZEBRA
    assert [model.id for model in catalogue(TONE, ZEBRA, EMBEDDED).models] == ["embedded", "tone", "zebra"]


def test_the_operators_default_model_goes_first_if_it_is_there():
    assert catalogue(TONE, EMBEDDED, default="tone").cast(model=None, voice=None).model is TONE
    assert catalogue(EMBEDDED, default="tone").cast(model=None, voice=None).model is EMBEDDED


def test_nobody_there_is_no_model_at_all():
    assert catalogue().models == []


@pytest.mark.parametrize("name", OPENAI_MODELS)
def test_openais_models_mean_the_default_one(name: str):
    assert catalogue(TONE, EMBEDDED).cast(model=name, voice=None).model is EMBEDDED


def test_a_model_that_is_called_like_one_of_openais_is_itself():
    own = ModelInfo("tts-1", 24_000, ("mine",), ("en",))
    assert catalogue(EMBEDDED, own).cast(model="tts-1", voice=None) == Cast(own, "mine")


def test_an_unknown_model_is_told_with_those_there_are():
    error = refusal(catalogue(TONE, EMBEDDED), model="gpt-9")
    assert (error.code, error.param) == (ErrorCode.MODEL_NOT_FOUND, "model")
    assert "'gpt-9'" in error.message
    assert "embedded, tone" in error.message


def test_an_unknown_voice_is_told_with_those_there_are_and_never_replaced():
    error = refusal(catalogue(TONE), voice="nobody")
    assert (error.code, error.param) == (ErrorCode.VOICE_NOT_FOUND, "voice")
    assert "'nobody'" in error.message
    assert "alto, tenor, bass" in error.message


def test_the_name_that_is_told_back_has_an_end():
    assert len(refusal(catalogue(TONE), voice="x" * 10_000).message) < 1000
    assert len(refusal(catalogue(TONE), model="x" * 10_000).message) < 1000


def test_a_voice_finds_its_model_where_none_was_named():
    several = catalogue(TONE, EMBEDDED, ZEBRA)
    assert several.cast(model=None, voice="bass") == Cast(TONE, "bass")
    assert several.cast(model="tts-1", voice="stripe") == Cast(ZEBRA, "stripe")


def test_a_voice_of_several_models_is_the_default_models():
    assert catalogue(ZEBRA, EMBEDDED).cast(model=None, voice="heart").model is EMBEDDED
    assert catalogue(ZEBRA, EMBEDDED, default="zebra").cast(model=None, voice="heart").model is ZEBRA


def test_a_voice_of_another_model_than_the_one_that_was_named_is_not_found():
    assert refusal(catalogue(TONE, EMBEDDED), model="tone", voice="heart").code is ErrorCode.VOICE_NOT_FOUND


@pytest.mark.parametrize("name", OPENAI_VOICES)
@pytest.mark.parametrize("model", [TONE, EMBEDDED], ids=lambda model: model.id)
def test_each_of_openais_thirteen_names_is_a_voice(model: ModelInfo, name: str):
    assert catalogue(model).cast(model=None, voice=name).voice in model.voices


def test_openais_names_are_spread_over_all_voices():
    voices = [catalogue(TONE).cast(model=None, voice=name).voice for name in OPENAI_VOICES]
    assert len(OPENAI_VOICES) == 13
    assert [voices.count(voice) for voice in TONE.voices] == [5, 4, 4]


def test_the_operators_alias_goes_before_openais_meaning_and_behind_a_real_voice():
    aliases = {"alloy": "bass", "tenor": "bass", "anna": "alto"}
    own = catalogue(TONE, aliases=aliases)
    assert own.cast(model=None, voice="alloy").voice == "bass"
    assert own.cast(model=None, voice="anna").voice == "alto"
    assert own.cast(model=None, voice="tenor").voice == "tenor"
    assert own.alias_of(TONE, "anna") == "alto"
    assert own.alias_of(TONE, "tenor") is None
    assert own.alias_of(TONE, "nobody") is None


def test_an_alias_for_a_voice_that_the_model_lacks_is_no_voice_of_it():
    own = catalogue(TONE, EMBEDDED, aliases={"anna": "alto"})
    assert own.cast(model=None, voice="anna").model is TONE
    assert refusal(own, model="embedded", voice="anna").code is ErrorCode.VOICE_NOT_FOUND
    assert "anna" not in own.voice_names(EMBEDDED)


def test_every_name_is_listed_once_and_can_be_spoken():
    own = catalogue(TONE, aliases={"anna": "alto", "alloy": "bass"})
    names = own.voice_names(TONE)
    assert names[:5] == ["alto", "tenor", "bass", "anna", "alloy"]
    assert sorted(names) == sorted({*TONE.voices, "anna", *OPENAI_VOICES})
    for name in names:
        own.cast(model="tone", voice=name)
