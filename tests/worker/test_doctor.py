"""What the facts of a worker mean, case by case. tests/e2e/test_doctor.py looks at real ones."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import pytest

from host.findings import Finding, Level
from tests.fakes.gpus import FakeGpus, amd_library
from worker.config import ChatterboxOptions, Config
from worker.doctor import checks, facts
from worker.doctor.device import Device, Holder, Torch, ask_torch
from worker.doctor.facts import Compiler, Gateway, Running, Weights

GIB = 1 << 30
CONFIG = Config(id="worker-0", model="chatterbox", device="cuda:0")
CARD = Device(
    "NVIDIA GeForce RTX 3090", 0, "nvidia", "580.65.06", (13, 0), (8, 6), total_bytes=24 * GIB, free_bytes=23 * GIB
)
TORCH = Torch("2.13.0", (13, 0), ("sm_75", "sm_80", "sm_86", "sm_90", "sm_100", "sm_120"), True)
UPSTREAMS = Torch("2.6.0", (12, 4), ("sm_50", "sm_60", "sm_70", "sm_75", "sm_80", "sm_86", "sm_90"), True)


def only(findings: Iterable[Finding]) -> Finding:
    [found] = findings
    return found


# ── what compiles the kernels ────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("compiler", "level", "words"),
    [
        (Compiler(True, "gcc", True), Level.OK, "with gcc"),
        (Compiler(False, "gcc", True), Level.WARNING, "triton is not installed"),
        (Compiler(True, "", True), Level.WARNING, "no C compiler,"),
        (Compiler(True, "gcc", False), Level.WARNING, "no Python.h,"),
        (Compiler(True, "", False), Level.WARNING, "no C compiler and no Python.h,"),
    ],
)
def test_without_a_compiler_tokens_are_slow(compiler: Compiler, level: Level, words: str):
    found = checks.check_kernels(compiler)
    assert (found.level, words in found.seen) == (level, True), found


def test_a_compiler_is_looked_for_where_triton_looks(tmp_path: Path):
    assert facts.compiler({"PATH": str(tmp_path)}).command == ""
    for name in ("clang", "gcc", "own"):
        (tmp_path / name).write_text("#!/bin/sh")
        (tmp_path / name).chmod(0o755)
    assert facts.compiler({"PATH": str(tmp_path)}).command == "gcc"
    assert facts.compiler({"PATH": str(tmp_path), "CC": "own"}).command == "own"


# ── torch, card, driver ──────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("capability", "torch", "level"),
    [
        ((8, 6), TORCH, Level.OK),  # RTX 30
        ((8, 9), TORCH, Level.OK),  # RTX 40 runs the code of 8.6
        ((12, 0), TORCH, Level.OK),  # RTX 50
        ((12, 0), UPSTREAMS, Level.PROBLEM),
        ((10, 0), UPSTREAMS, Level.PROBLEM),
        ((8, 9), UPSTREAMS, Level.OK),
        ((6, 1), TORCH, Level.PROBLEM),  # too old for CUDA 13
        ((12, 0), replace(UPSTREAMS, codes=("sm_90", "compute_90")), Level.OK),  # the portable kind is compiled there
        ((12, 0), replace(UPSTREAMS, codes=("sm_90a", "sm_120f")), Level.OK),
        ((12, 0), replace(UPSTREAMS, codes=("compute_90a",)), Level.PROBLEM),  # for one card only
        ((8, 0), replace(UPSTREAMS, codes=("sm_86",)), Level.PROBLEM),  # a higher minor version
        (None, UPSTREAMS, Level.OK),  # the driver does not tell
    ],
)
def test_torch_needs_code_for_the_card(capability: tuple[int, int] | None, torch: Torch, level: Level):
    found = only(checks.check_torch(CONFIG, replace(CARD, capability=capability), torch))
    assert found.level is level, found


def test_rtx_50_on_upstreams_torch_is_told_what_to_install():
    card = replace(CARD, name="NVIDIA GeForce RTX 5090", capability=(12, 0))
    found = only(checks.check_torch(CONFIG, card, UPSTREAMS))
    assert found.seen.startswith(
        "2.6.0 for CUDA 12.4 has no code for NVIDIA GeForce RTX 5090 (compute capability 12.0)"
    )
    assert "torch 2.7 or newer" in found.why
    assert found.command.endswith("-r requirements/chatterbox.txt")


def test_torch_needs_a_driver_of_its_cuda():
    old = replace(CARD, driver="550.54", driver_cuda=(12, 4))
    found = only(checks.check_torch(CONFIG, old, TORCH))
    assert found.level is Level.PROBLEM
    assert found.seen == "2.13.0 is for CUDA 13.0, and driver 550.54 ends at 12.4"
    assert "580 or newer" in found.command
    assert only(checks.check_torch(CONFIG, old, replace(UPSTREAMS, cuda=(12, 8)))).level is Level.OK  # minor ones fit


@pytest.mark.parametrize(
    ("device", "torch", "level", "said"),
    [
        (CARD, Torch(trouble="is not installed"), Level.PROBLEM, "is not installed"),
        (CARD, Torch("2.13.0+cpu"), Level.PROBLEM, "built for no CUDA"),
        (CARD, replace(TORCH, is_available=False), Level.PROBLEM, "finds no GPU"),
        (None, Torch("2.13.0+cpu"), Level.WARNING, "on the CPU"),
        (replace(CARD, trouble="NVML: Driver Not Loaded"), TORCH, Level.OK, "not compared"),
        (Device("MI300X", 0, "amd"), Torch("2.13.0"), Level.OK, "not compared"),
    ],
)
def test_a_torch_that_cannot_use_the_gpu_is_a_problem(device: Device | None, torch: Torch, level: Level, said: str):
    found = only(checks.check_torch(CONFIG, device, torch))
    assert found.level is level
    assert said in found.seen


def test_a_torch_that_cannot_be_imported_says_why(tmp_path: Path):
    (tmp_path / "torch.py").write_text("raise ImportError('libcudart.so.13: cannot open shared object file')\n")
    seen = ask_torch(os.environ | {"PYTHONPATH": str(tmp_path)})
    assert seen.trouble == "ImportError: libcudart.so.13: cannot open shared object file"


# ── memory ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_memory_that_is_enough_is_shown_with_what_is_needed():
    found = checks.check_memory(CONFIG, "cuda:0", CARD, None)
    assert found.level is Level.OK
    assert found.seen.startswith("23.00 GiB of 24.00 GiB free, ")


def test_memory_that_others_hold_is_a_problem_with_their_names():
    full = replace(CARD, free_bytes=2 * GIB, holders=(Holder(4711, "python3", 20 * GIB), Holder(12, "Xorg", None)))
    found = checks.check_memory(CONFIG, "cuda:0", full, None)
    assert found.level is Level.PROBLEM
    assert "Held by: python3 (pid 4711) 20.00 GiB, Xorg (pid 12)." in found.seen
    assert found.command.startswith("ps -o pid,user,args -p 4711,12")
    unnamed = checks.check_memory(CONFIG, "cuda:0", replace(full, holders=()), None)
    assert unnamed.command.startswith("nvidia-smi")


def test_memory_that_this_very_worker_holds_is_no_problem():
    full = replace(CARD, free_bytes=GIB)
    assert checks.check_memory(CONFIG, "cuda:0", full, Running("worker-0", "ready", "")).level is Level.OK
    assert checks.check_memory(CONFIG, "cuda:0", full, Running("worker-0", "failed", "")).level is Level.PROBLEM
    assert checks.check_memory(CONFIG, "cuda:0", full, Running("worker-7", "ready", "")).level is Level.PROBLEM


def test_more_slots_and_more_exact_numbers_need_more():
    tight = replace(CARD, free_bytes=5 * GIB)
    assert checks.check_memory(CONFIG, "cuda:0", tight, None).level is Level.OK
    assert checks.check_memory(replace(CONFIG, slots=16, batch=16), "cuda:0", tight, None).level is Level.PROBLEM
    exact = replace(CONFIG, chatterbox=ChatterboxOptions(precision="fp32"))
    assert checks.check_memory(exact, "cuda:0", tight, None).level is Level.PROBLEM


# ── device ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_gpu_in_trouble_is_one_problem_and_the_cpu_is_none():
    lost = only(checks.check_devices(CONFIG, {"cuda:0": Device(trouble="NVML: GPU is lost")}, None))
    assert (lost.level, lost.seen) == (Level.PROBLEM, "cuda:0: NVML: GPU is lost")
    assert only(checks.check_devices(replace(CONFIG, device="cpu"), {}, None)).level is Level.OK
    assert checks.gpus_of(CONFIG) == ("cuda:0",)
    assert checks.gpus_of(replace(CONFIG, device="cpu")) == ()


def test_in_split_mode_each_device_is_asked_for_its_own_stage():
    split = replace(CONFIG, device="cuda:0,cuda:1", split=("cuda:0", "cuda:1"))
    assert checks.gpus_of(split) == ("cuda:0", "cuda:1")
    tokens, sound = (
        finding
        for finding in checks.check_devices(split, {"cuda:0": CARD, "cuda:1": replace(CARD, index=1)}, None)
        if finding.subject == "gpu memory"
    )
    whole = checks.check_memory(CONFIG, "cuda:0", CARD, None)
    assert len({tokens.seen, sound.seen, whole.seen}) == 3
    assert "cuda:1 has 1.00 GiB" in checks.check_memory(split, "cuda:1", replace(CARD, free_bytes=GIB), None).seen


def looked_at(environment: dict[str, str], device: str = "cuda:0") -> str:
    """Look in a process of its own: the dynamic linker reads its path once, at the start."""
    code = f"import os; from worker.doctor.device import look; print(look({device!r}, os.environ))"
    ran = subprocess.run([sys.executable, "-c", code], env=os.environ | environment, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


def test_a_driver_that_hangs_is_not_waited_for(tmp_path: Path):
    gpus = FakeGpus(tmp_path)
    gpus.set(hang=1)
    assert "trouble='the driver has not answered for 10 s'" in looked_at(gpus.environment)


def test_the_gpu_is_the_one_that_the_worker_would_use(tmp_path: Path):
    gpus = FakeGpus(tmp_path, count=2)
    gpus.set(driver="570.1", cuda=12080)
    gpus.set_gpu(1, name="NVIDIA GeForce RTX 5090", capability="12.0")
    seen = looked_at({**gpus.environment, "CUDA_VISIBLE_DEVICES": "1", "CUDA_DEVICE_ORDER": "PCI_BUS_ID"})
    assert "name='NVIDIA GeForce RTX 5090', index=1" in seen
    assert "driver='570.1', driver_cuda=(12, 8), capability=(12, 0)" in seen
    assert "cuda:3 is not among the 2 GPUs" in looked_at(gpus.environment, "cuda:3")


def test_a_gpu_of_amd_is_looked_at_too(tmp_path: Path):
    seen = looked_at(amd_library(tmp_path))
    assert "vendor='amd'" in seen
    assert "trouble=''" in seen


# ── weights ──────────────────────────────────────────────────────────────────────────────────────────────────────────

HUB = {"HOME": "/nowhere"}


def test_models_whose_weights_come_with_their_package_need_no_look():
    assert facts.weights(replace(CONFIG, model="embedded"), HUB) is None
    assert list(checks.check_weights(CONFIG, None)) == []


def test_missing_weights_are_named_with_the_command_that_fetches_them(tmp_path: Path):
    config = replace(CONFIG, chatterbox=ChatterboxOptions(checkpoint=str(tmp_path)))
    (tmp_path / "ve.safetensors").write_text("")
    found = only(checks.check_weights(config, facts.weights(config, HUB)))
    assert found.level is Level.PROBLEM
    assert found.seen.startswith(
        "t3_cfg.safetensors, s3gen.safetensors, tokenizer.json, conds.pt of chatterbox are not in"
    )
    assert found.command.startswith("hf download ResembleAI/chatterbox ve.safetensors t3_cfg.safetensors ")
    assert found.command.endswith(f"--local-dir {tmp_path}")
    assert shutil.which("hf", path=Path(sys.executable).parent), "the command comes with Chatterbox"


@pytest.mark.parametrize("variable", ["HF_HUB_CACHE", "HF_HOME", "XDG_CACHE_HOME", "HOME"])
def test_the_hubs_cache_is_looked_for_where_the_hub_has_it(tmp_path: Path, variable: str):
    pytest.importorskip("huggingface_hub")
    code = "from huggingface_hub import constants; print(constants.HF_HUB_CACHE)"
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "XDG_", "HUGGING"))}
    environment = clean | {variable: str(tmp_path)}
    said = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    cache = Path(said.stdout.strip())
    assert facts.weights(CONFIG, environment) == Weights(str(cache), CHATTERBOX, "ResembleAI/chatterbox")
    snapshot = cache / "models--ResembleAI--chatterbox" / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (snapshot.parents[1] / "refs").mkdir()
    (snapshot.parents[1] / "refs" / "main").write_text("abc")
    for name in CHATTERBOX:
        (snapshot / name).write_text("")
    seen = facts.weights(CONFIG, environment)
    assert seen == Weights(str(snapshot), (), "ResembleAI/chatterbox")
    assert only(checks.check_weights(CONFIG, seen)).level is Level.OK


CHATTERBOX = ("ve.safetensors", "t3_cfg.safetensors", "s3gen.safetensors", "tokenizer.json", "conds.pt")


def test_weights_that_the_first_start_would_fetch_are_a_warning():
    found = only(checks.check_weights(CONFIG, Weights("/cache/hub", CHATTERBOX, "ResembleAI/chatterbox")))
    assert found.level is Level.WARNING
    assert found.command.endswith("--local-dir /srv/tts/chatterbox   # then --checkpoint /srv/tts/chatterbox")


# ── the worker and its gateways ──────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("running", "level"),
    [
        (None, Level.WARNING),
        (Running("worker-0", "ready", ""), Level.OK),
        (Running("worker-0", "failed", "NoRoom: …"), Level.WARNING),
        (Running("worker-1", "ready", ""), Level.PROBLEM),
    ],
)
def test_the_worker_on_the_port_is_to_be_this_one(running: Running | None, level: Level):
    assert only(checks.check_running(CONFIG, running)).level is level


@pytest.mark.parametrize(
    ("gateway", "token", "level", "said"),
    [
        (Gateway("g:1", 404, "voice_not_found", 0.0), "t", Level.OK, "takes the workers' token"),
        (Gateway("g:1", 404, "voice_not_found", 0.0), "", Level.OK, "wants no token"),
        (Gateway("g:1", 401, "unauthorized", 0.0), "t", Level.PROBLEM, "refuses the workers' token"),
        (Gateway("g:1", 401, "unauthorized", 0.0), "", Level.PROBLEM, "there is none here"),
        (Gateway("g:1", 404, "not_found", 0.0), "t", Level.PROBLEM, "404 not_found, which no gateway's internal"),
        (Gateway("g:1", 200, "", 0.0), "t", Level.PROBLEM, "answers with 200, which"),
        (Gateway("g:1", trouble="No route to host"), "t", Level.PROBLEM, "No route to host"),
    ],
)
def test_a_gateway_is_to_be_reached_and_to_take_the_token(gateway: Gateway, token: str, level: Level, said: str):
    found = checks.check_gateway(replace(CONFIG, token=token), gateway)
    assert found.level is level
    assert said in found.seen


def test_a_gateway_with_another_time_is_found():
    found = list(checks.check_gateways(CONFIG, [Gateway("g:1", 404, "voice_not_found", 30.0)]))
    assert [one.level for one in found] == [Level.OK, Level.WARNING]
    assert only(checks.check_gateways(CONFIG, [])).level is Level.OK
