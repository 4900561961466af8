"""docs/operations.md as a newcomer follows it: its commands, pasted in order on a machine that has nothing of ours."""

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.deploy.host import Host, cannot, need_root, until
from tests.deploy.page import commands
from tests.deploy.wheels import build_own, pack_libraries
from tests.e2e.ears import Ears, word_error_rate

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]

_HOME = "/root/fresh"  # where the wheel was copied to
_PATIENCE_SECONDS = 240.0  # an installation unpacks 250 MB
# In place of the package index, which the tests' machine has no way to, and of what its root has set up for pip.
_LIBRARIES = "/opt/libraries"
_AROUND = f"""
export PIP_CONFIG_FILE=/dev/null PIP_NO_INDEX=1 PIP_FIND_LINKS={_LIBRARIES} PIP_DISABLE_PIP_VERSION_CHECK=1
export DEBIAN_FRONTEND=noninteractive
cd {_HOME}
"""


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    """A machine on which the section "Install" was followed. Before it had Debian's packages and our wheel, no more."""
    need_root()
    ours = f"Python {sys.version_info.major}.{sys.version_info.minor}."
    theirs = subprocess.run(["/usr/bin/python3", "--version"], capture_output=True, text=True, check=True).stdout
    if not theirs.startswith(ours):
        cannot(f"the tests' libraries are for {ours}*, and /usr/bin/python3 is {theirs.strip()}")
    directory = tmp_path_factory.mktemp("fresh")
    pack_libraries(directory / "libraries")
    wheel = build_own(directory / "wheel")
    with Host.booted("fresh", [f"{directory / 'libraries'}:{_LIBRARIES}"], directory) as made:
        # Nor to Debian's: apt knows the packages that are installed, and of no newer ones.
        made.shell("rm -rf /var/lib/apt/lists/* && mkdir -p /var/lib/apt/lists/partial")
        made.run("mkdir", _HOME)
        shutil.copy(wheel, made.path(_HOME) / wheel.name)
        [install] = commands("Install")
        paste(made, install)
        yield made


def paste(host: Host, lines: str) -> str:
    """Paste lines of the page into one shell of root, as at a terminal, but stop at the first that fails."""
    return host.shell(_AROUND + lines, timeout=_PATIENCE_SECONDS)


def heard(ears: Ears, host: Host) -> str:
    file: Path = host.path(_HOME) / "hello.wav"
    said = ears.hear(file.read_bytes())
    file.unlink()
    return said


def test_a_newcomer_is_heard_through_nginx_with_a_key(machine: Host):
    ears = Ears()
    assert word_error_rate("Hello. This is my own machine.", heard(ears, machine)) == 0
    keys, site, call = commands("For the public")
    paste(machine, keys + site + call)
    assert word_error_rate("Hello through the front door.", heard(ears, machine)) == 0
    # Without the key, not even on the machine itself.
    said = paste(machine, "NAME=tts.example.com\n" + call.replace("Bearer $KEY", "Bearer guessed").split(" -o ")[0])
    assert '"code": "unauthorized"' in said


def test_a_newcomer_looks_changes_adds_and_drains(machine: Host):
    [look] = commands("Look")
    said = paste(machine, look)
    assert 'Status: "ready: embedded on cpu' in said
    assert '"workers"' in said
    assert "worker-1" in said
    [change] = commands("Change an option")
    paste(machine, change)
    [upgrade] = commands("Upgrade")
    paste(machine, upgrade)
    [add] = commands("Add a GPU")
    paste(machine, add)
    machine.wait_ready("worker-0", "worker-1", "worker-2")
    [drain] = commands("Drain")
    first, second = drain.splitlines()
    paste(machine, first)
    assert machine.workers()["worker-1"]["state"] == "draining"
    paste(machine, second)
    until(lambda: machine.workers()["worker-1"]["state"] == "ready", "worker-1 to take work again")
