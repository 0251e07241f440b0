"""What one token costs under given circumstances: a rule, worked out once for a minute and then only multiplied.

Between two thresholds of a price list a price is linear in the counts. So a rule is a table of rates for each stretch.
It holds for a minute, since some prices depend on the time of day.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from functools import lru_cache
from types import MappingProxyType
from typing import NamedTuple

from genai_prices.types import ModelInfo, ModelPrice, TieredPrices

from aibridge_addon.recording.prices import Factor, Fee, Rates, Supplement, always, models, supplement, vendors

CACHED = 4096
"""Rules. Models are named by clients."""

MILLION = Decimal(1_000_000)
LISTED: Mapping[str, str] = MappingProxyType(
    {
        "input": "input_mtok",
        "output": "output_mtok",
        "cache_read": "cache_read_mtok",
        "cache_write": "cache_write_mtok",
        "cache_write_1h": "cache_write_1h_mtok",
        "input_audio": "input_audio_mtok",
        "output_audio": "output_audio_mtok",
        "cache_audio_read": "cache_audio_read_mtok",
        "input_image": "input_image_mtok",
        "output_image": "output_image_mtok",
        "cache_image_read": "cache_image_read_mtok",
        "input_video": "input_video_mtok",
    }
)
"""Our names of kinds of tokens, and the library's."""

BESIDE = frozenset(
    """web_searches_kcount storage_searches_kcount audio_hours input_audio_hours input_mchars output_video_mtok
    input_document_kpages input_annotated_document_kpages input_text_messages_kcount""".split()  # noqa: SIM905
)
"""What else the library has prices of. These are fees of tools, or are counted in units that no token row has."""
EXCLUSIVE = frozenset({"service_tier", "speed", "processing", "latency"})
"""Ways of serving a request. Vendors sell one at a time, so two together have no price."""


SEPARATE_CLOUDS = ("usgov", "usdod", "china")
"""Beginnings of the regions of Azure's clouds whose prices are not known here."""


class Question(NamedTuple):
    """All that a rate depends on."""

    vendor: str
    model: str
    region: str | None
    azure_scope: str | None
    circumstances: tuple[tuple[str, str], ...]
    """Sorted, without the standard ones."""
    moment: datetime
    """To the minute, in UTC."""


@dataclass(frozen=True, slots=True)
class Rule:
    """What a token of each kind costs, in US dollars."""

    thresholds: tuple[int, ...]
    """Numbers of input tokens, cached ones included. Above each, other rates hold for all tokens of the request."""
    rates: tuple[Mapping[str, Decimal], ...]
    """One table more than there are thresholds. A kind that is missing has no known price."""
    free: bool
    """The list says that this model costs nothing."""
    fees: Mapping[str, Decimal | None]
    """What one use of a hosted tool costs. None: not known."""
    always: frozenset[str]
    """Hosted tools that this model uses unasked."""
    pictures: bool
    """Output is pictures, unless the answer counts it as something else."""

    @property
    def costs_nothing(self) -> bool:
        """Whether no token costs anything, so that no count is needed."""
        return self.free or not any(rate for rates in self.rates for rate in rates.values())

    def at(self, input_tokens: int) -> Mapping[str, Decimal]:
        return self.rates[bisect_left(self.thresholds, input_tokens)]


class Unpriced(Exception):
    """No price is known; the message says what of the circumstances is unknown."""


@lru_cache(maxsize=CACHED)
def rule(asked: Question) -> Rule | str:
    """Return the rule for these circumstances, or what is unknown of them."""
    try:
        return _rule(asked)
    except Unpriced as reason:
        return str(reason)


def _rule(asked: Question) -> Rule:
    vendor = asked.vendor
    if vendor not in vendors() and models.provider(vendor) is None:
        raise Unpriced(f"vendor: {vendor}")
    data = supplement(vendor)
    place = PLACES.get(vendor, _anywhere)(asked, data)
    open_ = {**dict(asked.circumstances), **place.circumstances}
    if len(chosen := sorted(EXCLUSIVE & open_.keys())) > 1:
        raise Unpriced("combination: " + ", ".join(f"{name} {open_[name]}" for name in chosen))
    base = _base(asked, data, place, open_)
    base = _long(base, data, dict(asked.circumstances), asked.moment)
    pictures = not data.pictures.isdisjoint(base.names)
    factor = Decimal(1)
    for name, value in open_.items():
        factor *= _factor(data, base.names, name, value, asked.moment)
    return Rule(
        thresholds=base.thresholds,
        rates=tuple(
            {
                unit: rate * factor / MILLION
                for unit, rate in _complete(rates, data, base.names, asked.moment, pictures).items()
            }
            for rates in base.rates
        ),
        free=base.free,
        fees=_fees(data.fees, base, asked.moment),
        always=frozenset(tool for name in place.names for tool in always().get(name.rpartition("/")[2], ())),
        pictures=pictures,
    )


