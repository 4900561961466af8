"""Parts of a Markdown file that a command writes, between two marks; the rest is a person's."""

from __future__ import annotations

from pathlib import Path

from bench.errors import OptionError


def check_section(path: Path, name: str) -> None:
    """Refuse a file without the marks of a section.

    Raises:
        OptionError: naming the marks.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise OptionError(f"--markdown: {path}: {error}") from None
    if _bounds(text, name) is None:
        raise OptionError(f"--markdown: {path} has no {_begin(name)} before a {_end(name)}")


def write_section(path: Path, name: str, content: str) -> None:
    """Replace what stands between the marks of a file that `check_section` passed."""
    text = path.read_text(encoding="utf-8")
    bounds = _bounds(text, name)
    assert bounds is not None, f"{path} lost its marks"
    start, stop = bounds
    path.write_text(f"{text[:start]}\n\n{content.strip()}\n\n{text[stop:]}", encoding="utf-8")


def _bounds(text: str, name: str) -> tuple[int, int] | None:
    start, stop = text.find(_begin(name)), text.find(_end(name))
    return (start + len(_begin(name)), stop) if 0 <= start < stop else None


def _begin(name: str) -> str:
    return f"<!-- {name}: written by tts-bench -->"


def _end(name: str) -> str:
    return f"<!-- end of {name} -->"
