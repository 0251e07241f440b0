"""Which entry of a price list a model's name stands for: the exact name or a dated form of it, never a beginning.

`genai-prices` matches many names by their beginning or by a part, so that `gpt-4o-audio-preview-x` gets the price of
`gpt-4o-audio-preview`. Here a match by beginning counts only where the rest of the name is a date or a version.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import lru_cache
from typing import NamedTuple

from genai_prices.data_snapshot import get_snapshot
from genai_prices.types import (
    ClauseAnd,
    ClauseContains,
    ClauseEndsWith,
    ClauseEquals,
    ClauseOr,
    ClauseRegex,
    ClauseStartsWith,
    MatchLogic,
    ModelInfo,
    Provider,
)

CACHED = 4096
"""Entries. Names of models come from clients, so every cache here is bounded."""
EXACT = 10_000
MAX_NAME = 256
"""Characters. No price list has a longer name."""

DATE = re.compile(r"[-@](?:20\d{6}|20\d\d-\d\d-\d\d)$")
_DATED = re.compile(
    r"(?:[-@]?(?:20\d{6}|20\d\d-\d\d-\d\d)|-latest)?"  # the vendor's date, or its name for the newest one
    r"(?:@default)?"  # Vertex's version
)
_BEDROCK_DATED = re.compile(_DATED.pattern + r"(?:-v\d+)?(?::\d+)?")
_GOOGLE_DATED = re.compile(r"-\d{3}|-\d\d-\d{4}|-\d\d-\d\d|-preview-\d\d-\d{4}|-preview-\d\d-\d\d")
_DATE_CUT_SHORT = re.compile(r"20\d{2,4}-?$")
"""A beginning that ends within a date, such as `claude-sonnet-4-2025`."""
_COLON_DATE = re.compile(r":20\d{6}(?:-v\d+)?$")
"""How OpenAI's answers date `gpt-3.5-turbo-instruct`: `:20230824-v2`."""
_COMPACT = re.compile(r"-(20\d\d)(\d\d)(\d\d)$")
_FINE_TUNED = re.compile(r"(?:\d\d-\d\d|\d{4}|\d{4}-\d\d-\d\d)?(?::[\w-]*){1,4}")
_GEOGRAPHY = r"(?:us|eu|apac|jp|au|ca|in|us-gov)\."
_BEFORE = re.compile(rf"(?:{_GEOGRAPHY})?(?:[a-z0-9-]+\.)?")
"""What may stand before a Bedrock model's own name: a geography and the maker."""


class Match(NamedTuple):
    model: ModelInfo
    provider: Provider
    name: str
    """The name without its date, in lower case."""


@lru_cache(maxsize=64)
def provider(vendor: str) -> Provider | None:
    """Return the vendor's price list; only its exact id counts."""
    return next((found for found in get_snapshot().providers if found.id == vendor), None)


@lru_cache(maxsize=CACHED)
def find(vendor: str, model: str) -> Match | None:
    """Return the list's entry for a model's name; None where no entry is for exactly this model."""
    prices = provider(vendor)
    if prices is None or not model or len(model) > MAX_NAME or not model.isprintable() or model != model.strip():
        return None
    for spelling in _spellings(vendor, model.lower()):
        best, found = 0, None
        for info in prices.models:
            if (how := _how(info.match, spelling, vendor)) > best:
                best, found = how, info
        if found:
            return Match(found, prices, undated(spelling))
    return None


def undated(name: str) -> str:
    """Return a model's name in lower case without the date at its end."""
    return DATE.sub("", name.lower())


def _spellings(vendor: str, name: str) -> Iterator[str]:
    """Yield the names under which a list may have a model: as it is, its date spelled otherwise, without a date."""
    if vendor == "google":
        name = name.removeprefix("models/").removeprefix("google/")
    if vendor == "openai":
        name = _COLON_DATE.sub("", name)
    yield name
    if _COMPACT.search(name):
        yield _COMPACT.sub(r"-\1-\2-\3", name)
    if (plain := undated(name)) != name:
        yield plain
    if vendor == "github-copilot":
        # Copilot's list writes versions of Claude with a dot; its Messages endpoint answers with Anthropic's own names.
        yield re.sub(r"^(claude-[a-z]+-\d)-(\d)(?=-|$)", r"\1.\2", plain)


