"""What came out, as a table or as JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field

HEADINGS = ("", "bare", "ours", "ours/bare", "bar", "", "")


@dataclass(frozen=True)
class Result:
    name: str
    unit: str
    ours: float
    bare: float | None = None
    ratio: float | None = None
    bar: float | None = None
    """Maximum of the ratio if there is one, else of our own value. None: reported without a limit."""
    detail: str = ""
    values: Mapping[str, float | list[float]] = field(default_factory=dict)
    """Further numbers, by name: for the model of a fleet, and for plots."""

    @property
    def passed(self) -> bool | None:
        if self.bar is None:
            return None
        return (self.ours if self.ratio is None else self.ratio) <= self.bar


def as_json(results: Sequence[Result]) -> str:
    return json.dumps([asdict(result) | {"passed": result.passed} for result in results], indent=2)


def as_table(results: Sequence[Result]) -> str:
    rows = [HEADINGS, *map(_cells, results)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(HEADINGS))]
    return "\n".join(_line(row, widths) for row in rows)


def _line(row: Sequence[str], widths: Sequence[int]) -> str:
    first, *numbers, verdict, detail = row
    cells = [first.ljust(widths[0]), *(n.rjust(w) for n, w in zip(numbers, widths[1:], strict=False))]
    return "  ".join((*cells, verdict.ljust(widths[-2]), detail)).rstrip()


def _cells(result: Result) -> tuple[str, ...]:
    digits = 2 if result.unit in ("ms", "MB") else 1 if result.unit else 0
    verdict = {None: "", True: "pass", False: "FAIL"}[result.passed]
    return (
        f"{result.name} ({result.unit})" if result.unit else result.name,
        "" if result.bare is None else f"{result.bare:.{digits}f}",
        f"{result.ours:.{digits}f}",
        "" if result.ratio is None else f"{result.ratio:.3f}",
        "" if result.bar is None else f"≤ {result.bar:.{2 if result.ratio is not None else 0}f}",
        verdict,
        result.detail,
    )
