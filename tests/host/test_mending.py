"""Every command that a doctor advises is one: it can be parsed, its program is there, and so is what it names."""

from __future__ import annotations

import ast
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from deploy import units as deployed
from gateway import commands
from gateway.config import Config as GatewayConfig
from gateway.doctor import checks as gateway
from gateway.doctor import command as gateway_command
from gateway.doctor.facts import Answer, Directory, Facts, Keys, Target
from gateway.doctor.facts import Worker as Listed
from gateway.doctor.outside import Outside, Speech
from host import checks as machine
from host import units
from host.facts import Guarded, Machine, Port
from host.findings import Finding, Level
from host.units import Unit
from worker.config import Config as WorkerConfig
from worker.doctor import checks as worker
from worker.doctor import command as worker_command
from worker.doctor.device import Device, Holder, Torch
from worker.doctor.facts import Compiler, Gateway, Running, Weights

ROOT = Path(__file__).parents[2]
# What Debian or NVIDIA's driver brings to the machines that they are for.
PROGRAMS = {
    "apt-get", "chmod", "cp", "curl", "dmesg", "grep", "journalctl", "ls", "nginx", "nvidia-smi", "openssl", "ps",
    "sha256sum", "ss", "systemctl", "tail", "timedatectl", "ulimit",
}  # fmt: skip
OURS = {
    "tts-gateway": {*commands.NAMES, *deployed.NAMES, "keys", "doctor", "--help"},
    "tts-worker": {"doctor", "--help", "--device"},
}
GIB = 1 << 30


def ailments() -> Iterator[Finding]:
    """One of every kind, from facts in which nothing is well."""
    sick = Machine("/home/x/python", 100, False, (Port("::1", 1, "--p", "x"),), (), True)
    yield from machine.check(replace(sick, files=(Guarded("f", "", True, 0o644), Guarded("f", "", True, 0o622))), no)
    yield machine.check_skew("w", 60)
    well = Unit("tts-gateway.service", "loaded", "enabled", "active")
    changes: tuple[dict[str, object], ...] = (
        {"load": "not-found"}, {"load": "masked"}, {"load": "error"}, {"active": "failed"}, {"sub": "auto-restart"},
        {"is_outdated": True}, {"active": "inactive"}, {"enabled": "disabled"},
    )  # fmt: skip
    yield from units.check([replace(well, **change) for change in changes])
    yield from of_gateways()
    yield from of_workers()


def of_gateways() -> Iterator[Finding]:
    none, config = Answer(trouble="x"), GatewayConfig()
    facts = Facts(none, Answer(200), none, (), "u", (), Keys("k", 0), Directory("d", True, False))
    states = ("loading", "draining", "unloaded", "ejected")
    listed = tuple(Listed(state, state, "", "a:1", none) for state in states)
    down = (Target("http://127.0.0.1:8081/metrics", False, "x"),)
    for one in (facts, replace(facts, public=Answer(404), workers=listed, targets=down, keys=Keys("k", 0, "x"))):
        yield from gateway.check(config, one)
    yield from gateway.check_workers([replace(listed[0], state="failed")])
    whole, late = Speech(200, "", ((0.1, 9),)), Speech(200, "", ((9.0, 9),))
    outside = Outside("u", Answer(200), False, (), (("/v1/tts", 9, 413),), ("/metrics",), 400, 3.0)
    for rounds in (
        (),
        ((late, whole),),
        ((late, None),),
        ((Speech(401, "unauthorized"), None),),
        ((Speech(500), None),),
    ):
        yield from gateway.check_outside(replace(outside, rounds=rounds))
    yield from gateway.check_outside(replace(outside, rounds=((Speech(500), whole),)))
    for answer in (none, Answer(404)):
        yield from gateway.check_outside(replace(outside, answer=answer))


