"""`make up` as a user meets it: deploy/up.py runs as a process, with stand-ins for the gateway and the workers."""

from __future__ import annotations

import argparse
import os
import random
import select
import shlex
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from deploy.fleet import count_death, describe_exit, restart_pause_seconds
from deploy.up import choose_workers, first_conflict, programs, read_options, visible_gpus

ROOT = Path(__file__).parents[2]
STAND_INS = Path(__file__).parent / "stand_ins"
TWO_GPUS = (
    "GPU 0: NVIDIA A100 (UUID: GPU-aa)\n  MIG 1g.10gb Device 0: (UUID: MIG-bb)\nGPU 1: NVIDIA A100 (UUID: GPU-cc)\n"
)


# ── Decisions ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_every_gpu_counts_once_and_its_slices_do_not() -> None:
    assert visible_gpus(TWO_GPUS, None) == ["0", "1"]


@pytest.mark.parametrize(
    ("visible", "gpus"), [("1", ["1"]), ("0, 1", ["0", "1"]), ("", []), ("-1", []), ("GPU-cc", ["GPU-cc"])]
)
def test_cuda_visible_devices_narrows_the_gpus(visible: str, gpus: list[str]) -> None:
    assert visible_gpus(TWO_GPUS, visible) == gpus


def test_a_machine_without_gpus_has_none_whatever_is_visible() -> None:
    assert visible_gpus("", "0,1") == []


@pytest.mark.parametrize(
    ("gpus", "has_chatterbox", "model", "count", "expected"),
    [
        ([], False, None, None, ("embedded", (None, None))),
        ([], True, None, None, ("embedded", (None, None))),
        ([], False, "tone", 3, ("tone", (None, None, None))),
        (["0", "1"], False, None, None, ("embedded", (None, None))),
        (["0", "1"], True, None, None, ("chatterbox", ("0", "1"))),
        (["0", "1"], True, None, 1, ("chatterbox", ("0",))),
        (["0", "1"], True, None, 3, ("chatterbox", ("0", "1", "0"))),
        (["0", "1"], True, "embedded", None, ("embedded", (None, None))),
        (["0", "1"], False, "chatterbox", None, ("chatterbox", ("0", "1"))),
    ],
)
def test_workers_go_on_gpus_where_there_are_some_and_chatterbox_is(
    gpus: list[str], has_chatterbox: bool, model: str | None, count: int | None, expected: tuple[str, tuple[str | None]]
) -> None:
    assert choose_workers(gpus, has_chatterbox, model, count)[:2] == expected


def test_idle_gpus_are_explained() -> None:
    assert "chatterbox is not installed" in choose_workers(["0"], False, None, None).why


def test_the_pause_before_a_restart_doubles_up_to_half_a_minute() -> None:
    assert [restart_pause_seconds(deaths) for deaths in range(1, 8)] == [1, 2, 4, 8, 16, 30, 30]


def test_a_minute_of_life_forgives_earlier_deaths() -> None:
    assert count_death(5, lived_seconds=59.9) == 6
    assert count_death(5, lived_seconds=60.0) == 1


def test_an_exit_is_named_as_a_person_would() -> None:
    assert describe_exit(3) == "exit status 3"
    assert describe_exit(-9) == "killed by SIGKILL"


def test_a_worker_sees_one_gpu_and_the_token_stays_out_of_the_command_line() -> None:
    options = read_options(["--", "--slots", "3"])
    gateway, first, second = programs(options, choose_workers(["0", "1"], True, None, None), "secret")
    assert "secret" not in str([gateway.command, first.command, second.command])
    assert [program.environment["TTS_WORKER_TOKEN"] for program in (gateway, first, second)] == ["secret"] * 3
    assert [program.environment["CUDA_VISIBLE_DEVICES"] for program in (first, second)] == ["0", "1"]
    assert second.environment["CUDA_DEVICE_ORDER"] == "PCI_BUS_ID"
    assert " ".join(second.command).endswith(
        "tts-worker --index 1 --port 8101 --gateways 127.0.0.1:8081"
        " --model chatterbox --drain-timeout 30 --device cuda:0 --slots 3"
    )


def test_two_programs_of_the_fleet_cannot_want_one_port() -> None:
    (port,) = free_ports(1)
    options = read_options(["--public-port", str(port), "--internal-port", str(port)])
    conflict = first_conflict(options, programs(options, choose_workers([], False, None, None), ""))
    assert conflict is not None
    assert str(port) in conflict
    assert "--internal-port" in conflict


