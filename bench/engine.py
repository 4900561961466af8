"""`tts-bench engine`: upstream's own loop against ours, on the same checkpoint, device and texts, turn by turn."""

from __future__ import annotations

import argparse
import sys
import tempfile
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.engine_plot import draw_engine
from bench.engine_report import build_report, markdown, printed
from bench.errors import OptionError
from bench.options import check_writable
from bench.plot import check_plot
from bench.progress import Steps
from bench.report import host, table_console, versions, write_report
from bench.section import check_section, write_section
from bench.torch_extra import need_torch
from bench.trace import fixed_texts

if TYPE_CHECKING:
    from bench.chatterbox.contest import Contest

HELP = "upstream's own loop against ours on one checkpoint: tokens and audio a second, and the best there could be"

MODELS = ("chatterbox", "chatterbox-turbo")
SIZES = ("tiny", "full")
PRECISIONS = ("auto", "fp32", "tf32", "bf16")
# A second of speech has 25 tokens and some 15 characters.
_CHARACTERS_A_TOKEN = 0.6
# Enough for steps that are timed behind those that warm up; and no more than a segment's characters give.
_FEWEST_TOKENS, _MOST_TOKENS = 24, 460


@dataclass(frozen=True, slots=True)
class Options:
    """What is measured. Without a `checkpoint`, one of random weights is made in the published or a tiny `size`."""

    checkpoint: Path | None
    size: str
    model: str
    device: str
    precision: str
    batch: tuple[int, ...]
    tokens: int
    turns: int
    rounds: int
    check: int
    threads: int
    watermark: bool
    tokens_only: bool
    sound_batch: int

    @property
    def characters(self) -> int:
        return round(self.tokens * _CHARACTERS_A_TOKEN)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--checkpoint", type=Path, metavar="DIR", help="weights as upstream's from_local wants them (default: random)")
    add("--size", choices=SIZES, default="tiny", help="of random weights (default: tiny)")
    add("--model", choices=MODELS, default=MODELS[0], help=f"default: {MODELS[0]}")
    add("--device", default="cpu", help="cpu or cuda:0 (default: cpu)")
    add("--precision", choices=PRECISIONS, default="auto", help="ours; upstream has float32 (default: auto)")
    add("--batch", default="1,2,4,8", metavar="N[,N]", help="requests of ours at once (default: 1,2,4,8)")
    add("--tokens", type=int, default=50, metavar="N", help="of an utterance, 40 ms each (default: 50)")
    add("--turns", type=int, default=3, metavar="N", help="times that each is measured (default: 3)")
    add("--rounds", type=int, default=3, metavar="N", help="texts in turn in each place of a batch (default: 3)")
    add("--check", type=int, default=0, metavar="N", help="compare greedy tokens of N texts first (default: 0)")
    add("--threads", type=int, default=0, metavar="N", help="of the CPU (default: as torch has them)")
    add("--no-watermark", dest="watermark", action="store_false", help="without the mark, on both sides")
    add("--sound-batch", type=int, default=0, metavar="N", help="as tts-worker has it (default: as there)")
    add("--tokens-only", action="store_true", help="the token stage alone: on a CPU a voice's sound takes minutes")
    add("--json", type=Path, metavar="FILE", help="write every figure")
    add("--plot", type=Path, metavar="FILE.png", help="draw tokens and audio a second")
    add("--markdown", type=Path, metavar="FILE", help="replace the tables between the marks in FILE")


def run(arguments: argparse.Namespace) -> int:
    """Measure, write and print; 1 when greedy tokens were to be equal and are not.

    Raises:
        OptionError: nothing was measured.
    """
    options = read_options(arguments)
    need_torch("engine")
    report = build_report(_measured(options)) | {"versions": versions(), "host": host(), "options": _shown(options)}
    if arguments.json is not None:
        write_report(report, arguments.json)
    if arguments.plot is not None:
        draw_engine(report, arguments.plot)
    if arguments.markdown is not None:
        write_section(arguments.markdown, "engine", markdown(report))
    console = table_console()
    for item in printed(report):
        console.print(item)
    equal = report["equal"]
    if equal is not None and equal["equal"] < equal["texts"]:
        print("tts-bench engine: greedy tokens differ from upstream's", file=sys.stderr)
        return 1
    return 0


def read_options(arguments: argparse.Namespace) -> Options:
    """Return what to measure.

    Raises:
        OptionError: an option is impossible.
    """
    batch = read_batches(arguments.batch)
    if not _FEWEST_TOKENS <= arguments.tokens <= _MOST_TOKENS:
        raise OptionError(f"--tokens must be from {_FEWEST_TOKENS} to {_MOST_TOKENS}, not {arguments.tokens}")
    for name, least in (("turns", 1), ("rounds", 1), ("check", 0), ("threads", 0), ("sound_batch", 0)):
        if vars(arguments)[name] < least:
            raise OptionError(f"--{name.replace('_', '-')} must be at least {least}")
    if arguments.check and arguments.precision != "fp32":
        raise OptionError("--check is used with --precision fp32: in others upstream's tokens are not ours")
    check_writable("--json", arguments.json)
    if arguments.plot is not None and arguments.tokens_only:
        raise OptionError("--plot draws the whole engine, too: leave --tokens-only out")
    if arguments.plot is not None:
        check_writable("--plot", arguments.plot)
        check_plot(arguments.plot)
    if arguments.markdown is not None:
        check_section(arguments.markdown, "engine")
    given = vars(arguments) | {"batch": batch}
    return Options(**{name: given[name] for name in Options.__dataclass_fields__})


def read_batches(text: str) -> tuple[int, ...]:
    """Return the sizes of `--batch`.

    Raises:
        OptionError: naming the option.
    """
    try:
        batch = tuple(int(part) for part in text.split(","))
    except ValueError:
        raise OptionError(f"--batch must be whole numbers with commas between, not {text!r}") from None
    if min(batch) < 1 or len(set(batch)) < len(batch):
        raise OptionError(f"--batch must be numbers from 1 on and name none twice, not {text}")
    return batch


def _shown(options: Options) -> dict[str, Any]:
    return {
        name: str(value) if isinstance(value, Path) else value
        for name in Options.__dataclass_fields__
        for value in (getattr(options, name),)
    }


def _measured(options: Options) -> dict[str, Any]:
    # Here and not above: they load torch, which the other sub-commands do without.
    from bench.chatterbox.contest import count_measurements, measure
    from bench.chatterbox.device import limit_threads
    from bench.chatterbox.making import checkpoint_of

    limit_threads(options.threads)
    contest = _contest(options)
    with tempfile.TemporaryDirectory(prefix="tts-bench-") as folder, Steps(count_measurements(contest) + 1) as steps:
        steps.begin("the checkpoint")
        length = options.tokens, options.characters
        directory = options.checkpoint or checkpoint_of(Path(folder), options.model, options.size, *length)
        return measure(contest, directory, steps.begin)


def _contest(options: Options) -> Contest:
    from bench.chatterbox.contest import Contest
    from bench.chatterbox.making import is_tiny

    is_small = options.size == "tiny" if options.checkpoint is None else is_tiny(options.checkpoint)
    count = max(options.rounds * max(options.batch), options.check, options.turns)
    return Contest(
        model=options.model,
        device=options.device,
        precision=options.precision,
        batches=options.batch,
        tokens=options.tokens,
        turns=options.turns,
        rounds=options.rounds,
        checked=options.check,
        watermark=options.watermark,
        tokens_only=options.tokens_only,
        sound_batch=options.sound_batch or None,
        is_published_size=not is_small,
        texts=list(islice(fixed_texts(1, options.characters), count)),
    )
