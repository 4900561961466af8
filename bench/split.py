"""`tts-bench split`: one worker, two side by side, or one with a stage a device, on the same texts."""

from __future__ import annotations

import argparse
import asyncio
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from bench.arrangement import Advice, Arrangement, Outcome, advise
from bench.closed import speak_all
from bench.errors import OptionError
from bench.figures import summarize
from bench.fleet import FleetError, ends_on_sigterm
from bench.gpu_load import GpuLoad, watched_gpus
from bench.options import check_writable
from bench.progress import Steps
from bench.ratios import Spread, spread
from bench.report import host, shown, table_console, versions, write_report
from bench.section import check_section, write_section
from bench.speakers import (
    Service,
    Speaker,
    add_speaker_arguments,
    client_of,
    read_speaker,
    serving,
    texts_for,
    with_weights,
)

HELP = "one worker, two side by side, or one with a stage a device: which is worth it, and why"
FORMAT = "tts-bench split 1"

_STAGES = "tts_worker_stage_seconds_total"
_OVERLAP = "tts_worker_stage_overlap_seconds_total"


@dataclass(frozen=True, slots=True)
class Options:
    """What is measured: the same texts on each arrangement, in turns, `connections` of them under way at once."""

    devices: tuple[str, str]
    speaker: Speaker
    slots: int
    requests: int
    connections: int
    turns: int
    seed: int

    def places(self, arrangement: Arrangement) -> list[tuple[str, ...]]:
        """Return the options of each worker that say where it runs."""
        first, second = self.devices
        slots = ("--slots", str(self.slots))
        match arrangement:
            case Arrangement.ONE:
                return [("--device", first, *slots)]
            case Arrangement.PARALLEL:
                return [("--device", device, *slots) for device in self.devices]
            case Arrangement.SPLIT:
                return [("--split", f"{first},{second}", *slots)]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--devices", default="cpu,cpu", metavar="D,D", help="the two devices (default: cpu,cpu)")
    add("--slots", type=int, default=8, metavar="N", help="of a worker (default: 8)")
    add_speaker_arguments(parser, model="chatterbox")
    add("--requests", type=int, default=24, metavar="N", help="texts (default: 24)")
    add("--connections", type=int, default=8, metavar="N", help="under way at once (default: 8)")
    add("--turns", type=int, default=3, metavar="N", help="times that each is measured (default: 3)")
    add("--seed", type=int, default=1, metavar="N", help="of the texts (default: 1)")
    add("--json", type=Path, metavar="FILE", help="write every figure")
    add("--markdown", type=Path, metavar="FILE", help="replace the table between the marks in FILE")


def run(arguments: argparse.Namespace) -> int:
    """Measure, write and print; 1 when a text was not spoken or a process ended by itself."""
    options = read_options(arguments)
    turns = asyncio.run(_measure(options))
    report = build_report(options, turns)
    if arguments.json is not None:
        write_report(report, arguments.json)
    if arguments.markdown is not None:
        write_section(arguments.markdown, "split", markdown(report))
    console = table_console()
    console.print(_table(report))
    console.print(Text(advice_line(report)))
    return 0


def read_options(arguments: argparse.Namespace) -> Options:
    """Return what to measure.

    Raises:
        OptionError: an option is impossible.
    """
    devices = tuple(arguments.devices.split(","))
    if len(devices) != 2 or not all(devices):
        raise OptionError(f"--devices must be two devices with a comma between, not {arguments.devices!r}")
    for name in ("slots", "requests", "connections", "turns"):
        if vars(arguments)[name] < 1:
            raise OptionError(f"--{name} must be at least 1")
    if arguments.model == "tone":
        raise OptionError("--model: tone has no stages to split")
    check_writable("--json", arguments.json)
    if arguments.markdown is not None:
        check_section(arguments.markdown, "split")
    return Options(
        devices=(devices[0], devices[1]),
        speaker=read_speaker(arguments, "split"),
        slots=arguments.slots,
        requests=arguments.requests,
        connections=arguments.connections,
        turns=arguments.turns,
        seed=arguments.seed,
    )


async def _measure(options: Options) -> dict[Arrangement, list[dict[str, Any]]]:
    """Measure each arrangement once a turn, so that what the machine does to one it does to all.

    Raises:
        FleetError: a text was not spoken, or a process ended by itself.
    """
    ends_on_sigterm()
    turns: dict[Arrangement, list[dict[str, Any]]] = {each: [] for each in Arrangement}
    with tempfile.TemporaryDirectory(prefix="tts-bench-") as folder:
        speaker = with_weights(options.speaker, Path(folder))
        with Steps(options.turns * len(Arrangement)) as steps:
            for turn in range(options.turns):
                for arrangement in Arrangement:
                    steps.begin(f"turn {turn + 1}: {arrangement.label}")
                    async with serving(speaker, options.places(arrangement)) as service:
                        turns[arrangement].append(await service.fleet.guard(_measure_one(options, service)))
    return turns


async def _measure_one(options: Options, service: Service) -> dict[str, Any]:
    """Speak all texts.

    Raises:
        FleetError: one was not spoken.
    """
    texts = texts_for(options.speaker, options.requests, options.seed)
    async with client_of(service.gateway.url, options.speaker.model) as client:
        before = await _stage_seconds(service)
        began = time.monotonic()
        async with watched_gpus() as load:
            journeys = await speak_all(client.speak, texts, options.connections, time.monotonic)
        elapsed = time.monotonic() - began
        after = await _stage_seconds(service)
    figures = summarize(journeys, offered_per_second=0.0, alone=None)["groups"]["all"]
    if figures["ok"] < len(journeys):
        problem = next(journey.problem for journey in journeys if not journey.is_ok)
        raise FleetError(f"{len(journeys) - figures['ok']} of {len(journeys)} texts were not spoken: {problem}")
    stages = {name: after[name] - before.get(name, 0.0) for name in after}
    return {
        "elapsed_seconds": elapsed,
        "audio_seconds": figures["audio_seconds"],
        "audio_seconds_per_second": figures["audio_seconds"] / elapsed,
        "ttfa_p50_seconds": figures["ttfa_seconds"]["p50"],
        "ttfa_p95_seconds": figures["ttfa_seconds"]["p95"],
        "stage_seconds": stages,
        "overlap_ratio": overlap_ratio(stages),
        "device_bytes": _fullest(service.pids, load),
    }


