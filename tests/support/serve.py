"""Run `aibridge serve` with real workers, in a folder of its own."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Unpack

import httpx
import psutil  # type: ignore[import-untyped]

from tests.support import ready
from tests.support.mitmdump import Mitmdump
from tests.support.polling import poll_until
from tests.support.running import ProxyOptions, arguments_for

AIBRIDGE = Path(sys.executable).with_name("aibridge")
WORKERS = 2
STARTED_WITHIN = 120.0

_SERIES = re.compile(r"^aibridge_(?P<name>\w+)\{(?P<labels>[^}]*)\} (?P<value>\S+)$", re.MULTILINE)


class Serve(Mitmdump):
    """Its configuration has to name a port for metrics: they say which worker does what."""

    def __init__(
        self, folder: Path, *, workers: int = WORKERS, event_loop: str = "auto", **options: Unpack[ProxyOptions]
    ) -> None:
        super().__init__(folder, **options)
        self.number_of_workers = workers
        self.event_loop = event_loop

    def _command(self, config: str | None) -> list[str]:
        options: ProxyOptions = {**self._options, "config": config}
        own = ["--workers", str(self.number_of_workers), "--event-loop", self.event_loop]
        given = arguments_for(self.folder, self.confdir, options)
        return [str(AIBRIDGE), "serve", *own, *given, "-s", str(ready.__file__), *options.get("arguments", ())]

    def _maybe_ports(self) -> list[int]:
        found = super()._maybe_ports()
        return found if self.log.count(ready.SIGN) >= self.number_of_workers else []

    @property
    def workers(self) -> list[psutil.Process]:
        """Their processes, the oldest first."""
        found = [child for child in psutil.Process(self.pid).children() if child.status() != psutil.STATUS_ZOMBIE]
        return sorted(found, key=psutil.Process.create_time)

    def series(self, metrics: str, name: str) -> Mapping[str, float]:
        """Return the sum of a metric's series for each worker."""
        page = httpx.get(f"{metrics}/metrics", trust_env=False).text
        sums: dict[str, float] = {}
        for found in _SERIES.finditer(page):
            if found["name"] == name and (worker := re.search(r'worker="(\d+)"', found["labels"])):
                sums[worker[1]] = sums.get(worker[1], 0.0) + float(found["value"])
        return sums

    def wait_until_all_serve(self, metrics: str) -> None:
        def do() -> bool:
            return list(self.series(metrics, "worker_up").values()) == [1.0] * self.number_of_workers

        poll_until(do, STARTED_WITHIN, what="all workers are up")
