"""What every measure has at hand."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from benchmarks.measures import Plan
from benchmarks.proxies import Proxies
from benchmarks.upstream import Upstream


@dataclass(frozen=True)
class Stage:
    root: Path
    upstream: Upstream
    both: Proxies
    """Bare and ours, which have run since the start."""
    plan: Plan
    say: Callable[[str], None]

    def folder(self, name: str) -> Path:
        """Return a new folder for a measure's own processes."""
        folder = self.root / name
        folder.mkdir()
        return folder
