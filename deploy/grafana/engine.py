"""GPU & engine: what each worker's GPU does, and what the engine on it does with it."""

from __future__ import annotations

from collections.abc import Iterator

from grafana_foundation_sdk.builders import dashboard, statetimeline, timeseries

from deploy.grafana.fleet import FULL_MEMORY, HOT_CELSIUS, real_time_factor
from deploy.grafana.panels import GREEN, GREY, ORANGE, RED, choice, graph, heading, new, timeline

_HERE = 'worker=~"$worker"'
# The stages of the engine; all others are the model's own, and within the engine's steps.
_MODEL_STAGE = 'stage!~"queue|prefill|step"'
# The number of each reason grows with the trouble.
THROTTLING = {
    0: ("no", GREEN),
    1: ("power_cap", "light-blue"),
    2: ("sync_boost", "yellow"),
    3: ("software_thermal", ORANGE),
    4: ("power_brake", "light-red"),
    5: ("hardware_thermal", RED),
    6: ("hardware_slowdown", "dark-red"),
}


def build() -> dashboard.Dashboard:
    """Return the dashboard."""
    made = new(
        "TTS: GPU & engine",
        "tts-engine",
        "What each worker's GPU does, and what the engine does with it.",
        choice("worker", "Worker", "label_values(tts_worker_engine_slots, worker)"),
    )
    for title, panels in (
        ("GPU", (*_gpu(), _throttled(), _errors())),
        ("Engine", (*_batches(), *_stages())),
        ("Segments", _segments()),
    ):
        made.with_row(heading(title))
        for panel in panels:
            made.with_panel(panel)
    return made


def _rate(metric: str, by: str, selector: str = "") -> str:
    return f"sum by ({by}) (rate({metric}{{{', '.join(filter(None, (_HERE, selector)))}}}[$__rate_interval]))"


def _quantile(quantile: float, metric: str) -> str:
    return f"histogram_quantile({quantile}, {_rate(f'{metric}_bucket', 'worker, le')})"


def _all_workers(quantile: float) -> str:
    buckets = "sum by (le) (rate(tts_segment_prediction_ratio_bucket[$__rate_interval]))"
    return f"histogram_quantile({quantile}, {buckets})"


def _mean(metric: str) -> str:
    return f"{_rate(f'{metric}_sum', 'worker')} / ({_rate(f'{metric}_count', 'worker')} > 0)"


def _gpu() -> Iterator[timeseries.Panel]:
    name = "{{worker}} GPU {{gpu}}"
    yield graph(
        "Utilisation",
        [(name, f"tts_worker_gpu_utilization_ratio{{{_HERE}}}")],
        "Share of the time in which the GPU computed anything. Low beside a queue: the batch is too small.",
        unit="percentunit",
        top=1,
    )
    yield graph(
        "Memory in use",
        [
            (
                name,
                f"""tts_worker_gpu_memory_bytes{{{_HERE}, kind="used"}}
                / ignoring (kind) tts_worker_gpu_memory_bytes{{{_HERE}, kind="total"}}""",
            )
        ],
        "Above the line the next long text or new voice may find none.",
        unit="percentunit",
        limit=FULL_MEMORY,
        top=1,
    )
    yield graph(
        "Memory by whom",
        [
            (name, f'tts_worker_gpu_memory_bytes{{{_HERE}, kind="own"}}'),
            ("others on GPU {{gpu}}", f'tts_worker_gpu_memory_bytes{{{_HERE}, kind="other_processes"}}'),
        ],
        "The worker itself, and others on the same GPU.",
        unit="bytes",
    )
    yield graph(
        "Temperature",
        [(name, f"tts_worker_gpu_temperature_celsius{{{_HERE}}}")],
        "The line is where an alert begins to look; some degrees above it the GPU slows itself down.",
        unit="celsius",
        limit=HOT_CELSIUS,
    )
    yield graph(
        "Power",
        [
            (name, f"tts_worker_gpu_power_watts{{{_HERE}}}"),
            ("highest limit", f"max(tts_worker_gpu_power_limit_watts{{{_HERE}}})"),
        ],
        "What the boards draw.",
        unit="watt",
        dashed=["highest limit"],
    )
    yield graph(
        "Clock",
        [(name, f"tts_worker_gpu_clock_hertz{{{_HERE}}} / tts_worker_gpu_clock_limit_hertz{{{_HERE}}}")],
        "Of the highest that the GPU can do. Low under load: it slows itself down.",
        unit="percentunit",
        top=1,
    )


