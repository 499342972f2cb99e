"""Debian's prometheus over a running cluster, with the committed configuration."""

import json
import math
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import yaml
from observability.binaries import require
from observability.expressions import PROMETHEUS
from ports import free_address

SCRAPE_SECONDS = 0.5
_PATIENCE_SECONDS = 30.0


@dataclass(frozen=True)
class Series:
    """A series of an answer: its labels and the values that are numbers."""

    labels: Mapping[str, str]
    values: Sequence[float]

    @property
    def is_non_zero(self) -> bool:
        return any(self.values)


class PrometheusServer:
    """Runs from entering to leaving; data and logs are in `folder`."""

    def __init__(self, folder: Path, targets: Mapping[str, Sequence[str]]):
        """`targets`: addresses by job, in place of those of the committed configuration."""
        self._address = free_address()
        self._folder = folder
        self._started = time.time()
        (folder / "prometheus.yml").write_text(yaml.safe_dump(_configuration(targets)))

    def __enter__(self) -> Self:
        command = [
            require("prometheus"),
            f"--config.file={self._folder / 'prometheus.yml'}",
            f"--storage.tsdb.path={self._folder / 'data'}",
            f"--web.listen-address={self._address}",
            "--log.level=warn",
        ]
        with (self._folder / "prometheus.log").open("wb") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log)
        deadline = time.monotonic() + _PATIENCE_SECONDS
        while not self._is_ready():
            assert self._process.poll() is None and time.monotonic() < deadline, self._log()
            time.sleep(0.1)
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._process.terminate()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def series(self, expression: str) -> list[Series]:
        """What the expression gave at any moment since the server started, a scrape at a time."""
        answer = self._get("query_range", query=expression, start=self._started, end=time.time(), step=SCRAPE_SECONDS)
        return [
            Series(series["metric"], [v for _, text in series["values"] if not math.isnan(v := float(text))])
            for series in answer["data"]["result"]
        ]

    def wait_for(self, expression: str) -> None:
        """Until the expression gives a sample."""
        deadline = time.monotonic() + _PATIENCE_SECONDS
        while not self._get("query", query=expression)["data"]["result"]:
            assert time.monotonic() < deadline, f"never came true: {expression}"
            time.sleep(SCRAPE_SECONDS / 5)

    def wait_for_scrape(self) -> None:
        """Until each process has been scraped, and the rules have been evaluated over that."""
        scraped = time.time()
        self.wait_for(f"min(timestamp(up)) > {scraped + SCRAPE_SECONDS}")

    def _get(self, what: str, **parameters: object) -> dict:
        url = f"http://{self._address}/api/v1/{what}?{urllib.parse.urlencode(parameters)}"
        try:
            with urllib.request.urlopen(url, timeout=20) as answer:
                return json.load(answer)
        except urllib.error.HTTPError as error:
            raise AssertionError(f"{parameters}: {error.read().decode()}") from None

    def _is_ready(self) -> bool:
        try:
            with urllib.request.urlopen(f"http://{self._address}/-/ready", timeout=5):
                return True
        except (urllib.error.URLError, ConnectionError):
            return False

    def _log(self) -> str:
        return (self._folder / "prometheus.log").read_text()


def _configuration(targets: Mapping[str, Sequence[str]]) -> dict:
    """The committed one, with these targets, faster."""
    configuration = yaml.safe_load((PROMETHEUS / "prometheus.yml").read_text())
    interval = f"{int(SCRAPE_SECONDS * 1000)}ms"
    configuration["global"] = dict.fromkeys(configuration["global"], interval)
    configuration["rule_files"] = [str(PROMETHEUS / pattern) for pattern in configuration["rule_files"]]
    assert {job["job_name"] for job in configuration["scrape_configs"]} == set(targets)
    for job in configuration["scrape_configs"]:
        job["static_configs"] = [{"targets": list(targets[job["job_name"]])}]
    return configuration