def of_workers() -> Iterator[Finding]:
    config = WorkerConfig("w", model="chatterbox", device="cuda:0")
    card = Device("c", 0, "nvidia", "1", (12, 4), (12, 0), GIB, GIB)
    for running in (None, Running("other", "ready", ""), Running("w", "failed", "x")):
        yield from worker.check_running(config, running)
    for device in (Device(trouble="x"), card, replace(card, holders=(Holder(1, "x", 1),))):
        yield from worker.check_devices(config, {"cuda:0": device}, None)
    torches = (
        Torch(trouble="x"),
        Torch("1"),
        Torch("1", (12, 0), ("sm_90",)),
        Torch("1", (13, 0)),
        Torch("1", (12, 0)),
    )
    for torch in torches:
        yield from worker.check_torch(config, card, torch)
    yield from worker.check_torch(config, None, Torch("1"))
    for compiler in (Compiler(False), Compiler(True)):
        yield worker.check_kernels(compiler)
    for weights in (Weights(trouble="x"), Weights("p", ("a",), "r", True), Weights("p", ("a",), "r")):
        yield from worker.check_weights(config, weights)
    for gateway_ in (Gateway("g:1", trouble="x"), Gateway("g:1", 401), Gateway("g:1", 500, "", 60.0)):
        yield from worker.check_gateways(config, [gateway_])


def no(port: Port) -> bool:
    return False


AILING = [finding for finding in ailments() if finding.level is not Level.OK]


@pytest.mark.parametrize("finding", AILING, ids=lambda finding: finding.command[:60])
def test_what_a_doctor_advises_can_be_done(finding: Finding):
    assert finding.why, "whoever reads it wants to know what it leads to"
    parsed = subprocess.run(["bash", "-n", "-c", finding.command], capture_output=True, text=True)
    assert parsed.returncode == 0, parsed.stderr
    for step in re.split(r" && | \| ", finding.command.split("   #")[0].partition("; ")[0]):
        words = [word for word in shlex.split(step) if not re.fullmatch(r"[A-Z_]+=\S*", word)]
        program = Path(words[0]).name
        if program in OURS:
            assert len(words) == 1 or words[1] in OURS[program], step
        elif program in ("hf", "pip", "python3"):
            assert program == "python3" or (Path(sys.executable).parent / program).exists(), step
        else:
            assert program in PROGRAMS, step
        for named in re.findall(r"\b(?:deploy|requirements)/\S+", step):
            assert (ROOT / named).exists(), step


def test_nothing_is_advised_that_was_not_tried_here():
    """Each call of `warning` or `problem` in the sources is reached by the ailments above."""
    sources = [str(ROOT / path) for path in ("host/checks.py", "host/units.py")]
    sources += [str(ROOT / side / "doctor" / "checks.py") for side in ("gateway", "worker")]
    reached: set[tuple[str, int]] = set()

    def trace(frame: FrameType, event: str, _: object) -> Any:
        if frame.f_code.co_filename not in sources:
            return None
        reached.add((frame.f_code.co_filename, frame.f_lineno))
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        list(ailments())
    finally:
        sys.settrace(before)
    advised = {
        (source, call.lineno)
        for source in sources
        for call in ast.walk(ast.parse(Path(source).read_text()))
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id in ("warning", "problem")
    }
    assert len(advised) > 40
    assert advised <= reached


def test_the_page_asks_the_doctors_as_they_can_be_asked():
    page = (ROOT / "docs" / "operations.md").read_text()
    section = page.split("\n## Something is wrong: ask the doctor\n")[1].split("\n## ")[0]
    asked = [shlex.split(line) for line in section.split("```")[1].splitlines()[1:]]
    assert {Path(words[0]).name for words in asked} == {"tts-gateway", "tts-worker"}
    for program, doctor, *options in asked:
        assert doctor == "doctor"
        if program.endswith("gateway"):
            gateway_command._parser().parse_args(options)
        else:
            _, of_worker = worker_command._parser().parse_known_args(options)
            WorkerConfig.from_environment(of_worker, {})
    assert f"Each line is something that was looked at: `{Level.OK}`, `{Level.WARNING}`" in section
    assert f"or `{Level.PROBLEM}`" in section
    assert "more than half a second later" in section
    assert gateway.LATE_SECONDS == 0.5
