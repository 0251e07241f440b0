"""AWS Bedrock: Mantle's Messages and Responses; its own binary framing is passed through."""

from aibridge_addon.dialects import MESSAGES, RESPONSES
from aibridge_addon.providers.base import ProviderType, bridged

BEDROCK = ProviderType(
    name="bedrock",
    prefix="",
    bridged=(
        bridged("/anthropic/v1/messages", MESSAGES),
        bridged("/openai/v1/responses", RESPONSES),
    ),
    passthrough=(),
    error_dialect=MESSAGES,
    credential_headers=(b"authorization", b"x-api-key"),
)
