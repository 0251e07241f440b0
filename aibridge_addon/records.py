"""What the bridge observed: frozen values, and the sinks (database, metrics, log) that receive them.

Names follow the `Recorder` interface that the project re-creates; `docs/schema.md` maps them to columns. Times are
timezone-aware UTC. Ids of interceptions are UUID text. Nothing here imports anything else of ours.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
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
    price_list: str | None = None
    """Name of the price list of the provider's type; None: it has none."""
    cost_usd: float | None = None
    """Set by the preparation; None: no price is known, which is not the same as free."""
    unpriced: str | None = None
    """Why there is no price; None where there is one. Set by the preparation."""


@dataclass(frozen=True, slots=True)
class UserPrompt:
    """What the person wrote last, where a request ends in a person's prompt."""

    interception_id: str
    provider_response_id: str
    prompt: str | None
    """None: it is not to be recorded. An empty prompt stays empty."""
    created_at: datetime


@dataclass(frozen=True, slots=True)
class ToolUsage:
    """A tool call that the model asked for."""

    interception_id: str
    provider_response_id: str
    provider_tool_call_id: str
    tool: str
    input: Any
    """The arguments as JSON values; the raw text where they are not JSON; None where they are not to be recorded."""
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
    content: str | None
    """None: it is not to be recorded."""
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


def utc_now() -> datetime:
    """The clock of every record."""
    return datetime.now(UTC)


# --- sinks --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Readiness:
    """How a sink is."""

    ready: bool = True
    """Whether new requests are welcome, as far as it is concerned."""
    details: Mapping[str, Any] = field(default_factory=dict)
    """For `/readyz`."""
    waiting: int = 0
    """Records that it has taken and not dealt with yet."""
    lost: int = 0
    """Records that it has dropped."""


Ask = Callable[[], Readiness]
"""How the whole bridge is: all sinks together. May be called on any thread; returns at once."""


class Sink:
    """Receives prepared records: redacted, without what is not to be recorded, priced.

    What a sink does not need, it leaves as it is here. `start`, `retire` and `close` are called on the event loop's
    thread, `emit` and `flush` on that of the record stream, `readiness` and `ended` on any.
    """

    durable = False
    """It is a database: answers wait for its `flush`, and it alone receives continuations, which are not redacted."""

    def start(self) -> None:
        """Open what has to be there before the first request. What it raises stops the start."""

    def emit(self, records: Sequence[Record]) -> None:
        """Take records, in the order in which they were emitted. A sink that raises here gets no more of them."""
        raise NotImplementedError

    def flush(self, done: Callable[[bool], None]) -> None:
        """Call `done` once everything taken so far is kept for good, or with False where it is not."""
        done(True)

    def readiness(self) -> Readiness:
        return Readiness()

    def retire(self) -> None:
        """Another bridge takes over: free what that one needs, such as a port. Records still come."""

    def close(self, timeout: float | None) -> None:
        """Finish what was taken, and end. May be called without a start, twice, and on the stream's thread.

        Blocks for at most `timeout` seconds, and then gives up. None: end in the background, without blocking.
        """

    @property
    def ended(self) -> bool:
        """Nothing of it is left after `close`."""
        return True
