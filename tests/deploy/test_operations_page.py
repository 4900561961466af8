"""docs/operations.md as a newcomer follows it: its commands, pasted in order on a machine that has nothing of ours."""

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.deploy.host import Host, cannot, need_root
from tests.deploy.page import commands
from tests.deploy.wheels import build_own, pack_libraries
from tests.e2e.ears import Ears, word_error_rate

pytestmark = pytest.mark.e2e

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
    """A machine with Debian's packages and a wheel in the directory of root."""
    need_root()
    version = subprocess.run(["/usr/bin/python3", "--version"], capture_output=True, text=True, check=False).stdout
    if version.split()[-1:] == [] or version.split()[1].split(".")[:2] != [str(part) for part in sys.version_info[:2]]:
        cannot(f"the tests' libraries are for Python {sys.version.split()[0]}, and /usr/bin/python3 is {version!r}")
    directory = tmp_path_factory.mktemp("fresh")
    pack_libraries(directory / "libraries")
    wheel = build_own(directory / "wheel")
    with Host.booted("fresh", [f"{directory / 'libraries'}:{_LIBRARIES}"], directory) as made:
        # Nor to Debian's: apt knows the packages that are installed, and of no newer ones.
        made.shell("rm -rf /var/lib/apt/lists/* && mkdir -p /var/lib/apt/lists/partial")
        made.run("mkdir", _HOME)
        shutil.copy(wheel, made.path(_HOME) / wheel.name)
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
    [install] = commands("Install")
    paste(machine, install)
    assert word_error_rate("Hello. This is my own machine.", heard(ears, machine)) == 0
    keys, site, call = commands("For the public")
    paste(machine, keys + site + call)
    assert word_error_rate("Hello through the front door.", heard(ears, machine)) == 0
    # Without the key, not even on the machine itself.
    said = paste(machine, "NAME=tts.example.com\n" + call.replace("Bearer $KEY", "Bearer guessed").split(" -o ")[0])
    assert '"code": "unauthorized"' in said
