"""GPUs that are not there: a driver's library built from tests/fakes/nvml.c, loaded by the real nvidia-ml-py."""

from __future__ import annotations

import importlib.metadata
import os
import re
import subprocess
from pathlib import Path

_SOURCE = Path(__file__).with_name("nvml.c")
_AMD_SOURCE = Path(__file__).with_name("amd_smi.c")


class FakeGpus:
    """Pretended NVIDIA GPUs for processes started with `environment`; `set` changes them while those run."""

    def __init__(self, directory: Path, count: int = 1) -> None:
        self._directory = directory / "gpus"
        self._directory.mkdir()
        self._state = self._directory / "state"
        self._values: dict[str, object] = {"count": count}
        self._write()
        compile_ = ("cc", "-shared", "-fPIC", "-Wall", "-Werror", f"-I{_headers()}", "-Wl,-soname,libnvidia-ml.so.1")
        subprocess.run([*compile_, "-o", self._directory / "libnvidia-ml.so.1", _SOURCE], check=True)

    @property
    def environment(self) -> dict[str, str]:
        """For the process: the dynamic linker reads its path once, at the start."""
        path = os.environ.get("LD_LIBRARY_PATH")
        return {
            "LD_LIBRARY_PATH": f"{self._directory}:{path}" if path else str(self._directory),
            "FAKE_NVML_STATE": str(self._state),
        }

    def set(self, **values: object) -> None:
        """Set lines of the whole driver: `count=1`, `hang=1`; None takes a line away."""
        self._values |= values
        self._write()

    def set_gpu(self, gpu: int, **values: object) -> None:
        """Set figures of one GPU: `set_gpu(0, temperature=90, xid="1:79")`; tests/fakes/nvml.c lists them."""
        self.set(**{f"{gpu}.{name}": value for name, value in values.items()})

    def _write(self) -> None:
        lines = [f"{name}={value}\n" for name, value in self._values.items() if value is not None]
        # In one move: a reader must never see half of a state.
        fresh = self._state.with_suffix(".new")
        fresh.write_text("".join(lines))
        fresh.replace(self._state)


def amd_library(directory: Path) -> dict[str, str]:
    """Build a pretended libamd_smi.so with two GPUs; return the environment in which the real amdsmi loads it."""
    wrapper = next(file for file in importlib.metadata.files("amdsmi") or [] if file.name == "amdsmi_wrapper.py")
    wanted = set(re.findall(r"_libraries\['libamd_smi\.so'\]\.(\w+)", wrapper.read_text()))
    there = set(re.findall(r"^int (\w+)\(", _AMD_SOURCE.read_text(), re.MULTILINE))
    rest = directory / "rest.c"
    rest.write_text("".join(f"int {name}(void) {{ return 2; }}\n" for name in sorted(wanted - there)))
    library = directory / "libamd_smi.so"
    subprocess.run(["cc", "-shared", "-fPIC", "-Wall", "-Werror", "-o", library, _AMD_SOURCE, rest], check=True)
    return {"LD_LIBRARY_PATH": str(directory)}


def _headers() -> Path:
    """Return the folder of NVIDIA's own nvml.h."""
    files = importlib.metadata.files("nvidia-nvml-dev") or []
    return Path(next(file for file in files if file.name == "nvml.h").locate()).parent