def _how(clause: MatchLogic, name: str, vendor: str) -> int:
    """Return how closely a clause means a name: `EXACT`, the length that agrees before a date, or 0 for not at all."""
    match clause:
        case ClauseEquals():
            return EXACT if name == clause.equals.lower() else 0
        case ClauseRegex():
            return EXACT if clause.is_match(name) and _whole(clause.regex, name) else 0
        case ClauseStartsWith() if name.startswith(clause.starts_with.lower()):
            literal = clause.starts_with.lower()
            return _rest(literal, name[len(literal) :], vendor)
        case ClauseContains() if clause.contains.lower() in name:
            literal = clause.contains.lower()
            before, rest = name.split(literal, 1)
            return _rest(literal, rest, vendor) if _BEFORE.fullmatch(before) else 0
        case ClauseEndsWith() if name.endswith(clause.ends_with.lower()):
            before = name[: -len(clause.ends_with)]
            return EXACT if _BEFORE.fullmatch(before.removesuffix("/")) else 0
        case ClauseOr():
            return max((_how(part, name, vendor) for part in clause.or_), default=0)
        case ClauseAnd():
            return max(_how(part, name, vendor) for part in clause.and_) if clause.is_match(name) else 0
        case _:
            return 0


def _whole(pattern: str, name: str) -> bool:
    """Whether a regular expression that is not anchored means the whole name, up to a date."""
    if pattern.endswith("$"):
        return True
    found = re.match(pattern, name)
    return found is not None and _GOOGLE_DATED.fullmatch(name[found.end() - 2 :]) is not None


def _rest(literal: str, rest: str, vendor: str) -> int:
    """How closely a beginning means a name, of which `rest` follows it."""
    if not rest:
        return EXACT
    if literal.startswith("ft:") or literal.endswith(".ft-"):
        return len(literal) if _FINE_TUNED.fullmatch(rest) else 0
    if cut := _DATE_CUT_SHORT.search(literal):
        return len(literal) if _dated(vendor).fullmatch("-" + cut.group() + rest) else 0
    if literal.endswith(("-", "@")):
        rest = literal[-1] + rest
    is_dated = _dated(vendor).fullmatch(rest) or (vendor == "google" and _GOOGLE_DATED.fullmatch(rest))
    return len(literal) if is_dated else 0


def _dated(vendor: str) -> re.Pattern[str]:
    """Return what may follow a model's name. Only Bedrock numbers the versions of a model."""
    return _BEDROCK_DATED if vendor == "aws" else _DATED


class BedrockModel(NamedTuple):
    """A Bedrock model id, taken apart."""

    geography: str | None
    """`us`, `eu`, `apac`, `global` …; None: the model in one region."""
    name: str
    region: str | None
    """From an ARN."""

    @property
    def id(self) -> str:
        return f"{self.geography}.{self.name}" if self.geography else self.name


GEOGRAPHIES = ("us-gov", "us", "eu", "apac", "jp", "au", "ca", "in", "global")
_ARN = re.compile(r"arn:aws[a-z-]*:bedrock:([a-z0-9-]*):\d*:([a-z-]+)/(.+)", re.DOTALL)


def bedrock(model: str) -> BedrockModel | str:
    """Take a Bedrock model id or ARN apart; for an ARN that names no model, return its kind."""
    name, region = model, None
    if model.startswith("arn:"):
        found = _ARN.fullmatch(model)
        if found is None:
            return "arn"
        kind, region, name = found[2], found[1] or None, found[3]
        if kind not in ("inference-profile", "foundation-model"):
            return kind  # an application's profile, provisioned throughput, an imported or customised model
    for geography in GEOGRAPHIES:
        if name.startswith(f"{geography}."):
            return BedrockModel(geography, name[len(geography) + 1 :], region)
    return BedrockModel(None, name, region)
