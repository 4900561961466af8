"""The options of `tts-bench load`: read once, refused when wrong."""

from __future__ import annotations

import argparse
import math
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from yarl import URL

from bench.client import Api
from bench.errors import OptionError
from bench.trace import LONGEST_CHARACTERS, SHORTEST_CHARACTERS, Pattern

_FORMATS = ("pcm", "wav", "mp3", "opus", "flac", "aac")
_DEFAULT_URLS = {
    Api.TTS: "http://127.0.0.1:8080",
    Api.OPENAI: "http://127.0.0.1:8080",
    Api.SEGMENTS: "http://127.0.0.1:8100",
}
_DEFAULT_DURATION_SECONDS = 60.0
# Options that make a trace; a replayed one has its own answers to them.
_TRACE_MAKERS = ("rate", "arrivals", "mix", "texts", "characters", "longest", "trace_out")


@dataclass(frozen=True, slots=True)
class LoadOptions:
    """What one run does. Durations are in seconds."""

    url: str
    api: Api
    model: str | None
    voice: str | None
    format: str
    stream_format: str
    token: str | None
    sample_rate: int
    rate: float | None
    duration: float | None
    requests: int | None
    arrivals: Pattern
    texts: Path | None
    characters: int | None
    longest: int
    seed: int
    trace_in: Path | None
    trace_out: Path | None
    max_in_flight: int | None
    timeout: float
    prebuffer: float
    calibrate: int
    alone_per_character: float | None
    alone_per_request: float
    decode: bool
    watch_pid: tuple[int, ...]
    label: str
    json: Path | None
    plot: Path | None
    quiet: bool
    fail_on_error: bool

    def to_json(self) -> dict[str, Any]:
        """Return the options as a report shows them: without the token."""
        shown = {name: value for name, value in asdict(self).items() if name != "token"}
        return {name: str(value) if isinstance(value, Path) else value for name, value in shown.items()}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options on `parser`."""
    _add_target(parser.add_argument_group("service"))
    _add_load(parser.add_argument_group("load"))
    _add_measures(parser.add_argument_group("measures"))
    _add_output(parser.add_argument_group("output"))


def _add_target(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add("--url", type=_url, help="default: http://127.0.0.1:8080, with --api segments http://127.0.0.1:8100")
    add("--api", type=Api, choices=list(Api), default=Api.TTS, metavar="tts|openai|segments",
        help="segments goes straight to a worker, past the gateway (default: tts)")  # fmt: skip
    add("--model", help="default: the service's own; needed for segments, and by OpenAI's servers")
    add("--voice", help="like --model")
    add("--format", choices=_FORMATS, default="pcm", help="default: pcm")
    add("--stream-format", choices=("audio", "sse"), default="audio", help="with --api openai (default: audio)")
    add("--token", help="bearer token; for segments the default is TTS_WORKER_TOKEN")
    add(
        "--sample-rate",
        type=_whole(8000, 192_000),
        default=24_000,
        metavar="HZ",
        help="of --format pcm (default: 24000)",
    )


def _add_load(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add("--rate", type=_number(above=0), metavar="R", help="requests a second, on average")
    add("--duration", type=_number(above=0), metavar="S", help="send for so many seconds (default: 60)")
    add("--requests", type=_whole(1), metavar="N", help="send so many requests")
    add("--arrivals", type=Pattern, choices=list(Pattern), metavar="poisson|uniform|bursts",
        help="bursts: a fifth of the time at three times the rate (default: poisson)")  # fmt: skip
    add(
        "--mix",
        choices=("standard",),
        help="lengths: three quarters assistants' sentences, the rest paragraphs (default)",
    )
    add("--texts", type=Path, metavar="FILE", help="instead of the mix: a line of FILE, at random")
    add("--characters", type=_whole(1, 100_000), metavar="N", help="instead of the mix: texts of exactly N characters")
    add("--longest", type=_whole(SHORTEST_CHARACTERS, LONGEST_CHARACTERS), metavar="N",
        help=f"clip the mix to N characters (default: {LONGEST_CHARACTERS})")  # fmt: skip
    add("--seed", type=_whole(0), default=0, metavar="N", help="of arrivals, texts and requests (default: 0)")
    add("--trace-out", type=Path, metavar="FILE", help="write the arrivals and texts as JSON lines")
    add("--trace-in", type=Path, metavar="FILE", help="replay arrivals and texts; --duration and --requests cut it")
    add("--max-in-flight", type=_whole(1), metavar="N", help="do not send, but count, what comes while N are under way")
    add("--timeout", type=_number(above=0), default=300.0, metavar="S", help="for one request (default: 300)")


def _add_measures(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add("--prebuffer", type=_number(least=0), default=0.0, metavar="S",
        help="the listener starts with so much audio in hand (default: 0, at the first chunk)")  # fmt: skip
    add("--calibrate", type=_whole(1, 1000), default=0, metavar="N",
        help="for slowdown: send N texts one by one first, and fit the time a text needs alone")  # fmt: skip
    add("--alone-per-character", type=_number(above=0), metavar="S",
        help="for slowdown: seconds a character needs alone, instead of --calibrate")  # fmt: skip
    add("--alone-per-request", type=_number(least=0), default=0.0, metavar="S",
        help="added to --alone-per-character, once a request (default: 0)")  # fmt: skip
    add("--decode", action="store_true", help="decode compressed answers after the run, to know their length")
    add("--watch-pid", type=_pids, action="extend", default=[], metavar="PID[,PID]",
        help="sample memory, CPU, descriptors and threads of these processes")  # fmt: skip


def _add_output(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add("--label", help="the run's name in tables and plots (default: the API and the URL)")
    add("--json", type=Path, metavar="FILE", help="write every figure")
    add("--plot", type=Path, metavar="FILE.png", help="draw TTFA, completion and requests in flight")
    add("--quiet", action="store_true", help="no progress line and no table")
    add("--fail-on-error", action="store_true", help="exit with 1 when a request failed or was not sent")


def read_options(arguments: argparse.Namespace) -> LoadOptions:
    """Return the options of one run.

    Raises:
        OptionError: two of them contradict each other, or one is missing.
    """
    given = vars(arguments)
    if arguments.trace_in is not None:
        for name in _TRACE_MAKERS:
            if given[name] is not None:
                raise OptionError(f"{_flag(name)} cannot be used with --trace-in, which has times and texts of its own")
    elif arguments.rate is None:
        raise OptionError("--rate is needed (or --trace-in)")
    texts = [name for name in ("mix", "texts", "characters") if given[name] is not None]
    if len(texts) > 1:
        raise OptionError(f"{_flag(texts[1])} cannot be used with {_flag(texts[0])}")
    if arguments.calibrate and arguments.alone_per_character is not None:
        raise OptionError("--calibrate cannot be used with --alone-per-character")
    if arguments.alone_per_request and arguments.alone_per_character is None:
        raise OptionError("--alone-per-request is used with --alone-per-character")
    _check_api(arguments)
    for name in ("json", "plot", "trace_out"):
        check_writable(_flag(name), given[name])
    url = arguments.url or _DEFAULT_URLS[arguments.api]
    return LoadOptions(
        **{name: given[name] for name in LoadOptions.__dataclass_fields__ if name in given} | _defaults(arguments, url)
    )


def check_writable(flag: str, path: Path | None) -> None:
    """Refuse, before any work is done, a file that could not be written after it.

    Raises:
        OptionError: naming `flag`.
    """
    if path is None:
        return
    folder = path.parent
    if not folder.is_dir() or not os.access(folder, os.W_OK) or path.is_dir():
        raise OptionError(f"{flag}: {path} cannot be written")


def _defaults(arguments: argparse.Namespace, url: str) -> dict[str, Any]:
    """What stands for options that were not given, where that hangs on others."""
    duration = arguments.duration
    if duration is None and arguments.requests is None and arguments.trace_in is None:
        duration = _DEFAULT_DURATION_SECONDS
    token = arguments.token
    if token is None and arguments.api is Api.SEGMENTS:
        token = os.environ.get("TTS_WORKER_TOKEN")
    return {
        "url": url,
        "token": token,
        "duration": duration,
        "arrivals": arguments.arrivals or Pattern.POISSON,
        "longest": arguments.longest or LONGEST_CHARACTERS,
        "label": arguments.label or f"{arguments.api} {url}",
        "watch_pid": tuple(arguments.watch_pid),
    }


def _check_api(arguments: argparse.Namespace) -> None:
    if arguments.stream_format == "sse" and arguments.api is not Api.OPENAI:
        raise OptionError("--stream-format sse is used with --api openai")
    if arguments.api is Api.SEGMENTS:
        for name in ("model", "voice"):
            if not vars(arguments)[name]:
                raise OptionError(f"{_flag(name)} is needed with --api segments")
        if arguments.format != "pcm":
            raise OptionError("--format: a worker speaks pcm only")
    if arguments.decode and arguments.format in ("pcm", "wav"):
        raise OptionError(f"--decode: the length of {arguments.format} is known without")


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _number(*, above: float = -math.inf, least: float = -math.inf) -> Callable[[str], float]:
    def read(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is no number") from None
        if not math.isfinite(value) or value <= above or value < least:
            bound = f"above {above:g}" if math.isfinite(above) else f"at least {least:g}"
            raise argparse.ArgumentTypeError(f"must be {bound}, not {text}")
        return value

    return read


def _whole(least: int, most: int | None = None) -> Callable[[str], int]:
    def read(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is no whole number") from None
        if value < least or (most is not None and value > most):
            bound = f"at least {least}" if most is None else f"from {least} to {most}"
            raise argparse.ArgumentTypeError(f"must be {bound}, not {value}")
        return value

    return read


def _url(text: str) -> str:
    try:
        url = URL(text)
        usable = url.scheme in ("http", "https") and bool(url.host)
    except ValueError:
        usable = False
    if not usable:
        raise argparse.ArgumentTypeError(f"{text!r} is no http:// or https:// address")
    return text


def _pids(text: str) -> list[int]:
    read = _whole(1)
    return [read(part) for part in text.split(",") if part]
