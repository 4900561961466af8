"""What systemd says of units, and what that means."""

from __future__ import annotations

from dataclasses import replace

import pytest

from host.findings import Level
from host.units import Unit, check, check_unit, unit_of

WELL = Unit("tts-worker@1.service", "loaded", "enabled", "active", "running", "success", "ready, speaks 2 of 4")


def test_what_systemctl_show_prints_is_read():
    block = """Result=exit-code
Id=tts-gateway.service
LoadState=loaded
ActiveState=failed
SubState=failed
UnitFileState=enabled
StatusText=serving: 2 = all
NeedDaemonReload=yes
"""
    assert unit_of(block) == Unit(
        "tts-gateway.service", "loaded", "enabled", "failed", "failed", "exit-code", "serving: 2 = all", True
    )


@pytest.mark.parametrize(
    ("change", "level", "command"),
    [
        ({}, Level.OK, ""),
        ({"enabled": "static"}, Level.OK, ""),
        ({"active": "activating", "sub": "start"}, Level.OK, ""),
        ({"enabled": "disabled"}, Level.WARNING, "systemctl enable NAME"),
        ({"active": "inactive", "sub": "dead"}, Level.WARNING, "systemctl start NAME"),
        ({"is_outdated": True}, Level.WARNING, "systemctl daemon-reload"),
        ({"active": "failed", "result": "watchdog"}, Level.PROBLEM, "journalctl -u NAME -n 50"),
        ({"active": "activating", "sub": "auto-restart"}, Level.PROBLEM, "journalctl -u NAME -n 50"),
        ({"load": "masked", "active": "inactive"}, Level.PROBLEM, "systemctl unmask NAME"),
        ({"load": "bad-setting", "active": "inactive"}, Level.PROBLEM, "systemctl status NAME"),
    ],
)
def test_each_state_of_a_unit_has_its_command(change: dict[str, object], level: Level, command: str):
    found = check_unit(replace(WELL, **change))
    assert (found.level, found.command) == (level, command.replace("NAME", WELL.name))
    assert WELL.name in found.seen


def test_a_service_that_is_well_is_told_in_its_own_words():
    assert check_unit(WELL).seen == "tts-worker@1.service is active: ready, speaks 2 of 4"


def test_units_that_are_not_installed_are_one_finding():
    absent = [Unit(name, "not-found", "", "inactive") for name in ("tts.target", "tts-gateway.service")]
    found = list(check([*absent, WELL]))
    assert [one.level for one in found] == [Level.WARNING, Level.OK]
    assert "tts.target, tts-gateway.service" in found[0].seen
    assert found[0].command.startswith("tts-gateway install-units")
