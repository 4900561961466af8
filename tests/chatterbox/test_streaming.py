"""Sound given out a chunk at a time is the sound of the whole; a worker that goes on for another makes the same."""

import numpy as np
import pytest
import torch

from tests.chatterbox.conftest import Models
from tests.chatterbox.speaking import ALL, LENGTH, clip, distance, render, samples, segment, speak
from wire.segment import Resume
from worker.models.chatterbox.conditionals import on_device
from worker.models.chatterbox.family import ENGLISH
from worker.models.chatterbox.flow import LOOK_AHEAD_TOKENS
from worker.models.chatterbox.model import CHUNK_TOKENS
from worker.models.chatterbox.s3gen import next_rendering


@pytest.mark.parametrize("model_id", ALL)
@pytest.mark.parametrize("seconds_less", [0.0, 0.5])
def test_chunks_are_the_whole(model_id: str, seconds_less: float, loaded: Models) -> None:
    model = loaded(model_id, stream="chunk")
    # Half a second less, and the voice's own tokens do not end where a block of the flow does.
    prepared = model.prepare_voice(clip(seconds=LENGTH[model_id] - seconds_less))
    voice = on_device(prepared, model._get().parts)
    tokens = torch.randint(0, 6561, (83,), generator=torch.Generator().manual_seed(1)).tolist()
    pieces = render(model, voice, tokens, seed=5, chunk=CHUNK_TOKENS)
    assert len(pieces) >= 3, "nothing was given out before the end"
    whole = render(model, voice, tokens, seed=5)  # one rendering, with the blocks of the flow as they are
    assert distance(np.concatenate(pieces), np.concatenate(whole)) < 1e-5


@pytest.mark.parametrize("model_id", ALL)
def test_a_resumed_segment_ends_as_the_undisturbed_one(model_id: str, loaded: Models) -> None:
    for stream in ("segments", "chunk"):
        model = loaded(model_id, stream=stream) if stream == "chunk" else loaded(model_id)
        request = segment(model_id, "A", seed=11)
        expected = speak(model, [request])[0]
        state = model.prefill(request)
        delivered, checkpoint = b"", b""
        while not delivered:
            output = model.step([state])[0]
            delivered, checkpoint = output.audio, output.checkpoint or b""
        model.cancel(state)
        # The listener has a part of what the checkpoint speaks of.
        taken = len(delivered) // 2 // 3
        for mark in (checkpoint, b""):
            rest = speak(model, [segment(model_id, "A", seed=11, resume=Resume(mark, taken))])[0]
            assert distance(samples(rest), samples(expected[2 * taken :])) < 1e-4


def test_a_chunk_needs_its_look_ahead(loaded: Models) -> None:
    loaded_parts = loaded("chatterbox", stream="chunk")._get()
    voice = on_device(loaded_parts.default_voice, loaded_parts.parts)

    def found(count: int) -> object:
        return next_rendering(voice, [1] * count, 0, is_whole=False, family=ENGLISH, chunk=CHUNK_TOKENS)

    assert found(CHUNK_TOKENS + LOOK_AHEAD_TOKENS - 1) is None
    assert found(CHUNK_TOKENS + LOOK_AHEAD_TOKENS) is not None
