"""What the facts of a machine mean: pure functions from observed facts to findings."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from host.facts import Machine, Port, Secret
from host.findings import Finding, error, ok, warning

# Two connections a request and a margin; the units ask for 65536.
FEW_OPEN_FILES = 4096
# What the units keep from the services (ProtectHome, PrivateTmp).
HIDDEN = ("/root", "/home", "/run/user", "/tmp", "/var/tmp")


def hidden_from_services(path: str) -> bool:
    """Say whether a service of our units cannot see the path."""
    return any(path == root or path.startswith(root + "/") for root in HIDDEN)


def check(machine: Machine, is_ours: Callable[[Port], bool]) -> Iterable[Finding]:
    """Judge what matters to gateway and worker alike; `is_ours` says whether a port is held by the service itself."""
    yield check_python(machine)
    for port in machine.ports:
        yield check_port(port, is_ours(port))
    for secret in machine.secrets:
        yield check_secret(secret)
    yield check_open_files(machine.open_files)
    yield check_clock(machine.is_clock_synchronised)


def check_python(machine: Machine) -> Finding:
    if machine.has_systemd and hidden_from_services(machine.python):
        return error(
            "installation",
            f"{machine.python} is out of the services' sight: they see no home and no temporary directory",
            "/usr/bin/python3 -m venv /opt/tts/venv && /opt/tts/venv/bin/pip install chatterbox-gateway",
        )
    return ok("installation", machine.python)


def check_port(port: Port, is_ours: bool) -> Finding:
    subject = f"port {port.port}"
    if not port.holder:
        return ok(subject, f"{port.address}:{port.port} is free for {port.option}")
    if is_ours:
        return ok(subject, f"held by {port.holder}, which is this service")
    return error(
        subject,
        f"{port.address}:{port.port}, wanted by {port.option}, is held by {port.holder}",
        f"ss -ltnp 'sport = :{port.port}'   # and stop it, or choose another port with {port.option}",
    )


def check_secret(secret: Secret) -> Finding:
    if secret.mode is None:
        return ok("permissions", f"{secret.path} is not there, and not needed on one machine without units")
    if secret.mode & 0o077:
        return error(
            "permissions", f"{secret.path} can be read by others (mode {secret.mode:04o})", f"chmod 600 {secret.path}"
        )
    return ok("permissions", f"{secret.path} is its owner's alone")


def check_open_files(limit: int) -> Finding:
    if 0 <= limit < FEW_OPEN_FILES:
        return warning(
            "open files",
            f"at most {limit}; every listener needs two",
            "ulimit -n 65536   # the units do it by themselves",
        )
    return ok("open files", "no limit that matters" if limit < 0 else f"at most {limit}")


def check_clock(is_synchronised: bool | None) -> Finding:
    if is_synchronised is None:
        return ok("clock", "whether it is synchronised cannot be seen here")
    if not is_synchronised:
        return warning(
            "clock",
            "not synchronised: journals of several hosts cannot be read side by side; certificates may look expired",
            "timedatectl set-ntp true",
        )
    return ok("clock", "synchronised")
