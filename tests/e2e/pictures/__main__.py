"""`make pictures`: draw docs/{fleet,requests,engine}.png from what a real Prometheus saw of a fleet in trouble.

Takes six minutes, 600 MB of packages from npm and Debian's Chromium; therefore no test does it.
"""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.e2e.pictures.watch import watch

HERE = Path(__file__).parent
DOCS = HERE.parents[2] / "docs"
PACKAGES = ("@grafana/ui@11.6.14", "@grafana/data@11.6.14", "react@18", "react-dom@18", "esbuild")
# As draw.tsx has them: a row of the grid and the gap under it.
ROW_PIXELS, GAP_PIXELS, WIDTH_PIXELS = 38, 8, 1908


def main(directory: Path) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    for name in ("draw.tsx", "build.mjs", "index.html"):
        shutil.copy(HERE / name, directory)
    if not (directory / "node_modules").is_dir():
        (directory / "package.json").write_text('{"private": true, "type": "module"}')
        run(directory, "npm", "install", "--no-audit", "--no-fund", "--no-package-lock", "--loglevel=error", *PACKAGES)
    run(directory, "node", "build.mjs")
    answers = asyncio.run(watch())
    (directory / "answers.js").write_text(f"window.answers = {json.dumps(answers)};")
    for one in answers["dashboards"]:
        draw(directory, one["name"], one["dashboard"])


def draw(directory: Path, name: str, dashboard: dict[str, Any]) -> None:
    """Let Chromium open the page and take its picture when all is drawn."""
    rows = max(panel["gridPos"]["y"] + panel["gridPos"]["h"] for panel in dashboard["panels"])
    run(
        directory,
        "chromium",
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--hide-scrollbars",
        "--virtual-time-budget=10000",
        f"--window-size={WIDTH_PIXELS},{rows * ROW_PIXELS + GAP_PIXELS}",
        f"--screenshot={DOCS / f'{name}.png'}",
        f"file://{directory.resolve()}/index.html#{name}",
        stderr=subprocess.DEVNULL,  # it complains at length of the desktop that is not there
    )


def run(directory: Path, *command: str, stderr: int | None = None) -> None:
    sys.stdout.write(f"{' '.join(command[:2])} ...\n")
    subprocess.run(command, cwd=directory, check=True, stderr=stderr)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
