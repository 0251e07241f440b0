"""Records of what the bridge observed, as frozen values, and the interface of the sinks that receive them.

Names follow the `Recorder` interface of the original project; `docs/schema.md` maps them to columns. Times are
timezone-aware UTC. Ids of interceptions are UUID text. This package imports no other module of ours.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Literal

from aibridge_addon.records.health import KeyPoolState as KeyPoolState
from aibridge_addon.records.health import ServerState as ServerState
from aibridge_addon.records.memory import Memory
from aibridge_addon.records.pages import AnswerPage
from aibridge_addon.records.plan_limits import PlanLimit as PlanLimit
from aibridge_addon.records.stored import DatabaseUnavailable as DatabaseUnavailable
from aibridge_addon.records.stored import Spent as Spent
from aibridge_addon.records.stored import Stored as Stored
from aibridge_addon.records.tracing import PassthroughTimes as PassthroughTimes
from aibridge_addon.records.tracing import ToolServerConnected as ToolServerConnected
from aibridge_addon.records.tracing import TraceContinued as TraceContinued
from aibridge_addon.records.tracing import TurnEnded as TurnEnded
from aibridge_addon.records.upstream import BreakerChanged as BreakerChanged
from aibridge_addon.records.upstream import BreakerRejected as BreakerRejected
from aibridge_addon.records.upstream import KeysExhausted as KeysExhausted
from aibridge_addon.records.upstream import UpstreamAttempt as UpstreamAttempt

Status = Literal["completed", "failed"]
Completeness = Literal["complete", "partial"]
ThoughtSource = Literal["thinking", "reasoning_summary", "commentary"]
CredentialKind = Literal["byok", "centralized"]
RequestClass = Literal["prompt", "tool_result", "subagent", "auxiliary"]
Billing = Literal["api", "subscription"]
CostSource = Literal["provider", "price_list"]
Headers = Mapping[bytes, bytes]
"""A request's headers: lower-case names to values."""

MAX_MODEL = 256
"""Characters of a model's name, which clients choose. Longer ones count as one with the same beginning."""
CACHE_LIFETIMES = ("prompt_cache_options.ttl", "prompt_cache_retention")
"""OpenAI's names of the lifetime of a cache, in `PriceTerms.requested` and in `TokenUsage.extra`."""
LEFT_OUT = "more_names_than_are_read_tokens"
"""A count in `TokenUsage.extra` in place of members that were dropped. A row with it has no price."""


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
    """The route's template. Raw paths are unbounded and may hold ids."""
    streaming: bool
    credential_kind: CredentialKind
    credential_hint: str
    correlating_tool_call_id: str | None
    """Call id of the last tool result in the request. It links to the interception whose answer had the call."""
    metadata: Mapping[str, Any]
    started_at: datetime
    upstream_host: str | None = None
    """The host that the request goes to."""
    agent_id: str | None = None
    """The client's own id of the agent or subagent that sent the request."""
    prompt_id: str | None = None
    """The client's own id of the prompt that the request works on."""
    project: str | None = None
    """The repository or directory that the client works in."""
    request_class: RequestClass | None = None
    billing: Billing | None = None
    """Whether an API key or a subscription's login pays. None: not known."""
    thread_keys: tuple[str, ...] = ()
    """Keys under which what the request continues may have been recorded, the most exact one first."""
    instance_id: str | None = None
    """The instance that handles the request. The recorder sets it."""


@dataclass(frozen=True, slots=True)
class InterceptionEnded:
    """The interception is over: its answer was read to the end, or broke off."""

    interception_id: str
    status: Status
    model: str | None
    """The model that answered. It replaces an empty model of the request (Azure deployments)."""
    http_status: int | None
    """Status of the last upstream answer. None: the upstream did not answer."""
    error_type: str | None
    error_message: str | None
    turns: int
    ended_at: datetime
    credential_hint: str | None = None
    """Hint of the last central key that was used. None: unchanged since the start."""
    metadata: Mapping[str, Any] | None = None
    """Metadata with additions since the start. None: unchanged since the start."""
    time_to_first_byte_ms: int | None = None
    """From the request's first byte to the head of the first answer. None: there was no answer."""
    thread_keys: tuple[str, ...] = ()
    """Keys under which a request that continues the answer finds it. Digests that name only its own actor."""


