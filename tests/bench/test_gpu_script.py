"""The script for a GPU at hand, with an interpreter that only notes what it is asked to do."""

import argparse
import os
import shlex
import subprocess
from pathlib import Path

import pytest

from bench.__main__ import SUBCOMMANDS

SCRIPT = Path(__file__).parents[2] / "bench" / "gpu.sh"

NOTING = """#!/bin/bash
echo "$@" >>"$NOTES"
case "$*" in
*device_count*) echo 0 ;;
*--help*) echo "$WORKER_HELP" ;;
*"$BREAKS"*) exit 3 ;;
esac
"""


class Noted(subprocess.CompletedProcess[str]):
    commands: list[list[str]]


def gpu(tmp_path: Path, *arguments: str, variable: str = "BENCH_PYTHON", **environment: str) -> Noted:
    """Run the script with the noting interpreter; `commands` are what that was asked to do."""
    python, notes = tmp_path / "python", tmp_path / "notes"
    python.write_text(NOTING)
    python.chmod(0o755)
    notes.touch()
    given = {"NOTES": str(notes), variable: str(python), "WORKER_HELP": "--split D,D", "BREAKS": "nothing"}
    done = subprocess.run(
        ["bash", str(SCRIPT), *arguments],
        env=os.environ | given | environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    noted = Noted(done.args, done.returncode, done.stdout, done.stderr)
    noted.commands = [shlex.split(line) for line in notes.read_text().splitlines()]
    return noted


def test_every_step_is_a_command_that_there_is_with_options_that_it_has(tmp_path: Path) -> None:
    done = gpu(tmp_path, "--dry-run", str(tmp_path / "out"))
    assert done.returncode == 0, done.stderr
    benches = [command[2:] for command in done.commands if command[:2] == ["-m", "bench"]]
    assert [name for name, *_ in benches] == ["engine", "engine", "connections", "split"]
    for name, *options in benches:
        parser = argparse.ArgumentParser(exit_on_error=False)
        SUBCOMMANDS[name].add_arguments(parser)
        parser.parse_args(options)
    # All speak with the weights that the first step makes.
    made = next(command for command in done.commands if "make-tiny-checkpoint" in command)
    assert {options[options.index("--checkpoint") + 1] for options in benches} == {made[3]}
    assert not Path(made[3]).parent.exists(), "what was made on the way is left behind"
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["summary.txt"]


def test_a_step_that_fails_is_told_and_the_others_are_done(tmp_path: Path) -> None:
    done = gpu(tmp_path, "--dry-run", str(tmp_path / "out"), BREAKS="--check 2")
    assert done.returncode == 1
    assert "equality: ended with 3" in done.stdout
    assert "connections: ended with 0" in done.stdout


def test_a_split_is_left_out_where_the_worker_has_none(tmp_path: Path) -> None:
    done = gpu(tmp_path, "--dry-run", str(tmp_path / "out"), WORKER_HELP="--device")
    assert done.returncode == 0
    assert "split: left out" in done.stdout
    assert "split" not in [command[2] for command in done.commands if len(command) > 2]


def test_what_is_brought_to_a_place_without_a_network_is_checked_by_hashes(tmp_path: Path) -> None:
    done = gpu(tmp_path, "--wheels", str(tmp_path / "wheels"), variable="PYTHON")
    assert done.returncode == 0, done.stderr
    (command,) = done.commands
    assert command[:3] == ["-m", "pip", "wheel"]
    assert {"--no-deps", "--require-hashes"} <= set(command)


def test_the_packages_are_the_workers_without_torch_and_its_libraries(tmp_path: Path) -> None:
    text = SCRIPT.read_text()
    function = text[text.index("requirements() {") : text.index('if [ -n "$wheels" ]')]
    done = subprocess.run(
        ["bash", "-c", f"{function}\nrequirements"], cwd=SCRIPT.parents[1], capture_output=True, text=True, check=True
    )
    names = [line.split("==")[0] for line in done.stdout.splitlines() if "==" in line]
    assert {"chatterbox-tts", "torchaudio", "nvidia-ml-py", "psutil", "numpy", "setuptools", "hatchling"} <= set(names)
    assert not [name for name in names if name in ("torch", "triton") or name.startswith(("cuda-", "nvidia-c"))]
    assert done.stdout.count("--hash=sha256:") > len(names)


@pytest.mark.parametrize("arguments", [(), ("--what",), ("a", "b")])
def test_without_a_folder_it_says_how_it_is_used(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    done = gpu(tmp_path, *arguments)
    assert done.returncode == 2
    assert "--dry-run OUT" in done.stderr
    assert done.commands == []
