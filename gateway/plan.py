"""Text to segments: where a text is cut, so that it is heard early and spoken by several workers at once."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from gateway.cuts import FRAGMENT, Kind, Line, first_cut, is_speakable, packed_cut
from wire.errors import ErrorCode, TtsError

MAX_PAUSE_SECONDS = 10.0
MAX_PAUSES_SECONDS = 300.0  # of one text: 5,000 characters of nothing but marks would be an hour and a half of silence

# Pieces for parallel work: each costs a prefill and a join, so none shorter.
_SHORTEST_PARALLEL = 80
# What a cut inside a sentence costs there, in characters off the wanted length: dear while the worker has pieces to
# come that can make up for it, cheap in its last piece, whose end may be the end of the whole speech.
_COST = {Kind.SENTENCE: 0, Kind.CLAUSE: 40, Kind.WORD: 160}
_COST_AT_LAST = {Kind.SENTENCE: 0, Kind.CLAUSE: 12, Kind.WORD: 30}

_MARK = re.compile(r"\[\s*pause\s*(?:\]|:[^\[\]\n]{0,40}\]?)", re.IGNORECASE)
_PAUSE = re.compile(r"\[\s*pause\s*:\s*([0-9]{1,6}(?:\.[0-9]{0,6})?|\.[0-9]{1,6})\s*(ms|s|)\s*\]", re.IGNORECASE)
# The end of a piece of text that may turn out to be a pause mark.
_OPEN_MARK = re.compile(r"\[\s*(?:p(?:a(?:u(?:s(?:e\s*(?::[^\[\]\n]{0,40})?)?)?)?)?)?\Z", re.IGNORECASE)
_TOO_MUCH_SILENCE = f"makes the pauses longer than {MAX_PAUSES_SECONDS:g} s together"
# The last word of a text, unless its end is seen: a blank, a sign (but not the point behind a digit, which may be
# that of a decimal), or a script that puts no blanks between words.
_UNFINISHED_WORD = re.compile(
    r"\S*(?:[^\W\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff]|\d[.,:])\Z"
)
_END = re.compile(r"\Z")
# A sentence of a stream is over when the next one has begun by so many characters.
_HOLD = 2


@dataclass(frozen=True, slots=True)
class Speak:
    """A segment: a piece of text spoken as one unit. `index` counts the segments of a text from 0."""

    text: str
    index: int


@dataclass(frozen=True, slots=True)
class Pause:
    """Exact silence between two segments."""

    seconds: float


Item = Speak | Pause


def plan_text(
    text: str,
    *,
    language: str | None = None,
    first_characters: int = 100,
    max_characters: int = 250,
    parallelism: int = 1,
    whole: bool = False,
    param: str = "text",
) -> tuple[Item, ...]:
    """Return what to speak and where to be silent, in order; at least one `Speak`, each with a letter or digit.

    But for white space, the segments' texts are `text` without its pause marks: nothing lost, doubled or moved. The
    first is a sentence of at most `first_characters`, or a part of one; each later one is as many whole sentences as
    `max_characters` hold. With `parallelism` above 1 they are shorter, so that as many workers finish together if
    time goes by characters. `whole` cuts at pauses only.

    Raises:
        TtsError: `invalid_value`, naming `param`, for a malformed or too long pause mark; `unspeakable_text` where no
            cut within `max_characters` leaves a letter or digit on both sides.
    """
    stretches = _with_something_to_say(_parse(text, param), param)
    lines = [stretch if isinstance(stretch, Pause) else Line(stretch, language) for stretch in stretches]
    balance = _Balance(parallelism, sum(len(line) for line in lines if isinstance(line, Line)), max_characters)
    items: list[Item] = []
    index = 0
    for line in lines:
        if isinstance(line, Pause):
            items.append(line)
            continue
        start = 0
        while start < len(line):
            cut: int | None = len(line)
            if not whole and index == 0:
                cut = first_cut(line, first_characters, max_characters)
            elif not whole:
                balanced = balance.cut(line, start) if parallelism > 1 else None
                cut = balanced or packed_cut(line, start, max_characters)
            if cut is None:
                raise _uncuttable(max_characters, param)
            items.append(Speak(line.text[start:cut], index))
            balance.give(cut - start)
            index += 1
            start = line.after(cut)
    return tuple(items)


class _Balance:
    """How the pieces so far load the workers, if each goes to the one that is free first."""

    def __init__(self, workers: int, characters: int, limit: int) -> None:
        self._limit = limit
        self._loads = [0] * workers
        self._characters = characters

    def give(self, characters: int) -> None:
        self._loads[self._loads.index(min(self._loads))] += characters
        self._characters -= characters

    def cut(self, line: Line, start: int) -> int | None:
        """Return the cut next to the wanted length, a sentence's if the difference is small; None where none fits."""
        share = (self._characters + sum(self._loads)) / len(self._loads) - min(self._loads)
        pieces = max(1, math.ceil(share / self._limit))
        wanted = min(max(_SHORTEST_PARALLEL, round(share / pieces)), self._limit)
        cost = _COST_AT_LAST if pieces == 1 else _COST
        choices = [
            (abs(cut - start - wanted) + cost[kind], cut)
            for kind in Kind
            for cut in line.cuts(kind, start, min(FRAGMENT, wanted // 2), self._limit)
            if len(line) - cut > FRAGMENT
        ]
        if len(line) - start <= self._limit:
            choices.append((abs(len(line) - start - wanted), len(line)))
        return min(choices)[1] if choices else None


class StreamPlanner:
    """`plan_text` for a text that arrives in pieces: the same segments, as far as they can be known before the end.

    A segment comes out when no further text can change it: the first when its sentence is over, a later one when the
    text exceeds what it can hold. One per stream; not for two threads.
    """

    def __init__(
        self,
        *,
        language: str | None = None,
        first_characters: int = 100,
        max_characters: int = 250,
        param: str = "text",
    ) -> None:
        self._language = language
        self._first_characters = first_characters
        self._max_characters = max_characters
        self._param = param
        self._waiting = ""  # text that no item covers yet
        self._index = 0
        self._pauses_seconds = 0.0

    def feed(self, piece: str) -> list[Item]:
        """Return the items that no later piece can change.

        Raises:
            TtsError: as `plan_text` does; the planner is of no use afterwards.
        """
        self._waiting += piece
        return self._take(is_end=False)

    def flush(self) -> list[Item]:
        """Return all that is left, as if the text ended here; the planner may be fed on, and indices count on.

        What is left without a letter or digit waits for more, since it cannot be spoken alone.
        """
        return self._take(is_end=True)

    def flush_words(self) -> list[Item]:
        """Return all that is left, as `flush` does, but for a last word or mark that the next piece may go on with."""
        open_mark = _OPEN_MARK.search(self._waiting)
        end = _UNFINISHED_WORD.search(self._waiting)
        kept = min(found.start() for found in (open_mark, end, _END.search(self._waiting)) if found)
        self._waiting, held = self._waiting[:kept], self._waiting[kept:]
        items = self._take(is_end=True)
        self._waiting += held
        return items

    def _take(self, *, is_end: bool) -> list[Item]:
        open_mark = None if is_end else _OPEN_MARK.search(self._waiting)
        known = self._waiting[: open_mark.start()] if open_mark else self._waiting
        held = self._waiting[len(known) :]
        items: list[Item] = []
        stretches = _parse(known, self._param)
        rest = ""
        for number, stretch in enumerate(stretches):
            if isinstance(stretch, Pause):
                self._pauses_seconds += stretch.seconds
                if self._pauses_seconds > MAX_PAUSES_SECONDS:
                    raise _bad_mark(self._param, f"[pause:{stretch.seconds:g}s]", _TOO_MUCH_SILENCE)
                items.append(stretch)
                continue
            is_last = number == len(stretches) - 1
            rest = self._speak(rest + stretch, items, is_complete=is_end or not is_last)
        self._waiting = rest + held
        return items

    def _speak(self, text: str, items: list[Item], *, is_complete: bool) -> str:
        """Append the segments that are certain, and return the text behind them."""
        if not is_speakable(text):
            if len(text.strip()) > self._max_characters:
                raise _uncuttable(self._max_characters, self._param)
            return text
        line = Line(text, self._language)
        start = 0
        while start < len(line):
            cut = self._cut(line, start) if is_complete else self._certain_cut(line, start)
            if cut is None:
                break
            items.append(Speak(line.text[start:cut], self._index))
            self._index += 1
            start = line.after(cut)
        return _behind(text, line.text[:start])

    def _cut(self, line: Line, start: int) -> int:
        if self._index == 0:
            cut = first_cut(line, self._first_characters, self._max_characters)
        else:
            cut = packed_cut(line, start, self._max_characters)
        if cut is None:
            raise _uncuttable(self._max_characters, self._param)
        return cut

    def _certain_cut(self, line: Line, start: int) -> int | None:
        """Return the cut that will be made whatever follows the line, if that is known yet."""
        longest = self._max_characters
        if self._index == 0:
            longest = min(self._first_characters, longest)
            over = line.cuts(Kind.SENTENCE, 0, min(FRAGMENT, longest // 2), longest)
            if over and line.after(over[0]) + _HOLD <= len(line):
                return over[0]
        if len(line) - start <= longest + FRAGMENT + _HOLD:
            return None
        cut = self._cut(line, start)
        return cut if cut < len(line) else None


def _behind(text: str, spoken: str) -> str:
    """Return what follows in `text` the characters of `spoken`, which has other white space."""
    characters = len("".join(spoken.split()))
    for position, character in enumerate(text):
        if characters == 0:
            return text[position:]
        characters -= not character.isspace()
    return ""


def _parse(text: str, param: str) -> list[str | Pause]:
    """Return the stretches of text with the pauses between them: text first and last, though it may be blank."""
    stretches: list[str | Pause] = []
    start = 0
    total = 0.0
    for found in _MARK.finditer(text):
        mark = _PAUSE.fullmatch(found[0])
        seconds = float(mark[1]) / (1000 if mark[2].lower() == "ms" else 1) if mark else math.inf
        total += seconds
        if mark is None:
            raise _bad_mark(param, found[0], "is no pause; write [pause:1.5s] or [pause:300ms]")
        if seconds > MAX_PAUSE_SECONDS:
            raise _bad_mark(param, found[0], f"is longer than the {MAX_PAUSE_SECONDS:g} s that a pause may have")
        if total > MAX_PAUSES_SECONDS:
            raise _bad_mark(param, found[0], _TOO_MUCH_SILENCE)
        stretches += [text[start : found.start()], Pause(seconds)]
        start = found.end()
    return [*stretches, text[start:]]


def _with_something_to_say(stretches: list[str | Pause], param: str) -> list[str | Pause]:
    """Return the stretches with each that has no letter or digit moved to the next that has one, or the last."""
    result: list[str | Pause] = []
    carried = ""
    last: int | None = None  # where in `result` the last text is
    for stretch in stretches:
        if isinstance(stretch, Pause):
            result.append(stretch)
        elif is_speakable(stretch):
            last = len(result)
            result.append(carried + stretch)
            carried = ""
        elif stretch.strip():
            carried += stretch
    if last is None:
        message = f"{param} has nothing to say: no letter and no digit. Send at least one word."
        raise TtsError(ErrorCode.UNSPEAKABLE_TEXT, message, param=param)
    result[last] = f"{result[last]}{carried}"
    return result


def _bad_mark(param: str, mark: str, why: str) -> TtsError:
    return TtsError(ErrorCode.INVALID_VALUE, f"{param} has the mark {mark!r}, which {why}.", param=param)


def _uncuttable(limit: int, param: str) -> TtsError:
    return TtsError(
        ErrorCode.UNSPEAKABLE_TEXT,
        f"{param} has a run of signs without a letter or digit that does not fit into the {limit} characters which can "
        "be spoken at once. Shorten it.",
        param=param,
    )
