"""The state of a flow, set when its headers have arrived.

    headers ─▶ RequestClassifier ─┬─ Foreign      for no provider: neither recorded nor counted
                                  ├─ Passthrough  for a provider, not bridged: counted
                                  ├─ Bridged      an interception
                                  └─ Refused      answered by the bridge; Passthrough and Bridged may become Refused

The state is in `flow.metadata`, so it ends with the flow. `state_of` returns it; a flow without one is `Foreign`.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum, auto
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal, assert_never

from mitmproxy import http

from aibridge_addon import records
from aibridge_addon.bridge import Bridge
from aibridge_addon.dialects.base import NOTHING, Dialect
from aibridge_addon.dialects.chat_completions.usage import UsageChunkFilter
from aibridge_addon.dialects.history import Found, RequestHistory
from aibridge_addon.interception.actors import Actor
from aibridge_addon.interception.attempts import Attempts
from aibridge_addon.interception.breaker import Ticket
from aibridge_addon.interception.buffers import Share
from aibridge_addon.interception.exchange import Exchange
from aibridge_addon.interception.once import Once
from aibridge_addon.interception.routing import Route
from aibridge_addon.interception.scope import Scope
from aibridge_addon.interception.tool_exchange import ToolExchange
from aibridge_addon.proxy.flow.bedrock import Translation
from aibridge_addon.proxy.flow.stored_answer import StoredAnswer
from aibridge_addon.records import Headers
from aibridge_addon.wire.codings import Decoder
from aibridge_addon.wire.json_object import JSONObject

if TYPE_CHECKING:
    from aibridge_addon.tools.calls import RunningCalls
    from aibridge_addon.tools.catalog import Catalog

RETRY_BODY_LIMIT = 1024 * 1024
"""Bytes. Error answers up to this size are buffered to decide about another request; longer ones are forwarded."""
KEY = "aibridge"
"""Key of the state in `flow.metadata`."""
ORIGIN_FORM = "aibridge_origin_form"
"""Key in `flow.metadata` of a gateway request: its request line has only a path, on a port that proxies."""
TUNNEL = "aibridge_tunnel"
"""Key in `flow.metadata` of a CONNECT to a host of no provider."""
HOOK = "aibridge_hook"
"""Key in `flow.metadata`: the name of the last hook that the bridge has handled."""
UNDIALLED = "aibridge_undialled"
"""Key in `flow.metadata` of a CONNECT whose host is not dialled: the requests inside go to another address."""
CENTRAL_KEY = "aibridge_central_key"
"""Key in `flow.metadata` of a request that was sent with a central credential. The flow has only a hint of it."""
REASONS: Mapping[int, str] = MappingProxyType(
    {
        400: "invalid_request",
        401: "unauthenticated",
        403: "not_allowed",
        404: "unknown_route",
        407: "unauthenticated",
        413: "request_too_large",
        426: "websocket_refused",
        503: "unavailable",
    }
)
"""By the status of an answer of the bridge: the reason of a refusal that names no error type."""


@dataclass(slots=True)
class Dispatch:
    """How a request goes upstream: credential, translation and attempts."""

    attempts: Attempts = field(default_factory=Attempts)
    translation: Translation | None = None
    """Set if this is a Messages request that goes to Bedrock."""
    secrets: dict[str, str] = field(default_factory=dict)
    """Headers of the current attempt whose values only the upstream gets. The flow has hints in their place."""
    upstream_proxy: str | None = None
    """The `Proxy-Authorization` for mitmproxy's upstream proxy, which is taken out of the flow (`upstream_auth`)."""
    ticket: Ticket | None = None
    """The circuit breaker's admission of a WebSocket's handshake, until it is settled."""
    pause: asyncio.Task[None] | None = None
    """The wait for the next attempt. While it is set, the attempt hook is called again."""

    def settle_ticket(self, status: int | None = None, error_type: str | None = None) -> None:
        """Count a WebSocket's handshake for the circuit breaker, the first time. Without arguments, as if not made."""
        ticket, self.ticket = self.ticket, None
        if ticket is not None:
            ticket.settle(status, error_type)

    def settling(self, left: Callable[[], None]) -> Callable[[], None]:
        """Return a function that settles a handshake that has no result, and then calls `left`."""

        def end() -> None:
            self.settle_ticket()
            left()

        return end

    def needs_stream(self, had_central_key: bool) -> bool:
        """Return whether only the bridge's own stream can send the request. mitmproxy's replay uses another one."""
        return had_central_key or self.attempts.pool is not None or self.translation is not None


@dataclass(frozen=True, slots=True)
class Head:
    """The decisions about a request that were made when its headers had arrived."""

    route: Route
    bridge: Bridge
    """The bridge with which the flow began. After a reload, the addon has another one."""
    headers: Headers
    """The client's headers by lower-case name, unchanged."""
    actor: Actor
    dispatch: Dispatch
    credential: str
    """What distinguishes the credential from all others. It does not reveal it; see `credentials/identity.py`."""