@pytest.mark.parametrize("count", ["0", "-1", "two"])
def test_an_impossible_number_of_workers_is_refused(count: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        read_options(["--workers", count])
    assert exit_.value.code == 2
    assert "--workers" in capsys.readouterr().err


# ── The process ──────────────────────────────────────────────────────────────────────────────────────────────────────


class Up:
    """One run of deploy/up.py. Nothing here waits for a time: each step waits for a line, an event or an end."""

    def __init__(self, directory: Path, *arguments: str, gpus: str = "") -> None:
        self.public, self.internal, *self.workers = free_ports(4)
        self.journal = directory / "journal"
        self.journal.touch()
        nvidia_smi = directory / "bin" / "nvidia-smi"
        nvidia_smi.parent.mkdir()
        nvidia_smi.write_text(f"#!/bin/sh\nprintf '%s' {shlex.quote(gpus)}\n")
        nvidia_smi.chmod(0o755)
        clean = {k: v for k, v in os.environ.items() if not k.startswith(("TTS_", "CUDA_"))}
        self.process = subprocess.Popen(
            [
                *(sys.executable, "-m", "deploy.up"),
                *("--public-port", str(self.public), "--internal-port", str(self.internal)),
                *("--first-worker-port", str(self.workers[0]), "--run-dir", str(directory / "run")),
                *("--gateway-command", shlex.join([sys.executable, str(STAND_INS / "gateway.py")])),
                *("--worker-command", shlex.join([sys.executable, str(STAND_INS / "worker.py")])),
                *arguments,
            ],
            cwd=ROOT,
            env=clean | {"STAND_IN_JOURNAL": str(self.journal), "PATH": f"{nvidia_smi.parent}:{os.environ['PATH']}"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.output = ""

    def wait_for(self, words: str) -> None:
        self.wait_for_each(words)

    def wait_for_each(self, *expected: str) -> None:
        """Read lines until each of `expected` was in one, in whatever order."""
        assert self.process.stdout is not None
        missing = set(expected)
        for line in self.process.stdout:
            self.output += line
            missing = {words for words in missing if words not in line}
            if not missing:
                return
        raise AssertionError(f"it ended without {missing}:\n{self.output}")

    def wait_until_ready(self) -> None:
        self.wait_for("Ctrl-C stops everything")

    def stop(self, number: signal.Signals = signal.SIGINT) -> int:
        self.process.send_signal(number)
        return self.wait_for_end()

    def wait_for_end(self) -> int:
        assert self.process.stdout is not None
        self.output += self.process.stdout.read()
        return self.process.wait()

    def events(self) -> list[list[str]]:
        return [line.split() for line in self.journal.read_text().splitlines()]

    def began(self, name: str) -> list[str]:
        """Return what `name` wrote when it last began: pid, token and, of a worker, model, device and GPU."""
        return [event[2:] for event in self.events() if event[:2] == [name, "began"]][-1]

    def pid(self, name: str) -> int:
        return int(self.began(name)[0])


def free_ports(count: int) -> list[int]:
    """Return ports in a row that are free and outside the range from which the system gives ports away."""
    while True:
        first = random.randrange(20_000, 30_000)
        try:
            for port in range(first, first + count):
                with socket.create_server(("127.0.0.1", port)):
                    pass
        except OSError:
            continue
        return list(range(first, first + count))


@pytest.fixture
def up(tmp_path: Path) -> Iterator[Callable[..., Up]]:
    """Start deploy/up.py; whatever a test leaves behind is killed."""
    runs: list[Up] = []

    def start(*arguments: str, gpus: str = "") -> Up:
        runs.append(Up(tmp_path, *arguments, gpus=gpus))
        return runs[-1]

    yield start
    for run in runs:
        run.process.kill()
        run.process.communicate()


def wait_until_gone(pidfds: list[int]) -> None:
    """Wait until the processes behind the descriptors have ended, whoever their parent is by now."""
    for descriptor in pidfds:
        poll = select.poll()
        poll.register(descriptor, select.POLLIN)
        poll.poll()
        os.close(descriptor)


Start = Callable[..., Up]


def test_it_shows_each_program_coming_up_and_then_a_curl_to_try(up: Start) -> None:
    run = up()
    run.wait_until_ready()
    assert "2 workers, model embedded (no GPU found)" in run.output
    assert [name in run.output for name in ("gateway    ready", "worker-0   ready", "worker-1   ready")] == [True] * 3
    assert f"curl -sS http://127.0.0.1:{run.public}/v1/tts " in run.output
    assert "-o hello.wav" in run.output
    assert "2 of 2 workers" in run.output
    assert run.stop() == 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_the_gateway_has_ended_before_a_worker_is_asked_to(up: Start, number: signal.Signals) -> None:
    run = up()
    run.wait_until_ready()
    assert run.stop(number) == 0
    order = [(name, event) for name, event, *_ in run.events() if event != "began"]
    assert order[:2] == [("gateway", "was-asked-to-stop"), ("gateway", "ended")]
    assert sorted(order[2:]) == [
        (name, event) for name in ("worker-0", "worker-1") for event in ("ended", "was-asked-to-stop")
    ]


def test_all_programs_share_one_new_token(up: Start) -> None:
    run = up()
    run.wait_until_ready()
    assert run.stop() == 0
    tokens = {run.began(name)[1] for name in ("gateway", "worker-0", "worker-1")}
    assert len(tokens) == 1
    assert len(tokens.pop()) >= 32


def test_the_terminals_ctrl_c_does_not_reach_the_programs(up: Start) -> None:
    run = up()
    run.wait_until_ready()
    for name in ("gateway", "worker-0"):
        assert os.getsid(run.pid(name)) != os.getsid(run.process.pid)


def test_each_gpu_has_a_worker_that_sees_only_it(up: Start) -> None:
    run = up("--model", "chatterbox", gpus=TWO_GPUS)
    run.wait_until_ready()
    assert [run.began(f"worker-{index}")[2:] for index in (0, 1)] == [
        ["chatterbox", "cuda:0", "0"],
        ["chatterbox", "cuda:0", "1"],
    ]
    assert run.stop() == 0


def test_a_worker_that_is_killed_comes_back(up: Start) -> None:
    run = up()
    run.wait_until_ready()
    before = run.pid("worker-0")
    os.kill(before, signal.SIGKILL)
    run.wait_for("worker-0 died (killed by SIGKILL) and starts again in 1 s")
    run.wait_for("worker-0   ready")
    assert run.pid("worker-0") != before
    assert run.stop() == 0


def test_a_gateway_that_is_killed_comes_back_and_finds_its_workers(up: Start) -> None:
    run = up("--workers", "1")
    run.wait_until_ready()
    worker = run.pid("worker-0")
    os.kill(run.pid("gateway"), signal.SIGKILL)
    # Either may be noticed first.
    run.wait_for_each("gateway died (killed by SIGKILL) and starts again in 1 s", "worker-0   without link")
    run.wait_for("worker-0   ready")
    assert run.pid("worker-0") == worker
    assert run.stop() == 0


def test_a_program_that_cannot_start_is_tried_again_after_longer_and_longer_pauses(up: Start) -> None:
    run = up("--workers", "1", "--", "--crash")
    run.wait_for("worker-0 died (exit status 1) and starts again in 1 s")
    run.wait_for("    the voice is not there")
    run.wait_for("worker-0 died (exit status 1) and starts again in 2 s")
    assert run.stop() == 0


def test_a_port_in_use_is_named_with_the_way_out(up: Start) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        run = up("--public-port", str(port))
        assert run.wait_for_end() == 1
    assert run.output == (
        f"Port {port}, wanted by the gateway's public listener, is in use: stop what listens there "
        f"(ss -ltnp 'sport = :{port}' shows it) or choose another with make up ARGS=\"--public-port PORT\".\n"
    )
    assert run.events() == []


def test_a_program_that_is_not_installed_is_named(up: Start) -> None:
    run = up("--worker-command", "no-such-worker")
    assert run.wait_for_end() == 1
    assert run.output == "no-such-worker is not there: make up installs it.\n"


def test_a_worker_that_does_not_stop_is_killed_by_a_second_ctrl_c(up: Start) -> None:
    run = up("--workers", "1", "--", "--deaf")
    run.wait_until_ready()
    run.process.send_signal(signal.SIGINT)
    run.wait_for("Ctrl-C again stops at once")
    assert run.stop() == 130
    with pytest.raises(ProcessLookupError):
        os.kill(run.pid("worker-0"), 0)


def test_no_program_outlives_a_fleet_that_is_killed(up: Start) -> None:
    run = up()
    run.wait_until_ready()
    pidfds = [os.pidfd_open(run.pid(name)) for name in ("gateway", "worker-0", "worker-1")]
    run.process.kill()
    wait_until_gone(pidfds)


def test_help_lists_the_options_for_people_and_hides_those_for_tests(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        read_options(["--help"])
    text = capsys.readouterr().out
    assert "--public-port" in text
    assert "--gateway-command" not in text


def test_options_have_the_ports_that_clients_and_units_rely_on() -> None:
    options: argparse.Namespace = read_options([])
    assert (options.public_port, options.internal_port, options.first_worker_port) == (8080, 8081, 8100)
