"""What a token row cost, in US dollars: a rule over the circumstances of the answer. No network.

What the provider itself says that the answer cost wins. Otherwise the price list decides: `genai-prices`, and the data
in `prices/` for what it lacks. A circumstance for which neither has a price leaves the row without a cost and with the
reason. Never is the price of one tier, tool, modality, region or vendor taken for another's.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from datetime import datetime
from decimal import Decimal
from types import MappingProxyType
from typing import Any, NamedTuple

import msgspec

from aibridge_addon.providers import vendor_of
from aibridge_addon.providers.vendors import ALIASES, NONE
from aibridge_addon.recording.prices import Supplement, always, models, price_list, supplement, usage, vendors
from aibridge_addon.recording.prices.rules import Question, Rule, Unpriced, rule
from aibridge_addon.recording.rows import PRICE_TERMS
from aibridge_addon.records import CACHE_LIFETIMES, CostSource, PriceTerms, TokenUsage
from aibridge_addon.records.members import replace

NOTHING: Mapping[str, Any] = MappingProxyType({})
NIL = Decimal(0)
COUNTS = ("input_tokens", "output_tokens", "cache_read_input_tokens", "cache_write_input_tokens")
MAX_REASON = 120
"""Characters of `unpriced`; it may quote what the provider sent."""
MODALITY = "modality"
"""What a request asks for with more than text."""
MAX_VALUE = 64
"""Characters of one circumstance. No vendor's names are longer."""


class Circumstances(NamedTuple):
    """All that a price depends on: the answer's usage, what the request asked for, and what only the operator knows."""

    vendor: str | None
    """Who bills, as the price list calls it: `anthropic`, `openai`, `azure`, `aws` … None: an unknown host."""
    model: str
    """As the answer names it; for Bedrock as the request does, since its prefix decides."""
    moment: datetime
    """When the answer came, in UTC."""
    input_tokens: int = 0
    """Without cached ones."""
    output_tokens: int = 0
    """With those of reasoning."""
    cache_read_input_tokens: int = 0
    cache_write_input_tokens: int = 0
    usage: Mapping[str, Any] = NOTHING
    """Everything else that the provider said of usage, under its own names, nested or joined with dots."""
    requested: Mapping[str, Any] = NOTHING
    """What the request asked for, under the names of `usage`. It counts where the answer does not say what was served.

    `service_tier`, `speed`, `inference_geo`, `performanceConfig.latency`, the names in `CACHE_LIFETIMES`, and
    `modality`: audio or pictures in the request, which are priced where the answer counts them.
    """
    tools: Collection[str] = ()
    """Types of the hosted tools that the request offers (`web_search_20250305`, `file_search` …), not functions."""
    tool_calls: Mapping[str, int] | None = None
    """How often each hosted tool ran, by type; None: only as far as `usage` says it."""
    region: str | None = None
    """Bedrock's or Azure's region; for OpenAI and xAI the prefix of the regional host (`eu`)."""
    azure_scope: str | None = None
    """`global`, `data_zone` or `regional`."""
    batch: bool = False
    """Whether the answer is a batch's."""
    unpriced: str = ""
    """Why the counts alone have no price; empty if they do. A stated cost counts all the same."""


class Price(NamedTuple):
    """A row's cost, or why there is none."""

    cost_usd: Decimal | None = None
    source: CostSource | None = None
    price_list: str | None = None
    """Version of the list that the cost was worked out with."""
    unpriced: str | None = None
    """What of the circumstances is not known: a word, a colon, and what was found."""


def price(circumstances: Circumstances) -> Price:
    """Return what an answer cost. Unknown is never free, and never the standard price."""
    try:
        if (cost := _stated(circumstances)) is not None:
            return Price(cost, "provider")
        return Price(_listed(circumstances, vendor_id(circumstances.vendor)), "price_list", price_list())
    except Unpriced as reason:
        return Price(unpriced=str(reason)[:MAX_REASON])


def vendor_id(name: str | None) -> str:
    """Return a vendor's name as the price list has it."""
    if not name or name == NONE:
        raise Unpriced(f"vendor: {name or 'unknown'}")
    return ALIASES.get(name, name)


def _stated(asked: Circumstances) -> Decimal | None:
    """Return what the provider itself says that the answer cost.

    The members that say so have names of their own, so they count for a host that is not known, too.
    """
    if asked.vendor is None:
        return next((cost for stated in STATED.values() if (cost := stated(asked.usage)) is not None), None)
    stated = STATED.get(vendor_id(asked.vendor))
    return stated(asked.usage) if stated else None


