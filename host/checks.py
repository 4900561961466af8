"""What the facts of a machine mean: pure functions from observed facts to findings."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from host.facts import Guarded, Machine, Port
from host.findings import Finding, ok, problem, warning

# Two connections a request and a margin; the units ask for 65536.
FEW_OPEN_FILES = 4096
# An HTTP date has whole seconds and the other side may keep it for one more: a difference below is none that was seen.
LARGEST_SKEW_SECONDS = 3.0
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
    for file in machine.files:
        yield check_file(file)
    yield check_open_files(machine.open_files)
    yield check_clock(machine.is_clock_synchronised)


def check_python(machine: Machine) -> Finding:
    if machine.has_systemd and hidden_from_services(machine.python):
        return problem(
            "installation",
            f"{machine.python} is out of the services' sight",
            "the units see no home and no temporary directory, so that they cannot start",
            "/usr/bin/python3 -m venv /opt/tts/venv && /opt/tts/venv/bin/pip install chatterbox_gateway-*.whl",
        )
    return ok("installation", machine.python)


def check_port(port: Port, is_ours: bool) -> Finding:
    subject = f"port {port.port}"
    if not port.port:
        return ok("port", f"{port.option} takes any that is free")
    if not port.holder:
        return ok(subject, f"{port.address}:{port.port} is free for {port.option}")
    if is_ours:
        return ok(subject, f"{port.address}:{port.port} is held by {port.holder}, and this service answers there")
    return problem(
        subject,
        f"{port.address}:{port.port}, wanted by {port.option}, is held by {port.holder}",
        "the service cannot start",
        f"ss -ltnp 'sport = :{port.port}'   # then stop it, or choose another port with {port.option}",
    )


def check_file(file: Guarded) -> Finding:
    if file.mode is None:
        return ok("permissions", f"{file.path} ({file.what}) is not there")
    seen = f"{file.path} ({file.what}) has mode {file.mode:04o}"
    if file.mode & 0o022:
        return problem(
            "permissions", seen, "others on this machine can change it, and with it the service",
            f"chmod go-w {file.path}",
        )  # fmt: skip
    if file.is_secret and file.mode & 0o044:
        return problem(
            "permissions", seen, "others on this machine can read what is secret", f"chmod go-rwx {file.path}"
        )
    return ok("permissions", f"{seen}, its owner's alone" if file.is_secret else f"{seen}, nobody else can change it")


def check_open_files(limit: int) -> Finding:
    if 0 <= limit < FEW_OPEN_FILES:
        return warning(
            "open files",
            f"at most {limit}",
            "every listener needs two; those who come then are refused",
            "ulimit -n 65536   # the units do it by themselves",
        )
    return ok("open files", "no limit" if limit < 0 else f"at most {limit}")


def check_clock(is_synchronised: bool | None) -> Finding:
    if is_synchronised is None:
        return ok("clock", "whether it is synchronised cannot be seen here")
    if not is_synchronised:
        return warning(
            "clock",
            "not synchronised",
            "journals of several hosts cannot be read side by side, and certificates may look expired",
            "timedatectl set-ntp true",
        )
    return ok("clock", "synchronised")


def check_skew(other: str, seconds: float | None) -> Finding:
    """Judge by how much another host's clock is ahead; None where it did not say. Deadlines are durations, by clocks
    that nobody sets, so that speech does not depend on it."""
    if seconds is None:
        return ok("clock", f"{other} does not say what time it has")
    if abs(seconds) > LARGEST_SKEW_SECONDS:
        return warning(
            "clock",
            f"{other} is {abs(seconds):.0f} s {'ahead' if seconds > 0 else 'behind'}",
            "the journals of the two cannot be read side by side; speech does not depend on it",
            "timedatectl set-ntp true   # on both hosts",
        )
    return ok("clock", f"{other} has the same time")
