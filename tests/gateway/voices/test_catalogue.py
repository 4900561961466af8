"""Names of models and voices: who speaks for which, and what is said when nobody does."""

from __future__ import annotations

from typing import Any

import pytest

from gateway.voices.catalogue import OPENAI_MODELS, OPENAI_VOICES, Cast, Catalogue, UploadedVoice
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


# -- voices that were uploaded

CLONING = ModelInfo("clone", 24_000, ("own",), ("en",), cloning=True)
TURBO = ModelInfo("turbo", 24_000, ("own",), ("en",), cloning=True, min_clip_seconds=5.0)
ANNA = UploadedVoice("anna", "Anna Müller", "a" * 64, 100, 4.0, 0)


def with_anna(*models: ModelInfo, **options: Any) -> Catalogue:
    return Catalogue(
        {model.id: model for model in models},
        default_model=options.get("default"),
        aliases=options.get("aliases", {}),
        uploaded={"anna": ANNA, "anna müller": ANNA},
    )


@pytest.mark.parametrize("name", ["anna", "Anna", "Anna Müller", " anna  MÜLLER "])
def test_an_uploaded_voice_is_found_by_id_and_by_name(name: str):
    assert with_anna(CLONING).cast(model=None, voice=name) == Cast(CLONING, "anna", "a" * 64)


def test_it_goes_to_a_model_that_can_use_it():
    assert with_anna(EMBEDDED, TURBO, CLONING).cast(model=None, voice="anna").model is CLONING
    assert with_anna(EMBEDDED, CLONING, default="embedded").cast(model="tts-1", voice="anna").model is CLONING


def test_a_model_that_cannot_use_it_says_why_and_which_one_can():
    error = refusal(with_anna(EMBEDDED, TURBO, CLONING), model="turbo", voice="anna")
    assert (error.code, error.param) == (ErrorCode.INVALID_VALUE, "voice")
    assert "more than 5 s, and this one lasts 4.0 s" in error.message
    assert "Ask for model clone" in error.message
    alone = refusal(with_anna(EMBEDDED), voice="anna")
    assert "voices of its own only" in alone.message
    assert "No worker here" in alone.message


def test_it_goes_before_a_voice_of_the_same_name_that_a_worker_brought_later():
    later = ModelInfo("clone", 24_000, ("own", "anna"), ("en",), cloning=True)
    assert with_anna(later).cast(model=None, voice="anna").clip == "a" * 64


def test_the_operator_may_give_it_one_of_openais_names():
    aliased = with_anna(CLONING, aliases={"alloy": "anna"})
    assert aliased.cast(model=None, voice="alloy").clip == "a" * 64
    assert aliased.alias_of(CLONING, "alloy") == "anna"
    assert aliased.cast(model=None, voice="ash").clip is None


def test_it_is_listed_for_the_models_that_can_use_it():
    known = with_anna(EMBEDDED, TURBO, CLONING)
    assert known.voice_names(CLONING)[:2] == ["own", "anna"]
    assert "anna" not in known.voice_names(TURBO)
    assert "anna" not in known.voice_names(EMBEDDED)
    assert known.alias_of(CLONING, "anna") is None


def test_a_list_of_a_thousand_voices_has_an_end():
    many = {f"v{n}": UploadedVoice(f"v{n}", f"v{n}", "a" * 64, 1, 6.0, 0) for n in range(1_000)}
    known = Catalogue({"clone": CLONING}, default_model=None, aliases={}, uploaded=many)
    assert len(refusal(known, voice="nobody").message) < 1_000


@pytest.mark.parametrize(
    ("name", "meaning"),
    [("OWN", "a voice of model 'clone'"), ("Bella", "the operator's name"), ("alloy", "OpenAI's"), ("carla", None)],
)
def test_what_a_name_means_besides(name: str, meaning: str | None):
    told = with_anna(CLONING, aliases={"bella": "own"}).meaning(name)
    assert told is None if meaning is None else meaning in str(told)