def _throttled() -> statetimeline.Panel:
    numbered = (
        f'{number} * tts_worker_gpu_throttled{{{_HERE}, reason="{reason}"}}'
        for number, (reason, _) in THROTTLING.items()
        if number
    )
    return timeline(
        "Slows itself down, because of",
        "{{worker}} GPU {{gpu}}",
        f"max by (worker, gpu) ({' or '.join(numbered)})",
        THROTTLING,
        "A power cap under load is ordinary; all else is heat, power supply or cabling.",
        height=7,
    )


def _errors() -> timeseries.Panel:
    return graph(
        "Errors of the hardware, in 10 minutes",
        [
            ("{{worker}} Xid", f"sum by (worker) (increase(tts_worker_gpu_xid_errors_total{{{_HERE}}}[10m]))"),
            (
                "{{worker}} ECC",
                f'sum by (worker) (increase(tts_worker_gpu_ecc_errors_total{{{_HERE}, kind="uncorrected"}}[10m]))',
            ),
        ],
        "Xid: the driver's reports of trouble. ECC: memory errors that could not be corrected.",
    )


def _batches() -> Iterator[timeseries.Panel]:
    yield graph(
        "Batch size",
        [("{{worker}}", _mean("tts_worker_batch_size"))],
        "Sequences in one step of the model, mean. One: the GPU serves one listener at a time.",
    )
    yield graph(
        "Decode step",
        [
            ("{{worker}} half", _quantile(0.5, "tts_worker_decode_step_seconds")),
            ("{{worker}} 99 of 100", _quantile(0.99, "tts_worker_decode_step_seconds")),
        ],
        "How long one step of the model takes.",
        unit="s",
    )
    yield graph(
        "Tokens",
        [("{{worker}}", _rate("tts_worker_tokens_total", "worker"))],
        "Tokens a second; what a token is depends on the model.",
    )


def _stages() -> Iterator[timeseries.Panel]:
    yield graph(
        "Stages of the engine",
        [("{{stage}}", _rate("tts_worker_stage_seconds_total", "stage", 'stage=~"prefill|step"'))],
        "Seconds per second, all workers together: where the engines' time goes.",
        stacked=True,
    )
    yield graph(
        "Stages of the model",
        [("{{stage}}", _rate("tts_worker_stage_seconds_total", "stage", _MODEL_STAGE))],
        "Seconds per second, all workers together: where the models' time goes.",
        stacked=True,
    )
    yield graph(
        "Split overlap",
        [("{{worker}}", _rate("tts_worker_stage_overlap_seconds_total", "worker"))],
        "Share of the time in which two stages of a worker's model are at work at once: tokens and sound.",
        unit="percentunit",
        top=1,
    )
    yield graph(
        "Waiting inside the worker",
        [("{{worker}}", _rate("tts_worker_stage_seconds_total", "worker", 'stage="queue"'))],
        "Segments that have a slot and wait for a place in the batch, on average.",
    )
    yield graph(
        "Prepared voices not in memory",
        [
            (
                "{{worker}}",
                f"""{_rate("tts_worker_conditionals_cache_misses_total", "worker")}
                / ({_rate("tts_worker_conditionals_cache_misses_total", "worker")}
                + {_rate("tts_worker_conditionals_cache_hits_total", "worker")} > 0)""",
            )
        ],
        "Of the segments, those whose voice had to be made anew.",
        unit="percentunit",
        top=1,
    )
    yield graph(
        "Worker's event loop is late by, 99 of 100",
        [("{{worker}}", _quantile(0.99, "tts_worker_event_loop_lag_seconds"))],
        "A worker that is late by 3 s is given up for lost.",
        unit="s",
    )


def _segments() -> Iterator[timeseries.Panel]:
    yield graph(
        "Real-time factor",
        [("{{worker}}", real_time_factor("$__rate_interval", _HERE))],
        "Seconds of work per second of audio of a segment, mean. Above 1 a listener runs dry.",
        limit=1,
    )
    yield graph(
        "Took, of what was predicted",
        [(name, _all_workers(share)) for name, share in (("half", 0.5), ("9 of 10", 0.9))],
        "How well the gateway knows its workers: 1 is exact; above 1 segments took longer than it expected.",
    )
    yield graph(
        "Segments by how they ended",
        [("{{outcome}}", _rate("tts_worker_segments_total", "outcome"))],
        "cancelled: nobody listens any more.",
        unit="ops",
        stacked=True,
        colours={"done": GREEN, "failed": RED, "cancelled": GREY, "refused": ORANGE},
    )
