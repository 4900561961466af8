"""The doctors on a machine of its own, under the real systemd: what the units are is what they look at."""

import json
from collections.abc import Iterator
from typing import Any

import pytest

from tests.deploy.host import Host

pytestmark = pytest.mark.e2e

BIN = "/opt/tts/venv/bin"
# The host has no clock of its own to be set.
OF_THE_MACHINE = ("clock",)


@pytest.fixture(scope="module")
def bare(installed: list[str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    """A machine on which everything was installed and nothing started."""
    with Host.booted("doctor", installed, tmp_path_factory.mktemp("host")) as made:
        yield made


@pytest.fixture(scope="module")
def host(bare: Host) -> Host:
    bare.run(f"{BIN}/tts-gateway", "install-units")
    bare.write("/etc/tts/worker.env", "TTS_WORKER_MODEL=tone\n")
    bare.run("systemctl", "start", "tts.target")
    bare.wait_ready("worker-0", "worker-1")
    return bare


def ask(host: Host, *command: str) -> dict[str, Any]:
    """Ask a doctor; return what is not well: the command that mends it, by what was seen."""
    body = json.loads(host.run(f"{BIN}/{command[0]}", "doctor", "--json", *command[1:], check=False))
    return {
        one["seen"]: one["command"]
        for one in body["findings"]
        if one["level"] != "ok" and one["subject"] not in OF_THE_MACHINE
    }


def test_a_machine_without_units_is_told_how_to_get_them(bare: Host):
    [(seen, command)] = [(seen, command) for seen, command in ask(bare, "tts-gateway").items() if "installed" in seen]
    assert "tts-gateway.service" in seen
    assert command == "tts-gateway install-units && systemctl start tts.target"


def test_a_machine_as_installed_has_nothing_to_mend(host: Host):
    assert ask(host, "tts-gateway") == {}
    assert ask(host, "tts-worker", "--index", "1") == {}


def test_a_worker_that_is_away_disabled_or_failed_is_found_and_its_command_mends_it(host: Host):
    host.run("systemctl", "stop", "tts-worker@1")
    away = ask(host, "tts-gateway")
    assert away == {"tts-worker@1.service is inactive": "systemctl start tts-worker@1.service"}
    host.run("systemctl", "disable", "tts-worker@0")
    disabled = ask(host, "tts-worker", "--index", "0")
    assert disabled == {"tts-worker@0.service is active, and disabled": "systemctl enable tts-worker@0.service"}
    for command in (*away.values(), *disabled.values()):
        host.shell(command)
    host.wait_ready("worker-0", "worker-1")
    assert ask(host, "tts-gateway") == {}
    host.write("/etc/tts/worker-7.env", "TTS_WORKER_SLOTS=many\n")
    host.run("systemctl", "start", "tts-worker@7", check=False)
    failed = ask(host, "tts-gateway")
    assert failed["tts-worker@7.service failed: exit-code"] == "journalctl -u tts-worker@7.service -n 50"
    assert "--slots is 'many'" in host.shell(failed["tts-worker@7.service failed: exit-code"])
    assert any("--slots is 'many'" in seen for seen in ask(host, "tts-worker", "--index", "7"))
    host.run("systemctl", "reset-failed", "tts-worker@7")


def test_the_workers_token_is_looked_at_where_the_units_have_it(host: Host):
    host.run("chmod", "644", "/etc/tts/worker-token")
    found = ask(host, "tts-gateway")
    assert found == {"/etc/tts/worker-token (the workers' token) has mode 0644": "chmod go-rwx /etc/tts/worker-token"}
    host.shell(*found.values())
    assert ask(host, "tts-gateway") == {}
    host.write("/etc/tts/other/worker-token", "another")
    host.run("chmod", "600", "/etc/tts/other/worker-token")
    host.write("/etc/tts/other/worker.env", "TTS_WORKER_MODEL=tone\n")
    refused = ask(host, "tts-worker", "--index", "0", "--settings", "/etc/tts/other")
    assert "refuses the workers' token" in refused
