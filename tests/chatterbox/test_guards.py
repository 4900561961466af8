"""What upstream crashes at, loses or drags out is refused, mended or tried again, and counted."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from tests.chatterbox.conftest import Models
from tests.chatterbox.speaking import ALL, clip, samples, segment, speak
from wire.errors import ErrorCode, TtsError
from wire.segment import Resume
from worker.models.base import DeviceLost
from worker.models.chatterbox import guards, sampler
from worker.models.chatterbox.family import MAX_TEXT_TOKENS, SILENCE, STOP_SPEECH
from worker.models.chatterbox.guards import Guard, halves, judge, most_tokens, without_trailing_silence
from worker.models.chatterbox.model import ChatterboxModel
from worker.models.chatterbox.sampler import Sampling
from worker.models.chatterbox.slots import Slots


def refusal(model: ChatterboxModel, text: str, **changes: Any) -> TtsError:
    with pytest.raises(TtsError) as refused:
        model.prefill(segment(model.info().id, text, **changes))
    return refused.value


@pytest.mark.parametrize("model_id", ALL)
def test_a_text_beyond_the_learned_positions_is_refused(model_id: str, loaded: Models) -> None:
    error = refusal(loaded(model_id), "a" * (MAX_TEXT_TOKENS + 1))
    assert error.code is ErrorCode.TEXT_TOO_LONG
    assert str(MAX_TEXT_TOKENS) in error.message


@pytest.mark.parametrize("model_id", ["chatterbox", "chatterbox-multilingual"])
def test_a_letter_that_would_be_left_out_is_refused_by_name(model_id: str, loaded: Models) -> None:
    error = refusal(loaded(model_id), "Hello 世 there")
    assert error.code is ErrorCode.UNSPEAKABLE_TEXT
    assert "世" in error.message


def test_a_language_that_the_model_does_not_speak_is_refused(loaded: Models) -> None:
    error = refusal(loaded("chatterbox-multilingual"), "Hello.", language="xx")
    assert (error.code, error.param) == (ErrorCode.INVALID_VALUE, "language")


@pytest.mark.parametrize("model_id", ALL)
@pytest.mark.parametrize("text", ["A", "No", "Hm!"])
def test_very_short_texts_are_spoken(model_id: str, text: str, loaded: Models) -> None:
    assert samples(speak(loaded(model_id), [segment(model_id, text)])[0]).any()


def test_guidance_of_zero_is_spoken(loaded: Models) -> None:
    model = loaded("chatterbox")
    without, with_ = (
        speak(model, [segment("chatterbox", parameters={"cfg_weight": weight})])[0] for weight in (0.0, 0.5)
    )
    assert samples(without).any()
    assert without != with_


def test_exaggeration_bends_one_and_the_same_prepared_voice(loaded: Models) -> None:
    model = loaded("chatterbox")
    voice = model.prepare_voice(clip(seconds=2))
    states = [
        model.prefill(segment("chatterbox", voice_sha256="e" * 64, parameters={"exaggeration": e}), voice)
        for e in (0.2, 1.5, 0.2)
    ]
    while not all(state.run is not None and state.run.is_read for state in states):
        model.step(states)
    cache = model._get().token_stage._cache
    calm, wild, calm_again = (cache.keys[-1][2 * state.run.slot, :, :50] for state in states if state.run is not None)
    assert torch.equal(calm, calm_again)
    assert not torch.equal(calm, wild)
    for state in states:
        model.cancel(state)
    assert model.figures().conditionals_hits >= 2


def test_ids_that_are_no_sound_are_never_drawn() -> None:
    logits = torch.zeros(1, 8194)
    logits[0, STOP_SPEECH + 5] = 50.0
    logits[0, 6561] = 40.0
    slots = Slots.empty(1, 8194, torch.device("cpu"))
    Sampling(seed=1, temperature=1.0, top_p=0.0, repetition_penalty=1.0).enter(slots)
    token = int(sampler.draw(logits, slots, is_turbo=False))
    assert token < 6561 or token == STOP_SPEECH


def test_a_checkpoint_with_ids_that_are_no_sound_is_begun_anew(loaded: Models) -> None:
    model = loaded("chatterbox")
    expected = speak(model, [segment("chatterbox")])[0]
    lie = b'{"parts":[{"text":"Hello there, friend.","seed":7,"attempt":0,"is_whole":true,"tokens":"//8="}]}'
    assert speak(model, [segment("chatterbox", resume=Resume(lie, 0))])[0] == expected


class Scripted:
    """Draws what a test has written down instead of what the weights say: one list of tokens for each attempt.

    For a run that is alone.
    """

    def __init__(self, *attempts: list[int]) -> None:
        self.attempts = list(attempts)

    def __call__(self, _logits: Any, slots: Slots, *, is_turbo: bool, is_cut: bool) -> torch.Tensor:
        (step,) = slots.drawn.tolist()
        if step == 0 and len(self.attempts) > 1:
            self.current = self.attempts.pop(0)
        elif step == 0:
            self.current = self.attempts[0]
        return torch.tensor([self.current[min(step, len(self.current) - 1)]])


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Let the sampler, which is chance, say what a test needs it to."""

    def script(*attempts: list[int]) -> None:
        monkeypatch.setattr("worker.models.chatterbox.t3.draw", Scripted(*attempts))

    return script


GOOD = [*range(20), STOP_SPEECH]


def counted(model: ChatterboxModel, guard: Guard) -> int:
    return model.guards[guard]


def test_an_end_before_any_sound_is_tried_again(loaded: Models, scripted: Any) -> None:
    model = loaded("chatterbox")
    before = counted(model, Guard.TOO_SHORT)
    scripted([STOP_SPEECH], GOOD)
    assert len(speak(model, [segment("chatterbox")])[0]) == 2 * 960 * 20
    assert counted(model, Guard.TOO_SHORT) == before + 1


