"""`tts-gateway install-units` and `uninstall-units`: the systemd units of this machine, one worker instance a GPU.

What is written is decided by plain functions; `apply` at the end does it, or prints it.
"""

from __future__ import annotations

import argparse
import importlib.resources
import os
import secrets
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources.abc import Traversable
from pathlib import Path, PurePosixPath

from rich.console import Console

from deploy import network
from deploy.network import Network
from deploy.up import choose_workers, has_chatterbox, list_gpus, visible_gpus
from host.checks import hidden_from_services

NAMES = ("install-units", "uninstall-units")
UNITS = PurePosixPath("/etc/systemd/system")
SETTINGS = PurePosixPath("/etc/tts")
SHIPPED_BIN = "/opt/tts/venv/bin"
SERVED = ("tts-gateway-internal.socket", "tts-gateway.socket", "tts-gateway.service")
_CPU_DROP_IN = UNITS / "tts-worker@.service.d" / "cpu.conf"
# Where this one is, the workers register with gateways on other hosts, and there is none here.
_WORKER_NETWORK = UNITS / "tts-worker@.service.d" / "network.conf"
_GATEWAY_NETWORK = UNITS / "tts-gateway.service.d" / "network.conf"
_NETWORK_SOCKET = "tts-gateway-network.socket"  # the gateway's unit starts it
_TOKEN = SETTINGS / "worker-token"


@dataclass(frozen=True, slots=True)
class File:
    """A file to be there. One that is the operator's own is left as it is where it exists."""

    path: PurePosixPath
    text: str
    mode: int = 0o644
    is_own: bool = False  # the operator's: kept at an upgrade, and at an uninstall without --purge


@dataclass(frozen=True, slots=True)
class Machine:
    """What the units depend on."""

    bin_directory: PurePosixPath
    instances: tuple[str, ...]
    has_gpus: bool
    has_gateway: bool = True
    network: Network | None = None  # None: as it was; at first, everything on this machine


def shipped() -> Mapping[str, str]:
    """Return the unit, drop-in and environment files that come with the program, by their path in deploy/systemd."""
    return dict(_walk(importlib.resources.files("deploy") / "systemd", ""))


def _walk(directory: Traversable, prefix: str) -> list[tuple[str, str]]:
    found: list[tuple[str, str]] = []
    for entry in directory.iterdir():
        if entry.is_dir():
            found += _walk(entry, f"{prefix}{entry.name}/")
        else:
            found.append((prefix + entry.name, entry.read_text(encoding="utf-8")))
    return found


def files(machine: Machine, sources: Mapping[str, str], token: str) -> list[File]:
    """Return all that belongs on this machine."""
    wanted = [
        File(UNITS / name, text.replace(SHIPPED_BIN, str(machine.bin_directory)))
        for name, text in sorted(sources.items())
        if _is_unit(name) and (machine.has_gateway or name not in SERVED)
    ]
    if not machine.has_gpus:
        wanted.append(File(_CPU_DROP_IN, sources["drop-ins/cpu.conf"]))
    if machine.network is not None:
        places = {"network/worker.conf": _WORKER_NETWORK}
        if machine.has_gateway:
            places = {"network/gateway.conf": _GATEWAY_NETWORK, f"network/{_NETWORK_SOCKET}": UNITS / _NETWORK_SOCKET}
        wanted += [File(path, machine.network.fill_in(sources[name])) for name, path in places.items()]
    wanted += [
        File(SETTINGS / name, text, is_own=True) for name, text in sorted(sources.items()) if name.endswith(".env")
    ]
    wanted.append(File(_TOKEN, token + "\n", mode=0o600, is_own=True))
    return wanted


def _is_unit(name: str) -> bool:
    return "/" not in name and not name.endswith(".env")


def instances(machine: Machine) -> list[str]:
    return [f"tts-worker@{instance}.service" for instance in machine.instances]


def run(arguments: Sequence[str]) -> int:
    """Run one of the two commands; return the exit code: 0 done, 1 it could not be, 2 it was asked for wrongly."""
    options = _options(arguments)
    console = Console(highlight=False, soft_wrap=True, markup=False)
    if os.geteuid() != 0 and not options.dry_run and options.root == Path("/"):
        console.print(f"Only root may write {UNITS}: sudo {sys.argv[0]} {' '.join(arguments)}")
        return 1
    if options.command == "uninstall-units":
        return _uninstall(options, console)
    here = str(Path(sys.executable).parent)
    hidden = next(filter(hidden_from_services, (here, os.path.realpath(sys.executable))), None)
    if hidden is not None and not options.dry_run and options.root == Path("/"):
        console.print(
            f"{hidden} is out of the services' sight: they see no home and no temporary directory. Install where they "
            "can see it:\n  /usr/bin/python3 -m venv /opt/tts/venv\n  /opt/tts/venv/bin/pip install chatterbox-gateway"
        )
        return 1
    try:
        machine = _look(options, PurePosixPath(here))
    except ValueError as error:
        console.print(f"tts-gateway {options.command}: {error}")
        return 2
    kind = "one a GPU" if machine.has_gpus else "on the CPU"
    if not machine.has_gateway and _served(options):
        _retire(_served(options), options, console)
    console.print(f"{len(machine.instances)} workers, {kind}: {', '.join(instances(machine))}")
    for file in files(machine, shipped(), secrets.token_urlsafe(32)):
        _write(file, options, console)
    if machine.has_gpus:
        _remove(_CPU_DROP_IN, options, console)
    _systemctl(options, console, "daemon-reload")
    served = SERVED if machine.has_gateway else ()
    _systemctl(options, console, "enable", "tts.target", *served, *instances(machine))
    console.print("Start everything: systemctl start tts.target" if not options.dry_run else "Nothing was changed.")
    return 0


