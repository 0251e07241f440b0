"""What the bridge knows of one flow. It hangs on `flow.metadata`, so it dies with the flow."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from mitmproxy import http

from aibridge_addon.bridge import Bridge
from aibridge_addon.dialects.base import NOTHING, Dialect
from aibridge_addon.dialects.chat_completions.usage import UsageChunkFilter
from aibridge_addon.interception.actors import Actor
from aibridge_addon.interception.attempts import Attempts
from aibridge_addon.interception.exchange import Exchange
from aibridge_addon.interception.routing import Route
from aibridge_addon.interception.tool_loop import ToolLoop
from aibridge_addon.records import Headers
from aibridge_addon.wire.codings import Decoder

if TYPE_CHECKING:
    from aibridge_addon.proxy.flow.bedrock import Translation
    from aibridge_addon.tools.calls import RunningCalls
    from aibridge_addon.tools.catalog import Catalog

RETRY_BODY_LIMIT = 1024 * 1024
"""Bytes of an error answer that are buffered, and decoded, to see whether to ask again; a longer one is passed on."""
KEY = "aibridge"
ORIGIN_FORM = "aibridge_origin_form"
"""In `flow.metadata`: the request line named only a path, on a port that proxies: it is meant for us."""
TUNNEL = "aibridge_tunnel"
"""In `flow.metadata` of a CONNECT: it is for a host of no provider."""


def _nothing() -> None:
    pass


@dataclass(slots=True)
class FlowState:
    route: Route
    bridge: Bridge
    headers: Headers = field(default_factory=dict)
    """The request's headers as the client sent them, by lower-case name."""
    actor: Actor | None = None
    request_limit: int = 0
    """Bytes of a request body that are read before it is refused; 0: it is not buffered, so not limited."""
    attempts: Attempts = field(default_factory=Attempts)
    """What is tried upstream, and with which central key."""
    exchange: Exchange | None = None
    """Set on bridged routes, once the request has been read."""
    left: Callable[[], None] = _nothing
    """To be called when the flow has ended: a stop waits for it."""
    overhead: float = 0.0
    """Seconds that the bridge itself has taken so far: reading the request, waiting for rows."""
    refused: bool = False
    """The answer is ours: nobody was asked."""
    refusal: str = ""
    """Why, where that was decided right before an attempt."""
    pause: asyncio.Task[None] | None = None
    """The time until the next attempt."""
    pausing: bool = False
    """It is not over yet: the hook is to be called again."""
    cut_by: Literal["client", "upstream"] = "client"
    usage_filter: UsageChunkFilter | None = None
    """We asked for usage that the client did not ask for: it is taken out of the answer again."""
    decoder: Decoder | None = None
    """The answer is coded though we asked for identity, and a chunk is to be taken out: the client gets it decoded."""
    translation: Translation | None = None
    """Its provider's Messages requests go to Bedrock."""
    unasked_body: bytes | None = None
    """The request as the client sent it, for the case that the provider refuses what we added."""
    another_turn: bool = False
    """The answer that has just been read is not for the client; ask upstream again."""
    asked: tuple[int, int] | None = None
    """Turn and attempt of the request that went upstream last, counted from 1; kept where there are dumps."""
    committed: bool = False
    """The answer's rows have been waited for."""
    catalog: Catalog | None = None
    """The MCP tools as they were when the request came: where they are injected, its calls are of these."""
    refused_loop: ToolLoop | None = None
    """The first answer is an error: the loop, for the case that the request goes again."""
    tools: RunningCalls | None = None
    """Injected calls that are being run."""
    tools_running: bool = False
    """They are not done yet: the client is to be told that somebody is there, and the hook to be called again."""
    lost: bool = False
    """The rows could not be written, and the configuration wants no answer without them."""

    def __deepcopy__(self, _memo: dict[int, object]) -> None:
        """Leave it out of a flow's copies: those in a file (`-w`), for a replay, in mitmweb are other flows."""

    def client_gone(self) -> None:
        """Nobody waits for the answer any more: tools that run for it are stopped, and no pause is waited for."""
        if self.pause is not None:
            self.pause.cancel()
        self._stop_tools()

    def _stop_tools(self) -> None:
        if self.tools is not None and self.exchange is not None:
            self.tools.cancel()
            self.exchange.tools_stopped(self.tools.invocations())

    def cut_off(self) -> None:
        """The process ends before the answer does."""
        self._stop_tools()  # and no pause is: at its end, upstream would be asked again
        if self.exchange is not None:
            self.exchange.end("shutdown", "the bridge was shut down before the answer had ended")


def state_of(flow: http.HTTPFlow) -> FlowState | None:
    state = flow.metadata.get(KEY)
    return state if isinstance(state, FlowState) else None


def json_response(status: int, body: bytes, headers: dict[str, str] | None = None) -> http.Response:
    """An answer of our own: JSON, in a provider's shape."""
    return http.Response.make(status, body, {"content-type": "application/json", **(headers or {})})


def error_response(errors: Dialect, status: int, message: str, headers: Mapping[str, str] = NOTHING) -> http.Response:
    """An error answer of our own, in the shape of that dialect."""
    return json_response(status, errors.error_body(status, message), {**errors.error_headers(status), **headers})


def set_body(request: http.Request, body: bytes) -> None:
    """Put another body in, and keep its length true where it is told."""
    request.raw_content = body
    if "content-length" in request.headers:
        request.headers["content-length"] = str(len(body))
