"""What `tts-bench engine` measured, as ratios with their spread, tables and lines. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.table import Table
from rich.text import Text

from bench.ratios import Spread, spread
from bench.report import shown

FORMAT = "tts-bench engine 1"

Report = dict[str, Any]
Cells = tuple[str, list[str], list[list[str]]]  # title, headings, rows


def build_report(measured: Report) -> Report:
    """Return what was measured with the ratios of it: ours ÷ upstream's of the same turn. Of the whole engine there are
    none where the tokens alone were measured."""
    upstream = measured["decode"]["upstream"]
    whole = measured["whole"]
    one_by_one = [_rate(one) for one in whole["upstream"]]
    tokens, audio = {}, {}
    for batch, rates in measured["decode"]["ours"].items():
        best = measured["best_tokens_per_second"][batch]
        tokens[batch] = _compared(rates, upstream, best)
    for batch, spoken in whole["ours"].items():
        best = measured.get("best_audio_seconds_per_second", {}).get(batch)
        first = spread(one["slowest_first_audio_seconds"] for one in spoken)
        audio[batch] = _compared([_rate(one) for one in spoken], one_by_one, best) | {
            "slowest_first_audio_seconds": first._asdict() if first else None,
            "stage_shares": _shares(spoken),
        }
    return {
        "format": FORMAT,
        **measured,
        "summary": {
            "upstream": {
                "tokens_per_second": _median(upstream),
                "audio_seconds_per_second": _median(one_by_one) if one_by_one else None,
                "stage_shares": _shares(whole["upstream"]),
            },
            "tokens_per_second": tokens,
            "audio_seconds_per_second": audio,
        },
    }


def _rate(spoken: dict[str, Any]) -> float:
    return float(spoken["audio_seconds"] / spoken["seconds"])


def _median(values: Sequence[float]) -> float:
    found = spread(values)
    assert found is not None, "every turn was measured"
    return found.median


def _compared(ours: Sequence[float], theirs: Sequence[float], best: float | None) -> dict[str, Any]:
    quotients = spread(one / other for one, other in zip(ours, theirs, strict=True))
    assert quotients is not None, "every turn was measured"
    median = _median(ours)
    return {
        "median": median,
        "ratio": quotients._asdict(),
        "best": best,
        "of_best": None if best is None else median / best,
    }


def _shares(spoken: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Return the share of the time that each stage took; what is done meanwhile by another thread adds to more."""
    if not spoken:
        return {}
    seconds = sum(one["seconds"] for one in spoken)
    stages = dict.fromkeys(stage for one in spoken for stage in one["stages"])
    shares = {stage: sum(one["stages"].get(stage, 0.0) for one in spoken) / seconds for stage in stages}
    return {stage: share for stage, share in shares.items() if share >= 0.001}


def tables(report: Report) -> list[Cells]:
    """Return title, headings and rows of each table."""
    summary, steps = report["summary"], report["steps"]
    upstream = summary["upstream"]
    made: list[Cells] = []
    for key, title, unit, theirs in (
        ("tokens_per_second", "Token stage", "tokens/s", upstream["tokens_per_second"]),
        ("audio_seconds_per_second", "Whole engine", "audio-s/s", upstream["audio_seconds_per_second"]),
    ):
        if not summary[key]:
            continue
        heads = ["at once", f"upstream, {unit}", f"ours, {unit}", "ours ÷ upstream", "best possible", "of it"]
        rows = [
            [
                batch,
                shown(theirs),
                shown(one["median"]),
                _with_range(Spread(**one["ratio"])),
                shown(one["best"]),
                "–" if one["of_best"] is None else f"{one['of_best']:.2f}",
            ]
            for batch, one in summary[key].items()
        ]
        if key == "audio_seconds_per_second":
            heads.append("last one's first audio, s")
            for row, one in zip(rows, summary[key].values(), strict=True):
                row.append(shown(one["slowest_first_audio_seconds"]["median"]))
        made.append((title, heads, rows))
    kinds = [kind for kind in ("operations", "waits", "driver_waits") if kind in steps["upstream"]]
    rows = [
        [name, *(shown(one[kind]) for kind in kinds)]
        for name, one in (
            ("upstream", steps["upstream"]),
            *((f"ours, {batch} at once", one) for batch, one in steps["ours"].items()),
        )
    ]
    names = {"operations": "operations", "waits": "waits for the device", "driver_waits": "waits the driver saw"}
    made.append(("One step of the token stage", ["", *(names[kind] for kind in kinds)], rows))
    return made


def lines(report: Report) -> list[str]:
    """Return what is no table."""
    rates, summary = report["rates"], report["summary"]
    found = [
        f"device     {report['device']} · reads {rates['bytes_per_second'] / 1e9:.1f} GB/s · "
        f"multiplies {rates['flops_per_second'] / 1e9:.0f} GFLOP/s in {report['token_dtype']}, measured in this run",
    ]
    if shares := summary["upstream"]["stage_shares"]:
        found.append(f"stages     upstream {_told(shares)}")
    found += [
        f"           ours, {batch} at once: {_told(one['stage_shares'])}"
        for batch, one in summary["audio_seconds_per_second"].items()
    ]
    found.append(f"memory     process {report['memory']['rss_bytes'] / 1e9:.2f} GB{_peaks(report)}")
    if (equal := report["equal"]) is not None:
        found.append(
            f"equality   greedy tokens of {equal['equal']} of {equal['texts']} texts are upstream's "
            f"({equal['tokens']} tokens)"
        )
    return found


def _peaks(report: Report) -> str:
    peaks = {batch: max(one["peak_bytes"] or 0 for one in spoken) for batch, spoken in report["whole"]["ours"].items()}
    told = [f"{batch} at once {peak / 1e9:.2f} GB" for batch, peak in peaks.items() if peak]
    return f" · most on the device, upstream's weights included: {', '.join(told)}" if told else ""


def _told(shares: dict[str, float]) -> str:
    return " · ".join(f"{stage} {share:.0%}" for stage, share in shares.items())


def _with_range(value: Spread) -> str:
    is_one = value.low == value.high
    return f"{value.median:.2f}" + ("" if is_one else f" ({value.low:.2f}–{value.high:.2f})")


def printed(report: Report) -> list[Table | Text]:
    """Return what a person at a terminal reads."""
    found: list[Table | Text] = []
    for title, heads, rows in tables(report):
        table = Table(title=Text(title), title_justify="left")
        for head in heads:
            table.add_column(Text(head), justify="right")
        for row in rows:
            table.add_row(*row)
        found.append(table)
    return found + [Text(line) for line in lines(report)]


def markdown(report: Report) -> str:
    """Return the same in Markdown."""
    parts = []
    for title, heads, rows in tables(report):
        marks = ["---:"] * len(heads)
        parts.append("\n".join([f"**{title}.**", "", *(f"| {' | '.join(row)} |" for row in (heads, marks, *rows))]))
    return "\n\n".join([*parts, "\n".join(f"- {' '.join(line.split())}" for line in lines(report))])
