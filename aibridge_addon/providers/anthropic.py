"""Anthropic: `api.anthropic.com`, and Claude Platform on AWS."""

from aibridge_addon.dialects import MESSAGE_BATCH, MESSAGES
from aibridge_addon.providers.base import (
    DefaultProvider,
    ProviderType,
    bridged,
    counting,
    https,
    others,
    passthrough,
    result,
)

ANTHROPIC = ProviderType(
    name="anthropic",
    prefix="",
    bridged=(bridged("/v1/messages", MESSAGES),),
    passthrough=(
        counting("/v1/messages/count_tokens", MESSAGES),
        passthrough("/v1/models"),
        passthrough("/v1/models/*"),
        passthrough("/api/event_logging/*"),
        *others("/api/*", "/v1/files", "/v1/files/*", "/v1/messages/batches/*", "/v1/organizations/*", "/v1/skills*"),
        *others("/v1/messages/batches", billable=True),
    ),
    results=(result("GET", "/v1/messages/batches/{id}/results", "batch", MESSAGE_BATCH, central_key=False),),
    error_dialect=MESSAGES,
    defaults=(
        DefaultProvider(
            "anthropic",
            ("api.anthropic.com", "aws-external-anthropic.*.api.aws"),
            https("api.anthropic.com"),
        ),
    ),
    vendor=None,  # anyone may serve this format
    # Claude Code sends both if a key and a login exist. Anthropic then bills the key.
    credential_headers=(b"x-api-key", b"authorization"),
    answers_on_bedrock=True,
    key_header="X-Api-Key",
)
