"""What systemd is told and hands over, by the real datagrams and descriptors."""

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from host.systemd import Systemd, listeners


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[socket.socket]:
    """The end that systemd reads."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as made:
        made.bind(str(tmp_path / "notify"))
        made.settimeout(5)
        yield made


@pytest.fixture
def systemd(manager: socket.socket) -> Systemd:
    return Systemd({"NOTIFY_SOCKET": manager.getsockname()})


def test_each_word_is_one_datagram(systemd: Systemd, manager: socket.socket):
    systemd.ready()
    systemd.status("serving\neverybody")
    systemd.status("serving\neverybody")  # not again: nothing is new
    systemd.beat()
    systemd.stopping(70)
    said = [manager.recv(4096).decode() for _ in range(4)]
    assert said == ["READY=1", "STATUS=serving everybody", "WATCHDOG=1", "STOPPING=1\nEXTEND_TIMEOUT_USEC=70000000"]


def test_an_address_with_an_at_sign_is_in_the_abstract_namespace():
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(f"\0tts-test-{os.getpid()}")
        manager.settimeout(5)
        Systemd({"NOTIFY_SOCKET": f"@tts-test-{os.getpid()}"}).ready()
        assert manager.recv(4096) == b"READY=1"


def test_without_systemd_nothing_happens(tmp_path: Path):
    for environment in ({}, {"NOTIFY_SOCKET": str(tmp_path / "nobody")}):
        systemd = Systemd(environment)
        systemd.ready()
        systemd.beat()
        assert systemd.watchdog_seconds is None
    assert listeners({}) == {}


@pytest.mark.parametrize(
    ("environment", "seconds"),
    [
        ({"WATCHDOG_USEC": "30000000"}, 30.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": str(os.getpid())}, 30.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "1"}, None),  # a parent's, inherited
        ({"WATCHDOG_USEC": "soon"}, None),
    ],
)
def test_the_watchdog_is_that_of_this_process(environment: dict[str, str], seconds: float | None):
    assert Systemd(environment).watchdog_seconds == seconds


def test_a_beat_is_due_several_times_before_the_watchdog_bites():
    assert Systemd({"WATCHDOG_USEC": "2000000"}).beat_seconds == 0.5
    assert Systemd({"WATCHDOG_USEC": "600000000"}).beat_seconds == 1.0


def test_listening_sockets_come_by_their_names():
    """As systemd does it: from descriptor 3 on, named in an environment that names the process."""
    code = """
import os, sys
os.environ["LISTEN_PID"] = str(os.getpid())
from host.systemd import listeners
print({name: [one.getsockname()[1] for one in sockets] for name, sockets in listeners().items()})
"""
    with socket.create_server(("127.0.0.1", 0)) as public, socket.create_server(("127.0.0.1", 0)) as internal:
        handed = [public.fileno(), internal.fileno(), public.fileno()]

        def hand_over() -> None:
            kept = [os.dup(os.dup(number)) for number in handed]  # out of the way of 3, 4 and 5
            for number, descriptor in enumerate(kept):
                os.dup2(descriptor, 3 + number)

        ran = subprocess.run(
            [sys.executable, "-c", code],
            env=os.environ | {"LISTEN_FDS": "3", "LISTEN_FDNAMES": "public:internal:public"},
            preexec_fn=hand_over,
            close_fds=False,
            capture_output=True,
            text=True,
            check=True,
        )
        ports = [one.getsockname()[1] for one in (public, internal)]
        assert ran.stdout.strip() == str({"public": [ports[0], ports[0]], "internal": [ports[1]]})


def test_sockets_for_another_process_are_left_alone():
    assert listeners({"LISTEN_FDS": "1", "LISTEN_PID": "1"}) == {}
