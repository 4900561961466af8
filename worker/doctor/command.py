"""The command `tts-worker doctor`: look, judge, show."""

from __future__ import annotations

import argparse
import asyncio
import importlib.util
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from host import checks as host_checks
from host import facts as host_facts
from host import findings, units
from host.facts import Guarded, Port
from host.findings import Finding, ok, problem
from worker.config import CHATTERBOX_MODELS, Config
from worker.doctor import checks, device, facts
from worker.given import ConfigError


def run(arguments: Sequence[str]) -> int:
    """Look at this machine, the GPU, the model and the gateways of one worker; print what was found.

    Returns the exit code: 0 all is well, 1 there are warnings, 2 there is a problem, or an option that cannot be.
    """
    options, of_worker = _parser().parse_known_args(arguments)
    found = list(_findings(of_worker, options.settings))
    return findings.tell(found, to_programs=options.json)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="tts-worker doctor",
        description="Says what is wrong with a worker, its GPU, its model and the way to its gateways, and which "
        "command mends it. Changes nothing. Exits 0 when all is well, 1 with warnings, 2 with a problem.",
        epilog="Besides these it takes the options of tts-worker, to look for it as it is started, --index N for the "
        "one of GPU N; of a worker that is a unit it reads them from the unit and its environment files.",
        allow_abbrev=False,
    )
    parser.add_argument("--json", action="store_true", help="print the findings as JSON")
    parser.add_argument(
        "--settings",
        metavar="DIR",
        type=Path,
        default=host_facts.SETTINGS,
        help="the units' environment files and token (default %(default)s)",
    )
    return parser


def _findings(arguments: Sequence[str], settings: Path) -> Iterator[Finding]:
    index = _index(arguments)
    environment = _environment(index, settings)
    try:
        config = Config.from_environment(arguments, environment)
    except ConfigError as error:
        yield problem("options", str(error), "the worker does not start", "tts-worker --help")
        return
    yield ok("options", "can be")
    seen = asyncio.run(facts.look(config, environment))
    machine = host_facts.machine(
        [Port(config.host, config.port, "--port")],
        [
            Guarded(environment.get("TTS_WORKER_TOKEN_FILE", str(settings / "worker-token")), "the token", True),
            *(Guarded(str(settings / name), "options", False) for name in _files(index)),
        ],
    )
    yield from host_checks.check(machine, lambda port: seen.running is not None and seen.running.id == config.id)
    if machine.has_systemd:
        yield from units.check(units.look([f"tts-worker@{index}.service"]))
    else:
        yield ok("systemd", "does not run here")
    yield from checks.check_running(config, seen.running)
    gpus = {name: device.look(name, environment) for name in checks.gpus_of(config)}
    yield from checks.check_devices(config, gpus, seen.running)
    if config.model in CHATTERBOX_MODELS:
        torch = _torch(environment)
        for gpu in gpus.values() or [None]:
            yield from checks.check_torch(config, gpu, torch)
        if any(gpu.vendor == "nvidia" and not gpu.trouble for gpu in gpus.values()):
            yield checks.check_kernels(facts.compiler(environment))
    yield from checks.check_weights(config, seen.weights)
    yield from checks.check_gateways(config, seen.gateways)


def _index(arguments: Sequence[str]) -> str:
    """Return the number of the worker, which says whose files to read before the options can be."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument("--index", default=os.environ.get("TTS_WORKER_INDEX", "0"))
    index = str(parser.parse_known_args(arguments)[0].index)
    return index if index.isdecimal() else "0"


def _files(index: str) -> tuple[str, str]:
    return ("worker.env", f"worker-{index}.env")


def _environment(index: str, settings: Path) -> Mapping[str, str]:
    """Return the variables as the unit has them, where there is one, below those of this process."""
    of_unit = dict(units.environment(f"tts-worker@{index}.service"))
    of_unit.pop("TTS_WORKER_TOKEN_FILE", None)  # a copy that is there only while the unit runs
    own = {name: value for name, value in os.environ.items() if name not in ("HOME", "XDG_CACHE_HOME") or not of_unit}
    found = {**of_unit, **host_facts.settings(*_files(index), directory=settings), **own}
    return found | host_facts.token_of_units(found, settings)


def _torch(environment: Mapping[str, str]) -> device.Torch:
    if importlib.util.find_spec("torch") is None:
        return device.Torch(trouble="is not installed")
    return device.ask_torch(environment)
