"""Asks a real Prometheus everything that a dashboard would ask it."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.e2e.monitoring import Monitoring

DASHBOARDS = sorted((Path(__file__).parents[2] / "deploy" / "grafana" / "dashboards").glob("*.json"))
# Grafana takes four times the interval of the data source; here it is short.
_BUILT_IN = {"__rate_interval": "10s", "datasource": "prometheus"}
_LABEL_VALUES = re.compile(r"label_values\((?:(?P<series>.+), *)?(?P<label>\w+)\)")


@dataclass(frozen=True, slots=True)
class Target:
    """One query of one panel, with its variables filled in for "All"."""

    panel: str
    expression: str
    legend: str


def load(path: Path) -> dict[str, Any]:
    dashboard: dict[str, Any] = json.loads(path.read_text())
    return dashboard


def variables(dashboard: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The variables that Prometheus fills, by name."""
    return {one["name"]: one for one in dashboard["templating"]["list"] if one["type"] == "query"}


def targets(dashboard: dict[str, Any]) -> Iterator[Target]:
    """Every query of every panel.

    Raises:
        KeyError: an expression names a variable that the dashboard does not have.
    """
    filled = _BUILT_IN | {name: one["allValue"] for name, one in variables(dashboard).items()}
    for panel in _panels(dashboard["panels"]):
        for target in panel["targets"]:
            expression = re.sub(r"\$\{?(\w+)\}?", lambda found: filled[found[1]], target["expr"])
            yield Target(panel["title"], expression, target.get("legendFormat", ""))


def _panels(panels: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    for panel in panels:
        if panel["type"] == "row":
            yield from _panels(panel["panels"])
        else:
            yield panel


async def unanswered(monitoring: Monitoring, dashboard: dict[str, Any], since: float, until: float) -> list[str]:
    """Return what Prometheus has no finite figure for between two instants, a sentence each."""
    found = []
    for name, variable in variables(dashboard).items():
        if not await _values(monitoring, variable["query"]):
            found.append(f"variable {name}: {variable['query']} has no value")
    for target in targets(dashboard):
        if trouble := await _trouble(monitoring, target, since, until):
            found.append(f"panel {target.panel!r}: {trouble}: {target.expression}")
    return found


async def _values(monitoring: Monitoring, query: str) -> list[str]:
    parts = _LABEL_VALUES.fullmatch(query)
    assert parts, f"no query of a variable: {query}"
    match = {"match[]": parts["series"]} if parts["series"] else {}
    values: list[str] = await monitoring.ask(f"label/{parts['label']}/values", **match)
    return values


async def _trouble(monitoring: Monitoring, target: Target, since: float, until: float) -> str:
    answer = await monitoring.ask("query_range", query=target.expression, start=f"{since}", end=f"{until}", step="2")
    series = answer["result"]
    if not any(math.isfinite(float(value)) for one in series for _, value in one["values"]):
        return "no finite figure"
    for label in re.findall(r"{{ *(\w+) *}}", target.legend):
        if any(label not in one["metric"] for one in series):
            return f"a series has no label {label} for the legend"
    return ""
