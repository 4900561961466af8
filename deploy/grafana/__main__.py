"""`make dashboards`: write dashboards/*.json anew. Edit the Python files beside this one, not the JSON."""

from __future__ import annotations

import json
from pathlib import Path

from grafana_foundation_sdk.builders.dashboard import Dashboard
from grafana_foundation_sdk.cog.encoder import JSONEncoder

from deploy.grafana import engine, fleet, requests

DIRECTORY = Path(__file__).parent / "dashboards"


def documents() -> dict[str, str]:
    """Return what belongs into each file of the directory."""
    built = {"fleet.json": fleet.build(), "requests.json": requests.build(), "engine.json": engine.build()}
    return {name: encode(dashboard) for name, dashboard in built.items()}


def encode(dashboard: Dashboard) -> str:
    """Return the dashboard as Grafana reads it: keys in order, so that equal dashboards are equal bytes."""
    document = json.loads(JSONEncoder().encode(dashboard.build()))
    for variable in document["templating"]["list"]:
        # Of variables of another kind; the builder writes them to all.
        for key in ("auto", "auto_count", "auto_min"):
            variable.pop(key, None)
    return json.dumps(document, sort_keys=True, indent=1, ensure_ascii=False) + "\n"


def main() -> None:
    DIRECTORY.mkdir(exist_ok=True)
    for name, text in documents().items():
        (DIRECTORY / name).write_text(text)


if __name__ == "__main__":
    main()
