"""Fleet: is everything well? One screen; what is not well is red."""

from __future__ import annotations

from collections.abc import Iterator

from grafana_foundation_sdk.builders import dashboard, stat, statetimeline, table, timeseries

from deploy.grafana.panels import BLUE, GREEN, GREY, ORANGE, RED, Column, choice, graph, new, rows, tile, timeline

# The number of each state grows with the trouble: with two gateways the one that sees more of it wins.
STATES = {
    1: ("ready", GREEN),
    2: ("asleep", "light-green"),
    3: ("unloaded", GREY),
    4: ("draining", BLUE),
    5: ("stopped", GREY),
    6: ("starting", "light-blue"),
    7: ("loading", "light-blue"),
    8: ("warming", "light-blue"),
    9: ("probation", "yellow"),
    10: ("ejected", ORANGE),
    11: ("failed", RED),
    12: ("gone", RED),
}
# As the alerts have it: rules/recording.yml and rules/alerts.yml.
TARGET_SECONDS, MANY_ERRORS, MANY_STALLS, MUCH_BACKLOG_SECONDS, FULL_BACKLOG_SECONDS = 2, 0.05, 0.01, 30, 120
HOT_CELSIUS, FULL_MEMORY = 87, 0.94

_TROUBLE = "gone|failed|ejected|probation"
_HERE = 'instance=~"$gateway"'
MEMORY_RATIO = """max by (worker) (tts_worker_gpu_memory_bytes{kind="used"}
    / ignoring (kind) tts_worker_gpu_memory_bytes{kind="total"})"""


def real_time_factor(window: str, workers: str = "") -> str:
    """An expression for each worker's seconds of work on a segment per second of audio."""
    work, audio = (
        f"sum by (worker) (rate({metric}{{{workers}}}[{window}]))"
        for metric in ("tts_segment_duration_seconds_sum", "tts_worker_audio_seconds_total")
    )
    return f"{work} / ({audio} > 0)"


def state_numbers(selector: str) -> str:
    """An expression for the number in STATES of each worker's state."""
    numbered = (f'{number} * tts_worker_state{{{selector}, state="{name}"}}' for number, (name, _) in STATES.items())
    return f"max by (worker) ({' or '.join(numbered)})"


def build() -> dashboard.Dashboard:
    """Return the dashboard."""
    made = new(
        "TTS: Fleet",
        "tts-fleet",
        "Is everything well? What is not well is red; the other two dashboards say why.",
        choice("gateway", "Gateway", 'label_values(up{job="tts-gateway"}, instance)'),
    )
    for panel in (*_tiles(), _workers(), _alerts(), _states(), _slots(), *_service()):
        made.with_panel(panel)
    return made


def _tiles() -> Iterator[stat.Panel]:
    yield tile(
        "Workers that speak",
        f"max(instance:tts_workers:ready{{{_HERE}}})",
        "Workers that can be given a segment now.",
        [(None, RED), (1, GREEN)],
    )
    yield tile(
        "Workers in trouble",
        f'count(max by (worker) (tts_worker_state{{{_HERE}, state=~"{_TROUBLE}"}}) == 1) or vector(0)',
        "Workers that vanished, failed, or were put aside by the gateway.",
        [(None, GREEN), (1, RED)],
    )
    yield tile(
        "Alerts",
        'count(ALERTS{alertname=~"TTS.+", alertstate="firing"}) or vector(0)',
        "Alerts that fire; the list is below.",
        [(None, GREEN), (1, RED)],
    )
    yield tile(
        "First audio, p95",
        f"max(instance:tts_time_to_first_audio_seconds:p95_5m{{{_HERE}}})",
        "19 of 20 requests of the last 5 minutes were heard sooner than this.",
        [(None, GREEN), (0.75 * TARGET_SECONDS, ORANGE), (TARGET_SECONDS, RED)],
        unit="s",
        decimals=2,
        empty="no requests",
    )
    yield tile(
        "Errors",
        f"max(instance:tts_requests:error_ratio_5m{{{_HERE}}})",
        "Share of the requests of the last 5 minutes that failed or for which there was no room.",
        [(None, GREEN), (MANY_ERRORS / 5, ORANGE), (MANY_ERRORS, RED)],
        unit="percentunit",
        decimals=1,
        empty="no requests",
    )
    yield tile(
        "Streams run dry",
        f"max(instance:tts_stall_seconds:per_audio_second_5m{{{_HERE}}})",
        "Of the time that listeners listened in the last 5 minutes, the share in which they waited in mid-stream.",
        [(None, GREEN), (MANY_STALLS / 2, ORANGE), (MANY_STALLS, RED)],
        unit="percentunit",
        decimals=2,
        empty="no audio",
    )
    yield tile(
        "Work waiting",
        f"max(tts_backlog_seconds{{{_HERE}}})",
        "How long the fleet would need for what waits now.",
        [(None, GREEN), (MUCH_BACKLOG_SECONDS, ORANGE), (FULL_BACKLOG_SECONDS, RED)],
        unit="s",
        decimals=1,
    )
    yield tile(
        "Requests now",
        f"sum(tts_requests_in_progress{{{_HERE}}})",
        "Requests that are being answered.",
        [(None, BLUE)],
    )


