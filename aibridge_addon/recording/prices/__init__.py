"""Prices that `genai-prices` does not have, as data: one TOML file for each vendor, every figure with source and date.

A file may contain:

- `[standard]`: the values of each circumstance that mean the standard price.
- `[[rates]]`: US dollars for a million tokens of `models`, under the circumstances of `when`.
- `[[factor]]`: a factor on the price of every token, under the circumstances of `when`.
- `[[fee]]`: what one use of a hosted tool costs: `each` in US dollars, or `listed`, the unit's name in `genai-prices`.
- `[[lifetime]]`: a factor on the price of a token that is written to a cache for longer.
- `[[long_context]]`: factors for requests with more input tokens than `above`; without factors: no price for them.
- `[[unlisted]]`: models whose price in `genai-prices` is not this vendor's.
- `[[always]]`: models that use a hosted tool for every request, with whatever vendor.
- `[[pictures]]`: models whose output is pictures, except for what the answer counts as text.
- `[absent]`: what a missing price means.

What is neither here nor in `genai-prices` has no price.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import date, datetime
from decimal import Decimal
from functools import lru_cache
from importlib.metadata import version
from importlib.resources import files
from types import MappingProxyType
from typing import Any

DATE = date(2026, 11, 28)
"""The day on which these files were last compared with their sources."""

UNITS = frozenset(
    """input output cache_read cache_write cache_write_1h input_audio output_audio cache_audio_read
    input_image output_image cache_image_read input_video""".split()  # noqa: SIM905 (a list of words reads better)
)
"""Kinds of tokens that have a price of their own."""


@dataclass(frozen=True, slots=True)
class Entry:
    """What every entry says: for which models, under which circumstances, from when to when, and who says so."""

    models: frozenset[str]
    """Names in lower case without a date; empty: all."""
    when: Mapping[str, str]
    since: date | None
    until: date | None
    """The first day on which it no longer holds."""
    source: str
    read: date
    """The day on which the source said so."""

    def holds(self, names: tuple[str, ...], moment: datetime) -> bool:
        day = moment.date()
        return (
            (not self.models or not self.models.isdisjoint(names))
            and (self.since is None or day >= self.since)
            and (self.until is None or day < self.until)
        )


@dataclass(frozen=True, slots=True)
class Rates(Entry):
    units: Mapping[str, Decimal]
    """US dollars for a million tokens."""
    above: tuple[tuple[int, Mapping[str, Decimal]], ...]
    """The rates of all tokens of a request with more input tokens than this."""


@dataclass(frozen=True, slots=True)
class Factor(Entry):
    factor: Decimal


@dataclass(frozen=True, slots=True)
class Fee(Entry):
    tools: frozenset[str]
    each: Decimal | None
    listed: str | None


@dataclass(frozen=True, slots=True)
class Lifetime(Entry):
    """What writing to a cache for longer costs, as a factor on the price of an ordinary write."""

    lifetime: str
    factor: Decimal


@dataclass(frozen=True, slots=True)
class LongContext(Entry):
    """What the list does not say of requests with more input tokens than `above`."""

    above: int
    input: Decimal | None
    """Factor on input and cached tokens; None: such requests have no known price."""
    output: Decimal | None


@dataclass(frozen=True, slots=True)
class Supplement:
    """What one vendor's file says."""

    standard: Mapping[str, frozenset[str]]
    also: tuple[str, ...]
    """Vendors whose standard prices hold here, too, for models that this vendor's list lacks."""
    as_input: frozenset[str]
    """Units that cost what input costs where a model has no price of its own for them."""
    as_output: frozenset[str]
    tools_counted: bool
    """Whether `usage` counts every use of a hosted tool, so that no count means no use."""
    groups: Mapping[str, frozenset[str]]
    """Names for sets of names, such as regions."""
    rates: tuple[Rates, ...]
    factors: tuple[Factor, ...]
    fees: tuple[Fee, ...]
    lifetimes: tuple[Lifetime, ...]
    long_contexts: tuple[LongContext, ...]
    unlisted: frozenset[str]
    always: Mapping[str, frozenset[str]]
    """Hosted tools that a model uses whether they are asked for or not."""
    pictures: frozenset[str]
    """Models whose output is pictures. Where the list has one price of output only, it is that of pictures."""