def test_a_model_that_never_makes_a_sound_fails_the_segment(loaded: Models, scripted: Any) -> None:
    model = loaded("chatterbox")
    scripted([STOP_SPEECH])
    with pytest.raises(TtsError, match="without a sound"):
        speak(model, [segment("chatterbox")])


def test_speech_that_drags_on_is_tried_again(loaded: Models, scripted: Any) -> None:
    model = loaded("chatterbox")
    before = counted(model, Guard.TOO_LONG)
    scripted([*range(120), STOP_SPEECH], GOOD)
    assert len(speak(model, [segment("chatterbox", "Hi.")])[0]) == 2 * 960 * 20
    assert counted(model, Guard.TOO_LONG) == before + 1


def test_silence_that_does_not_end_is_tried_again_and_then_cut(loaded: Models, scripted: Any) -> None:
    model = loaded("chatterbox")
    before = counted(model, Guard.TRAILING_SILENCE)
    scripted([*range(20), *[SILENCE] * 60, STOP_SPEECH])
    assert len(speak(model, [segment("chatterbox")])[0]) == 2 * 960 * 28
    assert counted(model, Guard.TRAILING_SILENCE) == before + 1 + guards.MAX_REROLLS


def test_a_text_without_an_end_is_cut_in_two_and_spoken_whole(loaded: Models, scripted: Any) -> None:
    model = loaded("chatterbox")
    text = "One thing, and another one."
    before = counted(model, Guard.NO_END)
    scripted(list(range(6000)), GOOD, GOOD)
    assert len(speak(model, [segment("chatterbox", text)])[0]) == 2 * 2 * 960 * 20
    assert counted(model, Guard.NO_END) == before + 1


def test_a_word_without_an_end_fails_the_segment_and_is_never_cut(loaded: Models, scripted: Any) -> None:
    model = loaded("chatterbox")
    scripted(list(range(6000)))
    with pytest.raises(TtsError, match="did not come to an end"):
        speak(model, [segment("chatterbox", "Endless")])


def test_what_is_on_the_way_is_not_tried_again_when_it_ends_badly(loaded: Models, scripted: Any) -> None:
    model = loaded("chatterbox", stream="chunk")
    before = counted(model, Guard.TRAILING_SILENCE)
    scripted([*range(60), *[SILENCE] * 60, STOP_SPEECH])
    assert len(speak(model, [segment("chatterbox")])[0]) == 2 * 960 * 120
    assert counted(model, Guard.TRAILING_SILENCE) == before + 1


def test_what_is_on_the_way_and_does_not_end_fails_the_segment(loaded: Models, scripted: Any) -> None:
    model = loaded("chatterbox", stream="chunk")
    scripted(list(range(6000)))
    with pytest.raises(TtsError, match="after its sound was on the way"):
        speak(model, [segment("chatterbox")])


def test_a_guard_that_fires_for_one_leaves_the_others_alone(loaded: Models, monkeypatch: pytest.MonkeyPatch) -> None:
    model = loaded("chatterbox")
    expected = speak(model, [segment("chatterbox")])[0]

    def endless_when_hot(logits: Any, slots: Slots, **how: bool) -> torch.Tensor:
        return torch.where(slots.temperature == 2.0, slots.drawn, sampler.draw(logits, slots, **how))

    monkeypatch.setattr("worker.models.chatterbox.t3.draw", endless_when_hot)
    good, bad = (
        model.prefill(segment("chatterbox", **changes))
        for changes in ({}, {"text": "No", "parameters": {"temperature": 2.0}})
    )
    pcm, errors, running = b"", [], [good, bad]
    while running:
        for state, output in zip(list(running), model.step(running), strict=True):
            pcm += output.audio
            if output.finished or output.error is not None:
                running.remove(state)
                errors.append((state is bad, output.error))
    assert pcm == expected
    assert [is_bad for is_bad, error in errors if error is not None] == [True]


def test_a_fault_of_the_device_ends_the_process(loaded: Models, monkeypatch: pytest.MonkeyPatch) -> None:
    model = loaded("chatterbox")
    state = model.prefill(segment("chatterbox"))

    def assert_on_device(*_: Any, **__: Any) -> torch.Tensor:
        raise torch.AcceleratorError("CUDA error: device-side assert triggered")

    monkeypatch.setattr("worker.models.chatterbox.t3.draw", assert_on_device)
    with pytest.raises(DeviceLost, match="device-side assert"):
        model.step([state])
    model.cancel(state)


def test_recordings_that_are_no_use_are_told_at_once(loaded: Models) -> None:
    for model_id, recording in (("chatterbox", clip(seconds=0.5)), ("chatterbox-turbo", clip(seconds=4))):
        with pytest.raises(TtsError, match="seconds"):
            loaded(model_id).prepare_voice(recording)


def test_rules() -> None:
    assert judge("Hello.", [1] * 3) is None
    assert judge("Hello.", []) is Guard.TOO_SHORT
    assert judge("A sentence of twenty-six.", [1, 2]) is Guard.TOO_SHORT
    assert judge("Hello.", list(range(200))) is Guard.TOO_LONG
    assert judge("Call 0800 123 456 now.", list(range(300))) is None
    assert judge("Hello.", [1, 2, *[9] * 30]) is Guard.TRAILING_SILENCE
    assert without_trailing_silence([1, 2, *[SILENCE] * 30]) == [1, 2, *[SILENCE] * 8]
    assert without_trailing_silence([1, 2, 3]) == [1, 2, 3]
    assert most_tokens("a" * 10_000) == 1000
    assert halves("One two. Three four.") == ("One two.", "Three four.")
    assert halves("Word") is None
