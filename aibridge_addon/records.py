"""What the bridge observed: frozen values that every sink (database, metrics, log) subscribes to.

Names follow the `Recorder` interface that the project re-creates; `docs/schema.md` maps them to columns. Times are
timezone-aware UTC. Ids of interceptions are UUID text. Nothing here imports anything else of ours.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal

Status = Literal["completed", "failed"]
Completeness = Literal["complete", "partial"]
ThoughtSource = Literal["thinking", "reasoning_summary", "commentary"]
CredentialKind = Literal["byok", "centralized"]
Headers = Mapping[bytes, bytes]
"""A request's headers: lower-case names to values."""


@dataclass(frozen=True, slots=True)
class InterceptionStarted:
    """One client request on a bridged route has been read and is about to go upstream."""

    id: str
    initiator_id: str
    provider: str
    """The provider's type: `anthropic`, `openai`, `copilot`, `azure`, `bedrock`."""
    provider_name: str
    """The configured instance."""
    model: str
    client: str
    client_session_id: str | None
    user_agent: str | None
    route: str
    """The route's template, never the raw path: bounded."""
    streaming: bool
    credential_kind: CredentialKind
    credential_hint: str
    correlating_tool_call_id: str | None
    """Id of the tool result that ends this request: it names the interception that asked for the call."""
    metadata: Mapping[str, Any]
    started_at: datetime


@dataclass(frozen=True, slots=True)
class InterceptionEnded:
    """The interception's answer has been read to its end, or never will be."""

    interception_id: str
    status: Status
    model: str | None
    """The model that answered, where the request did not name one (Azure deployments)."""
    http_status: int | None
    """Status of the last upstream answer; null where there was none."""
    error_type: str | None
    error_message: str | None
    turns: int
    ended_at: datetime
    credential_hint: str | None = None
    """Of the central key that was used in the end; None: as at the start."""
    metadata: Mapping[str, Any] | None = None
    """With what happened meanwhile; None: as at the start."""


@dataclass(frozen=True, slots=True)
class TokenUsage:
    """The provider's final numbers for one upstream turn; counts are tokens."""

    interception_id: str
    provider_response_id: str
    provider: str
    provider_name: str
    model: str
    input_tokens: int
    """Without cached tokens, for every provider."""
    output_tokens: int
    cache_read_input_tokens: int
    cache_write_input_tokens: int
    completeness: Completeness
    extra: Mapping[str, Any]
    """Every further count under the provider's own name, and what prices depend on (`service_tier`)."""
    created_at: datetime


@dataclass(frozen=True, slots=True)
class UserPrompt:
    """What the person wrote last, where a request ends in a person's prompt."""

    interception_id: str
    provider_response_id: str
    prompt: str
    created_at: datetime


@dataclass(frozen=True, slots=True)
class ToolUsage:
    """A tool call that the model asked for."""

    interception_id: str
    provider_response_id: str
    provider_tool_call_id: str
    tool: str
    input: Any
    """The arguments as JSON values; the raw text where they are not JSON."""
    injected: bool
    created_at: datetime
    server_name: str | None = None
    server_url: str | None = None
    invocation_error: str | None = None
    duration_ms: int | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ModelThought:
    """Reasoning that the model showed."""

    interception_id: str
    provider_response_id: str
    content: str
    source: ThoughtSource
    created_at: datetime


@dataclass(frozen=True, slots=True)
class Passthrough:
    """A provider request that is not bridged has been answered."""

    provider_name: str
    route: str
    method: str
    initiator_id: str


@dataclass(frozen=True, slots=True)
class FirstByte:
    """The head of an interception's first answer has arrived."""

    provider_name: str
    model: str
    """The model that the request asked for."""
    seconds: float
    """Since the request's first byte arrived."""


@dataclass(frozen=True, slots=True)
class Overhead:
    """The bridge's own share of the time that a bridged request took."""

    provider_name: str
    seconds: float


@dataclass(frozen=True, slots=True)
class UpstreamAttempt:
    """A request was sent upstream, and its outcome decided what followed."""

    provider_name: str
    route: str
    step: str
    """`show`, `retry`, `next_key` or `exhausted`."""


@dataclass(frozen=True, slots=True)
class BreakerChanged:
    """A circuit breaker changed its state."""

    provider_name: str
    route: str
    model: str
    state: float
    """0 closed, 0.5 half-open, 1 open."""


@dataclass(frozen=True, slots=True)
class BreakerRejected:
    """A circuit breaker rejected a request."""

    provider_name: str
    route: str
    model: str


@dataclass(frozen=True, slots=True)
class Tunnelled:
    """A connection to a host of no provider was passed through undecrypted."""


@dataclass(frozen=True, slots=True)
class Continuation:
    """What later requests need of an answer: the calls and results of a mixed turn, or the last turn's id.

    For the database alone: its value is conversation that has not been redacted.
    """

    key: str
    value: Mapping[str, Any]
    """A JSON object."""
    expires_at: datetime


Record = (
    InterceptionStarted
    | InterceptionEnded
    | TokenUsage
    | UserPrompt
    | ToolUsage
    | ModelThought
    | Passthrough
    | FirstByte
    | Overhead
    | UpstreamAttempt
    | BreakerChanged
    | BreakerRejected
    | Tunnelled
    | Continuation
)


class DatabaseUnavailable(Exception):
    """The database cannot be reached now: a later attempt may succeed."""


@dataclass(frozen=True, slots=True)
class Stored:
    """A continuation as the database returns it."""

    value: bytes
    """JSON."""
    expires_at: datetime


Emit = Callable[[Record], None]
"""Hand a record to every sink. Never blocks, never raises."""
