"""One page with players side by side: no file but itself, no script, no network. Pure."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; margin: 2rem; color: #222; background: #fff; }
table { border-collapse: collapse; margin-bottom: 2rem; }
th, td { border: 1px solid #ccc; padding: .4rem .7rem; text-align: left; vertical-align: top; }
audio { width: 16rem; }
small { color: #555; }
@media (prefers-color-scheme: dark) {
  body { color: #ddd; background: #181818; } th, td { border-color: #444; } small { color: #aaa; }
}
"""


def page(
    heads: Sequence[str],
    rows: Sequence[Sequence[str]],
    texts: Sequence[str],
    files: Mapping[str, Sequence[bytes]],
    notes: Mapping[str, Sequence[str]],
) -> str:
    """Return HTML: the table of figures, and for each text a player for everybody who spoke it.

    `files` are WAV files and `notes` a line under each player, both by speaker and in the order of `texts`.
    """
    summary = _table(heads, [[escape(cell) for cell in row] for row in rows])
    spoken = [
        [f"<b>{escape(text)}</b>", *(_player(name, files[name][number], notes[name][number]) for name in files)]
        for number, text in enumerate(texts)
    ]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>Chatterbox: upstream and ours</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<style>{_STYLE}</style></head><body><h1>Upstream and ours, side by side</h1>\n"
        f"{summary}\n{_table(['text', *files], spoken)}</body></html>\n"
    )


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    head = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in heads)
    body = "\n".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for row in rows)
    return f"<table><thead><tr>{head}</tr></thead>\n<tbody>{body}</tbody></table>"


def _player(name: str, file: bytes, note: str) -> str:
    data = base64.b64encode(file).decode()
    return (
        f'<audio controls preload="none" aria-label="{escape(name)}" src="data:audio/wav;base64,{data}"></audio>'
        f"<br><small>{escape(note)}</small>"
    )


def note_of(figures: Mapping[str, Any]) -> str:
    """Return the line under a player."""
    parts = [f"{figures['duration_seconds']:.1f} s", f"similarity {figures['similarity']:.2f}"]
    if figures["seam_decibels"] is not None:
        parts.append(f"{figures['seams']} seams, {figures['seam_decibels']:+.0f} dB")
    if figures["word_error_rate"] is not None:
        parts.append(f"WER {figures['word_error_rate']:.0%}: {figures['heard']}")
    return " · ".join(parts)
