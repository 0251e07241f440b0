"""What a flow is, decided when its headers have arrived, and what is known of it since.

    headers ─▶ Intake ─┬─ Foreign      no provider's: neither recorded nor counted
                       ├─ Passthrough  a provider's, not bridged: counted
                       ├─ Bridged      an interception
                       └─ Refused      the answer is ours; Passthrough and Bridged become Refused too, never back

The state is in `flow.metadata`, so it ends with the flow. `state_of` returns it; a flow without one is `Foreign`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import TYPE_CHECKING, Literal, assert_never

from mitmproxy import http

from aibridge_addon.bridge import Bridge
from aibridge_addon.dialects.base import NOTHING, Dialect
from aibridge_addon.dialects.chat_completions.usage import UsageChunkFilter
from aibridge_addon.interception.actors import Actor
from aibridge_addon.interception.attempts import Attempts
from aibridge_addon.interception.exchange import Exchange
from aibridge_addon.interception.routing import Route
from aibridge_addon.interception.tool_exchange import ToolExchange
from aibridge_addon.proxy.flow.bedrock import Translation
from aibridge_addon.records import Headers
from aibridge_addon.wire.codings import Decoder

if TYPE_CHECKING:
    from aibridge_addon.tools.calls import RunningCalls
    from aibridge_addon.tools.catalog import Catalog

RETRY_BODY_LIMIT = 1024 * 1024
"""Bytes of an error answer that are buffered and decoded to see whether to ask again. A longer one is passed on."""
KEY = "aibridge"
ORIGIN_FORM = "aibridge_origin_form"
"""In `flow.metadata`: the request line named only a path, on a port that proxies: it is meant for us."""
TUNNEL = "aibridge_tunnel"
"""In `flow.metadata` of a CONNECT: it is for a host of no provider."""


@dataclass(slots=True)
class Dispatch:
    """How a request goes upstream: with which credential, in which form, and what is tried again."""

    attempts: Attempts = field(default_factory=Attempts)
    translation: Translation | None = None
    """Set where the provider's Messages requests go to Bedrock."""
    pause: asyncio.Task[None] | None = None
    """The time until the next attempt. While it is set, the attempt hook is called again."""


@dataclass(frozen=True, slots=True)
class Head:
    """What was decided about a request when its headers had arrived."""

    route: Route
    bridge: Bridge
    """The bridge that the flow began with: after a reload, that is no longer the addon's."""
    headers: Headers
    """As the client sent them, by lower-case name."""
    actor: Actor
    dispatch: Dispatch


@dataclass(slots=True)
class UsageAsk:
    """Usage that we asked for although the client did not."""

    original: bytes | None
    """The request as the client sent it, for as long as the provider may refuse what we added."""
    filter: UsageChunkFilter
    """Takes the usage out of the answer again."""
    decoder: Decoder | None = None
    """Set where the answer is coded though we asked for identity: the client gets it decoded."""


@dataclass(slots=True)
class ToolRun:
    """The tools that were injected into a request."""

    exchange: ToolExchange
    catalog: Catalog
    """The MCP tools as they were when the request came: its calls are of these."""
    calls: RunningCalls | None = None
    """The injected calls of the last turn, while they run. While it is set, the turn hook is called again."""

    def stop(self) -> None:
        """Cancel what runs, and record it."""
        if self.calls is not None:
            self.calls.cancel()
            self.exchange.tools_stopped(self.calls.invocations())


class Rows(Enum):
    """Whether the rows of an answer were committed before its end was sent."""

    PENDING = auto()
    AWAITED = auto()
    LOST = auto()
    """They could not be written, and the configuration wants no answer without them."""


class _Uncopied:
    """Left out of a flow's copies: those in a file (`-w`), for a replay, in mitmweb are other flows."""

    __slots__ = ()

    def __deepcopy__(self, _memo: dict[int, object]) -> None:
        return None


@dataclass(frozen=True, slots=True)
class Foreign(_Uncopied):
    """A request to no provider, or one that came without a configuration."""


