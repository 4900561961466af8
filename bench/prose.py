"""English-like prose of an exact length from a seeded generator: sentences and commas for a splitter to find. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from random import Random

_WORDS: dict[str, tuple[str, ...]] = {
    kind: tuple(words.split())
    for kind, words in {
        "the": "the the the this that every another our their my your",
        "noun": (
            "river house letter morning garden doctor window station teacher bridge market engine captain story "
            "kitchen winter mountain village paper question answer machine island shadow neighbour library train "
            "harbour ticket evening orchestra summer forest meeting signal picture daughter passenger journey road"
        ),
        "kind": (
            "old quiet small bright heavy narrow distant familiar wooden patient cold careful broken gentle early "
            "remarkable hidden ordinary curious silver long crowded honest empty warm sudden simple northern late"
        ),
        "who": "he she they we someone nobody everyone it I you",
        "did": (
            "found watched carried remembered followed opened described reached answered crossed repaired painted "
            "noticed expected finished counted visited ordered explained forgot wanted chose kept saw left heard"
        ),
        "moved": "waited walked slept travelled smiled arrived returned listened worked stood turned paused hurried",
        "where": "near behind under beside across toward beyond above around through before after with without for",
        "how": "slowly quietly again together carefully often never suddenly almost always gladly soon twice",
        "and": "and but while because so although until when",
        "first": "however meanwhile yesterday today sometimes finally afterwards tomorrow therefore instead",
    }.items()
}

_CLAUSES: tuple[tuple[str, ...], ...] = tuple(
    tuple(clause.split())
    for clause in (
        "the noun did the noun",
        "who did the kind noun",
        "the kind noun moved where the noun",
        "who did the noun where the kind noun",
        "the noun where the noun moved how",
        "who how did the noun where the noun",
        "the kind noun did the noun where the kind noun",
    )
)

# One to three clauses: about 5 to 27 words a sentence, 12 on average.
_CLAUSES_PER_SENTENCE = ((1, 2, 3), (50, 85, 100))
_STOPS = ".........??!"
_SHORTEST_SENTENCE_CHARACTERS = 12

# A last word for every length that may be left over; longer rests take another word first.
_LAST_WORDS = ("I", "so", "now", "here", "again", "inside", "outside", "tomorrow", "yesterday", "everywhere")
_LONGEST_LAST = len(_LAST_WORDS)


def prose(rng: Random, characters: int) -> str:
    """Return a text of exactly `characters` (at least 1) that ends with its last sentence.

    The same state of `rng` gives the same text on every machine.
    """
    if characters < 1:
        raise ValueError(f"a text has at least 1 character, not {characters}")
    sentences: list[str] = []
    left = characters
    while True:
        sentence = _sentence(rng)
        if left - len(sentence) - 1 < _SHORTEST_SENTENCE_CHARACTERS:
            sentences.append(_closing_sentence(rng, left))
            return " ".join(sentences)
        sentences.append(sentence)
        left -= len(sentence) + 1


def _sentence(rng: Random) -> str:
    clauses = rng.choices(_CLAUSES_PER_SENTENCE[0], cum_weights=_CLAUSES_PER_SENTENCE[1])[0]
    opening = [rng.choice(_WORDS["first"]) + ","] if rng.random() < 0.15 else []
    words = opening + _clause(rng)
    for _ in range(clauses - 1):
        words += _further_clause(rng, words)
    return _finished(words, rng.choice(_STOPS))


def _closing_sentence(rng: Random, characters: int) -> str:
    """Return one sentence of exactly `characters`."""
    if characters == 1:
        return _LAST_WORDS[0]
    left = characters - 1
    words: list[str] = []
    for word in _endless_words(rng):
        if left <= _LONGEST_LAST:
            break
        if len(word) < left - 1:  # leaves a blank and a word of at least one letter
            words.append(word)
            left -= len(word) + 1
    words.append(_LAST_WORDS[left - 1])
    return _finished(words, rng.choice(_STOPS))


def _endless_words(rng: Random) -> Iterator[str]:
    words = _clause(rng)
    while True:
        further = _further_clause(rng, words)
        yield from words
        words = further


def _clause(rng: Random) -> list[str]:
    return [rng.choice(_WORDS[kind]) for kind in rng.choice(_CLAUSES)]


def _further_clause(rng: Random, before: list[str]) -> list[str]:
    """Return a joining word and a clause; half of the time `before` gets the comma in front of it."""
    if rng.random() < 0.5:
        before[-1] += ","
    return [rng.choice(_WORDS["and"]), *_clause(rng)]


def _finished(words: list[str], stop: str) -> str:
    text = " ".join(words)
    return text[0].upper() + text[1:] + stop
