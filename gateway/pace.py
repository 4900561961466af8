"""How fast work gets done: learned from segments that were spoken, used to predict those to come. Pure."""

from __future__ import annotations

from dataclasses import dataclass

# Before anything was learned: 15 characters a second of speech (ordinary English), made at four times real time.
PRIOR_AUDIO_SECONDS_PER_CHARACTER = 1 / 15
PRIOR_SECONDS_PER_CHARACTER = PRIOR_AUDIO_SECONDS_PER_CHARACTER / 4
# The prior weighs as much as one paragraph: a few segments and it is forgotten.
_PRIOR_CHARACTERS = 250.0
# Each observation takes a tenth of the memory away, so a GPU that throttles is seen within some twenty segments.
_KEEP = 0.9
_ENOUGH = 10


@dataclass(slots=True)
class Pace:
    """Decayed sums of characters spoken, seconds they took and seconds of audio they became.

    A ratio of sums weighs a segment by its length; a mean of ratios would let short segments, whose fixed cost is most
    of their time, make a healthy worker look slow. One writer: the pool.
    """

    characters: float = _PRIOR_CHARACTERS
    seconds: float = _PRIOR_CHARACTERS * PRIOR_SECONDS_PER_CHARACTER
    audio_seconds: float = _PRIOR_CHARACTERS * PRIOR_AUDIO_SECONDS_PER_CHARACTER
    observations: int = 0

    def observe(self, characters: int, seconds: float, audio_seconds: float) -> None:
        """Learn from one whole segment: `seconds` from lease to last sample."""
        self.characters = self.characters * _KEEP + characters
        self.seconds = self.seconds * _KEEP + seconds
        self.audio_seconds = self.audio_seconds * _KEEP + audio_seconds
        self.observations += 1

    @property
    def seconds_per_character(self) -> float:
        return self.seconds / self.characters

    @property
    def audio_seconds_per_character(self) -> float:
        return self.audio_seconds / self.characters

    @classmethod
    def expected_from(cls, fellows: Pace) -> Pace:
        """Return what to expect of a worker that is new, from what its fellows did: a fleet that is being restarted
        must not look twenty times slower than it is, and refuse requests for it."""
        return cls(
            seconds=_PRIOR_CHARACTERS * fellows.seconds_per_character,
            audio_seconds=_PRIOR_CHARACTERS * fellows.audio_seconds_per_character,
        )

    @property
    def is_learned(self) -> bool:
        """Enough was seen to compare it with others."""
        return self.observations >= _ENOUGH

    def predict_seconds(self, characters: int) -> float:
        """Expected seconds from lease to last sample."""
        return characters * self.seconds_per_character

    def stall_seconds(self, characters: int, floor: float) -> float:
        """Silence after which a running segment of so many characters counts as stuck, never less than `floor`.

        A worker that gives its audio only at the end is silent for the whole predicted time; three times that is more
        than batching costs, and a wrong guess costs one segment spoken twice, which nobody hears.
        """
        return max(floor, 3 * self.predict_seconds(characters))
