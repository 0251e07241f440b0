"""Values of span attributes: whatever a client or provider sends, an exporter can encode it.

An exporter drops a whole batch of spans if one value cannot be encoded. Half a surrogate pair is no UTF-8, and a count
above 63 bits is no integer of the protocol.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta

MAX_ATTRIBUTE = 16_384
"""Characters of an attribute's value. What is longer is cut. `OTEL_SPAN_ATTRIBUTE_VALUE_LENGTH_LIMIT` may say less."""
MAX_NAME = 256
"""Characters of a span's name. What is longer is cut."""
MAX_INT = 2**63 - 1

Value = str | bool | int | float | Sequence[str]

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

PROVIDERS = (
    ("anthropic", "anthropic"),
    ("openai", "openai"),
    ("azure", "azure.ai.openai"),
    ("bedrock", "aws.bedrock"),
    ("copilot", "github.copilot"),
)
"""`gen_ai.provider.name` by type of provider. `github.copilot` is ours: the conventions have no name for it."""


def provider_name(provider_type: str) -> str:
    return dict(PROVIDERS).get(provider_type, provider_type)


def clean(attributes: Mapping[str, Value | None]) -> dict[str, Value]:
    """Return the attributes that have a value, each of them valid and cut to its length."""
    return {name: _valid(value) for name, value in attributes.items() if value is not None}


def _valid(value: Value) -> Value:
    if isinstance(value, str):
        return text(value)
    if isinstance(value, bool | float):
        return value
    if isinstance(value, int):
        return max(-MAX_INT, min(value, MAX_INT))
    return [text(item) for item in value]


def text(value: str, limit: int = MAX_ATTRIBUTE) -> str:
    """Return a text that is valid UTF-8 and has at most `limit` characters."""
    return value[:limit].encode("utf-8", "replace").decode()


def nanoseconds(time: datetime) -> int:
    """Return the nanoseconds since 1970."""
    return (time - _EPOCH) // timedelta(microseconds=1) * 1000
