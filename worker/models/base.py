"""What the engine asks of a model. Models know no queues, threads or loops; the engine thread makes every call."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from wire.link import ModelInfo
from wire.segment import SegmentRequest
from worker.figures import ModelFigures

StateT = TypeVar("StateT")


class DeviceLost(BaseException):
    """The device is of no use to this process any more, which must end so that its supervisor starts a better one.

    No `Exception`: it passes every boundary that guards against faults of one sequence, and ends the engine.
    """


@dataclass(frozen=True, slots=True)
class StepOutput:
    """What one step made of one sequence. All may be empty: nothing was due yet.

    `audio` is PCM s16le mono at the model's rate. `checkpoint` stands for the moment after `audio`. After `finished`
    or `error` the engine forgets the state and calls nothing more for it. An `error` concerns this sequence only.
    `progressed` says that work was done for it, though nothing may have come of it yet.
    """

    audio: bytes = b""
    checkpoint: bytes | None = None
    finished: bool = False
    error: Exception | None = None
    progressed: bool = False


@dataclass(frozen=True, slots=True)
class Clip:
    """A recording of somebody who speaks: mono float32 from -1 to 1, at any rate from 16 kHz."""

    samples: NDArray[np.float32]
    sample_rate: int

    @property
    def seconds(self) -> float:
        return len(self.samples) / self.sample_rate


class SpeechModel(Protocol[StateT]):
    """A voice machine. `StateT` is what it remembers of one sequence between steps; the engine never looks inside."""

    def info(self) -> ModelInfo:
        """Describe the model; works before `load` and never blocks (the event loop calls it too)."""
        ...

    def figures(self) -> ModelFigures:
        """Return what was counted since the process started; any thread may ask at any time, and never waits."""
        ...

    def settings(self) -> Mapping[str, Any]:
        """Name what is set and what is on, for people; never blocks. `/health` shows it."""
        ...

    def load(self) -> int | None:
        """Bring the weights into memory; blocks for as long as that takes.

        Returns how many segments at once the device then has memory for, if the model has counted.
        """
        ...

    def warm_up(self) -> None:
        """Speak something, so that what is built lazily is built before the first listener comes."""
        ...

    def unload(self) -> None:
        """Give the memory back. No state is alive, and `load` may follow."""
        ...

    def prefill(self, request: SegmentRequest, voice: bytes | None = None) -> StateT:
        """Begin a segment whose voice is one of `info().voices`, or the one that `prepare_voice` made `voice` of.

        `request.voice_sha256` names that voice: equal hashes come with equal bytes, so what is derived may be kept.

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


class CloningModel(SpeechModel[StateT], Protocol[StateT]):
    """A model whose `info().cloning` is true takes on the voice of a recording: prepared once, then used by all."""

    def voice_format(self) -> str:
        """Name what `prepare_voice` makes: `[a-z0-9.-]{1,64}`, another for other weights or another layout.

        What was prepared may be kept and sent to every worker of the same format. Valid once `load` has returned; like
        `info`, it never blocks.
        """
        ...

    def prepare_voice(self, clip: Clip) -> bytes:
        """Compute what the model must know of a voice: about 165 kB, the same for the same clip. May take a second.

        Raises:
            TtsError: `invalid_value` (param `voice`) for a recording that this model can make nothing of.
        """
        ...