@dataclass(slots=True)
class UsageAsk:
    """An `include_usage` option that the bridge added to a request."""

    original: bytes | None
    """The client's own request. None once the provider has accepted the option."""
    filter: UsageChunkFilter
    """Removes the usage from the answer."""
    decoder: Decoder | None = None
    """Set if the answer is coded although the request accepts only identity. The client gets it decoded."""


@dataclass(slots=True)
class ToolRun:
    """The tools that were injected into a request."""

    exchange: ToolExchange
    catalog: Catalog
    """The MCP tools at the time of the request. Its calls refer to these."""
    taken_out: list[str] = field(default_factory=list)
    """Names of the tools that the provider has refused in this request. They are remembered once it is accepted."""
    takes_none: bool = False
    """The provider has said that the model accepts no tools."""
    calls: RunningCalls | None = None
    """The running invocations of the last turn. While it is set, the turn hook is called again."""

    @property
    def schema_bytes(self) -> Mapping[str, int]:
        """The bytes of the injected tools' definitions, by server."""
        loop = self.exchange.loop
        return self.catalog.schema_bytes(loop.injection, loop.splice.injected)

    def stop(self) -> None:
        """Cancel and record running invocations."""
        if self.calls is not None:
            self.calls.cancel()
            self.exchange.tools_stopped(self.calls.invocations())


@dataclass(frozen=True, slots=True)
class Completion:
    """What was put into a request from earlier turns."""

    scope: Scope
    body: JSONObject
    """The client's own request."""
    history: RequestHistory
    found: Found


class Rows(Enum):
    """Whether the rows of an answer were committed before its end was sent."""

    PENDING = auto()
    AWAITED = auto()
    LOST = auto()
    """They could not be committed, and `recording.on_failure: closed` forbids to send the end without them."""


class Uncopied:
    """Becomes None in copies of a flow. A copy in a file (`-w`), a replay or mitmweb is another flow."""

    __slots__ = ()

    def __deepcopy__(self, _memo: dict[int, object]) -> None:
        return None


@dataclass(frozen=True, slots=True)
class Foreign(Uncopied):
    """A request to no provider, or any request while no bridge has started."""


@dataclass(frozen=True, slots=True)
class Passthrough(Uncopied):
    """A provider request that is not bridged."""

    head: Head
    left: Callable[[], None]
    """Call this after the flow has ended and its last record was emitted. A stop waits for it."""


@dataclass(frozen=True, slots=True)
class Refused(Uncopied):
    """A provider request that the bridge or another addon has answered."""

    route: Route
    left: Callable[[], None]
    message: str = ""
    """The reason, if an upstream attempt or turn was refused."""
    reported: bool = False
    """Whether the refusal was emitted."""


@dataclass(slots=True)
class Bridged(Uncopied):
    """A request on a bridged route."""

    head: Head
    left: Callable[[], None]
    share: Share
    """The bytes of the request, and of its answers, that are in memory. `left` ends it."""
    exchange: Exchange | None = None
    """Set once the request has been read."""
    usage: UsageAsk | None = None
    usage_withdrawn: bool = False
    """An error may have been about the added option. Without it, the request was sent again."""
    tools: ToolRun | None = None
    completion: Completion | None = None
    """Set until the provider has accepted the request."""
    asks_again: bool = False
    """The current answer refuses the first request, which may be sent again without what the bridge added."""
    stored: StoredAnswer | None = None
    """Set if the request is about an answer of several turns, which the provider has stored one by one."""
    buffers: bool = False
    """The current answer is buffered, whatever another addon wants."""
    undecided: bool = False
    """The answer is buffered until its first bytes decide whether it is streamed to the client."""
    rows: Rows = Rows.PENDING
    cut_by: Literal["client", "upstream", "inactivity"] = "client"
    """What ended a flow that ends in the error hook."""
    once: Once | None = None
    """Set if the answer may bring the result of earlier work. The request itself is a passthrough."""
    settling: asyncio.Future[None] | None = None
    """Set while the last records are emitted or awaited after the end of the flow."""
    overhead: float = 0.0
    """Seconds that the bridge itself has used so far: reading the request, and waiting for the rows."""

    @property
    def splicing(self) -> ToolRun | None:
        """The tools, if the answer is merged from turns. None for an error to the first turn: it is forwarded."""
        return self.tools if self.tools is not None and not self.tools.exchange.plain else None

    def client_gone(self) -> None:
        """The client has disconnected: cancel running tools and any pause."""
        if self.head.dispatch.pause is not None:
            self.head.dispatch.pause.cancel()
        if self.tools is not None:
            self.tools.stop()

    def cut_off(self) -> None:
        """End the interception at a stop of the process."""
        if self.tools is not None:
            self.tools.stop()  # the pause is not cancelled, since another attempt would follow it
        if self.exchange is not None:
            self.exchange.end("shutdown", "the bridge was shut down before the answer had ended")