def _listed(asked: Circumstances, vendor: str) -> Decimal:
    """Work a cost out from the price list."""
    if len(asked.model) > models.MAX_NAME:
        raise Unpriced("model: too long a name")
    data = supplement(vendor)
    said = usage.read(asked.usage)
    if said.unknown:
        raise Unpriced(f"usage: {said.unknown}")
    found = rule(
        Question(
            vendor,
            asked.model,
            asked.region,
            asked.azure_scope,
            _circumstances(asked, said, data),
            asked.moment.replace(second=0, microsecond=0),
        )
    )
    if asked.unpriced and (isinstance(found, str) or not found.costs_nothing):
        raise Unpriced(asked.unpriced)
    if isinstance(found, str):
        raise Unpriced(found)
    lifetimes = _lifetimes(asked, said, data)
    total = asked.input_tokens + asked.cache_read_input_tokens + asked.cache_write_input_tokens
    if said.beside and not total + asked.output_tokens:
        raise Unpriced(f"usage: {said.beside}")
    rates = _rates(asked, found, total)
    cost = NIL if found.free else _tokens(asked, _with_media(asked, said, found, rates), rates, lifetimes)
    if asked.tools or asked.tool_calls or said.tools or found.always:
        cost += _tools(asked, said, found, data)
    return cost


def _rates(asked: Circumstances, found: Rule, total: int) -> Mapping[str, Decimal]:
    """Return the rates for the length of each request, which is less than the row's where the row is a sum."""
    if _is_sum(asked.usage):
        return found.at(0)  # each request of a batch is below the thresholds; longer ones have rows of their own
    lengths = usage.message_lengths(asked.usage) if found.thresholds else ()
    if len(lengths) < 2 or sum(lengths) != total:
        return found.at(total)
    shortest, longest = found.at(min(lengths)), found.at(max(lengths))
    if shortest is not longest:
        raise Unpriced("usage: iterations below and above a threshold")
    return shortest


def _is_sum(said: Mapping[str, Any]) -> bool:
    requests = said.get(usage.REQUESTS)
    return isinstance(requests, int) and requests > 1


def _circumstances(asked: Circumstances, said: usage.Said, data: Supplement) -> tuple[tuple[str, str], ...]:
    """Return the circumstances that are not the standard ones, sorted by name."""
    found = said.circumstances
    if asked.requested:
        found = {
            name: str(value)
            for raw, name in usage.CIRCUMSTANCES.items()
            if (value := _member(asked.requested, raw)) and not isinstance(value, Mapping) and str(value) not in NO_WISH
        } | found
    if not found and not asked.batch:
        return ()
    open_ = {
        name: str(value)[:MAX_VALUE] for name, value in found.items() if value not in data.standard.get(name, STANDARD)
    }
    if open_.get("service_tier") == "batch":
        del open_["service_tier"]
        open_["processing"] = "batch"
    if asked.batch:
        open_["processing"] = "batch"
    return tuple(sorted(open_.items()))


STANDARD = frozenset({"standard"})
NO_WISH = ("auto", "standard_only")
"""Requested tiers that leave it to the provider: where the answer says nothing, they mean the standard one."""


def _lifetimes(asked: Circumstances, said: usage.Said, data: Supplement) -> Mapping[str, int]:
    """Return the tokens that were written to a cache, by the kind of token that each lifetime is."""
    written = asked.cache_write_input_tokens
    if not written and not said.lifetimes:
        return {}
    named = (_member(source, name) for source in (asked.usage, asked.requested) for name in CACHE_LIFETIMES)
    wish = next(filter(None, named), None)
    lifetimes: Mapping[str, int] = said.lifetimes or {str(wish) if wish else "": written}
    if sum(lifetimes.values()) != written:
        raise Unpriced("usage: cache lifetimes and cache writes disagree")
    counts: dict[str, int] = {}
    for lifetime, count in lifetimes.items():
        ordinary = not lifetime or lifetime in data.standard["cache_lifetime"]
        kind = "cache_write" if ordinary else f"cache_write_{lifetime[:MAX_VALUE]}"
        counts[kind] = counts.get(kind, 0) + count
    return counts


