"""What the engine asks of a model. Models know no queues, threads or loops; the engine thread makes every call."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

from wire.link import ModelInfo
from wire.segment import SegmentRequest

StateT = TypeVar("StateT")


@dataclass(frozen=True, slots=True)
class StepOutput:
    """What one step made of one sequence. All four may be empty: nothing was due yet.

    `audio` is PCM s16le mono at the model's rate. `checkpoint` stands for the moment after `audio`. After `finished`
    or `error` the engine forgets the state and calls nothing more for it. An `error` concerns this sequence only.
    """

    audio: bytes = b""
    checkpoint: bytes | None = None
    finished: bool = False
    error: Exception | None = None


class SpeechModel(Protocol[StateT]):
    """A voice machine. `StateT` is what it remembers of one sequence between steps; the engine never looks inside."""

    def info(self) -> ModelInfo:
        """Describe the model; works before `load` and never blocks (the event loop calls it too)."""
        ...

    def load(self) -> None:
        """Bring the weights into memory; blocks for as long as that takes."""
        ...

    def warm_up(self) -> None:
        """Speak something, so that what is built lazily is built before the first listener comes."""
        ...

    def unload(self) -> None:
        """Give the memory back. No state is alive, and `load` may follow."""
        ...

    def prefill(self, request: SegmentRequest) -> StateT:
        """Begin a segment whose voice is one of `info().voices`.

        With `request.resume`, the first sample that `step` gives is number `delivered_samples` of the segment, and all
        samples are those of the undisturbed one.

        Raises:
            TtsError: the text cannot be spoken; any other exception is a fault of the model. Only this sequence fails.
        """
        ...

    def step(self, states: Sequence[StateT]) -> list[StepOutput]:
        """Advance every state by at most one chunk of audio; answer in the order of `states`.

        May block until something is due, but only so long as a newcomer or a cancelled sequence may wait. An exception
        fails the whole batch; an error that belongs to one sequence is in its output.
        """
        ...

    def cancel(self, state: StateT) -> None:
        """Free what `state` holds; it will not be stepped again."""
        ...
