"""A file with the results of each measure, and of which machine and load they are: documentation is made from it.

{"chunks": {"measured_at": "2026-11-29T18:00:00Z", "quick": false, "machine": {…}, "load": 0.1, "results": […]}, …}
"""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil  # type: ignore[import-untyped]
from mitmproxy import version

from benchmarks.report import Result

STORED = Path(__file__).with_name("results.json")
"""Those that the documentation shows."""


@dataclass(frozen=True)
class Machine:
    processor: str
    cores: int
    memory_gib: float
    system: str
    python: str
    mitmproxy: str

    def __str__(self) -> str:
        return (
            f"{self.cores} × {self.processor}, {self.memory_gib:.0f} GiB, {self.system}, Python {self.python}, "
            f"mitmproxy {self.mitmproxy}"
        )


@dataclass(frozen=True)
class Measured:
    """Results of one measure."""

    measured_at: str
    quick: bool
    machine: Machine
    load: float
    """The load average of the minute before, of which little is our own."""
    results: Sequence[Result]


def this_machine() -> Machine:
    return Machine(
        processor=_processor(),
        cores=os.cpu_count() or 1,
        memory_gib=psutil.virtual_memory().total / 2**30,
        system=f"{platform.system()} {platform.machine()}",
        python=platform.python_version(),
        mitmproxy=version.VERSION,
    )


def begin(*, quick: bool) -> Measured:
    """Return a frame for results that are measured from now on."""
    return Measured(
        datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"), quick, this_machine(), os.getloadavg()[0], results=()
    )


def read(path: Path = STORED) -> Mapping[str, Measured]:
    """Return the results by measure. Without a file there are none."""
    if not path.exists():
        return {}
    return {name: _measured(found) for name, found in json.loads(path.read_text()).items()}


def store(path: Path, measure: str, measured: Measured) -> None:
    """Replace the results of one measure, and leave the others."""
    whole = {**read(path), measure: measured}
    text = json.dumps({name: asdict(whole[name]) for name in sorted(whole)}, indent=1)
    path.write_text(text + "\n")


def _measured(found: Mapping[str, Any]) -> Measured:
    results = [Result(**result) for result in found["results"]]
    return Measured(**{**found, "machine": Machine(**found["machine"]), "results": results})


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())