@dataclass(frozen=True, slots=True)
class PriceTerms:
    """What decides the price of an answer and is not in its usage: from the request, the host and the configuration.

    They are part of the row's metadata, so that a row can be priced again. Empty members are left out there.
    """

    price_as: str | None = None
    """The vendor, if neither the host nor the type of provider gives it. `none`: no price is wanted."""
    model: str = ""
    """The model whose price applies, if the row's model is a name of the operator's own."""
    region: str | None = None
    azure_scope: str | None = None
    requested: Mapping[str, str] = field(default_factory=dict)
    """What the request asked for and the answer does not mention, such as `service_tier`."""
    hosted_tools: tuple[str, ...] = ()
    """Types of the hosted tools that the request offers, if their calls cannot be counted."""
    tool_calls: Mapping[str, int] = field(default_factory=dict)
    """The answer's calls of hosted tools, counted by type."""
    batch: bool = False
    """The answer is part of a batch."""
    unpriced: str = ""
    """Why the counts alone have no price, such as an answer without any."""


@dataclass(frozen=True, slots=True)
class TokenUsage:
    """The provider's final numbers for one upstream turn, or for an iteration beside it; counts are tokens."""

    interception_id: str
    provider_response_id: str
    provider: str
    provider_name: str
    model: str
    input_tokens: int
    """Excludes cached tokens, for every provider."""
    output_tokens: int
    cache_read_input_tokens: int
    cache_write_input_tokens: int
    completeness: Completeness
    extra: Mapping[str, Any]
    """All other counts under the provider's own names, and `service_tier`, on which prices depend."""
    created_at: datetime
    turn: int = 1
    """The upstream turn, from 1."""
    kind: str = "answer"
    """`answer`, or the provider's name of an iteration, such as `compaction`."""
    stop_reason: str | None = None
    """Why the answer ended, in the provider's word."""
    vendor: str | None = None
    """Who bills, under the name that the price list has. None: not known."""
    terms: PriceTerms = PriceTerms()
    cost_usd: float | None = None
    """US dollars, set by the preparation. None: no price is known. It does not mean free."""
    cost_source: CostSource | None = None
    """Set with the cost."""
    price_list: str | None = None
    """Version of the price list behind `cost_usd`. Set by the preparation."""
    unpriced: str | None = None
    """Why `cost_usd` is None. Set by the preparation. Before, it is what the reader of the answer found."""
    dialect: str | None = None
    """The wire format of the answer."""
    id: str = field(default="", compare=False)
    """Of the row. The recorder sets it, so that a record that is written twice is one row."""


@dataclass(frozen=True, slots=True)
class UserPrompt:
    """The prompt at the end of a request. Requests that a client makes for itself have none."""

    interception_id: str
    provider_response_id: str
    prompt: str | None
    """None: `recording.prompts` is off. An empty prompt stays empty."""
    created_at: datetime
    sequence: int = 0
    """Place in the order of the interception's prompt, answers, thoughts and calls."""
    id: str = field(default="", compare=False)


@dataclass(frozen=True, slots=True)
class ToolUsage:
    """A call in the model's answer, and for an injected tool its invocation."""

    interception_id: str
    provider_response_id: str
    provider_tool_call_id: str
    tool: str
    input: Any
    """The arguments as JSON values, or the raw text if they are not JSON. None: `recording.tool_inputs` is off."""
    injected: bool
    created_at: datetime
    server_name: str | None = None
    server_url: str | None = None
    invocation_error: str | None = None
    duration_ms: int | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)
    sequence: int = 0
    result: str | None = None
    """The text of the result. None: not seen, or `recording.tool_results` is off."""
    thread_keys: tuple[str, ...] = ()
    """Keys under which the request that brings the result finds the call. Digests that name only its own actor."""
    id: str = field(default="", compare=False)


