"""Options, environment files, units and docs/operations.md say the same, and it is true."""

import argparse
import re

from deploy.options import ROOT, gateway_options, worker_options, written
from gateway.config import Config as GatewayConfig
from gateway.config import add_options, read_config
from worker.config import Config as WorkerConfig

UNITS = ROOT / "deploy" / "systemd"


def test_the_files_are_as_make_options_writes_them():
    for path, text in written().items():
        assert path.read_text() == text, f"{path.name} is behind the parsers: run make options"


def uncommented(name: str) -> dict[str, str]:
    """Return what an environment file would set if every default in it were uncommented."""
    lines = re.findall(r"^#(TTS_\w+)=(.+)$", (UNITS / name).read_text(), re.MULTILINE)
    return dict(lines)


def test_the_defaults_of_the_gateways_file_are_its_defaults():
    environment = uncommented("gateway.env")
    assert len(environment) > 10
    parser = argparse.ArgumentParser()
    add_options(parser)
    assert read_config(parser.parse_args([]), environment) == GatewayConfig()


def test_the_defaults_of_the_workers_file_are_its_defaults():
    environment = uncommented("worker.env")
    assert len(environment) > 5
    assert WorkerConfig.from_environment([], environment) == WorkerConfig.from_environment([], {})


def test_units_and_drop_ins_set_only_variables_that_exist():
    known = {option.variable for option in gateway_options() + worker_options()}
    for path in UNITS.rglob("*"):
        if path.is_file() and path.suffix != ".env":
            assert set(re.findall(r"\b(TTS_[A-Z_]+)=", re.sub("#.*", "", path.read_text()))) <= known, path.name


def test_every_option_has_a_sentence():
    for option in gateway_options() + worker_options():
        assert len(option.help.split()) > 1, option
