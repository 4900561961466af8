"""Requests: what callers get, how long they wait for it, and why some get nothing."""

from __future__ import annotations

from collections.abc import Iterator

from grafana_foundation_sdk.builders import dashboard, stat, timeseries

from deploy.grafana.fleet import MANY_ERRORS, MUCH_BACKLOG_SECONDS, TARGET_SECONDS
from deploy.grafana.panels import BLUE, GREEN, GREY, ORANGE, RED, choice, graph, heading, new, tile

_GATEWAY = 'instance=~"$gateway"'
_HERE = f'{_GATEWAY}, endpoint=~"$endpoint"'
_TTFA, _DURATION, _WAIT = (
    "tts_time_to_first_audio_seconds",
    "tts_request_duration_seconds",
    "tts_queue_wait_seconds",
)


def build() -> dashboard.Dashboard:
    """Return the dashboard."""
    made = new(
        "TTS: Requests",
        "tts-requests",
        "What callers get, how long they wait for it, and why some get nothing.",
        choice("gateway", "Gateway", 'label_values(up{job="tts-gateway"}, instance)'),
        choice("endpoint", "Endpoint", "label_values(tts_requests_total, endpoint)"),
    )
    for panel in _tiles():
        made.with_panel(panel)
    for title, panels in (
        ("Waiting", (*_first_audio(), *_waiting())),
        ("Ends", _ends()),
        ("What went wrong on the way", _mended()),
        ("Work done", _work()),
    ):
        made.with_row(heading(title))
        for graph_ in panels:
            made.with_panel(graph_)
    return made


def _rate(metric: str, selector: str, by: str = "") -> str:
    return f"sum{f' by ({by})' if by else ''} (rate({metric}{{{selector}}}[$__rate_interval]))"


def _quantile(quantile: float, metric: str, selector: str, by: str = "", window: str = "$__rate_interval") -> str:
    labels = f"le, {by}" if by else "le"
    return f"histogram_quantile({quantile}, sum by ({labels}) (rate({metric}_bucket{{{selector}}}[{window}])))"


def _tiles() -> Iterator[stat.Panel]:
    yield tile(
        "Requests",
        f"sum(rate(tts_requests_total{{{_HERE}}}[1m]))",
        "In the last minute, however they ended.",
        [(None, BLUE)],
        unit="reqps",
        decimals=1,
    )
    yield tile(
        "First audio, half",
        _quantile(0.5, _TTFA, _HERE, window="5m"),
        "Half of the requests of the last 5 minutes were heard sooner.",
        [(None, GREEN), (TARGET_SECONDS / 2, ORANGE), (TARGET_SECONDS, RED)],
        unit="s",
        decimals=2,
        empty="no requests",
    )
    yield tile(
        "First audio, 19 of 20",
        _quantile(0.95, _TTFA, _HERE, window="5m"),
        "19 of 20 requests of the last 5 minutes were heard sooner.",
        [(None, GREEN), (0.75 * TARGET_SECONDS, ORANGE), (TARGET_SECONDS, RED)],
        unit="s",
        decimals=2,
        empty="no requests",
    )
    yield tile(
        "Whole answer, half",
        _quantile(0.5, _DURATION, _HERE, window="5m"),
        "Half of the answers of the last 5 minutes were complete sooner.",
        [(None, BLUE)],
        unit="s",
        decimals=2,
        empty="no requests",
    )
    yield from _endings()
    yield tile(
        "Audio made",
        f"sum(rate(tts_audio_seconds_total{{{_GATEWAY}}}[1m]))",
        "Seconds of audio sent per second: how many people could listen at once.",
        [(None, BLUE)],
        decimals=1,
    )


def _endings() -> Iterator[stat.Panel]:
    yield tile(
        "Failed",
        f"""sum(rate(tts_requests_total{{{_HERE}, outcome="failed"}}[5m]))
        / (sum(rate(tts_requests_total{{{_HERE}, outcome!="cancelled"}}[5m])) > 0)""",
        "Share of the requests of the last 5 minutes that the service took and failed.",
        [(None, GREEN), (MANY_ERRORS / 5, ORANGE), (MANY_ERRORS, RED)],
        unit="percentunit",
        decimals=1,
        empty="no requests",
    )
    yield tile(
        "Refused",
        f"""sum(rate(tts_requests_total{{{_HERE}, outcome="refused"}}[5m]))
        / (sum(rate(tts_requests_total{{{_HERE}, outcome!="cancelled"}}[5m])) > 0)""",
        "Share of the requests of the last 5 minutes that were refused; below is why.",
        [(None, GREEN), (0.1, ORANGE), (0.5, RED)],
        unit="percentunit",
        decimals=1,
        empty="no requests",
    )
    yield tile(
        "Callers who left",
        f"""sum(rate(tts_requests_total{{{_HERE}, outcome="cancelled"}}[5m]))
        / (sum(rate(tts_requests_total{{{_HERE}}}[5m])) > 0)""",
        "Share of the requests of the last 5 minutes whose caller hung up; many do when they wait too long.",
        [(None, BLUE)],
        unit="percentunit",
        decimals=1,
        empty="no requests",
    )


