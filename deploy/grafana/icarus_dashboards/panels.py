"""The three kinds of panel that the dashboards are made of, and how one looks here.

A panel has a title, a description that a person on call understands, a unit, and queries with legends.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from grafana_foundation_sdk.builders import common, dashboard, prometheus, stat, table, timeseries
from grafana_foundation_sdk.cog.builder import Builder
from grafana_foundation_sdk.models import common as common_models
from grafana_foundation_sdk.models import dashboard as dashboard_models
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

DATASOURCE = dashboard_models.DataSourceRef(type_val="prometheus", uid="icarus-prometheus")
"""Its uid is fixed by `provisioning/datasources`."""
Panel = Builder[dashboard_models.Panel]

_WIDTHS = {"half": 12, "third": 8, "quarter": 6, "full": 24}
_LINES_HEIGHT = 8
_NUMBER_HEIGHT = 4


@dataclass(frozen=True)
class Query:
    """A PromQL expression and the name of each of its series."""

    expr: str
    legend: str


def quantiles(metric: str, selector: str = "", shown: Sequence[float] = (0.5, 0.95, 0.99)) -> tuple[Query, ...]:
    """Quantiles of a histogram; `selector` is what stands between the braces."""
    rate = f"sum by (le) (rate({metric}_bucket{{{selector}}}[$__rate_interval]))"
    return tuple(Query(f"histogram_quantile({q}, {rate})", f"P{q * 100:g}") for q in shown)


def lines(
    title: str, description: str, unit: str, *queries: Query, stacked: bool = False, width: str = "half"
) -> timeseries.Panel:
    """Values over time."""
    legend = common.VizLegendOptions().show_legend(True).calcs(["mean", "lastNotNull"])
    legend = legend.display_mode(common_models.LegendDisplayMode.TABLE)
    panel = (
        timeseries.Panel()
        .title(title)
        .description(description)
        .datasource(DATASOURCE)
        .unit(unit)
        .min(0)
        .span(_WIDTHS[width])
        .height(_LINES_HEIGHT)
        .legend(legend.placement(common_models.LegendPlacement.BOTTOM))
        .tooltip(common.VizTooltipOptions().mode(common_models.TooltipDisplayMode.MULTI))
        .show_points(common_models.VisibilityMode.NEVER)
        .fill_opacity(25 if stacked else 5)
    )
    if stacked:
        panel.stacking(common.StackingConfig().mode(common_models.StackingMode.NORMAL))
    for index, query in enumerate(queries):
        panel.with_target(_target(query, chr(ord("A") + index)).range())
    return panel


def number(title: str, description: str, unit: str, expr: str, *, width: str = "quarter") -> stat.Panel:
    """One figure for the whole range that is shown."""
    return (
        stat.Panel()
        .title(title)
        .description(description)
        .datasource(DATASOURCE)
        .unit(unit)
        .span(_WIDTHS[width])
        .height(_NUMBER_HEIGHT)
        .graph_mode(common_models.BigValueGraphMode.NONE)
        .color_scheme(dashboard.FieldColor().mode(dashboard_models.FieldColorModeId.FIXED).fixed_color("blue"))
        .reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]))
        .with_target(_target(Query(expr, title), "A").instant())
    )


def matrix(title: str, description: str, unit: str, expr: str, *, row: str, column: str) -> table.Panel:
    """A table with a row for each value of one label, and a column for each of another."""
    cells = common_models.TableColoredBackgroundCellOptions(mode=common_models.TableCellBackgroundDisplayMode.GRADIENT)
    query = _target(Query(expr, f"{{{{{row}}}}} to {{{{{column}}}}}"), "A")
    return (
        table.Panel()
        .title(title)
        .description(description)
        .datasource(DATASOURCE)
        .unit(unit)
        .span(_WIDTHS["full"])
        .height(_LINES_HEIGHT)
        .color_scheme(dashboard.FieldColor().mode(dashboard_models.FieldColorModeId.CONTINUOUS_BLUES))
        .cell_options(cells)
        .with_target(query.instant().format(PromQueryFormat.TABLE))
        .with_transformation(
            dashboard_models.DataTransformerConfig(
                id_val="groupingToMatrix",
                options={"rowField": row, "columnField": column, "valueField": "Value", "emptyValue": "zero"},
            )
        )
        .with_transformation(  # the name that the first column gets otherwise is `row\column`
            dashboard_models.DataTransformerConfig(
                id_val="organize", options={"renameByName": {f"{row}\\{column}": row.replace("_", " ")}}
            )
        )
    )


def _target(query: Query, ref_id: str) -> prometheus.Dataquery:
    return prometheus.Dataquery().ref_id(ref_id).expr(query.expr).legend_format(query.legend).datasource(DATASOURCE)
