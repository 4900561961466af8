"""What text may be spoken: cleaned for a voice, or refused with a reason."""

from __future__ import annotations

import html
import re
import unicodedata
from collections.abc import Collection

from wire.errors import ErrorCode, TtsError

_FORBIDDEN = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff]")
_LINE_END = re.compile("\r\n?|[\u2028\u2029]")
_SPACE = re.compile("[\t\u00a0\u1680\u2000-\u200a\u202f\u205f\u3000]")
# Zero width and without a sound: soft hyphen, joiners, direction marks, byte order mark, variation selectors, tags.
# A joiner stays behind a letter of the Arabic or an Indic script, where it decides what the word is.
_INVISIBLE = re.compile(
    "[\u00ad\u034f\u061c\u200b\u200e\u200f\u202a-\u202e\u2060-\u2064\u2066-\u206f\ufeff\ufe00-\ufe0f"
    "\U000e0000-\U000e01ef]|(?<![\u0600-\u109f\u1780-\u18af])[\u200c\u200d]"
)
_MARKS_IN_A_ROW = 30  # UAX #15's bound; without one, NFC takes time quadratic in the length of the run
_LONG_RUN = re.compile(r"([^\w\s]|_)\1{7,}")  # a ruler of dashes, leader dots


def clean_text(text: str, *, max_characters: int, param: str = "text", keep_markup: bool = True) -> str:
    """Return `text` as a voice should get it, without blanks around it; `keep_markup=False` strips Markdown and HTML.

    `max_characters` counts what the caller sent, before anything is removed.

    Raises:
        TtsError: `empty_text`, `text_too_long` or `unspeakable_text`, naming `param`.
    """
    if len(text) > max_characters:
        raise TtsError(
            ErrorCode.TEXT_TOO_LONG,
            f"{param} has {len(text)} characters; at most {max_characters} are allowed. Send it in parts.",
            param=param,
        )
    _refuse_forbidden(text, param)
    cleaned = clean_piece(text if keep_markup else strip_markup(text), param=param).strip()
    if not cleaned:
        raise TtsError(ErrorCode.EMPTY_TEXT, f"{param} is empty. Send the words to be spoken.", param=param)
    if not any(map(str.isalnum, cleaned)):
        raise TtsError(
            ErrorCode.UNSPEAKABLE_TEXT,
            f"{param} has nothing to say: no letter and no digit. Send at least one word.",
            param=param,
        )
    return cleaned


def clean_piece(text: str, *, param: str = "text") -> str:
    """Return one piece of a longer text, cleaned as `clean_text` does; it may be blank and keeps the blanks around it.

    Raises:
        TtsError: `unspeakable_text`, naming `param`, for a control character or half of a surrogate pair.
    """
    _refuse_forbidden(text, param)
    text = _LINE_END.sub("\n", text)
    if not text.isascii():
        text = _SPACE.sub(" ", _INVISIBLE.sub("", text))
        _refuse_stacked_marks(text, param)
        text = unicodedata.normalize("NFC", text)
    return _LONG_RUN.sub(r"\1\1\1", text.replace("\t", " "))


def _refuse_forbidden(text: str, param: str) -> None:
    found = _FORBIDDEN.search(text)
    if found is None:
        return
    code = ord(found[0])
    what = "half of a surrogate pair" if code >= 0xD800 else "a control character"
    raise TtsError(
        ErrorCode.UNSPEAKABLE_TEXT,
        f"{param} has {what}, U+{code:04X}, at position {found.start()} (counted from 0). Remove it.",
        param=param,
    )


def _refuse_stacked_marks(text: str, param: str) -> None:
    run = 0
    for position, character in enumerate(text):
        run = run + 1 if unicodedata.combining(character) else 0
        if run > _MARKS_IN_A_ROW:
            raise TtsError(
                ErrorCode.UNSPEAKABLE_TEXT,
                f"{param} has more than {_MARKS_IN_A_ROW} combining marks on one letter, near position {position}. "
                "Remove them.",
                param=param,
            )