def _first_audio() -> Iterator[timeseries.Panel]:
    shares = (("half", 0.5), ("19 of 20", 0.95), ("99 of 100", 0.99))
    colours = {"half": GREEN, "19 of 20": ORANGE, "99 of 100": RED}
    yield graph(
        "First audio",
        [
            *((name, _quantile(share, _TTFA, _HERE)) for name, share in shares),
            ("target", "tts:time_to_first_audio_seconds:target"),
        ],
        "From the request to its first byte of audio: so many requests were heard sooner.",
        unit="s",
        dashed=["target"],
        colours=colours,
    )
    yield graph(
        "First audio by endpoint, 19 of 20",
        [("{{endpoint}}", _quantile(0.95, _TTFA, _HERE, "endpoint"))],
        "19 of 20 requests were heard sooner.",
        unit="s",
    )
    yield graph(
        "Whole answer",
        [(name, _quantile(share, _DURATION, _HERE)) for name, share in shares],
        "From the request to the last byte of its answer.",
        unit="s",
        colours=colours,
    )


def _waiting() -> Iterator[timeseries.Panel]:
    shares = (("half", 0.5), ("19 of 20", 0.95), ("99 of 100", 0.99))
    yield graph(
        "Wait for a slot",
        [(name, _quantile(share, _WAIT, _GATEWAY)) for name, share in shares],
        "How long a segment waited for a worker. Where this is most of the first audio, the fleet is too small.",
        unit="s",
        colours={"half": GREEN, "19 of 20": ORANGE, "99 of 100": RED},
    )
    yield graph(
        "Segments waiting",
        [("{{instance}}", f"tts_queue_depth{{{_GATEWAY}}}")],
        "Length of the line.",
    )
    yield graph(
        "Work waiting",
        [("{{instance}}", f"tts_backlog_seconds{{{_GATEWAY}}}")],
        "How long the fleet would need for what waits; above the line and growing it raises an alert.",
        unit="s",
        limit=MUCH_BACKLOG_SECONDS,
    )


def _ends() -> Iterator[timeseries.Panel]:
    yield graph(
        "By how they ended",
        [("{{outcome}}", _rate("tts_requests_total", _HERE, "outcome"))],
        "refused: the caller's fault, or no room. cancelled: the caller left.",
        unit="reqps",
        stacked=True,
        colours={"ok": GREEN, "refused": ORANGE, "failed": RED, "cancelled": GREY},
    )
    yield graph(
        "By endpoint",
        [("{{endpoint}}", _rate("tts_requests_total", _HERE, "endpoint"))],
        "Which door they came through.",
        unit="reqps",
        stacked=True,
    )
    yield graph(
        "Refusals by reason",
        [("{{reason}}", f"{_rate('tts_rejected_total', _GATEWAY, 'reason')} > 0")],
        "The error codes of docs/wire.md. overloaded, queue_timeout, no_worker: no room. The rest is the callers' own.",
        unit="reqps",
        stacked=True,
    )


def _mended() -> Iterator[timeseries.Panel]:
    yield graph(
        "Segments tried again, by reason",
        [("{{phase}}: {{reason}}", f"{_rate('tts_retries_total', _GATEWAY, 'phase, reason')} > 0")],
        "mid_stream: after audio was sent; another worker went on at the next sample.",
        unit="ops",
        stacked=True,
    )
    yield graph(
        "Taken over, put aside, gave way",
        [
            ("taken over in mid-stream", _rate("tts_failovers_total", _GATEWAY)),
            ("workers ejected", _rate("tts_ejections_total", _GATEWAY)),
            ("gave way to a lighter caller", _rate("tts_preemptions_total", _GATEWAY)),
        ],
        "What the gateway did so that listeners hear nothing of it.",
        unit="ops",
        colours={"workers ejected": RED, "taken over in mid-stream": ORANGE},
    )
    yield graph(
        "Callers who left, by how far they were",
        [("{{stage}}", _rate("tts_cancelled_total", _GATEWAY, "stage"))],
        "before_audio: they did not wait long enough. streaming: they had heard enough.",
        unit="reqps",
        stacked=True,
    )


def _work() -> Iterator[timeseries.Panel]:
    yield graph(
        "Audio",
        [
            ("sent", _rate("tts_audio_seconds_total", _GATEWAY)),
            ("waited for in mid-stream", _rate("tts_stall_seconds_total", _GATEWAY)),
        ],
        "Seconds per second. What listeners waited for in mid-stream should be nothing.",
        colours={"sent": GREEN, "waited for in mid-stream": RED},
    )
    yield graph(
        "Text",
        [("characters a second", _rate("tts_characters_total", _GATEWAY))],
        "Characters of requests that were answered whole.",
    )
    yield graph(
        "Gateway's event loop is late by",
        [
            ("half", _quantile(0.5, "tts_event_loop_lag_seconds", _GATEWAY)),
            ("99 of 100", _quantile(0.99, "tts_event_loop_lag_seconds", _GATEWAY)),
        ],
        "Every stream is late by as much.",
        unit="s",
        limit=0.1,
        colours={"half": GREEN, "99 of 100": ORANGE},
    )