class _Base(NamedTuple):
    """Rates before factors, in US dollars for a million tokens."""

    names: tuple[str, ...]
    thresholds: tuple[int, ...]
    rates: tuple[Mapping[str, Decimal], ...]
    free: bool
    listed: ModelPrice | None


def _base(asked: Question, data: Supplement, place: _Place, open_: dict[str, str]) -> _Base:
    """Find the rates to begin with, and remove from `open_` the circumstances that they already are for."""
    ours = _ours(data.rates, place.names, open_, asked.moment)
    if ours is not None:
        for name in ours.when:
            del open_[name]
        thresholds = tuple(start for start, _ in ours.above)
        return _Base(place.names, thresholds, (ours.units, *(rates for _, rates in ours.above)), False, None)
    found = None
    if place.listed and data.unlisted.isdisjoint(place.names):
        lists = (asked.vendor, *data.also)
        found = next((match for name in lists if (match := models.find(name, place.model))), None)
    if found is None:
        raise Unpriced(f"model: {asked.model}")
    moment = _deepseek_moment(asked.moment) if asked.vendor == "deepseek" else asked.moment
    variants = _variants(found.model, open_, moment) if found.provider.id == asked.vendor else {}
    for name in variants:
        del open_[name]
    price = found.model.get_prices(moment, variants)
    tables = {unit: value for unit, name in LISTED.items() if (value := vars(price).get(name)) is not None}
    listed = {name for name, value in vars(price).items() if value is not None}
    if other := sorted(listed if not tables else listed - BESIDE - set(LISTED.values())):
        raise Unpriced(f"rate: {other[0]}")
    thresholds = tuple(
        sorted({tier.start for value in tables.values() if isinstance(value, TieredPrices) for tier in value.tiers})
    )
    rates = tuple({unit: _beyond(value, start) for unit, value in tables.items()} for start in (-1, *thresholds))
    return _Base((*place.names, found.name, found.model.id.lower()), thresholds, rates, not listed, price)


def _ours(rates: Iterable[Rates], names: tuple[str, ...], open_: Mapping[str, str], moment: datetime) -> Rates | None:
    """Return our own entry for the model that is for most of these circumstances, and for no other."""
    fitting = [entry for entry in rates if entry.holds(names, moment) and entry.when.items() <= open_.items()]
    return max(fitting, key=lambda entry: len(entry.when), default=None)


def _variants(model: ModelInfo, open_: Mapping[str, str], moment: datetime) -> dict[str, str]:
    """Return those of the circumstances for which the library has prices that hold at this moment."""
    return {
        name: value
        for name, value in open_.items()
        for variant in model.price_variants or ()
        if variant.when == {name: value} and (variant.constraint is None or variant.constraint.active(moment))
    }


def _beyond(value: Decimal | TieredPrices, start: int) -> Decimal:
    """Return the rate for requests with more input tokens than `start`."""
    if isinstance(value, Decimal):
        return value
    return next((tier.price for tier in reversed(value.tiers) if tier.start <= start), value.base)


def _factor(data: Supplement, names: tuple[str, ...], name: str, value: str, moment: datetime) -> Decimal:
    """Return the factor of a circumstance on the price of every token."""
    found: Factor | None = next(
        (entry for entry in data.factors if entry.when == {name: value} and entry.holds(names, moment)), None
    )
    if found is None:
        raise Unpriced(f"{name}: {value}")
    return found.factor


def _complete(
    rates: Mapping[str, Decimal], data: Supplement, names: tuple[str, ...], moment: datetime, pictures: bool
) -> dict[str, Decimal]:
    """Add the kinds of tokens whose price follows from another kind's."""
    all_ = dict(rates)
    if pictures and "output" in all_ and "output_image" not in all_:
        all_["output_image"] = all_.pop("output")
    for kind, units in (("input", data.as_input), ("output", data.as_output)):
        if kind in rates:
            all_ |= {unit: rates[kind] for unit in units if unit not in rates}
    if "cache_write" in rates:
        all_ |= {
            f"cache_write_{longer.lifetime}": rates["cache_write"] * longer.factor
            for longer in data.lifetimes
            if longer.holds(names, moment)
        }
    elif "cache_write" in all_:
        all_["cache_write_24h"] = all_["cache_write"]  # a write that costs no more than input does so for any lifetime
    return all_


