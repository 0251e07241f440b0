"""AWS Bedrock: its own routes (`bedrock-runtime`), and Mantle's Messages and Responses (`bedrock-mantle`)."""

from aibridge_addon.dialects import CONVERSE, CONVERSE_STREAM, INVOKE, INVOKE_STREAM, MESSAGES, RESPONSES
from aibridge_addon.providers.base import (
    DefaultProvider,
    ProviderType,
    background_routes,
    bridged,
    counting,
    others,
    passthrough,
)

BEDROCK = ProviderType(
    name="bedrock",
    prefix="",
    bridged=(
        bridged("/model/{id}/invoke", INVOKE, names_model=True),
        bridged("/model/{id}/invoke-with-response-stream", INVOKE_STREAM, names_model=True),
        bridged("/model/{id}/converse", CONVERSE, names_model=True),
        bridged("/model/{id}/converse-stream", CONVERSE_STREAM, names_model=True),
        bridged("/anthropic/v1/messages", MESSAGES),
        bridged("/openai/v1/responses", RESPONSES),
    ),
    passthrough=(
        passthrough("/model/{id}/count-tokens"),
        counting("/anthropic/v1/messages/count_tokens", MESSAGES, central_key=False),
        counting("/openai/v1/responses/input_tokens", RESPONSES, central_key=False),
        *others("/openai/v1/responses/*"),
    ),
    results=background_routes(path="/openai/v1"),
    error_dialect=INVOKE,
    defaults=(
        DefaultProvider(
            "bedrock",
            (
                *("bedrock-runtime.*.amazonaws.com", "bedrock-mantle.*.api.aws"),
                *("bedrock-runtime-fips.*.amazonaws.com", "bedrock-runtime.*.amazonaws.com.cn"),
                # Dual stack
                *("bedrock-runtime.*.api.aws", "bedrock-runtime-fips.*.api.aws"),
                # Interface endpoints of a VPC: `vpce-0a1b-2c3d.bedrock-runtime.us-east-1.vpce.amazonaws.com`
                *("*.bedrock-runtime.*.vpce.amazonaws.com", "*.bedrock-runtime-fips.*.vpce.amazonaws.com"),
                *("*.bedrock-mantle.*.vpce.amazonaws.com", "*.bedrock-runtime.*.vpce.amazonaws.com.cn"),
            ),
        ),
    ),
    vendor="aws",
    credential_headers=(b"authorization", b"x-api-key"),
    billing="api",
)
