"""Every PromQL expression that the repository ships: panels of the committed dashboards, rules of the rule files."""

import json
import re
from dataclasses import dataclass
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[2]
PROMETHEUS = ROOT / "deploy" / "prometheus"
DASHBOARDS = ROOT / "deploy" / "grafana" / "provisioning" / "dashboards" / "icarus"

_SELECTOR = re.compile(r"\b((?:icarus[_:]|up\b)[\w:]*)\s*(\{[^}]*\})?")
_LEGEND_LABEL = re.compile(r"\{\{(\w+)\}\}")


@dataclass(frozen=True)
class Selector:
    """A metric and the matchers that stand behind it: `icarus_kv_blocks`, `{state="used"}`."""

    metric: str
    matchers: str

    @property
    def labels(self) -> set[str]:
        return set(re.findall(r"(\w+)\s*(?:=~|!~|!=|=)", self.matchers))

    def __str__(self) -> str:
        return self.metric + self.matchers


@dataclass(frozen=True)
class Expression:
    """`where` is unique: "dashboard: panel: legend", or the name of the rule."""

    where: str
    text: str
    legend: str = ""
    is_alert: bool = False

    @property
    def selectors(self) -> set[Selector]:
        return {Selector(metric, matchers) for metric, matchers in _SELECTOR.findall(self.text)}

    @property
    def legend_labels(self) -> set[str]:
        return set(_LEGEND_LABEL.findall(self.legend))

    def with_variables(self, **values: str) -> "Expression":
        """Grafana's `$name` replaced."""
        text = self.text
        for name, value in values.items():
            text = text.replace(f"${name}", value)
        return Expression(self.where, text, self.legend, self.is_alert)


def dashboards() -> list[dict]:
    return [json.loads(path.read_text()) for path in sorted(DASHBOARDS.glob("*.json"))]


def panels(dashboard: dict) -> list[dict]:
    """Those that show something."""
    return [panel for panel in dashboard["panels"] if panel["type"] != "row"]


def panel_expressions() -> list[Expression]:
    return [
        Expression(
            f"{dashboard['title']}: {panel['title']}: {target['legendFormat']}", target["expr"], target["legendFormat"]
        )
        for dashboard in dashboards()
        for panel in panels(dashboard)
        for target in panel["targets"]
    ]


def rule_expressions() -> list[Expression]:
    return [
        Expression(rule.get("record") or rule["alert"], rule["expr"], is_alert="alert" in rule)
        for path in sorted(PROMETHEUS.glob("rules/*.yml"))
        for group in yaml.safe_load(path.read_text())["groups"]
        for rule in group["rules"]
    ]


def recorded_names() -> set[str]:
    return {rule.where for rule in rule_expressions() if not rule.is_alert}
