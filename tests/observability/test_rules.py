"""What can be said of dashboards and rules without a server."""

import re
import subprocess
from pathlib import Path

import yaml
from observability.binaries import require
from observability.expressions import (
    PROMETHEUS,
    ROOT,
    dashboards,
    panel_expressions,
    panels,
    recorded_names,
    rule_expressions,
)

from icarus.rpc.loop_collector import TIMEOUT_SECONDS

CONFIGURATION = yaml.safe_load((PROMETHEUS / "prometheus.yml").read_text())
UNIT_TESTS = Path(__file__).parent / "alerts_test.yml"
EVERYTHING = [*panel_expressions(), *rule_expressions()]
DOCUMENTED = re.compile(r"^\| `(icarus_\w+)` \| (\w+) \|([^|]*)\|", re.MULTILINE)
FROM_PROMETHEUS = {"job", "instance"}


def documented() -> dict[str, set[str]]:
    """Labels by the name of each series that docs/metrics.md says there is."""
    series = {"up": FROM_PROMETHEUS} | dict.fromkeys(recorded_names(), FROM_PROMETHEUS)
    for name, kind, labels in DOCUMENTED.findall((ROOT / "docs" / "metrics.md").read_text()):
        known = FROM_PROMETHEUS | set(re.findall(r"`(\w+)`", labels))
        if kind == "histogram":
            series |= {f"{name}_bucket": known | {"le"}, f"{name}_sum": known, f"{name}_count": known}
        else:
            series[name] = known
    return series


def promtool(*arguments: object) -> None:
    command = [require("promtool"), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_promtool_accepts_configuration_and_rules():
    promtool("check", "config", PROMETHEUS / "prometheus.yml")


def test_alerts_fire_when_they_should():
    promtool("test", "rules", UNIT_TESTS)


def test_a_scrape_outlasts_a_hung_event_loop():
    """Or a gateway whose loop hangs would be up and down by turns, and neither alert would fire."""
    (interval,) = re.fullmatch(r"(\d+)s", CONFIGURATION["global"]["scrape_interval"]).groups()
    assert int(interval) > TIMEOUT_SECONDS + 1


def test_every_alert_is_tested_both_ways():
    firing, quiet = set(), set()
    for test in yaml.safe_load(UNIT_TESTS.read_text())["tests"]:
        for case in test.get("alert_rule_test", []):
            (firing if case["exp_alerts"] else quiet).add(case["alertname"])
    alerts = {rule.where for rule in rule_expressions() if rule.is_alert}
    assert firing == alerts
    assert quiet == alerts


def test_metrics_and_labels_are_documented():
    known = documented()
    unknown = [
        f"{expression.where}: {selector}"
        for expression in EVERYTHING
        for selector in expression.selectors
        if selector.metric not in known or not selector.labels <= known[selector.metric]
    ]
    assert not unknown, "docs/metrics.md has no such metric, or not with these labels"
    assert all(expression.selectors for expression in EVERYTHING)


def test_variables_offer_values_of_documented_labels():
    known = documented()
    for dashboard in dashboards():
        for variable in dashboard["templating"]["list"]:
            metric, label = re.fullmatch(r"label_values\((\w+), (\w+)\)", variable["query"]["query"]).groups()
            assert label in known[metric]


def test_every_panel_explains_itself():
    for dashboard in dashboards():
        ids = [panel["id"] for panel in dashboard["panels"]]
        assert len(set(ids)) == len(ids)
        for panel in panels(dashboard):
            assert panel["title"] and panel["description"].endswith("."), panel["title"]
            assert panel["fieldConfig"]["defaults"]["unit"], panel["title"]
            assert all(target["legendFormat"] for target in panel["targets"]), panel["title"]
    places = [expression.where for expression in EVERYTHING]
    assert len(set(places)) == len(places)


def test_panels_name_the_provisioned_source():
    sources = yaml.safe_load((ROOT / "deploy/grafana/provisioning/datasources/prometheus.yaml").read_text())
    (uid,) = (source["uid"] for source in sources["datasources"])
    for dashboard in dashboards():
        for panel in panels(dashboard):
            assert {panel["datasource"]["uid"], *(target["datasource"]["uid"] for target in panel["targets"])} == {uid}