async def _stage_seconds(service: Service) -> dict[str, float]:
    """Return what the workers' stages took since their start, and how much of it both were at work."""
    found = {stage: await service.worker_metric(_STAGES, stage=stage) for stage in ("decode", "vocode")}
    found["overlap"] = await service.worker_metric(_OVERLAP)
    return {stage: seconds for stage, seconds in found.items() if seconds is not None}


def overlap_ratio(stages: Mapping[str, float]) -> float | None:
    """Return, of the time in which a stage was at work, the share in which both were; None where it is not told.

    As the worker's own `tts_worker_stage_overlap_ratio`, but without its warm-up.
    """
    overlap = stages.get("overlap")
    if overlap is None:
        return None
    busy = stages.get("decode", 0.0) + stages.get("vocode", 0.0) - overlap
    return overlap / busy if busy > 0 else 0.0


def _fullest(pids: Iterable[int], load: GpuLoad) -> float:
    """Return the memory of the fuller device; of the largest worker where there is no GPU: it is host memory then."""
    import psutil  # of the extra `bench`, which the other sub-commands do without

    if load.memory_bytes:
        return float(max(load.memory_bytes.values()))
    return float(max(psutil.Process(pid).memory_info().rss for pid in pids))


def outcome_of(turns: Sequence[dict[str, Any]]) -> Outcome:
    """Return the medians of an arrangement's turns."""

    def median(values: Iterable[float | None]) -> float | None:
        found = spread(values)
        return None if found is None else found.median

    audio = median(turn["audio_seconds_per_second"] for turn in turns)
    ttfa = median(turn["ttfa_p95_seconds"] for turn in turns)
    assert audio is not None
    assert ttfa is not None
    return Outcome(
        audio_seconds_per_second=audio,
        ttfa_p95_seconds=ttfa,
        device_bytes=median(turn["device_bytes"] for turn in turns),
        decode_seconds=median(turn["stage_seconds"].get("decode") for turn in turns),
        vocode_seconds=median(turn["stage_seconds"].get("vocode") for turn in turns),
    )


def build_report(options: Options, turns: dict[Arrangement, list[dict[str, Any]]]) -> dict[str, Any]:
    """Return all of it as plain JSON, with the ratios to one worker in the same turn and the advice."""
    advice: Advice = advise({arrangement: outcome_of(measured) for arrangement, measured in turns.items()})
    alone = turns[Arrangement.ONE]
    gains = {
        arrangement: spread(
            mine["audio_seconds_per_second"] / one["audio_seconds_per_second"]
            for mine, one in zip(measured, alone, strict=True)
        )
        for arrangement, measured in turns.items()
    }
    return {
        "format": FORMAT,
        "options": {
            "devices": list(options.devices),
            "model": options.speaker.model,
            "size": options.speaker.size,
            "characters": options.speaker.characters,
            "worker_options": list(options.speaker.worker_options),
            "slots": options.slots,
            "requests": options.requests,
            "connections": options.connections,
            "seed": options.seed,
        },
        "versions": versions(),
        "host": host(),
        "turns": {str(arrangement): measured for arrangement, measured in turns.items()},
        "gains": {str(arrangement): gain._asdict() for arrangement, gain in gains.items() if gain is not None},
        "advice": {"choice": str(advice.choice), "reason": advice.reason},
    }


_HEADS = ("", "audio-s/s", "÷ one worker", "TTFA p50, s", "TTFA p95, s", "tokens, % of both", "overlap", "memory, GB")


def _cells(report: dict[str, Any]) -> list[list[str]]:
    cells = []
    for name, turns in report["turns"].items():
        outcome = outcome_of(turns)
        gain = Spread(**report["gains"][name])
        p50, overlap = (spread(turn[key] for turn in turns) for key in ("ttfa_p50_seconds", "overlap_ratio"))
        share, size = outcome.token_share, outcome.device_bytes
        cells.append(
            [
                Arrangement(name).label,
                shown(outcome.audio_seconds_per_second),
                f"{gain.median:.2f} ({gain.low:.2f}–{gain.high:.2f})",
                shown(None if p50 is None else p50.median),
                shown(outcome.ttfa_p95_seconds),
                "–" if share is None else f"{share:.0%}",
                "–" if overlap is None else f"{overlap.median:.2f}",
                "–" if size is None else f"{size / 1e9:.2f}",
            ]
        )
    return cells


def advice_line(report: dict[str, Any]) -> str:
    """Return the advice as one line."""
    return f"advice: {Arrangement(report['advice']['choice']).label}. {report['advice']['reason']}"


def markdown(report: dict[str, Any]) -> str:
    """Return the table and the advice in Markdown."""
    rows = (_HEADS, ["---", *["---:"] * (len(_HEADS) - 1)], *_cells(report))
    return "\n".join([*(f"| {' | '.join(row)} |" for row in rows), "", advice_line(report)])


def _table(report: dict[str, Any]) -> Table:
    table = Table()
    for number, head in enumerate(_HEADS):
        table.add_column(head, justify="right" if number else "left")
    for row in _cells(report):
        table.add_row(*row)
    return table
