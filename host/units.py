"""The systemd units of the service: what systemd says of each, and what that means."""

from __future__ import annotations

import shlex
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from host.findings import Finding, ok, problem, warning

GATEWAY_UNITS = ("tts.target", "tts-gateway.socket", "tts-gateway-internal.socket", "tts-gateway.service")
_WANTED = Path("/etc/systemd/system/tts.target.wants")
_PROPERTIES = (
    "Id", "LoadState", "UnitFileState", "ActiveState", "SubState", "Result", "StatusText", "NeedDaemonReload",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Unit:
    """One unit, in systemd's own words; `says` is the line by which the service tells how it is."""

    name: str
    load: str
    enabled: str
    active: str
    sub: str = ""
    result: str = ""
    says: str = ""
    is_outdated: bool = False  # the file on disk is not the one that systemd has read


def workers() -> list[str]:
    """Return the worker instances that are enabled or known to systemd."""
    listed = _systemctl("list-units", "--all", "--plain", "--no-legend", "tts-worker@*.service")
    known = {line.split()[0] for line in listed.splitlines() if line.strip()}
    return sorted(known | {link.name for link in _WANTED.glob("tts-worker@*.service")})


def look(names: Iterable[str]) -> list[Unit]:
    """Ask systemd for these units; a unit that is not installed is there with `load` not-found."""
    told = _systemctl("show", f"--property={','.join(_PROPERTIES)}", *names)
    return [unit_of(block) for block in told.split("\n\n") if block.strip()]


def unit_of(block: str) -> Unit:
    """Read what `systemctl show` prints of one unit."""
    said = dict(line.partition("=")[::2] for line in block.strip().splitlines())
    return Unit(
        name=said.get("Id", ""),
        load=said.get("LoadState", ""),
        enabled=said.get("UnitFileState", ""),
        active=said.get("ActiveState", ""),
        sub=said.get("SubState", ""),
        result=said.get("Result", ""),
        says=said.get("StatusText", ""),
        is_outdated=said.get("NeedDaemonReload") == "yes",
    )


def environment(name: str) -> Mapping[str, str]:
    """Return the variables that a unit itself sets, before its environment files; none where it is not installed."""
    line = _systemctl("show", "--property=Environment", "--value", name).strip()
    try:
        words = shlex.split(line)
    except ValueError:
        return {}
    return dict(word.partition("=")[::2] for word in words if "=" in word)


def check(units: Sequence[Unit]) -> Iterable[Finding]:
    """Judge the units of one service. They are looked at only where systemd runs."""
    missing = [unit.name for unit in units if unit.load == "not-found"]
    if missing:
        yield warning(
            "systemd",
            f"not installed: {', '.join(missing)}",
            "nothing starts the service with the machine, nor again when it dies",
            "tts-gateway install-units && systemctl start tts.target",
        )
    for unit in units:
        if unit.load != "not-found":
            yield check_unit(unit)


def check_unit(unit: Unit) -> Finding:
    journal = f"journalctl -u {unit.name} -n 50"
    if unit.load not in ("loaded", "masked"):
        seen = f"{unit.name}: {unit.load}"
        return problem("systemd", seen, "systemd cannot read it", f"systemctl status {unit.name}")
    if unit.load == "masked":
        return problem("systemd", f"{unit.name} is masked", "it cannot be started", f"systemctl unmask {unit.name}")
    if unit.active == "failed":
        return problem("systemd", f"{unit.name} failed: {unit.result}", "it is not started again by itself", journal)
    if unit.sub == "auto-restart":
        return problem("systemd", f"{unit.name} ends again and again: {unit.result}", "it does not get ready", journal)
    if unit.is_outdated:
        return warning(
            "systemd", f"{unit.name} was changed on disk", "what runs is the former one", "systemctl daemon-reload"
        )
    if unit.active not in ("active", "activating", "reloading"):
        return warning("systemd", f"{unit.name} is {unit.active}", "it does no work", f"systemctl start {unit.name}")
    if unit.enabled == "disabled":
        return warning(
            "systemd", f"{unit.name} is {unit.active}, and disabled", "it does not start with the machine",
            f"systemctl enable {unit.name}",
        )  # fmt: skip
    return ok("systemd", f"{unit.name} is {unit.active}" + (f": {unit.says}" if unit.says else ""))


def _systemctl(*arguments: str) -> str:
    """Return what systemctl prints; nothing where it cannot be run or asked."""
    try:
        ran = subprocess.run(["systemctl", *arguments], capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.SubprocessError):
        return ""
    return ran.stdout