def _tokens(
    asked: Circumstances, modalities: Mapping[str, int], rates: Mapping[str, Decimal], lifetimes: Mapping[str, int]
) -> Decimal:
    """Return what the tokens cost."""
    counts = {
        "input": asked.input_tokens,
        "output": asked.output_tokens,
        "cache_read": asked.cache_read_input_tokens,
        **lifetimes,
    }
    for kind, count in modalities.items():
        # The provider counts a modality within its side of the usage, cached tokens of it within the cached ones.
        side, medium = kind.removesuffix("_read").split("_")
        if side == "cache":
            counts["cache_read"] -= count
        else:
            count -= modalities.get(f"cache_{medium}_read", 0) if side == "input" else 0
            if side == "input" and asked.cache_read_input_tokens and f"cache_{medium}_read" not in modalities:
                count = _uncached(kind, count, asked, rates)
            counts[side] -= count
        counts[kind] = count
    cost = NIL
    for kind, count in counts.items():
        if count < 0:
            raise Unpriced("usage: parts are more than the whole")
        if count:
            if kind not in rates:
                raise Unpriced(_no_rate(kind))
            cost += count * rates[kind]
    return cost


def _with_media(asked: Circumstances, said: usage.Said, found: Rule, rates: Mapping[str, Decimal]) -> Mapping[str, int]:
    """Return the tokens of each modality. An answer that does not count a modality may still be billed for it."""
    wish = asked.requested.get(MODALITY)
    kind = f"input_{wish}"
    if wish and asked.input_tokens and kind not in said.counted and rates.get(kind) != rates.get("input"):
        raise Unpriced(f"modality: {kind} without a count")
    if not asked.output_tokens or any(kind.startswith("output_") for kind in said.counted):
        return said.modalities
    if found.pictures:
        return {**said.modalities, "output_image": asked.output_tokens}
    for kind, rate in rates.items():
        if kind.startswith("output_") and rate != rates.get("output"):
            raise Unpriced(f"modality: {kind} without a count")
    return said.modalities


def _uncached(kind: str, count: int, asked: Circumstances, rates: Mapping[str, Decimal]) -> int:
    """Return a modality's tokens that were not cached, where the answer does not say which were.

    That is of no matter where the modality costs what text costs; otherwise the price is not known.
    """
    if rates.get(kind) != rates.get("input"):
        raise Unpriced(f"modality: cached {kind}")
    return min(count, asked.input_tokens)


def _no_rate(kind: str) -> str:
    if kind.startswith("cache_write_"):
        return f"cache_lifetime: {kind.removeprefix('cache_write_')}"
    if kind in ("input", "output", "cache_read", "cache_write"):
        return f"rate: {kind}"
    return f"modality: {kind}"


def _tools(asked: Circumstances, said: usage.Said, found: Rule, data: Supplement) -> Decimal:
    """Return what the uses of hosted tools cost."""
    # Calls that failed may not be billed, so the provider's own count wins.
    called = {usage.tool_name(tool): count for tool, count in (asked.tool_calls or {}).items()}
    used = called | _used(said, {*called, *map(usage.tool_name, asked.tools)})
    for tool in asked.tools if asked.tool_calls is None else ():
        name = usage.tool_name(tool)
        fee = found.fees.get(name)
        if name not in used and (fee is None or (fee and not data.tools_counted)):
            raise Unpriced(f"tool: {name}")
    for tool in found.always:
        if not used.get(tool):
            raise Unpriced(f"tool: {tool}")
    cost = NIL
    for name, count in used.items():
        if count:
            fee = found.fees.get(name)
            if fee is None:
                raise Unpriced(f"tool: {name}")
            cost += count * fee
    return cost


def _used(said: usage.Said, known: Collection[str]) -> dict[str, int]:
    """Return how often each tool ran, as the provider counts it: a preview of a tool under the name of the tool."""
    used: dict[str, int] = {}
    for tool, count in said.tools.items():
        name = usage.tool_name(tool)
        preview = f"{name}_preview"
        if preview not in known:
            used[name] = count
        elif name not in known:
            used[preview] = count
        # Both were offered: only the calls say how often each ran.
    return used


def _number(value: object) -> Decimal | None:
    """Return an amount that a provider states; None where it states none."""
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float, Decimal)) or not math.isfinite(value) or value < 0:
        raise Unpriced("provider_cost: not an amount")
    return value if isinstance(value, Decimal) else Decimal(repr(value))


def _member(said: Mapping[str, Any], name: str) -> object:
    """Return a member by its name joined with dots, nested or not."""
    if name in said:
        return said[name]
    head, _, rest = name.partition(".")
    below = said.get(head)
    return _member(below, rest) if rest and isinstance(below, Mapping) else None


