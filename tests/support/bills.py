"""Token rows with their prices, from the bytes of a request and its answer."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

from aibridge_addon.config.providers import DEFAULT_PROVIDERS, Provider
from aibridge_addon.config.schema import Limits, Recording
from aibridge_addon.interception.actors import Actor
from aibridge_addon.interception.exchange import Exchange
from aibridge_addon.interception.origin import Origin
from aibridge_addon.interception.routing import Router
from aibridge_addon.interception.sale import requested_in
from aibridge_addon.recording import rows
from aibridge_addon.recording.preparation import Preparation
from aibridge_addon.recording.pricing import price_of_row
from aibridge_addon.records import Record, TokenUsage
from aibridge_addon.wire.json_object import JSONObject

MOMENT = datetime(2026, 11, 27, 12, tzinfo=UTC)
BEDROCK = "bedrock-runtime.us-east-1.amazonaws.com"


@dataclass(frozen=True)
class Sold:
    """A request and its answer. `settings` are those of the provider; without any, the default ones are used."""

    host: str
    path: str
    request: Mapping[str, Any]
    answer: Mapping[str, Any] | bytes
    content_type: str = "application/json"
    settings: Mapping[str, Any] = field(default_factory=dict)
    request_headers: Mapping[bytes, bytes] = field(default_factory=dict)
    answer_headers: Mapping[str, str] = field(default_factory=dict)


def bill(sold: Sold) -> list[TokenUsage]:
    """Return the prepared records of the answer's tokens. The row of each has the same price again."""
    providers: tuple[Provider, ...] = DEFAULT_PROVIDERS
    if sold.settings:
        providers = (Provider.model_validate({"name": "p", "hosts": [sold.host], "base_url": None, **sold.settings}),)
    method = "GET" if sold.path.endswith(("/content", "/results")) else "POST"
    route = Router(providers).proxied(sold.host, method, sold.path)
    assert route is not None
    dialect = route.dialect or route.results
    assert dialect is not None
    reading = dialect.read_request(JSONObject(json.dumps(sold.request).encode()))
    reading = replace(
        reading,
        model=route.model or reading.model,
        requested={**reading.requested, **requested_in(sold.request_headers)},
    )
    emitted: list[Record] = []
    origin = Origin(Actor("ada", {}), "SDK", None, None, "byok", "", None, upstream_host=sold.host)
    exchange = Exchange(
        *("i1", replace(route, dialect=dialect), reading, origin),
        emit=emitted.append,
        limits=Limits(),
        now=lambda: MOMENT,
    )
    exchange.start()
    exchange.open_answer(200, sold.content_type, "", sold.answer_headers)
    exchange.feed(sold.answer if isinstance(sold.answer, bytes) else json.dumps(sold.answer).encode())
    exchange.answer_ended()
    prepare = Preparation(Recording())
    found = [prepare(record) for record in emitted if isinstance(record, TokenUsage)]
    return [_checked(record, sold.host) for record in found if isinstance(record, TokenUsage)]


def _checked(record: TokenUsage, host: str) -> TokenUsage:
    row = rows.token_usage(record)
    row["metadata"] = json.loads(row["metadata"])
    again = price_of_row(row, {"provider": record.provider, "upstream_host": host})
    if record.price_list is not None or again.cost_usd is not None:
        assert (again.cost_usd and float(again.cost_usd), again.unpriced) == (record.cost_usd, record.unpriced)
    return record


def prices(sold: Sold) -> list[tuple[str, float | None, str | None]]:
    """Return the kind of each row, its cost, and why it has none."""
    return [
        (record.kind, None if record.cost_usd is None else round(record.cost_usd, 9), record.unpriced)
        for record in bill(sold)
    ]


def server_sent(events: Iterable[object], *, done: bool = False, compact: bool = True) -> bytes:
    """Return events as a stream. `done`: with OpenAI's last event. `compact`: without spaces in the JSON."""
    separators = (",", ":") if compact else None
    stream = b"".join(b"data: " + json.dumps(event, separators=separators).encode() + b"\n\n" for event in events)
    return stream + (b"data: [DONE]\n\n" if done else b"")


def lines(values: Iterable[object]) -> bytes:
    """Return values as JSON lines."""
    return b"".join(json.dumps(value).encode() + b"\n" for value in values)
