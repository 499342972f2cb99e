"""A dashboard from its rows of panels."""

from collections.abc import Sequence
from dataclasses import dataclass

from grafana_foundation_sdk.builders import dashboard
from grafana_foundation_sdk.models import dashboard as models

from icarus_dashboards.panels import DATASOURCE, Panel

_TAG = "icarus"


@dataclass(frozen=True)
class Row:
    """Panels under a heading."""

    title: str
    panels: Sequence[Panel]


@dataclass(frozen=True)
class Choice:
    """A variable at the top of a page: values of a label, one, several or all."""

    label: str
    metric: str
    """Whose values of the label are offered."""


def page(uid: str, title: str, description: str, choice: Choice, rows: Sequence[Row]) -> models.Dashboard:
    """The dashboard with every panel numbered: Grafana finds a panel again by its id."""
    links = dashboard.DashboardLink("Icarus").type(models.DashboardLinkType.DASHBOARDS).tags([_TAG])
    builder = (
        dashboard.Dashboard(title)
        .uid(uid)
        .description(description)
        .tags([_TAG])
        .time("now-1h", "now")
        .refresh("10s")
        .tooltip(models.DashboardCursorSync.CROSSHAIR)
        .link(links.include_vars(True).keep_time(True))
        .with_variable(_variable(choice))
    )
    for row in rows:
        builder.with_row(dashboard.Row(row.title))
        for panel in row.panels:
            builder.with_panel(panel)
    built = builder.build()
    for number, panel in enumerate(built.panels or [], start=1):
        panel.id_val = number
    return built


def _variable(choice: Choice) -> dashboard.QueryVariable:
    return (
        dashboard.QueryVariable(choice.label)
        .label(choice.label.capitalize())
        .datasource(DATASOURCE)
        .query({"query": f"label_values({choice.metric}, {choice.label})", "refId": choice.label})
        .refresh(models.VariableRefresh.ON_TIME_RANGE_CHANGED)
        .sort(models.VariableSort.ALPHABETICAL_ASC)
        .multi(True)
        .include_all(True)
        .all_value(".*")
        .current(models.VariableOption(selected=True, text=["All"], value=["$__all"]))
    )