STANDARD = MappingProxyType({"service_tier": frozenset({"default", "standard"}), "cache_lifetime": frozenset({"5m"})})
"""Values that mean the standard price where a vendor's file does not say which do."""


@lru_cache(maxsize=1)
def price_list() -> str:
    """Return the version of the price list: of the library, and of the files here."""
    return f"genai-prices {version('genai-prices')} + aibridge {DATE.isoformat()}"


@lru_cache(maxsize=1)
def vendors() -> frozenset[str]:
    """Return the vendors that have a file here."""
    return frozenset(found.name.removesuffix(".toml") for found in files(__name__).iterdir() if ".toml" in found.name)


@lru_cache(maxsize=1)
def always() -> Mapping[str, frozenset[str]]:
    """Return the hosted tools that models use unasked. They do so with every vendor."""
    return MappingProxyType(
        {model: tools for vendor in vendors() for model, tools in supplement(vendor).always.items()}
    )


@lru_cache(maxsize=64)
def supplement(vendor: str) -> Supplement:
    """Return what a vendor's file says; one without a file has standard prices only."""
    content: dict[str, Any] = {}
    if vendor in vendors():
        content = tomllib.loads(files(__name__).joinpath(f"{vendor}.toml").read_text(), parse_float=Decimal)
    absent = content.get("absent", {})
    return Supplement(
        standard=MappingProxyType(
            dict(STANDARD) | {name: frozenset(values) for name, values in content.get("standard", {}).items()}
        ),
        also=tuple(absent.get("model", ())),
        as_input=frozenset(absent.get("as_input", ())),
        as_output=frozenset(absent.get("as_output", ())),
        tools_counted=bool(absent.get("tool_counts_are_zero", False)),
        groups=MappingProxyType({name: frozenset(names) for name, names in content.get("group", {}).items()}),
        rates=tuple(_rates(raw) for raw in content.get("rates", ())),
        factors=tuple(
            Factor(**_entry(one), factor=Decimal(raw["factor"]))
            for raw in content.get("factor", ())
            for one in _each_value(raw)
        ),
        fees=tuple(_fee(raw) for raw in content.get("fee", ())),
        lifetimes=tuple(
            Lifetime(**_entry(raw), lifetime=raw["lifetime"], factor=Decimal(raw["factor"]))
            for raw in content.get("lifetime", ())
        ),
        long_contexts=tuple(_long_context(raw) for raw in content.get("long_context", ())),
        unlisted=frozenset(name for raw in content.get("unlisted", ()) for name in raw["models"]),
        always=MappingProxyType(
            {model: frozenset(raw["tools"]) for raw in content.get("always", ()) for model in raw["models"]}
        ),
        pictures=frozenset(name for raw in content.get("pictures", ()) for name in raw["models"]),
    )


def _each_value(raw: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """Yield an entry for each value of its circumstance: `{ region = ["eu", "us"] }` stands for two."""
    ((name, values),) = raw["when"].items()
    for value in [values] if isinstance(values, str) else values:
        yield {**raw, "when": {name: value}}


def _entry(raw: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "models": frozenset(raw.get("models", ())),
        "when": MappingProxyType(raw.get("when", {})),
        "since": raw.get("since"),
        "until": raw.get("until"),
        "source": raw["source"],
        "read": raw["date"],
    }


def _rates(raw: Mapping[str, Any]) -> Rates:
    above = tuple(sorted((int(start), _units(rates)) for start, rates in raw.get("above", {}).items()))
    return Rates(**_entry(raw), units=_units(raw), above=above)


def _units(raw: Mapping[str, Any]) -> Mapping[str, Decimal]:
    return MappingProxyType({name: Decimal(value) for name, value in raw.items() if name in UNITS})


def _long_context(raw: Mapping[str, Any]) -> LongContext:
    return LongContext(**_entry(raw), above=raw["above"], input=_decimal(raw, "input"), output=_decimal(raw, "output"))


def _decimal(raw: Mapping[str, Any], name: str) -> Decimal | None:
    return Decimal(raw[name]) if name in raw else None


def _fee(raw: Mapping[str, Any]) -> Fee:
    return Fee(**_entry(raw), tools=frozenset(raw["tools"]), each=_decimal(raw, "each"), listed=raw.get("listed"))
