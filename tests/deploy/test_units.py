"""Which files belong on which machine, and that the operator's own are left alone."""

import subprocess
from pathlib import Path, PurePosixPath

import pytest

from deploy.units import SETTINGS, UNITS, Machine, files, instances, run, shipped
from host.checks import hidden_from_services

GPUS = Machine(PurePosixPath("/srv/tts/bin"), ("0", "1", "2"), has_gpus=True)
CPU = Machine(PurePosixPath("/srv/tts/bin"), ("0", "1"), has_gpus=False)


def texts(machine: Machine) -> dict[str, str]:
    return {str(file.path): file.text for file in files(machine, shipped(), "a-token")}


def test_the_units_start_what_is_installed_here():
    written = texts(GPUS)
    assert "ExecStart=/srv/tts/bin/tts-worker\n" in written[f"{UNITS}/tts-worker@.service"]
    assert "ExecStart=/srv/tts/bin/tts-gateway\n" in written[f"{UNITS}/tts-gateway.service"]
    assert "/opt/tts" not in "".join(text for path, text in written.items() if path.startswith(str(UNITS)))


def test_a_machine_without_gpus_gets_a_drop_in_and_others_do_not():
    drop_in = f"{UNITS}/tts-worker@.service.d/cpu.conf"
    assert "PrivateDevices=yes" in texts(CPU)[drop_in]
    assert drop_in not in texts(GPUS)


def image(directory: Path, *options: str) -> int:
    """Install into an image of a machine without GPUs."""
    return run(["install-units", "--root", str(directory), "--cpu", *options])


def test_the_host_of_the_gateway_listens_for_workers_of_other_hosts_and_still_for_its_own(tmp_path: Path):
    assert image(tmp_path, "--network", "10.0.0.1/24") == 0
    units = tmp_path / "etc/systemd/system"
    socket = (units / "tts-gateway-network.socket").read_text()
    gateway = (units / "tts-gateway.service.d/network.conf").read_text()
    assert "ListenStream=10.0.0.1:8081\n" in socket
    assert "Sockets=tts-gateway-network.socket\n" in gateway
    assert "IPAddressAllow=localhost 10.0.0.0/24\n" in socket
    assert "IPAddressAllow=10.0.0.0/24\n" in gateway
    assert not (units / "tts-worker@.service.d/network.conf").exists()


def test_a_host_of_workers_has_no_gateway_also_after_an_upgrade(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    options = ("--network", "fd00::2/64", "--gateways", "[fd00::1]:8081,[fd00::3]:8081")
    assert image(tmp_path, *options) == 2
    assert "worker-token is not here" in capsys.readouterr().out
    assert image(tmp_path, "--network", "fd00::2/64") == 0  # a host that had a gateway
    units = tmp_path / "etc/systemd/system"
    for again in (options, ()):
        assert image(tmp_path, *again) == 0
        assert {path.name for path in units.iterdir() if path.is_file()} == {"tts-worker@.service", "tts.target"}
        assert not (units / "tts-gateway.service.d").exists()
        assert {link.name for link in (units / "tts.target.wants").iterdir()} == set(instances(CPU))
        drop_in = (units / "tts-worker@.service.d/network.conf").read_text()
        assert "TTS_WORKER_HOST=fd00::2\n" in drop_in
        assert "TTS_GATEWAYS=[fd00::1]:8081,[fd00::3]:8081\n" in drop_in
        assert "IPAddressAllow=fd00::/64\n" in drop_in
    assert image(tmp_path, "--network", "fd00::2/64") == 2
    assert "workers only" in capsys.readouterr().out
    assert run(["uninstall-units", "--root", str(tmp_path)]) == 0
    assert image(tmp_path) == 0
    assert (units / "tts-gateway.service").exists()


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (("--network", "here"), "--network must be an address and a length"),
        (("--network", "10.0.0.1"), "--network 10.0.0.1 has no other hosts"),
        (("--network", "127.0.0.1/8"), "--network 127.0.0.1/8 has no other hosts"),
        (("--gateways", "10.0.0.1:8081"), "--gateways needs --network"),
        (("--network", "10.0.0.2/24", "--gateways", "10.0.0.1"), "each must be ADDRESS:PORT"),
        (("--network", "10.0.0.2/24", "--gateways", "10.0.0.1:0"), "each must be ADDRESS:PORT"),
        (("--network", "10.0.0.2/24", "--gateways", "tts.example.com:8081"), "the units ask no name server"),
        (("--network", "10.0.0.2/24", "--gateways", "10.0.1.1:8081"), "no other host of 10.0.0.0/24"),
        (("--network", "10.0.0.2/24", "--gateways", "10.0.0.2:8081"), "no other host of 10.0.0.0/24"),
    ],
)
def test_a_network_that_cannot_be_is_refused_and_nothing_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: tuple[str, ...], complaint: str
):
    assert image(tmp_path, *options) == 2
    assert complaint in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []


