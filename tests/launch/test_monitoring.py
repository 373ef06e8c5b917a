"""The dashboard, the alerts and the runbook name what exists. alerts.sh tests the alerts with promtool, by hand."""

import json
import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from lm.serving.metrics import Metrics
from tests.launch.test_manifests import LABELS, NAME, TEXT, array, record

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "launch/cluster/monitoring"
RULE = record(
    {"alert": NAME | {"pattern": "^Lm[A-Za-z]+$"}, "expr": TEXT, "labels": LABELS, "annotations": LABELS}, {"for": TEXT}
)
GROUPS = record({"groups": array(record({"name": NAME, "rules": array(RULE)}))})


def alerts() -> list[dict[str, Any]]:
    spec = yaml.safe_load((FOLDER / "alerts.yaml").read_text())["spec"]
    jsonschema.validate(spec, GROUPS)
    return [rule for group in spec["groups"] for rule in group["rules"]]


def expressions() -> list[str]:
    """All PromQL of the alerts and of the dashboard."""
    dashboard = json.loads((FOLDER / "dashboard.json").read_text())
    panels = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    variables = [each["query"] for each in dashboard["templating"]["list"]]
    return [*panels, *variables, *(rule["expr"] for rule in alerts())]


def series() -> dict[str, set[str]]:
    """The series that a server has, and the labels of each."""
    found: dict[str, set[str]] = {}
    metrics = Metrics()
    for name in re.findall(r'metrics\.watch\("(\w+)"', (ROOT / "lm/serving/server.py").read_text()):
        metrics.watch(name, name, lambda: 0.0)
    for name, collector in metrics.registry._names_to_collectors.items():
        labels = set(getattr(collector, "_labelnames", ()))
        found[name] = labels | ({"le"} if name.endswith("_bucket") else set())
    return found


def named(expression: str) -> set[str]:
    return set(re.findall(r"\blm_\w+", expression))


def test_every_series_that_is_asked_for_exists() -> None:
    known, asked = series(), set().union(*map(named, expressions()))
    assert len(asked) > 12
    assert asked - set(known) == set()
    assert named("rate(lm_gone_total[5m])") - set(known) == {"lm_gone_total"}


def test_everything_that_is_counted_is_shown() -> None:
    """A metric that neither the dashboard nor an alert has is one that nobody sees."""
    asked = {re.sub(r"_(total|bucket|sum|count)$", "", name) for name in set().union(*map(named, expressions()))}
    counted = {re.sub(r"_(total|bucket|sum|count|created)$", "", name) for name in series()}
    assert counted - asked == set()


def test_the_labels_that_are_asked_for_exist() -> None:
    """Prometheus adds namespace, pod and job."""
    known = series()
    for expression in expressions():
        for name, selector in re.findall(r"\b(lm_\w+)\{([^}]*)\}", expression):
            labels = set(re.findall(r"(\w+)(?==~?\")", selector)) - {"namespace", "pod", "job"}
            assert labels <= known[name], (name, labels)


def test_parentheses_are_closed() -> None:
    for expression in expressions():
        assert expression.count("(") == expression.count(")"), expression


def test_the_runbook_has_every_alert() -> None:
    headings = re.findall(r"^## (Lm\w+)$", (FOLDER / "README.md").read_text(), re.MULTILINE)
    assert headings == [rule["alert"] for rule in alerts()]
    cases = yaml.safe_load((ROOT / "tests/launch/alerts_cases.yaml").read_text())
    tried = {each["alertname"] for test in cases["tests"] for each in test["alert_rule_test"] if each["exp_alerts"]}
    assert tried == set(headings)


def test_the_schema_of_the_alerts_can_refuse() -> None:
    rule = alerts()[0]
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({**rule, "exprr": ""}, RULE)
