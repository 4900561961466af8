"""One worker, two side by side, or one whose stages have a device each: which is worth it, and why. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

# Two measurements of the same thing differ by so much.
_NOISE = 0.05
# A second device is worth having if it brings so much more.
_WORTH = 1.15
# Stages whose parts of the time are no further from a half than this keep both devices busy.
_EVEN = 0.1


class Arrangement(StrEnum):
    """How the model is laid over two devices."""

    ONE = "one"
    PARALLEL = "parallel"
    SPLIT = "split"

    @property
    def label(self) -> str:
        return _LABELS[self]


_LABELS = {
    Arrangement.ONE: "one worker",
    Arrangement.PARALLEL: "two workers, a device each",
    Arrangement.SPLIT: "one worker, a stage a device",
}


@dataclass(frozen=True, slots=True)
class Outcome:
    """What an arrangement did with the same texts. `device_bytes` is the memory of the fuller one of its devices.

    `decode_seconds` and `vocode_seconds` are what the two stages took in all; None where the model does not tell.
    """

    audio_seconds_per_second: float
    ttfa_p95_seconds: float
    device_bytes: float | None = None
    decode_seconds: float | None = None
    vocode_seconds: float | None = None

    @property
    def token_share(self) -> float | None:
        """The token stage's part of the time that both stages took."""
        if self.decode_seconds is None or self.vocode_seconds is None:
            return None
        both = self.decode_seconds + self.vocode_seconds
        return self.decode_seconds / both if both > 0 else None


@dataclass(frozen=True, slots=True)
class Advice:
    """What to run, and the reason in a sentence."""

    choice: Arrangement
    reason: str


def ideal_split_gain(token_share: float) -> float:
    """Return how many times faster a split is than one worker at best: as fast as its slower stage."""
    return 1 / max(token_share, 1 - token_share)


def advise(outcomes: Mapping[Arrangement, Outcome]) -> Advice:
    """Recommend an arrangement from what all three did.

    The most audio wins. A split can at best draw level with two workers, where its stages are even; then it is
    preferred, since each device has half of the weights in memory, and its stages batch more requests.
    """
    one, parallel, split = (outcomes[each] for each in Arrangement)
    gains = {
        Arrangement.PARALLEL: parallel.audio_seconds_per_second / one.audio_seconds_per_second,
        Arrangement.SPLIT: split.audio_seconds_per_second / one.audio_seconds_per_second,
    }
    told = (
        f"{gains[Arrangement.PARALLEL]:.2f} times one worker's audio side by side, {gains[Arrangement.SPLIT]:.2f} split"
    )
    if max(gains.values()) < _WORTH:
        return Advice(
            Arrangement.ONE,
            f"The second device brings little: {told}. The two share something, or one was not busy; use it for "
            "another model.",
        )
    if gains[Arrangement.SPLIT] >= gains[Arrangement.PARALLEL] * (1 - _NOISE):
        return Advice(Arrangement.SPLIT, f"It loses nothing: {told}. {_why_level(one, parallel, split)}")
    return Advice(Arrangement.PARALLEL, f"It speaks more: {told}. {_why_behind(one)}")


def _why_level(one: Outcome, parallel: Outcome, split: Outcome) -> str:
    reasons = []
    share = one.token_share
    if share is not None and abs(share - 0.5) <= _EVEN:
        reasons.append(f"The stages are even (tokens {share:.0%} of the time), so both devices are busy.")
    if parallel.device_bytes and split.device_bytes and split.device_bytes < parallel.device_bytes:
        saved = 1 - split.device_bytes / parallel.device_bytes
        reasons.append(f"The fuller device holds {saved:.0%} less, which is room for more slots.")
    else:
        reasons.append("Each device holds one stage's weights, which leaves room for more slots.")
    return " ".join(reasons)


def _why_behind(one: Outcome) -> str:
    share = one.token_share
    if share is None:
        return "What the stages take is not known."
    if abs(share - 0.5) <= _EVEN:
        return (
            f"The stages are even (tokens {share:.0%} of the time), so a split could do {ideal_split_gain(share):.2f} "
            "times one worker; what it lost went into waiting between them."
        )
    if share > 0.5:
        slow, idle, remedy = "token", "sound", "A larger batch makes the token stage's part smaller."
    else:
        slow, idle, remedy = "sound", "token", "Give it the stronger device, or a shorter reference, and measure again."
    part = max(share, 1 - share)
    return (
        f"The {slow} stage takes {part:.0%} of the time, so a split can do no more than {ideal_split_gain(share):.2f} "
        f"times one worker, and the device of the {idle} stage idles {2 - 1 / part:.0%} of it. {remedy}"
    )