@dataclass(frozen=True, slots=True)
class ToolResult:
    """The result of a client's own call, which a later request brings."""

    interception_id: str
    """The interception whose request brings it. The call is in the answer of its thread's parent."""
    provider_tool_call_id: str
    result: str | None
    """The text of the result. None: `recording.tool_results` is off."""
    is_error: bool
    """The client reports that the call failed."""
    truncated: bool
    """The text was longer than what is kept of it."""
    created_at: datetime


@dataclass(frozen=True, slots=True)
class Answer:
    """Text that the model wrote for the user."""

    interception_id: str
    provider_response_id: str
    content: str | None
    """None: `recording.answers` is off."""
    truncated: bool
    """The text was longer than what is kept of it."""
    created_at: datetime
    sequence: int = 0
    id: str = field(default="", compare=False)


@dataclass(frozen=True, slots=True)
class ModelThought:
    """Reasoning text in the model's answer."""

    interception_id: str
    provider_response_id: str
    content: str | None
    """None: `recording.thoughts` is off."""
    source: ThoughtSource
    created_at: datetime
    sequence: int = 0
    id: str = field(default="", compare=False)


@dataclass(frozen=True, slots=True)
class Passthrough:
    """A provider request that is not bridged has been answered."""

    provider_name: str
    route: str
    method: str
    initiator_id: str
    billable: bool = False
    """The request may cost money, which no row shows."""
    times: PassthroughTimes | None = None


@dataclass(frozen=True, slots=True)
class FirstByte:
    """The head of an interception's first answer has arrived."""

    provider_name: str
    model: str
    seconds: float
    """Time since the request's first byte arrived."""


@dataclass(frozen=True, slots=True)
class Overhead:
    """Time that the bridge itself added to a bridged request."""

    provider_name: str
    seconds: float


@dataclass(frozen=True, slots=True)
class Refused:
    """The bridge has refused a request, for one of a fixed set of reasons, such as `budget_exceeded`."""

    reason: str
    status: int = 0
    method: str = ""
    provider_name: str = ""
    route: str = ""
    interception_id: str | None = None
    client_address: str = ""
    path: str = ""
    """Path of a request for an unknown route, without its query."""


@dataclass(frozen=True, slots=True)
class ConnectionRefused:
    """A client's connection was refused or closed because of a limit, for one of a fixed set of reasons."""

    reason: str


@dataclass(frozen=True, slots=True)
class BudgetUsed:
    """A budget's used share has changed."""

    name: str
    subject: str
    """What the budget is counted for, such as an actor's id; `all` for a budget of all requests."""
    names_actor: bool
    ratio: float
    """What was spent, as a share of the limit."""


@dataclass(frozen=True, slots=True)
class LeftUnread:
    """A request or an answer is not read, or not to its end, because of a limit. It was passed on all the same."""

    limit: str
    """The key of the limit, such as `limits.json_values`."""


@dataclass(frozen=True, slots=True)
class Tunnelled:
    """A connection to a host of no provider was relayed without decryption."""


@dataclass(frozen=True, slots=True)
class Continuation:
    """Data of an answer that later requests need: calls and results of a mixed turn, or the last turn's id.

    Only durable sinks receive it, because its value is conversation text that was not redacted.
    """

    key: str
    value: Mapping[str, Any]
    """A JSON object."""
    expires_at: datetime
    interception_id: str | None = None
    """An interception that a later request ends. If none does until then, it has failed."""
    initiator_id: str | None = None
    """The only actor that can use it. Its key, which is a digest, does not show that."""


Record = (
    InterceptionStarted
    | InterceptionEnded
    | TokenUsage
    | UserPrompt
    | ToolUsage
    | ToolResult
    | Answer
    | ModelThought
    | Passthrough
    | FirstByte
    | Overhead
    | UpstreamAttempt
    | BreakerChanged
    | BreakerRejected
    | KeysExhausted
    | Refused
    | ConnectionRefused
    | BudgetUsed
    | PlanLimit
    | LeftUnread
    | Tunnelled
    | Continuation
    | TraceContinued
    | TurnEnded
    | ToolServerConnected
)