def _options(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="tts-gateway", description="Put the service in systemd's hands, or take it.")
    commands = parser.add_subparsers(dest="command", required=True)
    install = commands.add_parser(NAMES[0], help="write and enable the units for this machine, one worker a GPU")
    uninstall = commands.add_parser(NAMES[1], help="stop, disable and remove the units; settings stay")
    for command in (install, uninstall):
        command.add_argument("--dry-run", action="store_true", help="say what would be done, and do nothing")
        command.add_argument(
            "--root", type=Path, default=Path("/"), metavar="DIR", help="for an image of a machine that lies in DIR"
        )
    install.add_argument("--workers", type=int, metavar="N", help="how many (default: one a GPU, or two on the CPU)")
    install.add_argument("--cpu", action="store_true", help="workers with the embedded voice, also where GPUs are")
    network.add_options(install)
    uninstall.add_argument("--purge", action="store_true", help=f"remove {SETTINGS} too, with keys and tokens")
    options = parser.parse_args(arguments)
    if getattr(options, "workers", None) is not None and not 1 <= options.workers <= 100:
        parser.error("--workers lies between 1 and 100")
    return options


def _look(options: argparse.Namespace, bin_directory: PurePosixPath) -> Machine:
    """Raises:
    ValueError: the host cannot be what the flags say.
    """
    place = network.read(options)
    # An upgrade need not be told again what a host is.
    has_gateway = not options.gateways and not _on(options, _WORKER_NETWORK).exists()
    if place is not None and not place.gateways and not has_gateway:
        raise ValueError("this host has workers only: add --gateways, or make room for one with uninstall-units")
    if not has_gateway and not _on(options, _TOKEN).exists():
        raise ValueError(f"{_TOKEN} is not here, and workers need the gateway's: copy it from there, for root alone")
    gpus = [] if options.cpu else visible_gpus(list_gpus(), None)
    chosen = choose_workers(gpus, has_chatterbox(), None, options.workers)
    has_gpus = chosen.model == "chatterbox"
    count = min(len(chosen.devices), len(gpus)) if has_gpus else len(chosen.devices)
    return Machine(bin_directory, tuple(map(str, range(count))), has_gpus, has_gateway, place)


def _uninstall(options: argparse.Namespace, console: Console) -> int:
    enabled = [link.name for link in sorted(options.root.glob(f".{UNITS}/tts.target.wants/tts-worker@*.service"))]
    _retire(["tts.target", *_served(options)], options, console, ["tts-worker@*.service"], enabled)
    for path in (UNITS / "tts-worker@.service", _CPU_DROP_IN, _WORKER_NETWORK):
        _remove(path, options, console)
    if options.purge:
        _remove(SETTINGS, options, console)
    _systemctl(options, console, "daemon-reload")
    return 0


def _served(options: argparse.Namespace) -> list[str]:
    """Return the gateway's units that are here."""
    return [name for name in (*SERVED, _NETWORK_SOCKET) if _on(options, UNITS / name).exists()]


def _retire(
    units: Sequence[str],
    options: argparse.Namespace,
    console: Console,
    also_stopped: Sequence[str] = (),
    also_disabled: Sequence[str] = (),
) -> None:
    """Stop, disable and remove the gateway's units, and others."""
    if options.root == Path("/") and _is_booted():
        _systemctl(options, console, "stop", *units, *also_stopped)
    _systemctl(options, console, "disable", *units, *also_disabled)
    for path in (*(UNITS / unit for unit in units), _GATEWAY_NETWORK):
        _remove(path, options, console)


def _on(options: argparse.Namespace, path: PurePosixPath) -> Path:
    root: Path = options.root
    return root / path.relative_to("/")


def _write(file: File, options: argparse.Namespace, console: Console) -> None:
    path = _on(options, file.path)
    if file.is_own and path.exists():
        console.print(f"keep     {path}")
        return
    console.print(f"write    {path}")
    if options.dry_run:
        return
    path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    # Never readable by others for a moment, and never half there.
    draft = path.with_name(f".{path.name}.new")
    draft.unlink(missing_ok=True)
    with open(draft, "x", encoding="utf-8", opener=lambda name, flags: os.open(name, flags, file.mode)) as out:
        os.fchmod(out.fileno(), file.mode)
        out.write(file.text)
    draft.replace(path)


def _remove(path: PurePosixPath, options: argparse.Namespace, console: Console) -> None:
    there = _on(options, path)
    if not there.exists():
        return
    console.print(f"remove   {there}")
    if options.dry_run:
        return
    if there.is_dir():
        shutil.rmtree(there)
        return
    there.unlink()
    if there.parent.name.endswith(".d") and not any(there.parent.iterdir()):
        there.parent.rmdir()


def _systemctl(options: argparse.Namespace, console: Console, verb: str, *units: str) -> None:
    """Run systemctl, in the image where there is one; a systemd that does not run has nothing to reload."""
    image = options.root != Path("/")
    if verb == "daemon-reload" and (image or not _is_booted()):
        return
    command = ["systemctl", *([f"--root={options.root}"] if image else []), verb, *units]
    console.print(f"run      {' '.join(command)}")
    if not options.dry_run:
        subprocess.run(command, check=verb not in ("stop", "disable"))


def _is_booted() -> bool:
    return Path("/run/systemd/system").is_dir()  # as sd_booted(3) has it
