"""On a machine of its own, under the real systemd: installed, started, broken, restarted and stopped."""

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from deploy.options import ROOT
from tests.deploy.host import Host, calling, until

pytestmark = pytest.mark.e2e

GATEWAY = "http://127.0.0.1:8080"
UNITS = ROOT / "deploy" / "systemd"
SERVICES = ("tts-gateway.service", "tts-worker@.service")
MOST_EXPOSED = 2.0
# What the tests change: a worker's patience of seconds, and the model whose sounds can be read back.
_HASTY = "[Service]\nWatchdogSec=4\nRestartSec=200ms\n"
_TONE = "TTS_WORKER_MODEL=tone\nTTS_WORKER_SLOTS=16\n"


@pytest.fixture(scope="module")
def host(installed: list[str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    """A machine without GPUs on which everything was installed and started."""
    with Host.booted("tts", installed, tmp_path_factory.mktemp("host")) as made:
        made.run("/opt/tts/venv/bin/tts-gateway", "install-units")
        made.run("systemctl", "start", "tts.target")
        yield made


@pytest.fixture(scope="module")
def fleet(host: Host) -> Host:
    """The same with two tone workers and short patience. They are restarted one by one, as after any change."""
    host.write("/etc/tts/worker.env", _TONE)
    host.write("/etc/systemd/system/tts-worker@.service.d/hasty.conf", _HASTY)
    host.run("systemctl", "daemon-reload")
    host.run("systemctl", "restart", "tts-worker@0", "tts-worker@1", "tts-gateway")
    host.wait_ready("worker-0", "worker-1")
    return host


def show(capsys: pytest.CaptureFixture[str], line: str) -> None:
    with capsys.disabled():
        sys.stderr.write(f"\n  {line}")


def main_pid(host: Host, unit: str) -> int:
    return int(host.show(unit, "MainPID"))


def signal(host: Host, unit: str, name: str) -> None:
    host.run("systemctl", "kill", f"--signal={name}", "--kill-whom=main", unit)


def spoken(host: Host) -> int:
    """Return how many requests the gateway that runs now has answered; 0 while none runs."""
    counts = re.findall(r"^tts_requests_total\{.*\} (\S+)$", host.get("http://127.0.0.1:8081/metrics")[1], re.MULTILINE)
    return sum(int(float(count)) for count in counts)


def wait_another(host: Host, unit: str, pid: int) -> None:
    """Wait until systemd has started another process of the unit, and that is ready."""
    until(lambda: main_pid(host, unit) not in (0, pid) and host.is_active(unit), f"another process of {unit}")


# -- the files


@pytest.mark.parametrize("service", SERVICES)
def test_little_of_the_machine_is_exposed_to_a_service(service: str, capsys: pytest.CaptureFixture[str]):
    listed = subprocess.run(
        ["systemd-analyze", "security", "--offline=true", "--no-pager", str(UNITS / service)],
        capture_output=True,
        text=True,
        check=True,
    )
    exposure = float(re.search(r"Overall exposure level for \S+: ([\d.]+)", listed.stdout)[1])
    show(capsys, f"systemd-analyze security {service}: {exposure}")
    assert exposure <= MOST_EXPOSED, listed.stdout


def test_systemd_finds_nothing_wrong_with_the_units(host: Host):
    names = [path.name for path in UNITS.iterdir() if path.suffix in (".service", ".socket", ".target")]
    said = host.run(
        "systemd-analyze", "verify", "--recursive-errors=yes", *(f"/etc/systemd/system/{name}" for name in names)
    )
    assert [line for line in said.splitlines() if "tts" in line] == []


def test_the_drain_ends_before_systemd_loses_patience():
    for service in SERVICES:
        text = (UNITS / service).read_text()
        assert float(re.search(r"^TimeoutStopSec=(\d+)$", text, re.MULTILINE)[1]) > 60 + 10


# -- starting


def test_start_brings_nginx_the_gateway_and_a_worker_an_instance(host: Host):
    assert host.is_active("nginx", "tts-gateway.socket", "tts-gateway", "tts-worker@0", "tts-worker@1")
    listed = host.workers()
    assert {(one["state"], one["model"], one["device"]) for one in listed.values()} == {("ready", "embedded", "cpu")}
    host.shell(
        f"curl -sS {GATEWAY}/v1/tts -H 'Content-Type: application/json' -d '{{\"text\": \"Hello.\"}}' -o /tmp/hello.wav"
        " && head -c 4 /tmp/hello.wav | grep -q RIFF"
    )
    until(
        lambda: host.show("tts-gateway", "StatusText").startswith("serving: 2 of 2 linked workers ready"),
        "systemd to be told of both workers",
    )
    assert "embedded on cpu" in host.show("tts-worker@1", "StatusText")


def test_start_of_a_worker_returns_when_its_model_is_warm(host: Host):
    host.run("systemctl", "stop", "tts-worker@1")
    assert host.show("tts-worker@1", "Result") == "success"
    host.run("systemctl", "start", "tts-worker@1")
    assert host.get("http://127.0.0.1:8101/readyz") == (200, "ready\n")
    assert host.show("tts-worker@1", "StatusText").startswith("ready: embedded on cpu")
    loading, ready = (host.journal("tts-worker@1").rfind(f"state={state}") for state in ("loading", "ready"))
    assert 0 < loading < ready


def test_a_service_is_nobody_and_reads_its_secret_only_where_systemd_put_it(host: Host):
    pid = main_pid(host, "tts-worker@0")
    status = host.run("cat", f"/proc/{pid}/status")
    user = int(re.search(r"^Uid:\s+(\d+)", status, re.MULTILINE)[1])
    assert 61184 <= user <= 65519, "of systemd's range for dynamic users"
    assert re.search(r"^CapEff:\s+0+$", status, re.MULTILINE)
    assert host.run("stat", "-c", "%a %U", "/etc/tts/worker-token").strip() == "600 root"
    token = host.run("cat", "/etc/tts/worker-token").strip()
    assert len(token) > 20
    environment = host.run("cat", f"/proc/{pid}/environ")
    assert token not in environment
    assert "CUDA_DEVICE_ORDER=PCI_BUS_ID" in environment


def test_a_service_that_takes_too_much_memory_is_ended(host: Host):
    assert host.show("tts-worker@0", "MemoryMax") == str(2 << 30)
    assert host.show("tts-gateway", "MemoryMax") == str(2 << 30)
    group = host.show("tts-worker@0", "ControlGroup")
    # One of the two, by the kind of control groups that the machine has.
    limits = (f"/sys/fs/cgroup/memory{group}/memory.limit_in_bytes", f"/sys/fs/cgroup{group}/memory.max")
    enforced = host.run("cat", *limits, check=False)
    assert enforced.split()[0] == str(2 << 30)


def test_an_option_that_cannot_be_is_refused_once_and_the_status_says_why(host: Host):
    host.write("/etc/tts/worker-7.env", "TTS_WORKER_SLOTS=many\n")
    said = host.run("systemctl", "start", "tts-worker@7", check=False)
    assert host.show("tts-worker@7", "ActiveState") == "failed", said
    assert host.show("tts-worker@7", "NRestarts") == "0"
    assert "--slots is 'many'" in host.run("systemctl", "status", "--no-pager", "tts-worker@7", check=False)
    host.run("systemctl", "reset-failed", "tts-worker@7")


# -- breaking


def test_a_killed_worker_is_started_again(fleet: Host):
    pid = main_pid(fleet, "tts-worker@1")
    signal(fleet, "tts-worker@1", "SIGKILL")
    wait_another(fleet, "tts-worker@1", pid)
    fleet.wait_ready("worker-0", "worker-1")
    assert "status=9/KILL" in fleet.journal("tts-worker@1")


def test_a_stopped_worker_is_noticed_and_started_again(fleet: Host):
    pid = main_pid(fleet, "tts-worker@1")
    signal(fleet, "tts-worker@1", "SIGSTOP")
    wait_another(fleet, "tts-worker@1", pid)
    fleet.wait_ready("worker-0", "worker-1")
    assert "Watchdog timeout" in fleet.journal("tts-worker@1")


def test_a_hung_engine_stops_the_heart_beat_and_the_journal_names_the_line(fleet: Host):
    before = {unit: main_pid(fleet, unit) for unit in ("tts-worker@0", "tts-worker@1")}
    body = json.dumps(
        {"text": "This hangs one worker {tone:hang-after=2} and is spoken by the other.", "format": "pcm"}
    )
    fleet.run(
        "curl", "-sSf", f"{GATEWAY}/v1/tts", "-H", "Content-Type: application/json", "-d", body, "-o", "/tmp/a.pcm"
    )
    until(lambda: {unit: main_pid(fleet, unit) for unit in before} != before, "the hung worker to be replaced")
    [hung] = [unit for unit, pid in before.items() if main_pid(fleet, unit) != pid]
    wait_another(fleet, hung, before[hung])
    fleet.wait_ready("worker-0", "worker-1")
    journal = fleet.journal(hung)
    assert "Watchdog timeout" in journal
    assert re.search(r'File ".*worker/models/tone\.py", line \d+ in _advance', journal), journal[-3000:]


@pytest.mark.parametrize("name", ["SIGKILL", "SIGSTOP"])
def test_a_gateway_that_is_killed_or_stopped_is_started_again(fleet: Host, name: str):
    pid = main_pid(fleet, "tts-gateway")
    signal(fleet, "tts-gateway", name)
    # Nobody is refused meanwhile: systemd holds the socket.
    answered = fleet.get(f"{GATEWAY}/livez")
    assert answered[0] in (200, 0) if name == "SIGSTOP" else answered[0] == 200
    wait_another(fleet, "tts-gateway", pid)
    fleet.wait_ready("worker-0", "worker-1")


# -- restarting under load


def test_a_restart_of_the_gateway_drops_nobody(fleet: Host, capsys: pytest.CaptureFixture[str]):
    pid = main_pid(fleet, "tts-gateway")
    with calling(fleet, GATEWAY) as tally:
        begun = spoken(fleet)
        until(lambda: spoken(fleet) > begun + 50, "callers to be served")
        fleet.run("systemctl", "restart", "tts-gateway")
        until(lambda: spoken(fleet) > 50, "callers to be served by the next gateway")
    assert main_pid(fleet, "tts-gateway") != pid
    show(capsys, f"gateway restarted under 50 requests/s: {tally}")
    assert set(tally["outcomes"]) == {"whole"}, tally


def test_a_rolling_restart_of_the_workers_drops_nobody(fleet: Host, capsys: pytest.CaptureFixture[str]):
    with calling(fleet, GATEWAY) as tally:
        for unit in ("tts-worker@0", "tts-worker@1"):
            pid, begun = main_pid(fleet, unit), spoken(fleet)
            until(lambda begun=begun: spoken(fleet) > begun + 50, "callers to be served")
            fleet.run("systemctl", "restart", unit)
            assert main_pid(fleet, unit) != pid
            fleet.wait_ready("worker-0", "worker-1")
    show(capsys, f"both workers restarted under 50 requests/s: {tally}")
    assert set(tally["outcomes"]) == {"whole"}, tally


def test_a_stop_waits_for_what_is_being_spoken(fleet: Host, tmp_path: Path):
    fleet.write("/etc/tts/worker.env", _TONE + "TTS_WORKER_DRAIN_TIMEOUT=60\n")
    text = "The end of this sentence is heard although the service was told to stop. " * 40
    script = f"""
import json, sys, urllib.request
from worker.models.tone import decode
request = urllib.request.Request("{GATEWAY}/v1/tts", json.dumps({{"text": {text!r}, "format": "pcm"}}).encode(),
                                 {{"Content-Type": "application/json"}})
answer = urllib.request.urlopen(request)
heard = answer.read(4800)
print("begun", flush=True)
sys.stdin.read(1)
print(decode(heard + answer.read()).replace(" ", "") == {text!r}.replace(" ", ""))
"""
    command = fleet.in_network(sys.executable, "-c", script)
    listener = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert listener.stdout is not None
    assert listener.stdout.readline() == "begun\n"
    stop = subprocess.Popen(fleet.command("systemctl", "stop", "tts.target"))
    until(lambda: "stopping" in fleet.show("tts-gateway", "StatusText"), "the gateway to be told")
    said, _ = listener.communicate("go on", timeout=60)
    assert said == "True\n"
    assert stop.wait(timeout=60) == 0
    for unit in ("tts-gateway", "tts-worker@0", "tts-worker@1"):
        until(lambda unit=unit: fleet.show(unit, "ActiveState") == "inactive", f"{unit} to have stopped")
        assert fleet.show(unit, "Result") == "success"
    assert fleet.get(f"{GATEWAY}/livez")[0] == 0
    assert fleet.is_active("nginx"), "it may serve other sites"


def test_an_uninstall_leaves_the_settings_and_nothing_else(fleet: Host):
    fleet.run("/opt/tts/venv/bin/tts-gateway", "uninstall-units")
    left = fleet.run("find", "/etc/systemd/system", "-name", "tts*", "-type", "f", "-o", "-name", "tts*", "-type", "l")
    assert [line for line in left.splitlines() if "hasty" not in line] == []
    assert "worker-token" in fleet.run("ls", "/etc/tts")
    fleet.run("/opt/tts/venv/bin/tts-gateway", "uninstall-units", "--purge")
    assert "tts" not in fleet.run("ls", "/etc")
