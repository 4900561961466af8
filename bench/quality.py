"""`tts-bench quality`: our pipeline against upstream's `generate` on a set of texts, for whoever has weights."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table
from rich.text import Text

from bench.errors import OptionError
from bench.listening import wav_file
from bench.options import check_writable
from bench.progress import Steps
from bench.quality_page import note_of, page
from bench.ratios import spread
from bench.recogniser import lacking
from bench.report import host, shown, table_console, versions, write_report
from bench.torch_extra import need_torch

if TYPE_CHECKING:
    from bench.chatterbox.voicing import Take

HELP = "our pipeline against upstream's generate on a set of texts: words, length, speaker, seams; a page to listen to"
FORMAT = "tts-bench quality 1"

MODELS = ("chatterbox", "chatterbox-turbo")
STREAMS = ("segments", "chunk")
PRECISIONS = ("fp32", "tf32", "bf16")
_SAMPLE_RATE = 24_000
_LONGEST_CHARACTERS = 280  # of a segment
TEXTS = (
    "The harbour was quiet before sunrise.",
    "Please hold the line; somebody will be with you in a moment.",
    "She sold seven thousand tickets, and nobody had asked for one of them.",
    "Is that really what you meant, or did I mishear you?",
    "First turn left at the bridge, then follow the river for about twenty minutes until you see the old mill.",
    "Yes.",
)


@dataclass(frozen=True, slots=True)
class Options:
    """What is spoken, by whom."""

    checkpoint: Path
    model: str
    device: str
    clip: Path | None
    texts: tuple[str, ...]
    stream: tuple[str, ...]
    precision: tuple[str, ...]
    seed: int


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--checkpoint", type=Path, metavar="DIR", required=True, help="weights as upstream's from_local wants them")
    add("--model", choices=MODELS, default=MODELS[0], help=f"default: {MODELS[0]}")
    add("--device", default="cpu", help="cpu or cuda:0 (default: cpu)")
    add("--clip", type=Path, metavar="FILE", help="a recording whose voice speaks (default: the checkpoint's own)")
    add("--texts", type=Path, metavar="FILE", help="a text a line (default: six sentences)")
    add("--stream", default=",".join(STREAMS), metavar="segments,chunk", help="ways of streaming (default: both)")
    add("--precision", default="fp32", metavar="fp32,bf16", help="of ours: fp32, tf32, bf16 (default: fp32)")
    add("--seed", type=int, default=1, metavar="N", help="of what is spoken (default: 1)")
    add("--json", type=Path, metavar="FILE", help="write every figure")
    add("--html", type=Path, metavar="FILE", help="write a page with players side by side")


def run(arguments: argparse.Namespace) -> int:
    """Speak, measure, write and print.

    Raises:
        OptionError: nothing was spoken.
    """
    options = read_options(arguments)
    need_torch("quality")
    takes = _recorded(options)
    figures = {name: [take.figures for take in spoken] for name, spoken in takes.items()}
    report = build_report(options, figures)
    if arguments.json is not None:
        write_report(report, arguments.json)
    if arguments.html is not None:
        files = {name: [wav_file(take.sound, _SAMPLE_RATE) for take in spoken] for name, spoken in takes.items()}
        notes = {name: [note_of(one) for one in measured] for name, measured in figures.items()}
        html = page(HEADS, rows(report), options.texts, files, notes)
        arguments.html.write_text(html, encoding="utf-8")
    console = table_console()
    console.print(_table(report))
    if missing := lacking():
        console.print(Text(f"words   not heard: {', '.join(missing)} not installed"))
    return 0


def read_options(arguments: argparse.Namespace) -> Options:
    """Return what to speak.

    Raises:
        OptionError: an option is impossible.
    """
    if not arguments.checkpoint.is_dir():
        raise OptionError(f"--checkpoint: {arguments.checkpoint} is no directory")
    if arguments.clip is not None and not arguments.clip.is_file():
        raise OptionError(f"--clip: {arguments.clip} is no file")
    for name in ("json", "html"):
        check_writable(f"--{name}", vars(arguments)[name])
    return Options(
        checkpoint=arguments.checkpoint,
        model=arguments.model,
        device=arguments.device,
        clip=arguments.clip,
        texts=_texts(arguments.texts),
        stream=_listed("--stream", arguments.stream, STREAMS),
        precision=_listed("--precision", arguments.precision, PRECISIONS),
        seed=arguments.seed,
    )


def _texts(path: Path | None) -> tuple[str, ...]:
    if path is None:
        return TEXTS
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, ValueError) as error:
        raise OptionError(f"--texts: {path}: {error}") from None
    texts = tuple(line for line in lines if line)
    if not texts:
        raise OptionError(f"--texts: {path} holds no text")
    if (longest := max(map(len, texts))) > _LONGEST_CHARACTERS:
        raise OptionError(f"--texts: {path} has a line of {longest} characters; a segment has {_LONGEST_CHARACTERS}")
    return texts


def _listed(flag: str, given: str, known: Sequence[str]) -> tuple[str, ...]:
    names = tuple(given.split(","))
    for name in names:
        if name not in known:
            raise OptionError(f"{flag}: {name!r} is none of {', '.join(known)}")
    return names


def _recorded(options: Options) -> dict[str, list[Take]]:
    # Here and not above: it loads torch, which the other sub-commands do without.
    from bench.chatterbox.voicing import Mode, Session, count_steps, record

    session = Session(
        directory=options.checkpoint,
        model=options.model,
        device=options.device,
        clip=options.clip,
        texts=options.texts,
        modes=[Mode(stream, precision) for precision in options.precision for stream in options.stream],
        seed=options.seed,
    )
    with Steps(count_steps(session)) as steps:
        return record(session, steps.begin)


def build_report(options: Options, figures: Mapping[str, Sequence[dict[str, Any]]]) -> dict[str, Any]:
    """Return all of it as plain JSON: every take, and what they add up to for each speaker, upstream's first."""
    upstream = next(iter(figures.values()))
    summary = {}
    for name, takes in figures.items():
        durations = [
            one["duration_seconds"] / other["duration_seconds"] for one, other in zip(takes, upstream, strict=True)
        ]
        summary[name] = {
            "word_error_rate": _mean(one["word_error_rate"] for one in takes),
            "duration_seconds": sum(one["duration_seconds"] for one in takes),
            "duration_to_upstream": _as_json(durations),
            "similarity": _as_json([one["similarity"] for one in takes]),
            "seam_decibels": max(_known(one["seam_decibels"] for one in takes), default=None),
            "real_time_factor": _as_json([one["real_time_factor"] for one in takes]),
        }
    return {
        "format": FORMAT,
        "options": {
            "model": options.model,
            "device": options.device,
            "has_clip": options.clip is not None,
            "seed": options.seed,
        },
        "versions": versions(),
        "host": host(),
        "texts": list(options.texts),
        "takes": {name: list(takes) for name, takes in figures.items()},
        "summary": summary,
    }


