"""What the facts of a worker mean: pure functions from observed facts to findings."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

from host.checks import check_skew
from host.findings import Finding, ok, problem, warning
from wire.errors import ErrorCode
from worker.config import CHATTERBOX_MODELS, Config
from worker.doctor.device import Device, Torch
from worker.doctor.facts import Compiler, Gateway, Running, Weights
from worker.gpu.visible import is_gpu
from worker.models.chatterbox.family import FAMILIES
from worker.models.chatterbox.memory import NoRoom, by_device, filled
from worker.models.chatterbox.memory import check as check_room

# The list of docs/chatterbox.md: torch for CUDA 13, which knows every card from RTX 20 to RTX 50.
_INSTALL_TORCH = "/opt/tts/venv/bin/pip install --no-deps --require-hashes -r requirements/chatterbox.txt"
# torch for CUDA 13 runs from this driver on; for CUDA 12 from 525 (NVIDIA's table of CUDA compatibility).
_DRIVERS = {12: "525", 13: "580"}
_INSTALL_DRIVER = "apt-get install nvidia-driver   # then restart the machine; "


def check_running(config: Config, running: Running | None) -> Iterable[Finding]:
    if running is None:
        yield warning(
            "worker",
            f"nobody answers on {config.host}:{config.port}",
            "the worker does not run",
            f"systemctl start tts-worker@{config.index}   # or tts-worker, where it is not a unit",
        )
    elif running.id != config.id:
        yield problem(
            "worker",
            f"{running.id} answers on {config.host}:{config.port}, where {config.id} is to listen",
            "two workers cannot have one port",
            f"ss -ltnp 'sport = :{config.port}'   # or give this one another --port",
        )
    elif running.state == "ready":
        yield ok("worker", f"{running.id} is ready on {config.host}:{config.port}")
    else:
        seen = f"{running.id} is {running.state}" + (f": {running.reason}" if running.reason else "")
        yield warning("worker", seen, "it does not speak now", f"journalctl -u tts-worker@{config.index} -n 50")


def check_devices(config: Config, devices: Mapping[str, Device], running: Running | None) -> Iterable[Finding]:
    """Judge the GPUs of the configuration, by their names there."""
    if not devices:
        yield ok("gpu", f"none wanted: --device {config.device}")
    for name, device in devices.items():
        yield from check_device(config, name, device, running)


def check_device(config: Config, name: str, device: Device, running: Running | None) -> Iterable[Finding]:
    if device.trouble:
        yield problem(
            "gpu",
            f"{name}: {device.trouble}",
            "the model cannot be loaded on it",
            "nvidia-smi -L   # and dmesg | grep -iE 'nvrm|xid'",
        )
        return
    place = "" if device.index is None else f", GPU {device.index} of this machine"
    yield ok("gpu", f"{name} is {device.name}{place}" + _capability(device.capability))
    if device.vendor == "nvidia":
        yield ok("driver", f"{device.driver or 'unknown'}, for CUDA up to {_dotted(device.driver_cuda)}")
    if config.model in CHATTERBOX_MODELS:
        yield check_memory(config, name, device, running)


def check_memory(config: Config, name: str, device: Device, running: Running | None) -> Finding:
    if device.free_bytes is None or device.total_bytes is None:
        return ok("gpu memory", "the driver does not tell")
    if running is not None and running.id == config.id and running.state in ("loading", "warming", "ready", "draining"):
        return ok("gpu memory", "the worker that runs has what it needs")
    is_half = config.chatterbox.precision in ("auto", "bf16")
    stages = (config.devices[0], config.devices[-1])  # one and the same without --split
    need = by_device(FAMILIES[config.model], stages, is_half=is_half, slots=config.batch or 1)[name]
    if config.batch is None and name == stages[0]:
        need = filled(need, device.free_bytes)
    held = [_held(holder.name, holder.pid, holder.memory_bytes) for holder in device.holders]
    total, free = device.total_bytes, device.free_bytes
    try:
        check_room(name, config.model, need, free=free, total=total, holders=held)
    except NoRoom as error:
        stop = f"ps -o pid,user,args -p {','.join(str(holder.pid) for holder in device.holders)}   # who holds it; or "
        return problem(
            "gpu memory", str(error), "the worker does not get ready",
            (stop if device.holders else "nvidia-smi   # or ") + "fewer --slots, or --model chatterbox-turbo",
        )  # fmt: skip
    others = f"; held by {', '.join(held)}" if held else ""
    return ok("gpu memory", f"{_gib(free)} of {_gib(total)} free, {_gib(need.total)} needed{others}")


def check_torch(config: Config, device: Device | None, torch: Torch | None) -> Iterable[Finding]:
    """Judge torch against the card and its driver; `torch` is None for a model that needs none."""
    if torch is None:
        return
    if torch.trouble:
        yield problem(
            "torch", torch.trouble, f"--model {config.model} needs it", f"{_INSTALL_TORCH}   # docs/chatterbox.md"
        )
        return
    if device is None:
        yield warning(
            "torch", f"{torch.version} on the CPU", "Chatterbox speaks slower there than one listens",
            "tts-worker --device cuda:0   # where the machine has a GPU",
        )  # fmt: skip
        return
    if device.trouble or device.vendor != "nvidia":
        yield ok("torch", f"{torch.version}; it was not compared with a card")
        return
    if torch.cuda is None:
        yield problem("torch", f"{torch.version} is built for no CUDA", "it cannot use the GPU", _INSTALL_TORCH)
        return
    if not _has_code_for(device.capability, torch.codes):
        yield problem(
            "torch",
            f"{torch.version} for CUDA {_dotted(torch.cuda)} has no code for {device.name}"
            + _capability(device.capability),
            "every computation on it fails (no kernel image is available); RTX 50 needs torch 2.7 or newer",
            _INSTALL_TORCH,
        )
    elif device.driver_cuda is not None and device.driver_cuda[0] < torch.cuda[0]:
        wanted = _DRIVERS.get(torch.cuda[0], "a newer one")
        yield problem(
            "torch",
            f"{torch.version} is for CUDA {_dotted(torch.cuda)}, and driver {device.driver} ends at "
            f"{_dotted(device.driver_cuda)}",
            "torch finds no GPU",
            f"{_INSTALL_DRIVER}{wanted} or newer, or pip install 'chatterbox-gateway[chatterbox]' for CUDA 12.4",
        )
    elif not torch.is_available:
        yield problem(
            "torch", f"{torch.version} finds no GPU", "the model cannot be loaded on it",
            "ls -l /dev/nvidia*   # its user must be able to open them; then dmesg | grep -i nvrm",
        )  # fmt: skip
    else:
        yield ok("torch", f"{torch.version} for CUDA {_dotted(torch.cuda)} has code for {device.name}")


def check_kernels(compiler: Compiler) -> Finding:
    """Judge whether the kernels of a model on an NVIDIA GPU can be compiled."""
    slower = "the model does without kernels of its own: tokens, unless Turbo's, come at a third of the pace"
    if not compiler.has_triton:
        return warning("kernels", "triton is not installed", slower, _INSTALL_TORCH)
    lacking = [*(["C compiler"] * (not compiler.command)), *(["Python.h"] * (not compiler.has_headers))]
    if lacking:
        return warning(
            "kernels",
            f"there is no {' and no '.join(lacking)}, with which triton compiles",
            slower,
            "apt-get install gcc python3-dev   # then restart the worker",
        )
    return ok("kernels", f"can be compiled, with {compiler.command}")


def check_weights(config: Config, weights: Weights | None) -> Iterable[Finding]:
    if weights is None:
        return
    if weights.trouble:
        yield problem(
            "weights", weights.trouble, "the model cannot be loaded", f"{_INSTALL_TORCH}   # all that it needs"
        )
        return
    if not weights.missing:
        yield ok("weights", f"all of {config.model} are in {weights.place}")
        return
    seen = f"{', '.join(weights.missing)} of {config.model} are not in {weights.place}"
    place = weights.place if weights.is_named else f"/srv/tts/{config.model}"
    fetch = f"hf download {weights.repository} {' '.join(FAMILIES[config.model].weights)} --local-dir {place}"
    if weights.is_named:
        yield problem("weights", seen, "the worker does not get ready", fetch)
    else:
        yield warning(
            "weights",
            seen,
            "they are fetched at the first start, for which a unit has no network",
            f"{fetch}   # then --checkpoint {place}",
        )


def check_gateways(config: Config, gateways: Sequence[Gateway]) -> Iterable[Finding]:
    if not gateways:
        yield ok("gateways", "none is to be dialled")
    for gateway in gateways:
        yield check_gateway(config, gateway)
        if not gateway.trouble:
            yield check_skew(f"gateway {gateway.address}", gateway.skew_seconds)


def check_gateway(config: Config, gateway: Gateway) -> Finding:
    subject = f"gateway {gateway.address}"
    if gateway.trouble:
        return problem(
            subject,
            f"cannot be reached: {gateway.trouble}",
            "it gives this worker no work",
            f"curl -sS http://{gateway.address}/livez   # the gateway's --internal-listen, and a firewall on the way",
        )
    if gateway.status == 401:
        return problem(
            subject,
            "refuses the workers' token" if config.token else "wants the workers' token, and there is none here",
            "it gives this worker no work",
            "sha256sum /etc/tts/worker-token   # on both hosts: copy the gateway's here, then restart the worker",
        )
    if gateway.code != ErrorCode.VOICE_NOT_FOUND:
        return problem(
            subject,
            f"answers with {gateway.status} {gateway.code}".rstrip() + ", which no gateway's internal listener does",
            "it gives this worker no work",
            f"curl -sS http://{gateway.address}/livez   # then --gateways with the gateway's --internal-listen",
        )
    token = "takes the workers' token" if config.token else "wants no token"
    return ok(subject, f"can be reached, and {token}")


def gpus_of(config: Config) -> tuple[str, ...]:
    """Return the devices of the configuration that are GPUs, which a driver could know of."""
    return tuple(dict.fromkeys(device for device in config.devices if is_gpu(device)))


def _has_code_for(capability: tuple[int, int] | None, codes: Sequence[str]) -> bool:
    """Say whether one of the codes runs on a card: machine code of the same major and no higher minor version, or the
    portable kind of any version up to the card's. Suffixes a and f are for one card and its family."""
    if capability is None or not codes:
        return True  # nothing was told, so nothing can be said against it
    for code in codes:
        found = re.fullmatch(r"(sm|compute)_(\d+)(\d)([af]?)", code)
        if found is None:
            continue
        kind, has, suffix = found[1], (int(found[2]), int(found[3])), found[4]
        if suffix == "a":
            runs = has == capability
        elif kind == "sm" or suffix:
            runs = has[0] == capability[0] and has <= capability
        else:
            runs = has <= capability
        if runs:
            return True
    return False


def _capability(capability: tuple[int, int] | None) -> str:
    return "" if capability is None else f" (compute capability {_dotted(capability)})"


def _dotted(version: tuple[int, int] | None) -> str:
    return "unknown" if version is None else f"{version[0]}.{version[1]}"


def _gib(count: int) -> str:
    return f"{count / (1 << 30):.2f} GiB"


def _held(name: str, pid: int, memory_bytes: int | None) -> str:
    return f"{name} (pid {pid})" + ("" if memory_bytes is None else f" {_gib(memory_bytes)}")
