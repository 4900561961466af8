"""deploy/prometheus: files that Prometheus and Alertmanager take, alerts that fire and end, a paragraph for each."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import yaml

from gateway.config import Config
from tests.e2e.monitoring import HURRY, hurried
from wire.errors import TRAITS

ROOT = Path(__file__).parents[2]
PROMETHEUS = ROOT / "deploy" / "prometheus"
RULES = sorted((PROMETHEUS / "rules").glob("*.yml"))
ALERT_TESTS = Path(__file__).parent / "alerts_test.yml"


def run(*command: str | Path) -> str:
    """Run a command to its end and return what it said; it must succeed."""
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout


def rules() -> Iterator[dict[str, Any]]:
    for path in RULES:
        for group in yaml.safe_load(path.read_text())["groups"]:
            yield from group["rules"]


def alerts() -> dict[str, dict[str, Any]]:
    return {rule["alert"]: rule for rule in rules() if "alert" in rule}


def recorded(name: str) -> str:
    expression: str = next(rule["expr"] for rule in rules() if rule.get("record") == name)
    return expression


def runbooks() -> dict[str, str]:
    """The paragraphs of the section "Alerts" by their heading."""
    _, _, section = (ROOT / "docs" / "operations.md").read_text().partition("\n## Alerts\n")
    section = re.split(r"^## ", section, maxsplit=1, flags=re.MULTILINE)[0]
    parts = re.split(r"^### (\w+)\n", section, flags=re.MULTILINE)[1:]
    return dict(zip(parts[::2], map(str.strip, parts[1::2]), strict=True))


def test_prometheus_takes_its_configuration_and_rules():
    run("promtool", "check", "config", PROMETHEUS / "prometheus.yml")
    run("promtool", "check", "rules", *RULES)


def test_alertmanager_takes_its_configuration():
    run("amtool", "check-config", PROMETHEUS / "alertmanager.yml")


def test_every_alert_fires_and_ends_on_made_up_series():
    run("promtool", "test", "rules", ALERT_TESTS)


def test_a_hurried_rule_differs_from_the_committed_one_in_its_durations_alone():
    """The test with a real Prometheus cannot wait for minutes."""

    def taken_apart(rule: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
        words = re.split(r"\[(.*?)\]", rule["expr"])
        return rule | {"expr": words[::2], "for": None}, [*words[1::2], *([rule["for"]] if "for" in rule else [])]

    for rule in rules():
        (rest, durations), (hurried_rest, hurried_durations) = taken_apart(rule), taken_apart(hurried(rule))
        assert hurried_rest == rest
        assert [seconds(duration) * HURRY for duration in hurried_durations] == [*map(seconds, durations)]


def seconds(duration: str) -> Decimal:
    number, unit = re.fullmatch(r"(\d+)(ms|s|m|h)", duration).groups()
    return int(number) * {"ms": Decimal("0.001"), "s": Decimal(1), "m": Decimal(60), "h": Decimal(3600)}[unit]


def test_no_alert_is_left_out_of_that():
    fired: dict[str, list[bool]] = {}
    for test in yaml.safe_load(ALERT_TESTS.read_text())["tests"]:
        for look in test["alert_rule_test"]:
            fired.setdefault(look["alertname"], []).append(bool(look.get("exp_alerts")))
    assert set(fired) == set(alerts())
    for name, looks in fired.items():
        assert True in looks, f"{name} is never seen to fire"
        assert not looks[-1], f"{name} is never seen to end"


def test_every_alert_has_its_paragraph_and_points_at_it():
    assert list(runbooks()) == list(alerts())
    for name, alert in alerts().items():
        assert alert["annotations"]["runbook"] == f"docs/operations.md#{name.lower()}"
        paragraph = runbooks()[name]
        assert "\n\n" not in paragraph, f"{name}: one paragraph"
        assert paragraph.startswith(f"*{alert['labels']['severity']}.* "), f"{name}: its severity first"


def test_a_paragraph_sends_nobody_to_an_alert_that_does_not_exist():
    named = set(re.findall(r"\bTTS[A-Z]\w+", "\n".join(runbooks().values())))
    assert named <= set(alerts())


def test_inhibitions_are_about_alerts_that_exist():
    text = (PROMETHEUS / "alertmanager.yml").read_text()
    assert set(re.findall(r"\bTTS[A-Z]\w+", text)) <= set(alerts())


def test_an_error_of_the_service_is_what_the_error_codes_call_one():
    busy = {str(code) for code, traits in TRAITS.items() if traits.type == "overloaded_error"}
    counted = re.search(r'reason=~"([^"]+)"', recorded("instance:tts_requests:errors_5m"))
    assert counted
    to_the_gateway = {"worker_full", "worker_not_ready", "wrong_worker"}  # from workers; callers never see these
    assert set(counted[1].split("|")) == busy - to_the_gateway


def test_prometheus_asks_where_a_gateway_listens_by_default():
    internal = str(Config().internal_listen)
    jobs = {
        job["job_name"]: job for job in yaml.safe_load((PROMETHEUS / "prometheus.yml").read_text())["scrape_configs"]
    }
    assert jobs["tts-gateway"]["static_configs"] == [{"targets": [internal]}]
    [discovery] = jobs["tts-worker"]["http_sd_configs"]
    assert discovery["url"] == f"http://{internal}/admin/prometheus-targets"