def _workers() -> table.Panel:
    return rows(
        "Workers",
        {"worker": "Worker"},
        [
            Column("State", state_numbers(_HERE), states=STATES, width=110),
            Column("Speaks", f"max by (worker) (tts_worker_in_flight{{{_HERE}}})"),
            Column("Slots", f"max by (worker) (tts_worker_slots{{{_HERE}}})"),
            Column(
                "Real-time factor",
                real_time_factor("5m"),
                decimals=2,
                steps=[(None, "transparent"), (0.85, ORANGE), (1, RED)],
            ),
            Column(
                "Failed segments",
                'sum by (worker) (increase(tts_worker_segments_total{outcome="failed"}[5m]))',
                decimals=0,
                steps=[(None, "transparent"), (0.5, ORANGE), (5, RED)],
            ),
            Column("GPU", "max by (worker) (tts_worker_gpu_utilization_ratio)", unit="percentunit", decimals=0),
            Column(
                "Memory",
                MEMORY_RATIO,
                unit="percentunit",
                decimals=0,
                steps=[(None, "transparent"), (0.9, ORANGE), (FULL_MEMORY, RED)],
            ),
            Column(
                "Temperature",
                "max by (worker) (tts_worker_gpu_temperature_celsius)",
                unit="celsius",
                decimals=0,
                steps=[(None, "transparent"), (HOT_CELSIUS - 5, ORANGE), (HOT_CELSIUS, RED)],
            ),
            Column(
                "Slowed down",
                'max by (worker) (tts_worker_gpu_throttled{reason!="power_cap"})',
                states={0: ("no", "transparent"), 1: ("yes", RED)},
            ),
            Column(
                "Xids, 1 h",
                "sum by (worker) (increase(tts_worker_gpu_xid_errors_total[1h]))",
                decimals=0,
                steps=[(None, "transparent"), (0.5, RED)],
            ),
        ],
        "One line a worker. A coloured cell is the reason to look at it.",
        width=17,
        height=8,
    )


def _alerts() -> table.Panel:
    return rows(
        "Alerts",
        {"alertname": "Alert", "worker": "Worker", "gpu": "GPU", "alertstate": "State"},
        [Column("", 'max by (alertname, worker, gpu, alertstate) (ALERTS{alertname=~"TTS.+"})')],
        "What fires or is about to. docs/operations.md has a paragraph on each.",
        hidden=("Value",),
        width=7,
        height=8,
    )


def _states() -> statetimeline.Panel:
    return timeline(
        "What became of each worker",
        "{{worker}}",
        state_numbers(_HERE),
        STATES,
        "A striped line is a worker that fails, recovers and fails again.",
        width=17,
    )


def _slots() -> timeseries.Panel:
    return graph(
        "Slots",
        [
            ("taken", f"sum(max by (worker) (tts_worker_in_flight{{{_HERE}}}))"),
            ("there are", f"sum(max by (worker) (tts_worker_slots{{{_HERE}}}))"),
            ("segments waiting", f"sum(tts_queue_depth{{{_HERE}}})"),
        ],
        "Segments that are being spoken, the most that can be, and those that wait.",
        width=7,
        height=6,
        dashed=["there are"],
        colours={"taken": BLUE, "segments waiting": ORANGE},
    )


def _service() -> Iterator[timeseries.Panel]:
    buckets = f"sum by (le) (rate(tts_time_to_first_audio_seconds_bucket{{{_HERE}}}[$__rate_interval]))"
    yield graph(
        "First audio",
        [
            ("half of the requests", f"histogram_quantile(0.5, {buckets})"),
            ("19 of 20", f"histogram_quantile(0.95, {buckets})"),
            ("target", "tts:time_to_first_audio_seconds:target"),
        ],
        "From the request to its first byte of audio.",
        unit="s",
        dashed=["target"],
        colours={"half of the requests": GREEN, "19 of 20": ORANGE},
    )
    yield graph(
        "Requests by how they ended",
        [("{{outcome}}", f"sum by (outcome) (rate(tts_requests_total{{{_HERE}}}[$__rate_interval]))")],
        "refused: the caller's fault, or no room. cancelled: the caller left.",
        unit="reqps",
        stacked=True,
        colours={"ok": GREEN, "refused": ORANGE, "failed": RED, "cancelled": GREY},
    )
    yield graph(
        "Work waiting",
        [("{{instance}}", f"tts_backlog_seconds{{{_HERE}}}")],
        "How long the fleet would need for what waits; the line is where an alert begins to look.",
        unit="s",
        limit=MUCH_BACKLOG_SECONDS,
    )