def _known(values: Iterable[float | None]) -> list[float]:
    return [value for value in values if value is not None]


def _mean(values: Iterable[float | None]) -> float | None:
    known = _known(values)
    return sum(known) / len(known) if known else None


def _as_json(values: Sequence[float]) -> dict[str, float]:
    found = spread(values)
    assert found is not None, "there is a text"
    return found._asdict()


HEADS = ("", "words wrong, %", "audio, s", "length ÷ upstream", "similarity", "roughest seam, dB", "real-time factor")


def rows(report: dict[str, Any]) -> list[list[str]]:
    """Return the cells of the table, a speaker a row."""
    return [
        [
            name,
            shown(None if one["word_error_rate"] is None else 100 * one["word_error_rate"]),
            shown(one["duration_seconds"]),
            _ranged(one["duration_to_upstream"]),
            _ranged(one["similarity"]),
            "–" if one["seam_decibels"] is None else f"{one['seam_decibels']:+.1f}",
            shown(one["real_time_factor"]["median"]),
        ]
        for name, one in report["summary"].items()
    ]


def _ranged(value: dict[str, float]) -> str:
    return "{median:.2f} ({low:.2f}–{high:.2f})".format(**value)


def _table(report: dict[str, Any]) -> Table:
    table = Table()
    for number, head in enumerate(HEADS):
        table.add_column(head, justify="right" if number else "left")
    for row in rows(report):
        table.add_row(*map(Text, row))
    return table
