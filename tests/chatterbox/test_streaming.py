"""Sound given out a chunk at a time is the sound of the whole; a worker that goes on for another makes the same."""

import numpy as np
import pytest
import torch

from tests.chatterbox.conftest import Models
from tests.chatterbox.speaking import ALL, LENGTH, clip, distance, samples, segment, speak
from wire.segment import Resume
from worker.models.chatterbox.model import CHUNK_TOKENS, ChatterboxModel
from worker.models.chatterbox.s3gen import LOOK_AHEAD_TOKENS, SoundRun


def render(model: ChatterboxModel, voice: bytes, tokens: list[int], *, at_once: bool) -> list[np.ndarray]:
    """Return the pieces of sound, from all the tokens at once, or from tokens that come one by one."""
    loaded = model._get()
    stage = loaded.sound_stage
    run = SoundRun(model._voices.take("", voice, loaded.parts), seed=5, tokens=list(tokens) if at_once else [])
    run.is_whole = at_once
    model._voices.clear()
    pieces = []
    for token in [] if at_once else tokens:
        run.tokens.append(token)
        while stage.can_advance(run):
            piece = stage.advance(run)
            if piece is not None:
                pieces.append(piece)
    run.is_whole = True
    while not run.has_ended:
        piece = stage.advance(run)
        if piece is not None:
            pieces.append(piece)
    return pieces


@pytest.mark.parametrize("model_id", ALL)
@pytest.mark.parametrize("seconds_less", [0.0, 0.5])
def test_chunks_are_the_whole(model_id: str, seconds_less: float, loaded: Models) -> None:
    model = loaded(model_id, stream="chunk")
    # Half a second less, and the voice's own tokens do not end where a block of the flow does.
    voice = model.prepare_voice(clip(seconds=LENGTH[model_id] - seconds_less))
    tokens = torch.randint(0, 6561, (83,), generator=torch.Generator().manual_seed(1)).tolist()
    pieces = render(model, voice, tokens, at_once=False)
    assert len(pieces) >= 3, "nothing was given out before the end"
    stage = model._get().sound_stage
    stage._chunk, before = None, stage._chunk  # one rendering, with the blocks of the flow as they are
    try:
        whole = render(model, voice, tokens, at_once=True)
    finally:
        stage._chunk = before
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
    model = loaded("chatterbox", stream="chunk")
    loaded_parts = model._get()
    voice = model._voices.take("", loaded_parts.default_voice, loaded_parts.parts)
    run = SoundRun(voice, seed=1)
    run.tokens = [1] * (CHUNK_TOKENS + LOOK_AHEAD_TOKENS - 1)
    assert not loaded_parts.sound_stage.can_advance(run)
    run.tokens.append(1)
    assert loaded_parts.sound_stage.can_advance(run)
