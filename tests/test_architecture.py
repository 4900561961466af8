"""The walls between the packages, checked from outside: what an import really loads."""

import subprocess
import sys

from deploy import units
from gateway import __main__, commands


def modules_after(statement: str) -> set[str]:
    code = f"import sys; {statement}; print('\\n'.join(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_importing_the_gateway_loads_no_model_stack_and_no_worker():
    loaded = modules_after("import gateway.__main__, gateway.serve, gateway.doctor.command")
    assert "gateway.app" in loaded
    assert not loaded & {"torch", "numpy", "hibari", "onnxruntime", "chatterbox", "worker", "bench"}


def test_importing_wire_loads_no_framework():
    loaded = modules_after("import wire.link, wire.frames, wire.segment, wire.errors, wire.headers")
    assert not loaded & {"aiohttp", "numpy", "torch", "av", "gateway", "worker"}


def test_importing_the_worker_loads_no_gateway():
    loaded = modules_after("import worker.__main__, worker.doctor.command")
    assert "worker.app" in loaded
    assert not loaded & {"gateway", "torch", "bench"}


def test_a_command_of_the_gateway_loads_what_it_needs_and_no_more():
    code = "import contextlib\nfrom gateway.__main__ import main\nwith contextlib.suppress(SystemExit):"
    code += " main(['keys', '-h'])"
    loaded = modules_after(f"exec({code!r})")
    assert "gateway.keys" in loaded
    assert not loaded & {"aiohttp", "av", "gateway.app", "prometheus_client"}


def test_every_command_of_the_gateway_is_in_its_help_and_known_to_whoever_runs_it():
    assert __main__._STEERING == commands.NAMES
    assert set(units.NAMES) < set(__main__._MACHINE)
    assert all(name in __main__._HELP for name in (*commands.NAMES, *units.NAMES, "keys", "doctor"))
