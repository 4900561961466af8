"""The gateway's series: there from the start, and never more than a fleet can need, whatever names come along."""

from __future__ import annotations

import random

from prometheus_client.parser import text_string_to_metric_families

from gateway.journey import Journey, Outcome
from gateway.live import Live
from gateway.metrics import EJECTIONS, ENDPOINTS, FAULTS, MOST_WORKERS, REFUSALS, Metrics
from gateway.observer import Observer
from tests.gateway.builders import pool, replica


def series(metrics: Metrics) -> dict[str, float]:
    """Return every series and its value."""
    body, _ = metrics.scrape("")
    return {
        f"{sample.name}{sorted(sample.labels.items())}": sample.value
        for family in text_string_to_metric_families(body.decode())
        for sample in family.samples
        if not sample.name.endswith("_created")
    }


def test_what_is_alerted_on_is_there_before_it_happens() -> None:
    there = series(Metrics())
    for name, labels in [
        *(("tts_requests_total", {"endpoint": e, "outcome": o}) for e in ENDPOINTS for o in map(str, Outcome)),
        *(("tts_ejections_total", {"reason": reason}) for reason in EJECTIONS),
        *(("tts_retries_total", {"phase": "mid_stream", "reason": reason}) for reason in FAULTS),
        *(("tts_rejected_total", {"reason": reason}) for reason in REFUSALS),
        ("tts_stall_seconds_total", {}),
        ("tts_failovers_total", {}),
    ]:
        assert there[f"{name}{sorted(labels.items())}"] == 0


def test_a_flood_of_names_and_ids_makes_no_more_series_than_a_large_fleet() -> None:
    metrics = Metrics()
    observer = Observer(metrics, Live("1"))

    def flood(count: int) -> int:
        for n in range(count):
            journey = Journey(
                random.choice(ENDPOINTS), caller=f"10.0.{n >> 8}.{n & 255}", model=f"model-{n}", voice=f"voice-{n}"
            )
            observer.request_started(journey)
            journey.finish(random.choice(list(Outcome)), random.choice(REFUSALS))
            observer.request_done(journey)
            worker = replica(f"worker-{random.getrandbits(60):x}")
            observer.segment_done(worker, seconds=1.0, predicted_seconds=0.5, audio_seconds=n % 3)
            observer.retried(worker, journey.request_id, mid_stream=bool(n & 1), reason="cut", detail=f"detail {n}")
            observer.ejected(worker, "slow", 1.0)
        return metrics.scrape("")[0].count(b"\n")

    first = flood(MOST_WORKERS + 50)
    assert flood(2 * MOST_WORKERS) <= first * 1.01
    assert metrics.scrape("")[0].count(b"\ntts_segment_duration_seconds_count{") == MOST_WORKERS


def test_the_histograms_that_go_are_of_the_worker_that_spoke_longest_ago() -> None:
    metrics = Metrics()
    observer = Observer(metrics, Live("1"))
    for name in ["steady", *(f"passing-{n}" for n in range(MOST_WORKERS - 1)), "steady", "one more"]:
        observer.segment_done(replica(name), seconds=1.0, predicted_seconds=1.0, audio_seconds=1.0)
    there = series(metrics)
    assert there["tts_segment_duration_seconds_count[('worker', 'steady')]"] == 2
    assert "tts_segment_duration_seconds_count[('worker', 'passing-0')]" not in there


def test_how_well_time_is_foreseen_is_a_ratio() -> None:
    metrics = Metrics()
    observer = Observer(metrics, Live("1"))
    for actual, predicted in [(1.0, 1.0), (3.0, 2.0), (1.0, 0.0)]:
        observer.segment_done(replica("w"), seconds=actual, predicted_seconds=predicted, audio_seconds=1.0)
    there = series(metrics)
    assert there["tts_segment_prediction_ratio_count[]"] == 2  # where nothing is expected there is no ratio
    assert there["tts_segment_prediction_ratio_sum[]"] == 2.5
    assert there["tts_segment_duration_predicted_seconds_sum[('worker', 'w')]"] == 3.0


def test_a_scrape_reads_the_pool_itself() -> None:
    metrics = Metrics()
    watched = pool()
    metrics.watch(watched)
    assert series(metrics)["tts_queue_depth[]"] == 0
    watched.add(replica("w"))
    there = series(metrics)
    assert there["tts_worker_state[('state', 'ready'), ('worker', 'w')]"] == 1
    assert there["tts_worker_slots[('worker', 'w')]"] > 0
