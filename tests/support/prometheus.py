"""A private Prometheus server that scrapes one address, from Debian's package `prometheus`."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support.polling import poll_until
from tests.support.upstream import unused_port

MISSING = "Prometheus is not installed. On Debian: apt-get install --no-install-recommends prometheus"
Sample = tuple[dict[str, str], float]


def program(name: str) -> str:
    """Return the path of `prometheus` or `promtool`. Without it, skip the test, or fail it in CI."""
    found = shutil.which(name)
    if found is None:
        if os.environ.get("CI"):
            pytest.fail(MISSING, pytrace=False)
        pytest.skip(MISSING)
    return found


class Prometheus:
    def __init__(self, port: int) -> None:
        self._url = f"http://127.0.0.1:{port}"

    def answers(self) -> bool:
        try:
            return httpx.get(f"{self._url}/-/ready", trust_env=False).status_code == 200
        except httpx.TransportError:
            return False

    def query(self, expression: str) -> list[Sample]:
        """Evaluate an expression now. A division by zero is no number, and left out."""
        answer = httpx.get(f"{self._url}/api/v1/query", params={"query": expression}, trust_env=False, timeout=30)
        body: dict[str, Any] = answer.json()
        assert body["status"] == "success", (expression, body)
        samples = [(sample["metric"], float(sample["value"][1])) for sample in body["data"]["result"]]
        return [(labels, value) for labels, value in samples if value == value]


@contextmanager
def running_prometheus(folder: Path, target: str) -> Iterator[Prometheus]:
    """Scrape `target`, a host and a port, five times a second."""
    folder.mkdir(exist_ok=True)
    config = folder / "prometheus.yml"
    config.write_text(
        "global: {scrape_interval: 200ms, scrape_timeout: 200ms}\n"
        f"scrape_configs: [{{job_name: aibridge, static_configs: [{{targets: ['{target}']}}]}}]\n"
    )
    port = unused_port()
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [
                *("setpriv", "--pdeathsig", "KILL", program("prometheus")),
                *(f"--config.file={config}", f"--storage.tsdb.path={folder / 'data'}"),
                f"--web.listen-address=127.0.0.1:{port}",
            ],
            stdout=log,
            stderr=log,
        )
    server = Prometheus(port)
    try:
        poll_until(server.answers, 60, what="a Prometheus server that is ready")
        yield server
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(30)
