"""Where a text can be cut: after a sentence, a clause or a word, or at worst between any two characters."""

from __future__ import annotations

import re
import unicodedata
from bisect import bisect_left, bisect_right
from enum import IntEnum

from sentencex import segment

_SPEAKABLE = re.compile(r"[^\W_]")
_CLAUSE = re.compile(
    "[,;:](?=[ \"'”’)\\]])[\"'”’)\\]]*|[،؛、，；：][”’」』]?|(?<=\\w)—(?=\\w)|[—–-](?= )",
)
_SPACE = re.compile(" ")
_JOINERS = "\u200c\u200d"
_REGIONAL = "".join(map(chr, range(0x1F1E6, 0x1F200)))

# Up to this long, a piece gives a model too little to go by, and its listener a fragment.
FRAGMENT = 20


class Kind(IntEnum):
    """What ends at a cut, the best first."""

    SENTENCE = 0
    CLAUSE = 1
    WORD = 2


class Line:
    """A text in one line, single spaces inside, and the places where it may be cut.

    A cut is the index behind the last character before it. Every cut that a method returns leaves a letter or digit on
    both sides, and separates no character from its combining marks and no part of a joined emoji from the others.
    """

    def __init__(self, text: str, language: str | None = None) -> None:
        self.text, sentences = _joined_sentences(text, language)
        self._cuts: dict[Kind, list[int]] = {
            Kind.SENTENCE: [end for end in sentences if self._may_cut(end)],
            Kind.CLAUSE: [end for found in _CLAUSE.finditer(self.text) if self._may_cut(end := found.end())],
            Kind.WORD: [end for found in _SPACE.finditer(self.text) if self._may_cut(end := found.start())],
        }
        self._last_speakable = next((i for i in range(len(self.text) - 1, -1, -1) if self.text[i].isalnum()), -1)

    def __len__(self) -> int:
        return len(self.text)

    def cuts(self, kind: Kind, start: int, shortest: int, longest: int) -> list[int]:
        """Return the cuts that make a piece from `start` of `shortest` to `longest` characters, in order."""
        low, high = self._window(start, longest)
        cuts = self._cuts[kind]
        return cuts[bisect_left(cuts, max(low, start + shortest)) : bisect_right(cuts, high)]

    def hard_cut(self, start: int, longest: int) -> int | None:
        """Return the last cut between any two characters that makes a piece of at most `longest`, if there is one."""
        low, high = self._window(start, longest)
        return next((end for end in range(high, low - 1, -1) if self._may_cut(end)), None)

    def after(self, cut: int) -> int:
        """Return where the next piece starts."""
        return cut + 1 if self.text[cut : cut + 1] == " " else cut

    def _window(self, start: int, longest: int) -> tuple[int, int]:
        first = _SPEAKABLE.search(self.text, start)
        low = first.end() if first else len(self.text)
        return low, min(start + longest, self._last_speakable)

    def _may_cut(self, end: int) -> bool:
        following = self.text[self.after(end) : self.after(end) + 1]
        if not 0 < end < len(self.text) or self.text[end - 1] in _JOINERS or following in _JOINERS:
            return False
        if following.isascii():
            return True
        if "\U0001f3fb" <= following <= "\U0001f3ff":  # skin tones
            return False
        if following in _REGIONAL:  # two of them are a flag
            before = self.text[max(0, end - 256) : end]
            return (len(before) - len(before.rstrip(_REGIONAL))) % 2 == 0
        return not unicodedata.category(following).startswith("M")


def first_cut(line: Line, longest: int, limit: int) -> int | None:
    """Return the end of the first piece: of the first sentence that is no fragment, or else of the last clause or word
    within `longest`, or else the first cut within `limit`. The end of the line counts; None where nothing fits.
    """
    longest = min(longest, limit)
    shortest = min(FRAGMENT, longest // 2)
    if sentences := line.cuts(Kind.SENTENCE, 0, shortest, longest):
        leaving = next((cut for cut in sentences if len(line) - cut > FRAGMENT), sentences[0])
        return len(line) if len(line) <= longest and len(line) - leaving <= FRAGMENT else leaving
    if len(line) <= longest:
        return len(line)
    for kind in (Kind.CLAUSE, Kind.WORD):
        if cuts := line.cuts(kind, 0, shortest, longest):
            return _last_leaving_no_fragment(line, cuts)
    # A word longer than the whole first piece, such as an address: rather a little late than in two.
    later = line.cuts(Kind.CLAUSE, 0, longest, limit) + line.cuts(Kind.WORD, 0, longest, limit)
    if later:
        return min(later)
    return len(line) if len(line) <= limit else line.hard_cut(0, longest) or line.hard_cut(0, limit)


def packed_cut(line: Line, start: int, limit: int) -> int | None:
    """Return the end of as many whole sentences from `start` as fit; if none does, of the last clause or word that
    fits. The end of the line counts; None where nothing fits.
    """
    if len(line) - start <= limit:
        return len(line)
    # A clause or word that would end early is worse than a later one; a sentence is only worse as a fragment.
    shortest = {Kind.SENTENCE: min(FRAGMENT, limit // 2), Kind.CLAUSE: limit // 3, Kind.WORD: limit // 3}
    for kind in Kind:
        if cuts := line.cuts(kind, start, shortest[kind], limit):
            return _last_leaving_no_fragment(line, cuts)
    return line.hard_cut(start, limit)


def _last_leaving_no_fragment(line: Line, cuts: list[int]) -> int:
    return next((cut for cut in reversed(cuts) if len(line) - cut > FRAGMENT), cuts[-1])


def is_speakable(text: str) -> bool:
    """Tell whether there is a letter or digit in it, and so something to say."""
    return _SPEAKABLE.search(text) is not None


def _joined_sentences(text: str, language: str | None) -> tuple[str, list[int]]:
    """Return the text in one line, and the cuts behind its sentences but the last."""
    code = (language or "en").replace("_", "-").split("-")[0].lower()
    sentences = list(segment(code, text))
    if "".join(sentences) != text:  # never seen; a word lost to the splitter would be lost to the listener
        sentences = [text]
    line = ""
    cuts: list[int] = []
    blank_before = False
    for sentence in sentences:
        words = " ".join(sentence.split())
        blank_before = blank_before or sentence[:1].isspace()
        if words:
            if line:
                cuts.append(len(line))
            line += f" {words}" if line and blank_before else words
            blank_before = False
        blank_before = blank_before or sentence[-1:].isspace()
    return line, cuts
