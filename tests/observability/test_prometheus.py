"""Every query of every panel and rule, put to Debian's prometheus while it scrapes a real cluster under load."""

import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from observability.binaries import require
from observability.expressions import Expression, panel_expressions, rule_expressions
from observability.load import NUM_BLOCKS, drive
from observability.prometheus_server import PrometheusServer, Series

from icarus.config import MetricsSection, TransferSection, WorkerSection

MAY_BE_EMPTY = tomllib.loads((Path(__file__).parent / "may_be_empty.toml").read_text())
RANGES = {"__rate_interval": "5s", "__range": "60s", "model": ".*", "instance": ".*"}
"""What Grafana would put in place of its variables, with everything chosen."""
EVERYTHING = [expression.with_variables(**RANGES) for expression in (*panel_expressions(), *rule_expressions())]


@pytest.fixture(scope="module")
def server(make_system, tmp_path_factory) -> Iterator[PrometheusServer]:
    require("prometheus")  # before a cluster is started for nothing
    settings = {
        "metrics": MetricsSection(address="127.0.0.1:0"),
        "worker": WorkerSection(test_hooks=True),
        "transfer": TransferSection(read_timeout_seconds=1.0),
    }
    with make_system(num_blocks=NUM_BLOCKS, **settings) as system:
        at = system.metrics
        targets = {
            "gateway": [at["gateway"]],
            "prefill": [at["prefill-0"]],
            "decode": [at["decode-0"], at["decode-1"]],
        }
        with PrometheusServer(tmp_path_factory.mktemp("prometheus"), targets) as server:
            drive(system, server)
            yield server


@pytest.fixture(scope="module")
def answers(server) -> dict[str, list[Series]]:
    """Series by what asked for them."""
    return {expression.where: server.series(expression.text) for expression in EVERYTHING}


def says_something(expression: Expression, series: list[Series]) -> bool:
    """An alert's samples count whatever their value: `up == 0` gives zeros."""
    return any(one.values if expression.is_alert else one.is_non_zero for one in series)


def test_every_expression_says_something(answers):
    silent = {e.where for e in EVERYTHING if not says_something(e, answers[e.where])}
    never, sometimes = set(MAY_BE_EMPTY["never"]), set(MAY_BE_EMPTY["sometimes"])
    unexplained, wrongly_explained = silent - never - sometimes, never - silent
    assert not unexplained, "no non-zero sample, and may_be_empty.toml does not say why"
    assert not wrongly_explained, "has samples, or is no panel or rule: it does not belong in may_be_empty.toml"
    assert not sometimes - answers.keys(), "may_be_empty.toml names what is no panel or rule"


def test_every_selector_finds_series(server):
    """So that what an alert looks for is there to be found, even if it is zero: a wrong label would be silence."""
    wanted = {str(selector) for expression in EVERYTHING for selector in expression.selectors}
    not_found = [selector for selector in sorted(wanted) if not server.series(selector)]
    assert not not_found


def test_legends_name_labels_that_are_there(answers):
    missing = {
        f"{expression.where}: {label}"
        for expression in EVERYTHING
        for series in answers[expression.where]
        for label in expression.legend_labels - series.labels.keys()
    }
    assert not missing
