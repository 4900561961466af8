"""deploy/grafana: the committed JSON is what the Python beside it says, and what Grafana can read."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from deploy.grafana import fleet
from deploy.grafana.__main__ import DIRECTORY, documents
from gateway.metrics import WORKER_STATES
from tests.deploy.test_prometheus import PROMETHEUS, alerts, recorded
from wire.gpu import THROTTLE_REASONS

PATHS = sorted(DIRECTORY.glob("*.json"))
# Of Grafana's own types, those of the newest 11.6, which is what the dashboards are written for.
SCHEMA = ("@grafana/schema@11.6.14", "typescript@5.9.3")


def load(path: Path) -> dict[str, Any]:
    dashboard: dict[str, Any] = json.loads(path.read_text())
    return dashboard


def test_the_committed_dashboards_are_what_make_dashboards_writes():
    assert {path.name: path.read_text() for path in PATHS} == documents()


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_panels_lie_side_by_side_and_say_what_they_show(path: Path):
    taken: set[tuple[int, int]] = set()
    for panel in load(path)["panels"]:
        place = panel["gridPos"]
        cells = {(place["x"] + x, place["y"] + y) for x in range(place["w"]) for y in range(place["h"])}
        assert not cells & taken, f"{panel['title']} lies on another"
        assert place["x"] + place["w"] <= 24, f"{panel['title']} is too wide"
        taken |= cells
        assert panel["type"] == "row" or panel["description"].endswith("."), panel["title"]


def test_the_fleet_is_seen_without_scrolling():
    # A row of the grid is 38 pixels; of a screen of 1080 the bars of Grafana and the browser take about 200.
    lowest = max(panel["gridPos"]["y"] + panel["gridPos"]["h"] for panel in load(DIRECTORY / "fleet.json")["panels"])
    assert lowest * 38 <= 1080 - 100


def test_every_dashboard_has_its_picture():
    page = (DIRECTORY.parents[2] / "docs" / "operations.md").read_text()
    for path in PATHS:
        assert f"({path.stem}.png)" in page
        assert (DIRECTORY.parents[2] / "docs" / f"{path.stem}.png").read_bytes().startswith(b"\x89PNG")


def test_the_page_names_panels_that_are_there_and_alerts_that_have_a_paragraph():
    page = (DIRECTORY.parents[2] / "docs" / "operations.md").read_text()
    section = page.split("\n## Read the dashboards\n")[1].split("\n## ")[0]
    boards = {board["title"].removeprefix("TTS: "): board for board in map(load, PATHS)}
    parts = re.split(r"^### (.+)\n", section, flags=re.MULTILINE)[1:]
    assert set(parts[::2]) == set(boards)
    for title, paragraph in zip(parts[::2], parts[1::2], strict=True):
        named = set(re.findall(r"\*([^*\n]+)\*", paragraph))
        assert len(named) >= 5, title
        assert named <= {panel["title"] for panel in boards[title]["panels"]}, title
        for alert in re.findall(r"TTS[A-Za-z]+", paragraph):
            assert f"\n### {alert}\n" in page


def test_every_state_of_a_worker_has_its_colour():
    assert {name for name, _ in fleet.STATES.values()} == set(WORKER_STATES)


def test_every_reason_of_throttling_has_its_colour():
    from deploy.grafana.engine import THROTTLING

    assert {name for name, _ in THROTTLING.values()} == {"no", *THROTTLE_REASONS}


def test_red_on_a_dashboard_is_where_the_alert_is():
    expression = {name: alert["expr"] for name, alert in alerts().items()}
    assert recorded("tts:time_to_first_audio_seconds:target") == f"vector({fleet.TARGET_SECONDS})"
    assert f"error_ratio_5m > {fleet.MANY_ERRORS} " in expression["TTSErrorRatio"]
    assert expression["TTSUnderruns"].endswith(f"> {fleet.MANY_STALLS}")
    assert f"tts_backlog_seconds > {fleet.MUCH_BACKLOG_SECONDS} " in expression["TTSBacklogGrowing"]
    assert expression["TTSBacklogGrowing"].endswith(f"> {fleet.FULL_BACKLOG_SECONDS}")
    assert expression["TTSGpuHot"].endswith(f"> {fleet.HOT_CELSIUS}")
    assert expression["TTSGpuMemoryNearFull"].endswith(f"> {fleet.FULL_MEMORY}")


def test_grafana_is_told_the_interval_of_prometheus():
    provisioning = DIRECTORY.parent / "provisioning"
    [source] = yaml.safe_load((provisioning / "datasources" / "prometheus.yml").read_text())["datasources"]
    interval = yaml.safe_load((PROMETHEUS / "prometheus.yml").read_text())["global"]["scrape_interval"]
    assert source["jsonData"]["timeInterval"] == interval
    [provider] = yaml.safe_load((provisioning / "dashboards" / "tts.yml").read_text())["providers"]
    assert provider["type"] == "file"


# An enumeration of TypeScript takes no literal; in JSON there are only literals.
PLAIN = """
import type { Dashboard } from "@grafana/schema";
type Plain<T> = T extends string ? `${T}` : T extends readonly (infer U)[] ? readonly Plain<U>[]
    : T extends object ? { readonly [K in keyof T]: Plain<T[K]> } : T;
"""


def test_grafanas_own_types_take_the_dashboards_and_not_a_wrong_one(tmp_path: Path):
    wrong = load(PATHS[0])
    wrong["panels"][1]["gridPos"]["w"] = "12"
    wrong["panels"][2]["titel"] = wrong["panels"][2].pop("title")
    (tmp_path / "package.json").write_text('{"private": true, "type": "module"}')
    for name, dashboard in ({path.stem: load(path) for path in PATHS} | {"wrong": wrong}).items():
        text = f"export const it = {json.dumps(dashboard)} as const satisfies Plain<Dashboard>;\n"
        (tmp_path / f"{name}.ts").write_text(PLAIN + text)
    npm = ("npm", "install", "--no-audit", "--no-fund", "--no-package-lock", "--loglevel=error")
    installed = subprocess.run([*npm, *SCHEMA], cwd=tmp_path, capture_output=True, text=True, timeout=240, check=False)
    assert installed.returncode == 0, installed.stdout + installed.stderr
    options = ("--noEmit", "--strict", "--skipLibCheck", "--module", "nodenext", "--moduleResolution", "nodenext")
    tsc = (tmp_path / "node_modules" / ".bin" / "tsc", *options, *tmp_path.glob("*.ts"))
    said = subprocess.run(tsc, cwd=tmp_path, capture_output=True, text=True, timeout=240, check=False).stdout
    complaints = re.findall(r"^(\S+)\(.*?: error (.+)$", said, re.MULTILINE)
    assert {file for file, _ in complaints} == {"wrong.ts"}, said
    assert any("Type 'string' is not assignable to type 'number'" in text for _, text in complaints)
    assert any("titel" in text for _, text in complaints)
