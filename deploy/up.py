"""`make up`: one gateway and a worker per GPU, or two workers on the CPU, on this machine until Ctrl-C.

Which workers and which commands is decided here, by plain functions; deploy/fleet.py runs them.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import re
import secrets
import shlex
import shutil
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from deploy.fleet import HOST, Fleet, Program

CPU_WORKERS = 2


class Workers(NamedTuple):
    """The model that all workers run and, a worker, the CUDA device it sees (None: none is chosen for it)."""

    model: str
    devices: tuple[str | None, ...]
    why: str


def visible_gpus(listing: str, visible: str | None) -> list[str]:
    """Return the GPUs in the answer of `nvidia-smi -L`, or those of them that CUDA_VISIBLE_DEVICES leaves."""
    found = re.findall(r"^GPU (\d+):", listing, re.MULTILINE)
    if visible is None or not found:
        return found
    return [device.strip() for device in visible.split(",") if device.strip() not in ("", "-1")]


def choose_workers(gpus: Sequence[str], has_chatterbox: bool, model: str | None, count: int | None) -> Workers:
    """Return one Chatterbox worker a GPU where both exist, else two workers with the embedded voice, and the reason.

    More workers than GPUs share them in turn.
    """
    if gpus and (model == "chatterbox" or (model is None and has_chatterbox)):
        devices = tuple(gpus[i % len(gpus)] for i in range(count or len(gpus)))
        return Workers("chatterbox", devices, f"{_several(len(gpus), 'GPU')} found")
    found = f"{_several(len(gpus), 'GPU')} found" if gpus else "no GPU found"
    why = f"{found}, but chatterbox is not installed" if gpus and model is None else found
    return Workers(model or "embedded", (None,) * (count or CPU_WORKERS), why)


def programs(options: argparse.Namespace, workers: Workers, token: str) -> list[Program]:
    """Return what to run, the gateway first. The token goes by environment: any user can read a command line."""
    public, internal = f"{HOST}:{options.public_port}", f"{HOST}:{options.internal_port}"
    shared = {"TTS_WORKER_TOKEN": token, "PYTHONUNBUFFERED": "1"}
    gateway_flags = ["--listen", public, "--internal-listen", internal]
    gateway_flags += [
        "--drain-timeout",
        f"{options.drain_seconds:g}",
        "--data-directory",
        f"{options.run_dir / 'data'}",
    ]
    gateway = (*shlex.split(options.gateway_command), *gateway_flags)
    fleet = [Program("gateway", gateway, shared, options.public_port)]
    for index, device in enumerate(workers.devices):
        port = options.first_worker_port + index
        flags = ["--index", str(index), "--port", str(port), "--gateways", internal, "--model", workers.model]
        flags += ["--drain-timeout", f"{options.drain_seconds:g}"]
        environment = dict(shared)
        if device is not None:
            flags += ["--device", "cuda:0"]  # the only one that it sees
            # Without PCI order, CUDA counts the fastest GPU first and nvidia-smi does not.
            environment |= {"CUDA_DEVICE_ORDER": "PCI_BUS_ID", "CUDA_VISIBLE_DEVICES": device}
        command = (*shlex.split(options.worker_command), *flags, *options.worker_args)
        fleet.append(Program(f"worker-{index}", command, environment, port))
    return fleet


def first_conflict(options: argparse.Namespace, fleet: Sequence[Program]) -> str | None:
    """Return a sentence about the first port that cannot be had, naming it and the way out."""
    wanted = [(options.public_port, "the gateway's public listener", "--public-port")]
    wanted += [(options.internal_port, "the gateway's internal listener", "--internal-port")]
    wanted += [(program.port, program.name, "--first-worker-port") for program in fleet[1:]]
    for place, (port, who, option) in enumerate(wanted):
        other = f'choose another with make up ARGS="{option} PORT"'
        if port in [earlier[0] for earlier in wanted[:place]]:
            return f"Port {port} is wanted by {who} and by another program of this fleet: {other}."
        if not _is_free(port):
            stop = f"stop what listens there (ss -ltnp 'sport = :{port}' shows it)"
            return f"Port {port}, wanted by {who}, is in use: {stop} or {other}."
    return None


def _several(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def _is_free(port: int) -> bool:
    with socket.socket() as listener:
        # As servers do: connections of an earlier run that linger are no reason to refuse, a listener is.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((HOST, port))
        except OSError:
            return False
    return True


def list_gpus() -> str:
    """Return what `nvidia-smi -L` says; nothing where there is none."""
    try:
        return subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=30, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return ""


def has_chatterbox() -> bool:
    """Chatterbox and the code that runs it are installed."""
    return all(importlib.util.find_spec(name) for name in ("chatterbox", "worker.models.chatterbox"))


def read_options(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    here = Path(sys.executable).parent
    parser = argparse.ArgumentParser(prog="make up ARGS=...", description="Run a gateway and its workers here.")
    parser.add_argument("--workers", type=int, metavar="N", help="how many (default: one a GPU, or two on the CPU)")
    parser.add_argument("--model", help="what they speak with (default: chatterbox on GPUs, else embedded)")
    parser.add_argument("--public-port", type=int, default=8080, metavar="PORT")
    parser.add_argument("--internal-port", type=int, default=8081, metavar="PORT")
    parser.add_argument("--first-worker-port", type=int, default=8100, metavar="PORT")
    parser.add_argument(
        "--drain-seconds", type=float, default=30.0, metavar="S", help="how long a stop waits for running segments"
    )
    parser.add_argument("--run-dir", type=Path, default=Path(".run"), metavar="DIR", help="where the logs go")
    parser.add_argument("worker_args", nargs="*", metavar="-- OPTION", help="given to every tts-worker")
    # What the tests put in place of the real programs.
    parser.add_argument("--gateway-command", default=shlex.quote(str(here / "tts-gateway")), help=argparse.SUPPRESS)
    parser.add_argument("--worker-command", default=shlex.quote(str(here / "tts-worker")), help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.workers is not None and options.workers < 1:
        parser.error("--workers counts from 1")
    return options


def main() -> int:
    options = read_options()
    gpus = visible_gpus(list_gpus(), os.environ.get("CUDA_VISIBLE_DEVICES"))
    workers = choose_workers(gpus, has_chatterbox(), options.model, options.workers)
    fleet = programs(options, workers, secrets.token_urlsafe(32))
    for program in fleet[:2]:
        if shutil.which(program.command[0]) is None:
            sys.exit(f"{program.command[0]} is not there: make up installs it.")
    if conflict := first_conflict(options, fleet):
        sys.exit(conflict)
    print(f"Starting {_several(len(workers.devices), 'worker')}, model {workers.model} ({workers.why}).", flush=True)
    return Fleet(fleet, options.internal_port, options.run_dir, options.drain_seconds).run()


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:  # before there was anything to stop
        sys.exit(130)
