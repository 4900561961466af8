"""What the facts of a gateway and of the way to it mean, case by case. tests/e2e/test_doctor.py looks at real ones."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import pytest

from gateway.config import Config
from gateway.doctor import checks
from gateway.doctor.facts import Answer, Directory, Facts, Keys, Target, Worker
from gateway.doctor.outside import Outside, Round, Speech
from host.findings import Finding, Level

CONFIG = Config()
ANSWER = Answer(200, b"tts_requests_total 1", 0.0)
WORKER = Worker("w0", "ready", "", "127.0.0.1:8100", ANSWER)
WELL = Facts(ANSWER, ANSWER, ANSWER, (WORKER,), "http://127.0.0.1:9090", None, None, None)


def by_subject(findings: Iterable[Finding]) -> dict[str, Finding]:
    return {finding.subject: finding for finding in findings}


def judged(facts: Facts) -> dict[str, Finding]:
    return by_subject(checks.check(CONFIG, facts))


def test_a_gateway_that_is_well_has_nothing_to_mend():
    assert {finding.level for finding in judged(WELL).values()} == {Level.OK}


def test_a_gateway_that_is_away_is_told_from_another_program_in_its_place():
    away = judged(replace(WELL, internal=Answer(trouble="Connection refused")))
    assert away["gateway, internal"].level is Level.WARNING
    assert "Connection refused" in away["gateway, internal"].seen
    assert "workers" not in away
    other = judged(replace(WELL, public=Answer(404)))["gateway"]
    assert (other.level, other.command) == (Level.PROBLEM, "ss -ltnp 'sport = :8080'")
    assert judged(replace(WELL, public=Answer(503)))["gateway"].level is Level.OK


@pytest.mark.parametrize(
    ("state", "level", "command"),
    [
        ("ready", Level.OK, ""),
        ("probation", Level.OK, ""),
        ("warming", Level.WARNING, "tts-gateway top"),
        ("draining", Level.WARNING, "tts-gateway undrain w0"),
        ("unloaded", Level.WARNING, "tts-gateway load w0"),
        ("ejected", Level.PROBLEM, "tts-worker doctor"),
        ("failed", Level.PROBLEM, "tts-worker doctor"),
    ],
)
def test_each_state_of_a_worker_has_its_command(state: str, level: Level, command: str):
    found = checks.check_worker(replace(WORKER, state=state, detail="says why"))
    assert (found.level, found.command.split("   #")[0]) == (level, command)
    assert found.seen == f"{state}: says why"


def test_a_fleet_that_cannot_speak_is_a_problem():
    assert judged(replace(WELL, workers=()))["workers"].level is Level.PROBLEM
    ejected = replace(WORKER, state="ejected")
    assert judged(replace(WELL, workers=(ejected, ejected)))["workers"].seen == "none of 2 is ready"
    assert "workers" not in judged(replace(WELL, workers=(ejected, WORKER)))


def test_a_worker_that_cannot_be_read_and_one_with_another_time_are_found():
    mute = replace(WORKER, answer=Answer(trouble="No route to host"))
    assert judged(replace(WELL, workers=(mute,)))["worker w0"].seen == "127.0.0.1:8100 cannot be read: No route to host"
    late = replace(WORKER, answer=replace(ANSWER, skew_seconds=-60))
    assert judged(replace(WELL, workers=(late,)))["clock"].seen == "worker w0 is 60 s behind"


def test_metrics_that_cannot_be_read_are_a_problem():
    for metrics in (Answer(trouble="Connection refused"), Answer(401), Answer(200, b"<html>")):
        assert judged(replace(WELL, metrics=metrics))["metrics"].level is Level.PROBLEM


OURS = Target("http://127.0.0.1:8081/metrics", True, "")


@pytest.mark.parametrize(
    ("targets", "level", "said"),
    [
        (None, Level.OK, "none answers"),
        ((), Level.WARNING, "scrapes nothing of 127.0.0.1:8081"),
        ((Target("http://10.0.0.9:8081/metrics", True, ""),), Level.WARNING, "scrapes nothing of 127.0.0.1:8081"),
        (
            (replace(OURS, is_up=False, trouble="refused"),),
            Level.WARNING,
            "cannot read http://127.0.0.1:8081/metrics: re",
        ),
        ((OURS, Target("http://w0/metrics", True, "")), Level.OK, "reads 2 targets"),
    ],
)
def test_prometheus_is_to_read_this_gateway(targets: tuple[Target, ...] | None, level: Level, said: str):
    found = judged(replace(WELL, targets=targets))["prometheus"]
    assert found.level is level
    assert said in found.seen


@pytest.mark.parametrize(
    ("keys", "level"),
    [
        (None, Level.OK),
        (Keys("k", 2), Level.OK),
        (Keys("k", 0), Level.WARNING),
        (Keys("k", trouble="The keys file k cannot be read: Permission denied."), Level.PROBLEM),
    ],
)
def test_keys_are_to_be_readable_and_there(keys: Keys | None, level: Level):
    assert checks.check_keys(keys).level is level


@pytest.mark.parametrize(
    ("data", "level"),
    [
        (None, Level.OK),
        (Directory("d", True, True), Level.OK),
        (Directory("d", False, True), Level.OK),
        (Directory("d", True, False), Level.PROBLEM),
        (Directory("d", False, False), Level.PROBLEM),
    ],
)
def test_the_data_directory_is_to_be_writable(data: Directory | None, level: Level):
    assert checks.check_data(data).level is level


# ── From outside ─────────────────────────────────────────────────────────────────────────────────────────────────────


def speech(*arrivals: tuple[float, int]) -> Speech:
    return Speech(200, "", arrivals)


LIVE = speech(*((0.2 + n * 0.1, 400 * (n + 1)) for n in range(40)))  # a tenth of a second at a time
A_LITTLE_LATER = speech(*((at + 0.05, count) for at, count in LIVE.arrivals))
IN_BUFFERS = speech((1.15, 4096), (2.25, 8192), (3.25, 12288), (4.15, 16000))
AT_ONCE = speech((4.2, 16000))
OUTSIDE = Outside("https://tts", Answer(200), False, ((A_LITTLE_LATER, LIVE),), websocket=101)


def through(*rounds: Round) -> Finding:
    return by_subject(checks.check_outside(replace(OUTSIDE, rounds=rounds)))["streaming"]


def test_how_late_each_byte_comes_is_what_counts():
    assert checks.lateness(A_LITTLE_LATER, LIVE) == pytest.approx(0.05)
    assert checks.lateness(LIVE, A_LITTLE_LATER) == pytest.approx(-0.05)
    assert checks.lateness(IN_BUFFERS, LIVE) == pytest.approx(2.25 - 1.2)  # the first byte of a buffer waits longest
    assert checks.lateness(AT_ONCE, LIVE) == pytest.approx(4.0)
    shorter = speech((0.1, 100), (0.2, 15_900))
    assert checks.lateness(shorter, LIVE) < 0.1, "a speech that is a little shorter is not late for ever"


def test_a_proxy_that_keeps_sound_back_is_a_problem():
    for held in (IN_BUFFERS, AT_ONCE):
        assert through((held, LIVE), (held, LIVE)).level is Level.PROBLEM
    assert through((A_LITTLE_LATER, LIVE)).level is Level.OK


def test_a_delay_that_does_not_come_again_was_another_callers_load():
    rounds: list[Round] = [(IN_BUFFERS, LIVE)]
    assert checks.needs_another(rounds)
    assert not checks.needs_another([*rounds, (A_LITTLE_LATER, LIVE)])
    assert through(*rounds, (A_LITTLE_LATER, LIVE)).level is Level.OK


def test_where_the_gateway_itself_cannot_be_asked_only_all_at_once_is_suspicious():
    assert through((AT_ONCE, None), (AT_ONCE, None)).level is Level.WARNING
    assert through((LIVE, None)).level is Level.OK
    assert through((speech((0.3, 16000)), None)).level is Level.OK, "a fleet so fast has it whole in a moment"
    slow = speech((2.0, 4000), (4.0, 8000))
    assert through((slow, None)).level is Level.OK, "one that begins late and goes on is slow, and not held back"


def test_a_speech_that_fails_is_told_from_one_that_the_proxy_cuts_off():
    cut = replace(LIVE, trouble="Connection closed")
    assert "it is the proxy" in through((cut, LIVE)).why
    assert "no speech" in through((Speech(503, "no_worker"), Speech(503, "no_worker"))).why
    unasked = through((Speech(401, "unauthorized"), Speech(401, "unauthorized")))
    assert (unasked.level, unasked.seen) == (Level.WARNING, "not tried: the gateway wants a key")
    theirs = through((Speech(401, ""), LIVE))
    assert theirs.level is Level.PROBLEM, "a proxy's own 401 is none of ours"


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (Answer(trouble="Connection refused"), "https://tts: Connection refused"),
        (Answer(404), "https://tts/readyz answers with 404"),
        (Answer(502), "https://tts/readyz answers with 502"),
        (Answer(503), "https://tts answers with 503"),
    ],
)
def test_a_service_that_cannot_be_reached_from_outside_is_a_problem(answer: Answer, said: str):
    found = by_subject(checks.check_outside(replace(OUTSIDE, answer=answer, rounds=())))
    assert list(found) == ["outside"]
    assert found["outside"].level is Level.PROBLEM
    assert found["outside"].seen == said


def test_sizes_that_are_refused_paths_that_are_open_and_certificates_that_end_are_found():
    refused = checks.check_body("/v1/voices", 32 << 20, 413)
    assert refused.level is Level.WARNING
    assert refused.command.endswith("wanted for /v1/voices: 33m")
    assert checks.check_body("/v1/tts", 300_000, 0).level is Level.OK
    assert checks.check_open(["/metrics"]).level is Level.PROBLEM
    assert checks.check_open([]).level is Level.OK
    assert checks.check_certificate(13).level is Level.WARNING
    assert checks.check_certificate(60).level is Level.OK


@pytest.mark.parametrize(("status", "level"), [(101, "ok"), (404, "ok"), (401, "ok"), (400, "warning"), (0, "warning")])
def test_a_websocket_that_does_not_come_through_is_a_warning(status: int, level: str):
    assert checks.check_websocket(status).level == level
