"""A real Prometheus that scrapes as `deploy/prometheus.yml` says, but sooner; and promtool."""

from __future__ import annotations

import json
import os
import subprocess
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from tests.support.cli import REPOSITORY, until
from tests.support.patience import LONG
from tests.support.tools import program

__all__ = ["DEPLOY", "Prometheus", "promtool", "scraping"]

DEPLOY = REPOSITORY / "deploy"

PACKAGE = "apt-get install --no-install-recommends prometheus"


def promtool(*words: str | Path, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    """promtool's output; its exit code tells whether it is content."""
    return subprocess.run([program("promtool", PACKAGE), *map(str, words)], input=stdin, capture_output=True, timeout=LONG)


class Prometheus:
    """One that runs."""

    def __init__(self, port: int) -> None:
        self._url = f"http://127.0.0.1:{port}"

    def get(self, path: str, **words: str | float) -> Any:
        """The `data` of an API call."""
        with urllib.request.urlopen(f"{self._url}{path}?{urllib.parse.urlencode(words)}", timeout=LONG) as reply:
            return json.load(reply)["data"]

    def ready(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self._url}/-/ready", timeout=LONG) as reply:
                return bool(reply.status == 200)
        except OSError:
            return False

    def series(self, expression: str, seconds: float = LONG) -> list[dict[str, Any]]:
        """An expression's values over the last seconds."""
        now = time.time()
        found = self.get("/api/v1/query_range", query=expression, start=now - seconds, end=now, step=1)["result"]
        assert isinstance(found, list)
        return found

    def value(self, expression: str) -> float:
        """The only value of an expression, now; none is there after a scrape that took too long."""
        [found] = until(lambda: self.get("/api/v1/query", query=expression)["result"])
        return float(found["value"][1])

    def targets(self) -> dict[str, str]:
        """Address -> health of the target."""
        found = self.get("/api/v1/targets")["activeTargets"]
        return {target["labels"]["instance"]: target["health"] for target in found}


@contextmanager
def scraping(discovery: str, folder: Path) -> Iterator[Prometheus]:
    """A Prometheus with the deployed configuration, which asks `discovery` for its targets; gone at the end."""
    config = yaml.safe_load((DEPLOY / "prometheus.yml").read_text())
    config["global"] = {"scrape_interval": "500ms", "scrape_timeout": "500ms", "evaluation_interval": "1s"}
    config["rule_files"] = [str(DEPLOY / name) for name in config["rule_files"]]
    config["scrape_configs"][0]["http_sd_configs"] = [{"url": discovery, "refresh_interval": "1s"}]
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
    with (folder / "prometheus.log").open("wb") as log:
        process = subprocess.Popen(
            [
                program("prometheus", PACKAGE),
                f"--config.file={folder / 'prometheus.yml'}",
                f"--storage.tsdb.path={folder / 'data'}",
                "--web.listen-address=127.0.0.1:0",
            ],
            stdout=log,
            stderr=log,
            env={**os.environ, "NO_PROXY": "*"},
        )
    try:
        prometheus = Prometheus(until(lambda: _port(folder / "prometheus.log")))
        until(prometheus.ready)
        yield prometheus
    finally:
        process.terminate()
        process.wait(LONG)


def _port(log: Path) -> int | None:
    """The port it says it listens on."""
    for line in log.read_text().splitlines():
        if "Listening on" in line:
            return int(line.rpartition("address=")[2].rpartition(":")[2])
    return None
