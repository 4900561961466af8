"""The machines that the tests boot leave nothing behind, however the tests end."""

import os
import subprocess
from pathlib import Path

import pytest

from tests.deploy.host import BOOT, _remove_control_groups, need_root, until

pytestmark = pytest.mark.e2e


def named(pid: str) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return ""


def test_a_machine_ends_with_whoever_booted_it():
    need_root()
    name = f"orphan-{os.getpid()}"
    starter = subprocess.Popen(["bash", "-c", f"bash {BOOT} {name} & echo $!; wait"], stdout=subprocess.PIPE, text=True)
    try:
        assert starter.stdout is not None
        machine = starter.stdout.readline().strip()

        def booted() -> str:
            children = Path(f"/proc/{machine}/task/{machine}/children").read_text().split()
            return next((child for child in children if named(child) == "systemd"), "")

        leader = until(booted, "the machine's systemd to start")
        starter.kill()  # as a test run that is killed from outside: nothing of it runs any more
        until(lambda: not named(machine) and not named(leader), "the machine to end")
    finally:
        starter.kill()
        starter.wait()
        starter.stdout.close()
        _remove_control_groups(name)
