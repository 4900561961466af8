"""The command `tts-gateway doctor`: look, judge, show."""

from __future__ import annotations

import argparse
import asyncio
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from gateway.config import Config, ConfigError, add_options, read_config
from gateway.doctor import checks, facts, outside
from host import checks as host_checks
from host import facts as host_facts
from host import findings, units
from host.facts import Guarded, Machine, Port
from host.findings import Finding, ok, problem

_STATE = "/var/lib/tts-gateway"  # what the unit has as STATE_DIRECTORY


def run(arguments: Sequence[str]) -> int:
    """Look at this machine, the gateway and, with `--public-url`, the way to it; print what was found.

    Returns the exit code: 0 all is well, 1 there are warnings, 2 there is a problem, or an option that cannot be.
    """
    options = _parser().parse_args(arguments)
    found = list(_findings(options))
    return findings.tell(found, to_programs=options.json)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="tts-gateway doctor",
        description="Says what is wrong with a gateway, its machine and the way to it, and which command mends it. "
        "Changes nothing. Exits 0 when all is well, 1 with warnings, 2 with a problem.",
        epilog="Besides these it takes the options of tts-gateway, to look for it as it is started; of a gateway that "
        "is a unit it reads them from its environment file.",
        formatter_class=argparse.HelpFormatter,
    )
    parser.add_argument("--json", action="store_true", help="print the findings as JSON")
    parser.add_argument(
        "--public-url",
        metavar="URL",
        help="where callers reach the service, like https://tts.example.com: has it speak, and looks what a proxy does "
        "to the sound; with keys, TTS_API_KEY holds one of the scope speak",
    )
    parser.add_argument(
        "--prometheus", metavar="URL", default="http://127.0.0.1:9090", help="Prometheus (default %(default)s)"
    )
    parser.add_argument(
        "--settings",
        metavar="DIR",
        type=Path,
        default=host_facts.SETTINGS,
        help="the units' environment files and token (default %(default)s)",
    )
    add_options(parser)
    return parser


def _findings(options: argparse.Namespace) -> Iterator[Finding]:
    environment = _environment(options.settings)
    try:
        config = read_config(options, environment)
    except ConfigError as error:
        yield problem("options", str(error), "the gateway does not start", "tts-gateway --help")
        config = Config()  # the rest is looked at as if none were set
    else:
        yield ok("options", "can be")
    machine = host_facts.machine(_ports(config), _files(config, environment, options.settings))
    seen = asyncio.run(facts.look(config, options.prometheus))
    yield from host_checks.check(machine, lambda port: _is_ours(port, config, seen))
    yield from _units(machine)
    yield from checks.check(config, seen)
    if options.public_url:
        direct, key = f"http://{config.listen}", environment.get("TTS_API_KEY", "")
        look = outside.look(options.public_url, direct, key, config.max_characters, checks.needs_another)
        yield from checks.check_outside(asyncio.run(look))


def _environment(settings: Path) -> Mapping[str, str]:
    """Return the variables as the unit has them, where there is one, below those of this process."""
    of_unit = host_facts.settings("gateway.env", directory=settings)
    if Path(_STATE).exists():
        of_unit.setdefault("STATE_DIRECTORY", _STATE)
    found = {**of_unit, **os.environ}
    return found | host_facts.token_of_units(found, settings)


def _ports(config: Config) -> list[Port]:
    return [
        Port(config.listen.host, config.listen.port, "--listen"),
        Port(config.internal_listen.host, config.internal_listen.port, "--internal-listen"),
    ]


def _files(config: Config, environment: Mapping[str, str], settings: Path) -> list[Guarded]:
    files = [
        Guarded(environment.get("TTS_WORKER_TOKEN_FILE", str(settings / "worker-token")), "the workers' token", True),
        Guarded(str(settings / "gateway.env"), "options", False),
        Guarded(str(settings / "tls" / "privkey.pem"), "the key of nginx's certificate", True),
    ]
    if config.keys_file is not None:
        files.append(Guarded(str(config.keys_file), "digests of API keys, which open nothing", False))
    if config.data_directory is not None:
        files.append(Guarded(str(config.data_directory), "recordings of voices", True))
    return files


def _is_ours(port: Port, config: Config, seen: facts.Facts) -> bool:
    answer = seen.public if port.port == config.listen.port else seen.internal
    return answer.status in (200, 503)


def _units(machine: Machine) -> Iterator[Finding]:
    if not machine.has_systemd:
        yield ok("systemd", "does not run here")
        return
    yield from units.check(units.look([*units.GATEWAY_UNITS, *units.workers()]))
