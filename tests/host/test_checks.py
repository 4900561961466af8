"""What the facts of a machine mean, case by case; and how findings are shown and counted."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from host.checks import LARGEST_SKEW_SECONDS, check, check_clock, check_file, check_open_files, check_port, check_skew
from host.facts import Guarded, Machine, Port, in_words, machine, settings, skew_seconds, token_of_units
from host.findings import Finding, Level, as_json, exit_code, ok, problem, show, warning

WELL = Machine(
    python="/opt/tts/venv/bin/python3",
    open_files=65536,
    is_clock_synchronised=True,
    ports=(Port("127.0.0.1", 8080, "--listen"),),
    files=(Guarded("/etc/tts/worker-token", "the token", True, 0o600),),
    has_systemd=True,
)


def levels(machine: Machine) -> dict[str, Level]:
    return {finding.subject: finding.level for finding in check(machine, lambda port: False)}


def test_a_machine_that_is_well_has_nothing_to_mend():
    assert set(levels(WELL).values()) == {Level.OK}


@pytest.mark.parametrize("python", ["/home/ann/.venv/bin/python3", "/root/venv/bin/python", "/tmp/x/bin/python3"])
def test_an_installation_that_services_cannot_see_is_a_problem_where_there_are_services(python: str):
    assert levels(replace(WELL, python=python))["installation"] is Level.PROBLEM
    assert levels(replace(WELL, python=python, has_systemd=False))["installation"] is Level.OK
    assert levels(replace(WELL, python="/homes/bin/python3"))["installation"] is Level.OK


@pytest.mark.parametrize(
    ("holder", "is_ours", "level"),
    [("", False, Level.OK), ("tts-gateway (7)", True, Level.OK), ("nginx (9)", False, Level.PROBLEM)],
)
def test_a_port_is_free_or_ours_or_taken(holder: str, is_ours: bool, level: Level):
    found = check_port(Port("127.0.0.1", 8080, "--listen", holder), is_ours)
    assert found.level is level
    assert holder in found.seen


def test_any_port_is_no_port_to_look_at():
    assert check_port(Port("127.0.0.1", 0, "--listen"), False).level is Level.OK


@pytest.mark.parametrize(
    ("is_secret", "mode", "command"),
    [
        (True, 0o600, ""), (True, 0o400, ""), (True, 0o700, ""), (True, None, ""), (False, 0o644, ""),
        (False, None, ""),
        (True, 0o640, "chmod go-rwx f"), (True, 0o604, "chmod go-rwx f"), (True, 0o750, "chmod go-rwx f"),
        (True, 0o620, "chmod go-w f"), (False, 0o664, "chmod go-w f"), (False, 0o646, "chmod go-w f"),
    ],
)  # fmt: skip
def test_secrets_are_read_and_settings_written_by_their_owner_alone(is_secret: bool, mode: int | None, command: str):
    found = check_file(Guarded("f", "", is_secret, mode))
    assert found.command == command
    assert (found.level is Level.PROBLEM) == bool(command)


@pytest.mark.parametrize(
    ("limit", "level"), [(-1, Level.OK), (65536, Level.OK), (4096, Level.OK), (1024, Level.WARNING)]
)
def test_few_open_files_are_a_warning(limit: int, level: Level):
    assert check_open_files(limit).level is level


@pytest.mark.parametrize(("is_synchronised", "level"), [(True, "ok"), (None, "ok"), (False, "warning")])
def test_a_clock_that_nobody_sets_is_a_warning(is_synchronised: bool | None, level: str):
    assert check_clock(is_synchronised).level == level


@pytest.mark.parametrize(
    ("seconds", "said"), [(0.0, "same time"), (2.9, "same time"), (90.2, "90 s ahead"), (-4.0, "4 s behind")]
)
def test_another_hosts_clock_is_compared(seconds: float, said: str):
    found = check_skew("worker w0", seconds)
    assert said in found.seen
    assert (found.level is Level.WARNING) == (abs(seconds) > LARGEST_SKEW_SECONDS)
    assert check_skew("worker w0", None).level is Level.OK


def test_a_date_tells_how_far_ahead_its_writers_clock_is():
    now = 784111777.0
    assert skew_seconds("Sun, 06 Nov 1994 08:49:37 GMT", now) == 0.5
    assert skew_seconds("Sun, 06 Nov 1994 08:51:07 GMT", now) == 90.5
    assert skew_seconds("yesterday", now) is skew_seconds(None, now) is None


def test_errors_are_told_in_the_words_of_what_lies_below():
    assert in_words(ConnectionRefusedError(111, "Connect call failed ('127.0.0.1', 1)")) == "Connection refused"
    assert in_words(ValueError("odd")) == "odd"
    assert in_words(TimeoutError()) == "TimeoutError"


def test_this_machine_can_be_looked_at(tmp_path: Path):
    secret = tmp_path / "secret"
    secret.write_text("")
    secret.chmod(0o604)
    seen = machine([], [Guarded(str(secret), "", True), Guarded(str(tmp_path / "none"), "", True)])
    assert [file.mode for file in seen.files] == [0o604, None]
    assert Path(seen.python).exists()


def test_environment_files_are_read_as_systemd_reads_them(tmp_path: Path):
    (tmp_path / "a.env").write_text('# TTS_A=0\n\n; TTS_B=0\n#TTS_C=\nTTS_D=1\nTTS_E = "two words"\nnonsense\n')
    (tmp_path / "b.env").write_text("TTS_D=later\n")
    assert settings("a.env", "none.env", "b.env", directory=tmp_path) == {"TTS_D": "later", "TTS_E": "two words"}


def test_the_token_of_the_units_counts_where_no_other_is_given(tmp_path: Path):
    assert token_of_units({}, tmp_path) == {}
    (tmp_path / "worker-token").write_text("t")
    assert token_of_units({}, tmp_path) == {"TTS_WORKER_TOKEN_FILE": str(tmp_path / "worker-token")}
    assert token_of_units({"TTS_WORKER_TOKEN": "mine"}, tmp_path) == {}


# ── Findings ─────────────────────────────────────────────────────────────────────────────────────────────────────────

FINE, SO_SO, BAD = ok("a", "fine"), warning("bb", "so-so", "slow", "type this"), problem("c", "bad", "away", "do that")


@pytest.mark.parametrize(
    ("findings", "code"), [([], 0), ([FINE], 0), ([FINE, SO_SO], 1), ([BAD, FINE], 2), ([SO_SO, BAD], 2)]
)
def test_the_exit_code_is_that_of_the_worst(findings: list[Finding], code: int):
    assert exit_code(findings) == code
    assert json.loads(as_json(findings))["exit_code"] == code


def test_json_has_every_finding_whole():
    [_, second] = json.loads(as_json([FINE, SO_SO]))["findings"]
    assert second == {"level": "warning", "subject": "bb", "seen": "so-so", "why": "slow", "command": "type this"}


def test_a_line_a_finding_and_below_it_why_and_what_mends_it():
    out = io.StringIO()
    show([FINE, SO_SO, BAD], Console(file=out, width=200))
    assert out.getvalue().splitlines() == [
        "ok       a   fine",
        "warning  bb  so-so",
        "             slow",
        "             → type this",
        "problem  c   bad",
        "             away",
        "             → do that",
        "1 ok, 1 warning, 1 problem",
    ]
