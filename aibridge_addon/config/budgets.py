"""The `budgets` section, and the groups of actors that budgets may refer to."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, timedelta, tzinfo
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, Literal
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pydantic import AfterValidator, BeforeValidator, Field, PlainValidator, model_validator

from aibridge_addon.config import values
from aibridge_addon.config.errors import rejected
from aibridge_addon.config.urls import expect_text
from aibridge_addon.config.values import Section

Per = Literal["actor", "group", "provider", "model", "all"]
Period = Literal["day", "week", "month"]
Unit = Literal["usd", "tokens", "requests"]

UNITS: tuple[Unit, ...] = ("usd", "tokens", "requests")
LONGEST_PERIOD: Mapping[Period, timedelta] = MappingProxyType(
    {"day": timedelta(days=2), "week": timedelta(days=8), "month": timedelta(days=32)}
)
"""Whole days that contain each period, also if the clock is put back in it."""
MAX_BUDGETS = 1000
MAX_PATTERN = 256
"""Characters, as many as an actor's id may have."""
MAX_LIMIT = 10**15


def _parse_zone(value: object) -> tzinfo:
    expected = "a time zone of the IANA database, such as UTC or Europe/Berlin"
    if isinstance(value, tzinfo):
        return value
    name = expect_text(value, expected)
    if name == "UTC":  # there are systems without the database
        return UTC
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        raise rejected(expected) from None


def _budget_name(name: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", name):
        raise rejected("a name of up to 64 letters, digits, dots, dashes and underscores")
    return name


def _pattern(text: str) -> str:
    if not 0 < len(text) <= MAX_PATTERN:
        raise rejected(f"a pattern of 1 to {MAX_PATTERN} characters, in which * stands for any text")
    return text


def _one_or_many(value: object) -> object:
    return (value,) if isinstance(value, str) else () if value is None else value


Zone = Annotated[tzinfo, PlainValidator(_parse_zone)]
Patterns = Annotated[tuple[Annotated[str, AfterValidator(_pattern)], ...], BeforeValidator(_one_or_many)]
Amount = Annotated[float, BeforeValidator(values.not_boolean), Field(gt=0, le=MAX_LIMIT, allow_inf_nan=False)]
Count = Annotated[values.Whole, Field(gt=0, le=MAX_LIMIT)]
Ratio = Annotated[float, BeforeValidator(values.not_boolean), Field(gt=0, le=1, allow_inf_nan=False)]


class Match(Section):
    """What a budget applies to. Patterns are those of a shell. An empty list matches everything."""

    actors: Patterns = ()
    groups: Patterns = ()
    providers: Patterns = ()
    models: Patterns = ()


class Budget(Section):
    name: Annotated[str, AfterValidator(_budget_name)]
    per: Per
    match: Annotated[Match, values.NullIsEmpty] = Match()
    period: Period
    timezone: Zone = UTC
    usd: Amount | None = None
    tokens: Count | None = None
    requests: Count | None = None
    warn_at: Ratio = 0.85
    over: Literal["refuse", "warn"] = "refuse"
    unpriced: Literal["warn", "refuse", "ignore"] = "warn"

    @model_validator(mode="after")
    def _one_limit(self) -> Budget:
        given = [unit for unit in UNITS if getattr(self, unit) is not None]
        if len(given) != 1:
            found = f"{' and '.join(given)}" if given else "no limit"
            at = (given[1],) if given else ("usd",)
            raise rejected("exactly one of usd, tokens, requests", found=found, at=at)
        return self

    @cached_property
    def unit(self) -> Unit:
        return next(unit for unit in UNITS if getattr(self, unit) is not None)

    @cached_property
    def limit(self) -> float:
        limit: float = getattr(self, self.unit)
        return limit


def unique_budgets(budgets: tuple[Budget, ...]) -> tuple[Budget, ...]:
    """Check that no two budgets have the same name."""
    if len(budgets) > MAX_BUDGETS:
        raise rejected(f"at most {MAX_BUDGETS} budgets", found=f"{len(budgets)} budgets")
    seen: set[str] = set()
    for number, budget in enumerate(budgets):
        if budget.name in seen:
            raise rejected("a name that no other budget has", shown=f'"{budget.name}"', at=(number, "name"))
        seen.add(budget.name)
    return budgets


class Groups(Section):
    """Groups of actors: patterns by name, a header that a front proxy sets, or a file with patterns by name."""

    header: values.OptionalHeaderName = None
    file: values.OptionalPath = None
    # The location in errors leaves out a part in angle brackets, because the key is not in the file.
    patterns: Mapping[values.Line, Patterns] = Field(default_factory=dict, alias="<name>")

    @model_validator(mode="before")
    @classmethod
    def _sort_out(cls, data: Any) -> Any:
        """Separate the two options from the groups. A group's value is a list."""
        if not isinstance(data, dict) or "<name>" in data:
            return data
        options = {key: value for key in ("header", "file") if isinstance(value := data.get(key), str | Path)}
        return {**options, "<name>": {key: item for key, item in data.items() if key not in options}}