def _openrouter(said: Mapping[str, Any]) -> Decimal | None:
    """Credits are US dollars. With a key of one's own, `cost` is the fee, and the upstream vendor bills the rest."""
    cost = _number(_member(said, "cost"))
    if cost is not None and _member(said, "is_byok") is True:
        upstream = _number(_member(said, "cost_details.upstream_inference_cost"))
        if upstream is None:
            raise Unpriced("provider_cost: upstream_inference_cost missing")
        cost += upstream
    return cost


def _copilot(said: Mapping[str, Any]) -> Decimal | None:
    """Billions of an AI credit; a credit is 0.01 US dollars."""
    nano = _member(said, "copilot_usage.total_nano_aiu")
    cost = _number(nano if nano is not None else _member(said, "total_nano_aiu"))
    return None if cost is None else cost / 100_000_000_000


def _xai(said: Mapping[str, Any]) -> Decimal | None:
    """Ten billion ticks are a US dollar."""
    ticks = _number(_member(said, "cost_in_usd_ticks"))
    return None if ticks is None else ticks / 10_000_000_000


STATED = MappingProxyType({"openrouter": _openrouter, "github-copilot": _copilot, "x-ai": _xai})
"""Vendors whose answers say what they cost."""


def load() -> None:
    """Read the price lists now, which takes most of a second, so that the first row does not wait for them.

    Later, no file is opened: at the process's limit of open files, rows are priced all the same.
    """
    price_list()
    always()
    for vendor in vendors():
        supplement(vendor)
        models.provider(vendor)


def priced(record: TokenUsage) -> TokenUsage:
    """Return the record with its cost, or with the reason why it has none."""
    terms = replace(record.terms, unpriced=record.unpriced) if record.unpriced else record.terms
    found = price(_of_record(record, terms))
    return replace(
        record,
        terms=terms,
        cost_usd=None if found.cost_usd is None else float(found.cost_usd),
        cost_source=found.source,
        price_list=found.price_list,
        unpriced=found.unpriced,
    )


def is_never_priced(record: TokenUsage) -> bool:
    """Return whether no answer to a request has a price, which is known before it is sent.

    It is not known if the answer may say what it cost, or if only the answer says which model it is from.
    """
    asked = _of_record(record, record.terms)
    if asked.vendor == NONE:
        return True
    is_deployment = asked.vendor == "azure" and not record.terms.model
    if asked.vendor is None or vendor_id(asked.vendor) in STATED or is_deployment:
        return False
    return (price(asked).unpriced or "").startswith("model: ")


def price_of_row(tokens: Mapping[str, Any], interception: Mapping[str, Any]) -> Price:
    """Return what a stored row costs by the present price list. Its metadata is a decoded object."""
    metadata = dict(tokens["metadata"])
    terms = _stored_terms(metadata.pop(PRICE_TERMS, {}))
    moment = tokens["created_at"]
    return price(
        Circumstances(
            vendor=terms.price_as or vendor_of(interception["provider"], interception["upstream_host"]),
            model=terms.model or tokens["model"],
            moment=moment if isinstance(moment, datetime) else datetime.fromisoformat(moment),
            usage=metadata,
            **{name: tokens[name] for name in COUNTS},
            **_terms(terms),
        )
    )


def _stored_terms(value: object) -> PriceTerms:
    """Return the terms in a row's metadata. What a provider put under this name is not terms."""
    try:
        return msgspec.convert(value, PriceTerms)
    except msgspec.ValidationError:
        return PriceTerms()


def _of_record(record: TokenUsage, terms: PriceTerms) -> Circumstances:
    return Circumstances(
        vendor=terms.price_as or record.vendor,
        model=terms.model or record.model,
        moment=record.created_at,
        input_tokens=record.input_tokens,
        output_tokens=record.output_tokens,
        cache_read_input_tokens=record.cache_read_input_tokens,
        cache_write_input_tokens=record.cache_write_input_tokens,
        usage=record.extra,
        **_terms(terms),
    )


def _terms(terms: PriceTerms) -> dict[str, Any]:
    return {
        "requested": terms.requested,
        "tools": terms.hosted_tools,
        # Where tools are offered and may have been called, their types are in `hosted_tools`.
        "tool_calls": None if terms.hosted_tools else terms.tool_calls,
        "region": terms.region,
        "azure_scope": terms.azure_scope,
        "batch": terms.batch,
        "unpriced": terms.unpriced,
    }
