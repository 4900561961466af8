"""A segment's sound depends on the segment alone: not on its company, not on what the worker spoke before."""

import random
import sys

import pytest

from tests.chatterbox.conftest import Models
from tests.chatterbox.speaking import ALL, LENGTH, clip, distance, name_of, samples, segment, speak, speak_with_tokens
from worker.config import ChatterboxOptions
from worker.models.chatterbox.model import ChatterboxModel

TEXTS = (
    "Hello there, friend.", "Why not?", "Time for tea, sir.", "One more.",
    "Good night.", "It is late now.", "Who goes there?",
)  # fmt: skip
# Read in pieces, while the others speak.
LONG = "The rain had stopped by the time we came to the bridge, and nobody spoke until the other side was reached."
SOAK_ROUNDS = 50


@pytest.mark.timeout(7200)
@pytest.mark.parametrize("model_id", ALL)
def test_two_voices_in_company_sound_as_each_alone(model_id: str, loaded: Models, pytestconfig: pytest.Config) -> None:
    """In full, with --soak: eight requests of each voice at once, fifty times, each time in another order, and some or
    no steps apart."""
    is_soak = pytestconfig.getoption("--soak")
    model = loaded(model_id)
    recordings = [clip(110, seconds=LENGTH[model_id]), clip(220, seconds=LENGTH[model_id])]
    prepared = [model.prepare_voice(recording) for recording in recordings]
    # The tiny Turbo comes to its end within the long one.
    texts = (*TEXTS, "Come in, then." if model_id == "chatterbox-turbo" else LONG)
    requests = [
        segment(model_id, text, seed=seed, voice="cloned", voice_sha256=name_of(recordings[seed % 2]))
        for seed, text in enumerate(texts + texts if is_soak else texts)
    ]
    voices = [prepared[request.seed % 2] for request in requests]
    numbers = range(len(requests))
    compared = numbers if is_soak else (0, 1, 7)
    alone = {n: speak_with_tokens(model, [requests[n]], [voices[n]])[0] for n in compared}
    for turn in range(1, (SOAK_ROUNDS if is_soak else 1) + 1):
        order = random.Random(turn).sample(numbers, len(numbers))
        spoken = speak_with_tokens(model, [requests[n] for n in order], [voices[n] for n in order], apart=turn % 4)
        together = dict(zip(order, spoken, strict=True))
        sounds = {pcm for _, pcm in spoken}
        assert len(sounds) == len(spoken), "the random weights do not tell texts, seeds or voices apart"
        for n, (tokens, pcm) in alone.items():
            assert together[n][0] == tokens
            assert distance(samples(together[n][1]), samples(pcm)) < 1e-5
    if is_soak:
        sys.stdout.write(f"{model_id}: {SOAK_ROUNDS} rounds of {len(requests)}, all as each alone\n")


@pytest.mark.parametrize("model_id", ALL)
def test_no_voice_after_a_cloned_one_is_the_default_voice(model_id: str, loaded: Models) -> None:
    model = loaded(model_id)
    recording = clip(180, seconds=LENGTH[model_id])
    fresh = ChatterboxModel(
        ChatterboxOptions(checkpoint=model.settings()["checkpoint"], precision="fp32"), model_id, "cpu"
    )
    fresh.load()
    expected = speak(fresh, [segment(model_id)])[0]
    fresh.unload()
    cloned = segment(model_id, voice="cloned", voice_sha256=name_of(recording))
    other = speak(model, [cloned], [model.prepare_voice(recording)])[0]
    assert distance(samples(speak(model, [segment(model_id)])[0]), samples(expected)) < 1e-5
    assert other != expected


@pytest.mark.parametrize("model_id", ALL)
def test_the_seed_decides_what_is_said(model_id: str, loaded: Models) -> None:
    model = loaded(model_id)
    first, second, again = (speak(model, [segment(model_id, seed=seed)])[0] for seed in (1, 2, 1))
    assert first == again
    assert first != second