_BLOCK_TAGS = "address|article|blockquote|br|dd|div|dl|dt|h[1-6]|hr|li|ol|p|pre|section|table|tbody|td|th|thead|tr|ul"
_INLINE_TAGS = "a|abbr|b|big|cite|code|del|em|font|i|img|ins|kbd|mark|q|s|samp|small|span|strong|sub|sup|tt|u|var"
# Only HTML's own names, with attributes in full: "<name>" and "a <b and c> d" are words that someone wrote.
_ATTRIBUTES = r"""(?:\s+[\w:-]+\s*=\s*(?:"[^"<>]*"|'[^'<>]*'|[^\s"'<>=]+))*\s*/?>"""
_BLOCK_TAG = re.compile(rf"</?(?:{_BLOCK_TAGS}){_ATTRIBUTES}", re.IGNORECASE)
_INLINE_TAG = re.compile(rf"</?(?:{_INLINE_TAGS}){_ATTRIBUTES}", re.IGNORECASE)
_AUTOLINK = re.compile(r"<((?:https?://|mailto:)[^<>\s]+)>")
_ENTITY = re.compile(r"&(?:#[0-9]{1,7}|#[xX][0-9a-fA-F]{1,6}|[A-Za-z][A-Za-z0-9]{1,31});")
_FENCE = re.compile(r"^[ \t]*(?:```+|~~~+)[ \t]*[\w+-]*[ \t]*$", re.MULTILINE)
_RULE = re.compile(r"^[ \t]*(?:(?:-[ \t]*){3,}|(?:\*[ \t]*){3,}|(?:_[ \t]*){3,}|={3,}[ \t]*)$", re.MULTILINE)
_LINE_MARK = re.compile(r"^[ \t]*(?:>[ \t]?)*(?:#{1,6}[ \t]+|[-*+][ \t]+(?:\[[ xX]\][ \t]+)?)?(?=\S)", re.MULTILINE)
_LINK = re.compile(r"!?\[([^\[\]\n]+)\]\((?:[^()\s]|\([^()\s]*\))*(?:[ \t]+\"[^\"\n]*\")?\)")
_CODE = re.compile(r"(`+)([^`\n]+)\1")


def _emphasis(mark: str, length: int) -> re.Pattern[str]:
    # The marks hug the words inside and no word outside: "3 * 4 * 5", "2**3**4" and snake_case_name are none. No mark
    # inside: a scan ends at the next one, so that a text of nothing but marks costs linear time.
    fence = re.escape(mark) + f"{{{length}}}"
    not_mark = re.escape(mark)
    return re.compile(
        rf"(?<![\w\\{not_mark}]){fence}(?![\s{not_mark}])([^{not_mark}\n]+)(?<!\s){fence}(?![\w{not_mark}])"
    )


# Inner marks first, so that "**a *b* c**" loses both.
_EMPHASES = [
    _emphasis("*", 1),
    _emphasis("_", 1),
    *(_emphasis(mark, n) for n in (2, 3) for mark in "*_"),
    _emphasis("~", 2),
]


def strip_markup(text: str) -> str:
    """Return `text` without Markdown marks and HTML tags. Its words stay, a link's address does not. Never fails."""
    text = _RULE.sub("", _FENCE.sub("", _LINE_END.sub("\n", text)))  # `$` knows no carriage return
    text = _LINE_MARK.sub("", text)
    text = _CODE.sub(r"\2", _LINK.sub(r"\1", text))
    for emphasis in _EMPHASES:
        text = emphasis.sub(r"\1", text)
    text = _AUTOLINK.sub(r"\1", text)
    text = _INLINE_TAG.sub("", _BLOCK_TAG.sub("\n", text))
    # Last: what an entity hid is text, not markup. Those that stand for a control character are not text either.
    return _ENTITY.sub(lambda found: _FORBIDDEN.sub("", html.unescape(found[0])), text)


def check_scripts(text: str, *, scripts: Collection[str], model: str, param: str = "text") -> None:
    """Refuse a text with a letter that the model cannot read; empty `scripts` means that it reads any.

    Raises:
        TtsError: `unspeakable_text`, naming the first such letter, its script and the model.
    """
    if not scripts or (text.isascii() and "LATIN" in scripts):
        return
    for letter in dict.fromkeys(text):  # each once, in order of appearance
        script = _script(letter)
        if script is not None and script not in scripts:
            raise TtsError(
                ErrorCode.UNSPEAKABLE_TEXT,
                f"{param} has the {script.title()} letter {letter!r} at position {text.index(letter)}, which the model "
                f"{model} cannot read; it reads {', '.join(name.title() for name in sorted(scripts))}. "
                "Choose another model or remove it.",
                param=param,
            )


def _script(letter: str) -> str | None:
    # Modifier letters (Lm), such as the turned comma of Hawaiʻi, belong to no script of their own.
    if unicodedata.category(letter) not in ("Lu", "Ll", "Lt", "Lo"):
        return None
    return unicodedata.name(unicodedata.normalize("NFKC", letter)[0], "UNKNOWN").split(maxsplit=1)[0]