@dataclass(frozen=True, slots=True)
class Passthrough(_Uncopied):
    """A provider request that is not bridged."""

    head: Head
    left: Callable[[], None]
    """To be called when the flow has ended and its last record was emitted: a stop waits for it."""


@dataclass(frozen=True, slots=True)
class Refused(_Uncopied):
    """A provider request that is answered by the bridge, or by another addon."""

    route: Route
    left: Callable[[], None]
    message: str = ""
    """Why, where an upstream attempt or turn was refused."""


@dataclass(slots=True)
class Bridged(_Uncopied):
    """A request on a bridged route."""

    head: Head
    left: Callable[[], None]
    exchange: Exchange | None = None
    """Set once the request has been read."""
    usage: UsageAsk | None = None
    tools: ToolRun | None = None
    rows: Rows = Rows.PENDING
    cut_by: Literal["client", "upstream"] = "client"
    """Who ended a flow that ends in the error hook."""
    overhead: float = 0.0
    """Seconds that the bridge itself has taken so far: reading the request, waiting for rows."""

    @property
    def splicing(self) -> ToolRun | None:
        """The tools, if the answer is put together out of turns. An error to the first turn passes as it is."""
        return self.tools if self.tools is not None and not self.tools.exchange.plain else None

    def client_gone(self) -> None:
        """The client has disconnected: cancel running tools and any pause."""
        if self.head.dispatch.pause is not None:
            self.head.dispatch.pause.cancel()
        if self.tools is not None:
            self.tools.stop()

    def cut_off(self) -> None:
        """The process ends before the answer does."""
        if self.tools is not None:
            self.tools.stop()  # but not the pause: at its end, upstream would be asked again
        if self.exchange is not None:
            self.exchange.end("shutdown", "the bridge was shut down before the answer had ended")


Served = Passthrough | Bridged
"""Requests that go upstream."""
FlowState = Foreign | Served | Refused

FOREIGN = Foreign()


def state_of(flow: http.HTTPFlow) -> FlowState:
    state = flow.metadata.get(KEY, FOREIGN)
    return state if isinstance(state, Served | Refused) else FOREIGN


@dataclass(frozen=True, slots=True)
class Refusal:
    """An answer of ours in place of the upstream's, in the shape of the route's dialect."""

    status: int
    message: str
    error_type: str = ""
    """Of the interception that ends with it."""
    reason: str = ""
    """What its row says; empty: the message."""
    headers: Mapping[str, str] = NOTHING


def refuse(flow: http.HTTPFlow, state: Served | Refused, refusal: Refusal) -> http.Response:
    """Answer a request in place of the upstream; its interception ends, if it has begun. Returns the answer."""
    if isinstance(state, Bridged) and state.exchange is not None:
        state.exchange.end(refusal.error_type, refusal.reason or refusal.message)
    route = route_of(state)
    flow.metadata[KEY] = Refused(route, state.left, refusal.message)
    flow.response = error_response(route.errors, refusal.status, refusal.message, refusal.headers)
    return flow.response


def route_of(state: Served | Refused) -> Route:
    match state:
        case Refused():
            return state.route
        case Passthrough() | Bridged():
            return state.head.route
        case _:
            assert_never(state)


def json_response(status: int, body: bytes, headers: dict[str, str] | None = None) -> http.Response:
    """An answer of our own: JSON, in a provider's shape."""
    return http.Response.make(status, body, {"content-type": "application/json", **(headers or {})})


def error_response(errors: Dialect, status: int, message: str, headers: Mapping[str, str] = NOTHING) -> http.Response:
    """An error answer of our own, in the shape of that dialect."""
    return json_response(status, errors.error_body(status, message), {**errors.error_headers(status), **headers})


def set_body(request: http.Request, body: bytes) -> None:
    """Put another body in, and keep a length that is announced true."""
    request.raw_content = body
    if "content-length" in request.headers:
        request.headers["content-length"] = str(len(body))
