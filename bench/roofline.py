"""How fast the arithmetic of Chatterbox could be at best on a machine of given rates. Pure.

The counts are those of chatterbox-tts 0.1.7, measured with a FLOP counter and by hand for the attention, which the
counter leaves out on a CPU: a step of the token model reads every weight once and the keys and values of each row; the
flow's cost has a part that grows with the square of its length.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

TOKENS_A_SECOND = 25
_FRAMES_A_SECOND = 50


@dataclass(frozen=True, slots=True)
class Rates:
    """What a device does in a second, both measured in the same run as what they are compared with."""

    bytes_per_second: float
    flops_per_second: float


@dataclass(frozen=True, slots=True)
class TokenModel:
    """The shape of a token model. `weights` are the numbers that a step reads: the layers' and the head's; `rows` is 2
    with guidance; `bytes_a_number` is 2 in bfloat16."""

    weights: int
    layers: int
    width: int
    rows: int
    bytes_a_number: int

    def step_bytes(self, batch: int, context: float) -> float:
        """Return what one step reads: the weights once, and a key and a value a layer, row and position.

        At the published size in bfloat16: 1.0235 GB + 245,760 B a position and request.
        """
        read = 2 * self.layers * self.width * context
        return self.bytes_a_number * (self.weights + batch * self.rows * read)

    def step_flops(self, batch: int, context: float) -> float:
        """Return the arithmetic of one step: 2.047 GFLOP a request, and 0.246 MFLOP a position."""
        return batch * self.rows * (2 * self.weights + 4 * self.layers * self.width * context)

    def step_seconds(self, batch: int, context: float, rates: Rates) -> float:
        """Return the shortest time of one step: reading or arithmetic, whichever takes longer."""
        reading = self.step_bytes(batch, context) / rates.bytes_per_second
        return max(reading, self.step_flops(batch, context) / rates.flops_per_second)

    def prefill_seconds(self, positions: int, rates: Rates) -> float:
        """Return the shortest time to read so many positions of one request at once."""
        # Each position attends to half of them on average: 2 instead of 4.
        attention = 2 * self.layers * self.width * positions
        flops = self.rows * positions * (2 * self.weights + attention)
        return max(flops / rates.flops_per_second, self.bytes_a_number * self.weights / rates.bytes_per_second)


@dataclass(frozen=True, slots=True)
class SoundModel:
    """The published flow and vocoder: `steps` of the solver, `rows` 2 with guidance."""

    steps: int
    rows: int

    def flops(self, prompt_seconds: float, audio_seconds: float) -> float:
        """Return the arithmetic of one utterance: estimator, encoder, vocoder."""
        frames = _FRAMES_A_SECOND * (prompt_seconds + audio_seconds)
        estimator = self.steps * self.rows / 2 * (0.264e9 * frames + 229e9 * (frames / 1000) ** 2)
        return estimator + 0.074e9 * frames + 30.6e9 * audio_seconds


def best_seconds(
    token: TokenModel, sound: SoundModel, *, prompt_seconds: float, positions: int, lengths: Sequence[int], rates: Rates
) -> float:
    """Return the shortest time in which one device speaks requests of `lengths` tokens at once, each with `positions`
    in front of them; the two stages take turns.

    The batch is as large as there are requests that have not ended.
    """
    seconds = len(lengths) * token.prefill_seconds(positions, rates)
    before = 0
    for number, length in enumerate(sorted(lengths)):
        context = positions + (before + length) / 2
        seconds += (length - before) * token.step_seconds(len(lengths) - number, context, rates)
        before = length
    flops = sum(sound.flops(prompt_seconds, length / TOKENS_A_SECOND) for length in lengths)
    return seconds + flops / rates.flops_per_second
