"""The walls between the packages, checked from outside: what an import really loads."""

import subprocess
import sys


def modules_after(statement: str) -> set[str]:
    code = f"import sys; {statement}; print('\\n'.join(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_importing_the_gateway_loads_no_model_stack_and_no_worker():
    loaded = modules_after("import gateway.__main__")
    assert "gateway.app" in loaded
    assert not loaded & {"torch", "numpy", "hibari", "onnxruntime", "chatterbox", "worker", "bench"}


def test_importing_wire_loads_no_framework():
    loaded = modules_after("import wire.link, wire.frames, wire.segment, wire.errors, wire.headers")
    assert not loaded & {"aiohttp", "numpy", "torch", "av", "gateway", "worker"}


def test_importing_the_worker_loads_no_gateway():
    loaded = modules_after("import worker.__main__")
    assert "worker.app" in loaded
    assert not loaded & {"gateway", "torch", "bench"}
