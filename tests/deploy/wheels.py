"""What a package index would serve, without one: the libraries of the tests' own environment, as wheels again."""

from __future__ import annotations

import re
import subprocess
import sys
import zipfile
from importlib import metadata
from pathlib import Path

from deploy.options import ROOT


def build_own(directory: Path) -> Path:
    """Build the project's wheel by the command of `make wheel`, into `directory`."""
    [recipe] = re.findall(r"^wheel:.*\n\t@exec \$\(BIN\)/python (.+)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    command = [sys.executable, *recipe.split(), "--directory", str(directory)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    [wheel] = directory.glob("*.whl")
    return wheel


def pack_libraries(directory: Path) -> None:
    """Pack what requirements/base.txt names and is installed here, each as a wheel that pip takes."""
    directory.mkdir()
    names = set(re.findall(r"^([a-z0-9-]+)==", (ROOT / "requirements" / "base.txt").read_text(), re.MULTILINE))
    for name in sorted(names):
        _pack(metadata.distribution(name), directory)


def _pack(distribution: metadata.Distribution, directory: Path) -> None:
    files = [file for file in distribution.files or () if ".." not in file.parts and "__pycache__" not in file.parts]
    [home] = {file.parts[0] for file in files if file.parts[0].endswith(".dist-info")}
    tags = [tag.split("-") for tag in re.findall(r"^Tag: (\S+)", str(distribution.read_text("WHEEL")), re.MULTILINE)]
    tag = "-".join(".".join(dict.fromkeys(part)) for part in zip(*tags, strict=True))
    # What the installer wrote is not the wheel's: pip writes its own.
    installers = {f"{home}/{name}" for name in ("INSTALLER", "REQUESTED", "direct_url.json", "RECORD")}
    with zipfile.ZipFile(directory / f"{home.removesuffix('.dist-info')}-{tag}.whl", "w") as wheel:
        for file in files:
            if str(file) not in installers:
                wheel.write(str(distribution.locate_file(file)), str(file))
        listed = [f"{name},,\n" for name in [*wheel.namelist(), f"{home}/RECORD"]]
        wheel.writestr(f"{home}/RECORD", "".join(listed))
