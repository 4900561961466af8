"""Two machines with a cable between them: gateway, nginx and a worker on one, workers alone on the other.

The commands are those of docs/operations.md, "Workers on other hosts", with the addresses of that page.
"""

import sys
import time
from collections.abc import Iterator

import pytest

from tests.deploy.host import Host, calling, join, until
from tests.deploy.page import commands

pytestmark = pytest.mark.e2e

HERE, THERE = ("10.0.0.1", "10.0.0.2")  # the page's
_ELSEWHERE = ("10.9.0.1", "10.9.0.2")  # another network on the same cable
_BIN = "/opt/tts/venv/bin"
# A model whose sounds can be read back, and which takes a while: what is cut off is in the middle of something.
_TONE = f"""[Service]
Environment=TTS_WORKER_SLOTS=16
ExecStart=
ExecStart={_BIN}/tts-worker --model tone --tone-realtime-factor 0.3
"""
_LOAD = ("--rate", "20")
_SITE = "https://127.0.0.1"
# Stands for the operator's ssh to the gateway's host, which the tests' machines have not.
_SSH = """#!/bin/sh
[ "$*" = "root@10.0.0.1 cat /etc/tts/worker-token" ] && cat /root/token-of-the-gateway
"""


@pytest.fixture(scope="module")
def hosts(installed: list[str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Host, Host]]:
    """The host of the gateway, and one of workers."""
    directory = tmp_path_factory.mktemp("hosts")
    with Host.booted("tts-a", installed, directory) as a, Host.booted("tts-b", installed, directory) as b:
        join(a, b, (f"{HERE}/24", f"{THERE}/24"), *[(f"{_ELSEWHERE[0]}/24", f"{_ELSEWHERE[1]}/24")])
        for host in (a, b):
            host.write("/etc/systemd/system/tts-worker@.service.d/tone.conf", _TONE)
        on_the_gateways, on_a_host_of_workers = commands("Workers on other hosts")
        a.run(f"{_BIN}/tts-gateway", "install-units", "--workers", "1")
        a.write("/etc/nginx/sites-enabled/tts-gateway", _site(a))
        a.run("systemctl", "start", "tts.target")
        a.shell(on_the_gateways.replace("install-units", "install-units --workers 1"))
        b.write("/root/token-of-the-gateway", a.run("cat", "/etc/tts/worker-token"))
        b.write("/usr/local/bin/ssh", _SSH)
        b.run("chmod", "755", "/usr/local/bin/ssh")
        b.shell(on_a_host_of_workers)
        a.wait_ready("worker-0", *ids(b))
        yield a, b


def _site(host: Host) -> str:
    """Return the site with a certificate of its own making."""
    host.shell(
        "mkdir -p /etc/tts/tls && openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 "
        "-subj /CN=tts.example.com -keyout /etc/tts/tls/privkey.pem -out /etc/tts/tls/fullchain.pem"
    )
    return host.run("cat", host.run("sh", "-c", "ls /opt/tts/venv/lib/*/site-packages/deploy/nginx/*.conf").strip())


def ids(host: Host) -> tuple[str, str]:
    name = host.run("hostname", "--short").strip()
    return f"{name}-0", f"{name}-1"


def heard(host: Host, *options: str) -> int:
    """Ask for the probe that needs no key, at the address and from the one that the options say; 0: no answer."""
    said = host.run("curl", "-s", "-m", "2", "-o", "/dev/null", "-w", "%{http_code}", *options, check=False)
    return int(said or 0)


def test_a_worker_of_another_host_registers_and_speaks(hosts: tuple[Host, Host]):
    a, b = hosts
    listed = a.workers()
    assert {name: listed[name]["address"] for name in ids(b)} == {
        name: f"{THERE}:{8100 + number}" for number, name in enumerate(ids(b))
    }
    assert not b.is_active("tts-gateway"), "there is none on that host"
    a.run(f"{_BIN}/tts-gateway", "drain", "worker-0")
    with calling(a, _SITE, *_LOAD) as tally:
        until(lambda: "endpoint=/v1/tts" in a.journal("tts-gateway"), "somebody to be served")
    a.run(f"{_BIN}/tts-gateway", "undrain", "worker-0")
    assert set(tally["outcomes"]) == {"whole"}, tally
    assert "worker-0" not in "".join(line for line in a.journal("tts-gateway").splitlines() if "outcome=" in line)
    a.wait_ready("worker-0")


def test_a_stranger_gets_nowhere(hosts: tuple[Host, Host]):
    a, b = hosts
    # From the network that was named, the listeners answer, and ask for a key or the token.
    assert heard(b, f"http://{HERE}:8081/livez") == 200
    assert heard(b, f"http://{HERE}:8081/admin/workers") == 401
    assert heard(b, f"http://{HERE}:8081/internal/workers") == 401
    assert heard(a, "--json", "{}", f"http://{THERE}:8100/v1/segments") == 401
    # The public listener is nginx's business.
    assert heard(b, f"http://{HERE}:8080/livez") == 0
    # From another network on the same cable nothing comes through.
    assert heard(b, "--interface", _ELSEWHERE[1], f"http://{HERE}:8081/livez") == 0
    assert heard(a, "--interface", _ELSEWHERE[0], f"http://{THERE}:8100/livez") == 0


def test_a_worker_with_another_token_is_refused_and_both_sides_say_so(hosts: tuple[Host, Host]):
    a, b = hosts
    command = f"{_BIN}/tts-worker --model tone --id stranger --port 8199 --gateways {HERE}:8081"
    b.run("systemd-run", "--unit=stranger", "--setenv=TTS_WORKER_TOKEN=guessed", *command.split())
    until(lambda: "401: wrong or missing token" in b.journal("stranger"), "the worker to say why")
    b.run("systemctl", "stop", "stranger")
    assert f"a link from {THERE} was refused: wrong or missing token" in a.journal("tts-gateway")
    assert "stranger" not in a.workers()


def test_a_cable_that_is_pulled_and_a_power_cut_fail_nobody(
    hosts: tuple[Host, Host], capsys: pytest.CaptureFixture[str]
):
    """The last test here: it leaves one host."""
    a, b = hosts
    times: dict[str, float] = {}

    def wait(what: str, is_so: bool) -> None:
        began = time.monotonic()
        names = ids_there
        until(lambda: all((a.workers().get(name, {}).get("state") == "ready") is is_so for name in names), what)
        times[what] = round(time.monotonic() - began, 1)

    ids_there = ids(b)
    with calling(a, _SITE, *_LOAD) as tally:
        until(lambda: all(a.workers()[name]["in_flight"] for name in ids_there), "both there to be busy")
        b.run("ip", "link", "set", "link0", "down")
        wait("partition seen", False)
        b.run("ip", "link", "set", "link0", "up")
        wait("back after the heal", True)
        until(lambda: all(a.workers()[name]["in_flight"] for name in ids_there), "both there to be busy again")
        # A host without power sends no farewell, which the kernel of one that is killed would do for it.
        b.run("ip", "link", "set", "link0", "down")
        b.power_cut()
        wait("power cut seen", False)
    with capsys.disabled():
        sys.stderr.write(f"\n  two hosts under 20 requests/s, seconds: {times}; {tally}")
    assert set(tally["outcomes"]) == {"whole"}, tally
