"""Text that arrives in pieces, up to its segments: each piece is checked by itself, the whole cut as any text. Pure."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable

from gateway.cuts import is_speakable
from gateway.plan import Item, Speak, StreamPlanner
from gateway.text import check_scripts, clean_piece, strip_markup
from wire.errors import ErrorCode, TtsError

_FIRST_HALVES = "".join(map(chr, range(0xD800, 0xDC00)))
# What is left of an emphasis whose other end is in another segment: marks that hug a word on one side only.
_STRAY_MARK = re.compile(
    r"(?<![^\s(\"'“‘])(?:\*{1,3}|_{1,3}|~~|`+|#{1,6} )(?=\S)|(?<=\S)(?:\*{1,3}|_{2,3}|~~|`+)(?![^\s.,;:!?)\"'”’])"
)


class ArrivingText:
    """One text; `characters` counts what was taken of it, as its author counts."""

    def __init__(
        self,
        planner: StreamPlanner,
        *,
        max_characters: int,
        keep_markup: bool,
        scripts: Collection[str],
        model: str,
        param: str = "text",
    ) -> None:
        self.characters = 0
        self._planner = planner
        self._max_characters = max_characters
        self._keep_markup = keep_markup
        self._scripts = scripts
        self._model = model
        self._param = param
        self._half = ""  # of a surrogate pair: a client may cut its text in the middle of one
        self._segments = 0

    def checked(self, piece: object) -> str:
        """Return the piece as it was sent, once it is certain that it can be taken.

        Raises:
            TtsError: naming the field; nothing of the piece counts.
        """
        if not isinstance(piece, str):
            raise TtsError(
                ErrorCode.INVALID_VALUE,
                f"{self._param} must be a string, not {type(piece).__name__}.",
                param=self._param,
            )
        if self.characters + len(piece) > self._max_characters:
            raise TtsError(
                ErrorCode.TEXT_TOO_LONG,
                f"{self._param} would have {self.characters + len(piece)} characters with this piece; at most "
                f"{self._max_characters} are allowed from start to end.",
                param=self._param,
            )
        text, _ = self._whole(piece)
        check_scripts(clean_piece(text, param=self._param), scripts=self._scripts, model=self._model, param=self._param)
        return piece

    def take(self, piece: str) -> list[Item]:
        """Take a checked piece, and return what no later one can change.

        Raises:
            TtsError: what the text has become cannot be spoken; no more of it can be taken.
        """
        self.characters += len(piece)
        text, self._half = self._whole(piece)
        return self._said(self._planner.feed(clean_piece(text, param=self._param)))

    def flush(self) -> list[Item]:
        """Return all that is left, as if the text ended here; it may go on."""
        clean_piece(self._half, param=self._param)
        return self._said(self._planner.flush())

    def flush_words(self) -> list[Item]:
        """Return what is left but for a last word that the next piece may go on with."""
        return self._said(self._planner.flush_words())

    def _whole(self, piece: str) -> tuple[str, str]:
        """Return the piece with the half character from before it, and the half with which it ends."""
        text = self._half + piece
        half = text[-1:] if text and text[-1] in _FIRST_HALVES else ""
        text = text[: len(text) - len(half)]
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "surrogatepass") if self._half else text, half

    def _said(self, items: Iterable[Item]) -> list[Item]:
        """Return the items without marks, numbered anew: a segment of nothing but marks is none."""
        said: list[Item] = []
        for item in items:
            if isinstance(item, Speak):
                text = item.text if self._keep_markup else _without_marks(item.text)
                if not is_speakable(text):
                    continue
                item = Speak(text, self._segments)
                self._segments += 1
            said.append(item)
        return said


def _without_marks(text: str) -> str:
    return " ".join(_STRAY_MARK.sub("", strip_markup(text)).split())