def _long(base: _Base, data: Supplement, circumstances: Mapping[str, str], moment: datetime) -> _Base:
    """Add what holds for long contexts where the list has one price for all."""
    for entry in data.long_contexts:
        if base.thresholds or not entry.holds(base.names, moment) or not entry.when.items() <= circumstances.items():
            continue
        factors = {unit: entry.output if unit.startswith("output") else entry.input for unit in base.rates[0]}
        above = {unit: base.rates[0][unit] * factor for unit, factor in factors.items() if factor is not None}
        return base._replace(thresholds=(entry.above,), rates=(base.rates[0], above))
    return base


def _fees(fees: Iterable[Fee], base: _Base, moment: datetime) -> Mapping[str, Decimal | None]:
    """Return what one use of each hosted tool costs for this model. The first entry that fits holds."""
    found: dict[str, Decimal | None] = {}
    for fee in fees:
        if not fee.holds(base.names, moment):
            continue
        each = fee.each
        if fee.listed is not None:
            thousand = vars(base.listed).get(fee.listed) if base.listed is not None else None
            each = thousand / 1000 if isinstance(thousand, Decimal) else None
        for tool in fee.tools:
            found.setdefault(tool, each)
    return found


class _Place(NamedTuple):
    """Where the request ran, as far as prices depend on it."""

    model: str
    """To be looked for in the list."""
    names: tuple[str, ...]
    """To be looked for in our own data: in lower case, with and without a date."""
    circumstances: Mapping[str, str]
    listed: bool = True
    """Whether the list's price holds here."""


def _names(*models_: str) -> tuple[str, ...]:
    lower = [name.lower() for name in models_]
    return tuple(dict.fromkeys([*lower, *(models.undated(name) for name in lower)]))


def _anywhere(asked: Question, data: Supplement) -> _Place:
    """Without a region, or in one, a vendor has one price; where regions differ, our data says how."""
    where = {"region": asked.region} if asked.region and asked.region not in data.standard.get("region", ()) else {}
    return _Place(asked.model, _names(asked.model), where)


def _one_price(asked: Question, data: Supplement) -> _Place:
    return _Place(asked.model, _names(asked.model), {})


def _azure(asked: Question, data: Supplement) -> _Place:
    """A deployment is global, in a data zone (of the EU or the US), or in one region."""
    scope = asked.azure_scope
    region = (asked.region or "").replace(" ", "").lower()  # Azure's portal writes "East US 2"
    if region.startswith(SEPARATE_CLOUDS):
        raise Unpriced(f"region: {asked.region}")
    where: dict[str, str] = {}
    if scope == "data_zone":
        zones = [zone for zone, regions in data.groups.items() if region in regions]
        where = {"data_zone": zones[0] if zones else "unknown"}
    elif scope != "global":
        raise Unpriced(f"azure_scope: {scope or 'unknown'}")
    return _Place(asked.model, _names(asked.model), where)


def _bedrock(asked: Question, data: Supplement) -> _Place:
    """A model runs in one region, in the regions of a geography, or anywhere (`global.`)."""
    found = models.bedrock(asked.model)
    if isinstance(found, str):
        raise Unpriced(f"model: {found}")
    region = found.region or asked.region or ""
    if region.startswith("cn-"):
        raise Unpriced(f"region: {region}")
    names = _names(found.id, found.name)
    if found.geography == "us-gov" or region.startswith("us-gov-"):
        own = f"global.{found.name}" if models.find(asked.vendor, f"global.{found.name}") else found.name
        return _Place(own, _names(found.name, own), {"region": "us-gov"})
    if any(found.name.startswith(prefix) for prefix in data.groups["one_price"]):
        return _Place(found.id, names, {})
    if found.geography is None and region not in data.groups["listed_regions"]:
        raise Unpriced(f"region: {region or 'unknown'}")
    if found.geography in (None, "us", "global"):
        return _Place(found.id, names, {})
    if not any(entry.holds(_names(found.id), asked.moment) for entry in data.rates):
        raise Unpriced(f"region: {found.geography}")
    return _Place(found.id, _names(found.id), {}, listed=False)


PLACES: Mapping[str, Callable[[Question, Supplement], _Place]] = MappingProxyType(
    {
        "aws": _bedrock,
        "azure": _azure,
        "anthropic": _one_price,
        "github-copilot": _one_price,
    }
)
"""How a vendor's prices depend on the place."""


def _deepseek_moment(moment: datetime) -> datetime:
    """Return a moment at which the same price holds: weekends have no peak hours, which the library cannot express.

    https://api-docs.deepseek.com/quick_start/pricing: peak hours are Monday to Friday. Chinese holidays are not known
    here and count as other days.
    """
    return moment.replace(hour=12, minute=0) if moment.weekday() >= 5 else moment
