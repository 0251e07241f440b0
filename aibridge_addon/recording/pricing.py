"""Compute the cost of a token row in US dollars with the price lists of `genai-prices`. No network.

The library needs more time for a price than all other work on a row. Between two thresholds of a price list, a price is
linear in the counts. So the price of one token of each kind is requested once for each range, and cached for a minute,
because some prices depend on the time of day.
"""

from __future__ import annotations

from datetime import datetime
from decimal import Decimal
from functools import lru_cache
from typing import NamedTuple

import genai_prices
from genai_prices.data_snapshot import get_snapshot
from genai_prices.types import TieredPrices

from aibridge_addon.records import TokenUsage

LONG_LIVED = ("cache_creation.ephemeral_1h_input_tokens", "cacheDetails.1h")
"""Names of the count of tokens written to a one-hour cache: in Messages, and in Bedrock's Converse."""
CACHED = 4096
"""Maximum number of cached prices. Clients choose the names of models, so they are unbounded."""


class _Model(NamedTuple):
    """A model with everything else on which its price depends."""

    provider: str
    name: str
    tier: str | None
    moment: datetime
    """Rounded down to the minute."""


class _Rates(NamedTuple):
    """Prices of one token in US dollars."""

    input: Decimal
    output: Decimal
    cache_read: Decimal
    cache_write: Decimal
    cache_write_1h: Decimal
    cache_write_5m: Decimal


def cost_usd(record: TokenUsage) -> float | None:
    """Return the price of these tokens, or None if no price is known."""
    if record.vendor is None:
        return None
    tier = record.extra.get("service_tier")
    moment = record.created_at.replace(second=0, microsecond=0)
    model = _Model(record.vendor, record.model, tier if isinstance(tier, str) else None, moment)
    thresholds = _thresholds(model)
    if thresholds is None:
        return None
    read, written = record.cache_read_input_tokens, record.cache_write_input_tokens
    requests = record.extra.get("requests")
    is_sum = isinstance(requests, int) and requests > 1
    # Each request in the sum of a batch is below the thresholds. Longer ones have rows of their own.
    total = 0 if is_sum else record.input_tokens + read + written
    rates = _rates(model, max((threshold for threshold in thresholds if threshold < total), default=0))
    cost = record.input_tokens * rates.input + record.output_tokens * rates.output + read * rates.cache_read
    long_lived = next((record.extra[name] for name in LONG_LIVED if name in record.extra), None)
    if isinstance(long_lived, int) and 0 < long_lived <= written:
        cost += long_lived * rates.cache_write_1h + (written - long_lived) * rates.cache_write_5m
    else:
        cost += written * rates.cache_write
    return float(cost)


@lru_cache(maxsize=CACHED)
def _thresholds(model: _Model) -> tuple[int, ...] | None:
    """Return the numbers of input tokens above which the prices change. None: no price is known."""
    try:
        _, info = get_snapshot().find_provider_model(model.name, None, model.provider, None)
        _rates(model, 0)
    except (LookupError, ValueError):
        return None
    context = {"service_tier": model.tier} if model.tier else None
    prices = vars(info.get_prices(model.moment, context)).values()
    starts = {tier.start for price in prices if isinstance(price, TieredPrices) for tier in price.tiers}
    return tuple(sorted(starts))


@lru_cache(maxsize=CACHED)
def _rates(model: _Model, threshold: int) -> _Rates:
    """Return the prices of one token for numbers of input tokens above `threshold`, up to the next one."""
    inputs = threshold + 1
    base = _price(model, input_tokens=inputs)
    one = base / inputs

    def instead(**kind: int) -> Decimal:
        return _price(model, input_tokens=inputs, **kind) - base + one

    return _Rates(
        input=one,
        output=_price(model, input_tokens=inputs, output_tokens=1) - base,
        cache_read=instead(cache_read_tokens=1),
        cache_write=instead(cache_write_tokens=1),
        cache_write_1h=instead(cache_write_tokens=1, cache_write_1h_tokens=1),
        cache_write_5m=instead(cache_write_tokens=1, cache_write_5m_tokens=1),
    )


def _price(model: _Model, **counts: int) -> Decimal:
    """Return the library's price. Its `input_tokens` include tokens read from and written to a cache."""
    price = genai_prices.calc_price(
        genai_prices.Usage(**counts),
        model.name,
        provider_id=model.provider,
        genai_request_timestamp=model.moment,
        price_context={"service_tier": model.tier} if model.tier else None,
    )
    total = price.total_price
    assert isinstance(total, Decimal)
    return total