STORED = frozenset(
    {
        InterceptionStarted,
        InterceptionEnded,
        TokenUsage,
        UserPrompt,
        ToolUsage,
        ToolResult,
        Answer,
        ModelThought,
        PlanLimit,
        Continuation,
    }
)
"""Types of records that are stored as rows."""


Emit = Callable[[Record], None]
"""Send a record to every sink. Never blocks and never raises."""


def utc_now() -> datetime:
    """Return the current time. All records use this clock."""
    return datetime.now(UTC)


@dataclass(frozen=True, slots=True)
class Readiness:
    """The state of one sink, or of the whole bridge."""

    ready: bool = True
    """Whether new requests can be accepted."""
    details: Mapping[str, Any] = field(default_factory=dict)
    """Further members of the answer to `/readyz`."""
    waiting: int = 0
    """Number of records that were received and not processed yet."""
    lost: int = 0
    """Number of records that were dropped."""
    spooled_bytes: int = 0
    """Size of the files in which records wait for the database."""
    lost_spans: int = 0
    """Number of spans of traces that were dropped."""
    expired: int = 0
    """Number of interceptions that are older than the retention allows, when they were last counted."""
    degraded: tuple[str, ...] = ()
    """Names of what does not work, although new requests can be accepted."""
    key_pools: tuple[KeyPoolState, ...] = ()
    """Of the providers that have central keys."""
    servers: tuple[ServerState, ...] = ()
    """Of all configured MCP servers."""
    buffered_bytes: int = 0
    """Bytes of requests and answers that are in memory."""


Ask = Callable[[], Readiness]
"""Return the state of the whole bridge, all sinks combined. May be called on any thread and does not block."""


class Sink:
    """Receives prepared records: redacted, priced, and without the texts that the configuration excludes.

    A subclass implements `emit` and overrides only what it needs. `start`, `retire` and `close` are called on the
    event loop's thread, `emit`, `flush` and `overdue` on the record stream's thread, `open`, `readiness` and `ended` on
    any thread.
    """

    address = ""  # where it is served, as host and port
    answer_page: AnswerPage | None = None  # answers the pages of others that it serves, too
    instance_id = ""
    """Of a database: the instance under which it writes rows."""
    durable = False
    """Whether this is a database. Answers wait for its `flush`. Only durable sinks receive continuations."""

    def open(self) -> None:
        """Do what takes time, such as opening a database. Blocks, on any thread. An exception stops the start."""

    def start(self, before: Sink | None = None) -> None:
        """Begin. An exception stops the start of the bridge.

        `before`: the sink of the same type that this one is going to replace. It still runs, and goes on if a later
        part of the new bridge cannot start.
        """

    def count_in(self, memory: Memory) -> None:
        """Count what waits here for that budget. Called before `open`."""

    def emit(self, records: Sequence[Record]) -> None:
        """Process records in the order in which they were emitted. After an exception the sink gets no more."""
        raise NotImplementedError

    def flush(self, done: Callable[[bool], None]) -> None:
        """Call `done(True)` when all records received so far are stored, `done(False)` if that is not possible."""
        done(True)

    def overdue(self) -> None:
        """Store the records of a `flush` elsewhere, because an answer has waited for it for too long."""

    def readiness(self) -> Readiness:
        return Readiness()

    def retire(self) -> None:
        """Release what the next bridge needs, such as a port. Records still arrive after this call."""

    def close(self, timeout: float | None) -> None:
        """Process what is waiting, and end. May be called before `start`, twice, and on the stream's thread.

        Blocks for at most `timeout` seconds and then gives up. None: end in the background without blocking.
        """

    @property
    def ended(self) -> bool:
        """Whether the sink has ended completely after `close`."""
        return True
