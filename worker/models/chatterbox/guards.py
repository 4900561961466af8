"""When speech tokens cannot be the text they were made of: pure rules, each counted where it fires."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum

from worker.models.chatterbox.family import MAX_SPEECH_TOKENS, SILENCE

MAX_REROLLS = 2
MAX_PARTS = 8

# People speak some 15 characters a second, which is 1.7 tokens a character. A digit is a word.
_DIGIT_WEIGHT = 6
_MOST_TOKENS_A_CHARACTER = 4.0
_MOST_TOKENS_SLACK = 75
_FEWEST_TOKENS_A_CHARACTER = 0.4
_SHORT_TEXT = 20  # below it a ratio says little
_LONGEST_SILENCE_TOKENS = 25
_KEPT_SILENCE_TOKENS = 8


class Guard(StrEnum):
    """What is wrong with an attempt."""

    NO_END = "no_end"
    TOO_LONG = "too_long"
    TOO_SHORT = "too_short"
    TRAILING_SILENCE = "trailing_silence"


def most_tokens(text: str) -> int:
    """Return after how many tokens the model has lost its way; never more than upstream's 40 seconds."""
    return min(MAX_SPEECH_TOKENS, round(1.5 * _MOST_TOKENS_A_CHARACTER * _weight(text)) + 2 * _MOST_TOKENS_SLACK)


def judge(text: str, tokens: Sequence[int]) -> Guard | None:
    """Say what is wrong with the tokens of a text that has come to its end, if anything is."""
    weight = _weight(text)
    if not tokens or (weight >= _SHORT_TEXT and len(tokens) < _FEWEST_TOKENS_A_CHARACTER * weight):
        return Guard.TOO_SHORT
    if len(tokens) > _MOST_TOKENS_A_CHARACTER * weight + _MOST_TOKENS_SLACK:
        return Guard.TOO_LONG
    if trailing_silence(tokens) > _LONGEST_SILENCE_TOKENS:
        return Guard.TRAILING_SILENCE
    return None


def trailing_silence(tokens: Sequence[int]) -> int:
    """Return how many tokens at the end are silence: upstream's, or one and the same over and over."""
    count = 0
    for token in reversed(tokens):
        if token not in (SILENCE, tokens[-1]):
            break
        count += 1
    return count


def without_trailing_silence(tokens: Sequence[int]) -> list[int]:
    """Return the tokens with a third of a second of silence at their end, where there was more than a second."""
    silence = trailing_silence(tokens)
    if silence <= _LONGEST_SILENCE_TOKENS:
        return list(tokens)
    return list(tokens[: len(tokens) - silence + _KEPT_SILENCE_TOKENS])


def halves(text: str) -> tuple[str, str] | None:
    """Cut a text in two near its middle, at the end of a sentence or clause if there is one; None for a single word."""
    text = text.strip()
    spaces = [i for i, character in enumerate(text) if character.isspace()]
    if not spaces:
        return None
    middle = len(text) / 2
    reach = len(text) / 4
    for marks in (".!?…。！？", ",;:—、，；："):
        near = [i for i in spaces if text[i - 1] in marks and abs(i - middle) <= reach]
        if near:
            spaces = near
            break
    cut = min(spaces, key=lambda i: abs(i - middle))
    return text[:cut].rstrip(), text[cut:].lstrip()


def _weight(text: str) -> int:
    return sum(_DIGIT_WEIGHT if character.isdigit() else 1 for character in text)