Served = Passthrough | Bridged
"""Requests that go upstream."""
FlowState = Foreign | Served | Refused

FOREIGN = Foreign()


def is_replay(flow: http.HTTPFlow) -> bool:
    """Return whether mitmproxy's client replay sends the request. No stream of the bridge handles it then."""
    return flow.is_replay == "request"


def state_of(flow: http.HTTPFlow) -> FlowState:
    state = flow.metadata.get(KEY, FOREIGN)
    return state if isinstance(state, Served | Refused) else FOREIGN


@dataclass(frozen=True, slots=True)
class Refusal:
    """An error answer of the bridge in place of the upstream's, in the shape of the route's dialect."""

    status: int
    message: str
    error_type: str = ""
    """The interception's `error_type`."""
    reason: str = ""
    """The interception's `error_message`. Empty: `message`."""
    headers: Mapping[str, str] = NOTHING
    details: Mapping[str, Any] = NOTHING
    """Further members of the error."""


def refuse(flow: http.HTTPFlow, state: Served | Refused, refusal: Refusal) -> http.Response:
    """Answer a request in place of the upstream, and end its interception if it has begun. Returns the answer."""
    if isinstance(state, Bridged) and state.exchange is not None:
        state.exchange.end(refusal.error_type, refusal.reason or refusal.message)
    route = route_of(state)
    if isinstance(state, Served):
        report(flow, state, refusal)
    flow.metadata[KEY] = Refused(route, state.left, refusal.message, reported=True)
    flow.request.stream = False  # mitmproxy accepts no answer of ours while it streams the request
    flow.response = error_response(route.errors, refusal.status, refusal.message, refusal.headers, refusal.details)
    return flow.response


def describe(head: Head, exchange: Exchange) -> str:
    """Return what an interception is, for the log of a stop."""
    return f"{head.route.provider.name}/{exchange.request.model or '-'} for {head.actor.id}"


def report(flow: http.HTTPFlow, state: Served, refusal: Refusal) -> None:
    """Emit the refusal of a request that was to go upstream."""
    exchange = state.exchange if isinstance(state, Bridged) else None
    emit_refusal(state.head.bridge, flow, refusal, state.head.route, None if exchange is None else exchange.id)


UNKNOWN_ROUTE = 404
MAX_PATH = 200
"""Characters of a path in the log."""


def emit_refusal(
    bridge: Bridge, flow: http.HTTPFlow, refusal: Refusal, route: Route | None, interception_id: str | None = None
) -> None:
    """Emit that a request was refused. Errors of the upstream and of the bridge itself are no refusals."""
    if refusal.status not in REASONS and not refusal.error_type:
        return
    peer = flow.client_conn.peername
    bridge.emit(
        records.Refused(
            reason=refusal.error_type or REASONS[refusal.status],
            status=refusal.status,
            method=flow.request.method,
            provider_name=route.provider.name if route is not None else "",
            route=route.template if route is not None else "",
            interception_id=interception_id,
            client_address=peer[0] if peer else "",
            path=flow.request.path.partition("?")[0][:MAX_PATH] if refusal.status == UNKNOWN_ROUTE else "",
        )
    )


def route_of(state: Served | Refused) -> Route:
    match state:
        case Refused():
            return state.route
        case Passthrough() | Bridged():
            return state.head.route
        case _:
            assert_never(state)


def json_response(status: int, body: bytes, headers: dict[str, str] | None = None) -> http.Response:
    """Create a JSON answer of the bridge itself."""
    return http.Response.make(status, body, {"content-type": "application/json", **(headers or {})})


def plain_error(
    status: int, message: str, kind: str = "invalid_request_error", headers: Mapping[str, str] = NOTHING
) -> http.Response:
    """Create an error answer of the bridge itself to a request of no known provider."""
    return json_response(status, json.dumps({"error": {"type": kind, "message": message}}).encode(), dict(headers))


def error_response(
    errors: Dialect,
    status: int,
    message: str,
    headers: Mapping[str, str] = NOTHING,
    details: Mapping[str, Any] = NOTHING,
) -> http.Response:
    """Create an error answer of the bridge itself, in the shape of a dialect."""
    body = errors.error_body(status, message, details)
    return json_response(status, body, {**errors.error_headers(status), **headers})


def set_body(request: http.Request, body: bytes) -> None:
    """Replace the body, and correct the Content-Length if there is one."""
    request.raw_content = body
    if "content-length" in request.headers:
        request.headers["content-length"] = str(len(body))
