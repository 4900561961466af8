"""What a model and its slots need of a GPU's memory: how many fit, and the refusal where there is not so much. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from worker.models.chatterbox.family import MAX_SPEECH_TOKENS, Family

# Computed from what a step reads of memory: 32 streams on an H200 speak 37 % more than 16 do; 64 only 23 % more than
# 32, each of them at not much over half the pace.
MOST_SLOTS = 32

_GIB = 1 << 30
# What the encoder takes of the longest segment for a moment, as much again for what the recordings of the sound stage
# keep to work in (eight windows of the vocoder, or sixteen utterances in the flow), the prefixes of voices, the CUDA
# context.
_WORK_BYTES = 2 * _GIB
_TEXT_POSITIONS = 302  # a segment's characters, each a token at worst, with begin and end
# Counted on chatterbox-tts 0.1.7, in millions of parameters.
_T3_PARAMETERS = {"chatterbox": 532.4, "chatterbox-multilingual": 536.0, "chatterbox-turbo": 427.4}
_S3GEN_PARAMETERS = 265.4
_ESTIMATOR_PARAMETERS = 71.3


class NoRoom(Exception):
    """The device has less free memory than the model and its slots need; the message is the sum."""


@dataclass(frozen=True, slots=True)
class Need:
    """Bytes of a device's memory."""

    weights: int
    slot: int
    slots: int

    @property
    def total(self) -> int:
        return self.weights + self.slots * self.slot + _WORK_BYTES

    def __str__(self) -> str:
        return (
            f"{_gib(self.total)} for {self.slots} slots: weights {_gib(self.weights)} + {self.slots} x "
            f"{_gib(self.slot)} + {_gib(_WORK_BYTES)} to work in"
        )


def positions(family: Family) -> int:
    """Return how many positions the longest segment has: voice, text, begin and speech."""
    return (376 if family.is_turbo else 36) + _TEXT_POSITIONS + MAX_SPEECH_TOKENS


def needed(family: Family, *, is_half: bool, slots: int) -> Need:
    """Return what a model takes with so many segments at once; `is_half` where bfloat16 is used.

    A position of one stream keeps a key and a value of 1024 numbers in each layer, twice where there is guidance:
    30 layers, 240 KiB in bfloat16; Turbo 24 layers and one row, 96 KiB.
    """
    width = 2 if is_half else 4
    weights = _T3_PARAMETERS[family.id] * width + _S3GEN_PARAMETERS * 4 - (_ESTIMATOR_PARAMETERS * 2 if is_half else 0)
    layers, rows = (24, 1) if family.is_turbo else (30, 2)
    slot = layers * rows * 2 * 1024 * width * positions(family)
    return Need(round(weights * 1e6), slot, slots)


def by_device(family: Family, devices: tuple[str, str], *, is_half: bool, slots: int) -> dict[str, Need]:
    """Return what each device must have: that of the token stage, and that of the sound stage if it is another."""
    whole = needed(family, is_half=is_half, slots=slots)
    tokens, sound = devices
    if tokens == sound:
        return {tokens: whole}
    of_sound = round((_S3GEN_PARAMETERS * 4 - (_ESTIMATOR_PARAMETERS * 2 if is_half else 0)) * 1e6)
    return {tokens: Need(whole.weights - of_sound, whole.slot, slots), sound: Need(of_sound, 0, slots)}


def filled(need: Need, free: int) -> Need:
    """Return the need of as many slots as fit into `free`: at least one, of which `check` then says that it does not,
    and at most `MOST_SLOTS`."""
    return replace(need, slots=max(1, min(MOST_SLOTS, _fitting(need, free))))


def sum_of(need: Need, free: int) -> str:
    """Return the arithmetic for people."""
    return f"{need}; {_gib(free)} were free"


def check(device: str, model: str, need: Need, *, free: int, total: int, holders: Sequence[str]) -> None:
    """Return if `need` is free.

    Raises:
        NoRoom: it is not; says how many slots there would be room for, and who holds the rest.
    """
    if need.total <= free:
        return
    fitting = _fitting(need, free)
    advice = f"There is room for --slots {fitting}." if fitting >= 1 else "There is not room for one."
    raise NoRoom(
        f"{device} has {_gib(free)} of {_gib(total)} free, and {model} needs {need}. "
        f"{advice} Held by: {', '.join(holders) or 'nobody that the driver names'}."
    )


def _fitting(need: Need, free: int) -> int:
    return (free - need.weights - _WORK_BYTES) // need.slot if need.slot else 0


def _gib(count: int) -> str:
    return f"{count / _GIB:.2f} GiB"