def test_there_is_an_instance_a_gpu():
    assert instances(GPUS) == ["tts-worker@0.service", "tts-worker@1.service", "tts-worker@2.service"]


def test_only_the_token_is_secret_and_all_settings_are_the_operators():
    for file in files(GPUS, shipped(), "a-token"):
        assert (file.mode == 0o600) == (file.path.name == "worker-token")
        assert file.is_own == file.path.is_relative_to(SETTINGS)
        assert ("a-token" in file.text) == (file.path.name == "worker-token")


def test_an_upgrade_writes_the_units_anew_and_leaves_the_settings(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    options = ["install-units", "--root", str(tmp_path), "--cpu", "--workers", "3"]
    assert run([*options, "--dry-run"]) == 0
    assert list(tmp_path.iterdir()) == [], "a dry run writes nothing"
    assert run(options) == 0
    unit, settings, token = (
        tmp_path / path for path in ("etc/systemd/system/tts.target", "etc/tts/gateway.env", "etc/tts/worker-token")
    )
    before = token.read_text()
    assert token.stat().st_mode & 0o777 == 0o600
    unit.write_text("an older one")
    settings.write_text("TTS_GATEWAY_LOG_LEVEL=debug\n")
    assert run(options) == 0
    assert unit.read_text() == shipped()["tts.target"]
    assert (settings.read_text(), token.read_text()) == ("TTS_GATEWAY_LOG_LEVEL=debug\n", before)
    assert f"keep     {settings}" in capsys.readouterr().out
    assert len(list((tmp_path / "etc/systemd/system/tts.target.wants").glob("tts-worker@*"))) == 3
    assert run(["uninstall-units", "--root", str(tmp_path)]) == 0
    assert [path for path in (tmp_path / "etc/systemd").rglob("tts*") if not path.is_dir()] == []
    assert settings.exists()


@pytest.mark.parametrize(
    ("path", "is_hidden"),
    [
        ("/opt/tts/venv/bin", False),
        ("/usr/bin/python3.11", False),
        ("/home/ann/tts/.venv/bin", True),
        ("/root/.pyenv/bin/python3", True),
        ("/tmp", True),
        ("/homes/ann", False),
    ],
)
def test_what_services_cannot_see_is_known_before_they_fail(path: str, is_hidden: bool):
    assert hidden_from_services(path) is is_hidden


def test_systemctl_knows_every_unit_by_its_name(tmp_path: Path):
    """`systemctl enable` in an image needs no running systemd, and refuses a name that is not there."""
    for file in files(CPU, shipped(), "a-token"):
        path = tmp_path / file.path.relative_to("/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(file.text)
    units = ["tts.target", "tts-gateway.socket", "tts-gateway-internal.socket", "tts-gateway.service", *instances(CPU)]
    subprocess.run(["systemctl", f"--root={tmp_path}", "enable", *units], check=True, capture_output=True)
    wants = tmp_path / "etc/systemd/system/tts.target.wants"
    assert {link.name for link in wants.iterdir()} == set(units) - {"tts.target"}
