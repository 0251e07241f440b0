"""The guard around a stream: after an exception, the client gets an error and a proper end.

    event ─▶ the stream ─┬─ commands
                         └─ an exception ─▶ `internal_error` ─▶ error hook ─▶ the upstream is cancelled ─▶ 500, or a cut

mitmproxy would log the exception and never handle an event of this flow again. The guard also ends a flow after a hook
that has failed, and notices a hook that another addon has kept from the bridge.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Protocol

from mitmproxy import http
from mitmproxy.proxy import events, layer
from mitmproxy.proxy.layers.http import DropStream
from mitmproxy.proxy.layers.http import _events as http_events

from aibridge_addon.proxy.flow import internal_error
from aibridge_addon.proxy.flow.internal_error import FAILED, HANDLED, INTERNAL_ERROR
from aibridge_addon.proxy.flow.state import HOOK, Bridged, state_of
from aibridge_addon.proxy.stream.client_side import ClientSide
from aibridge_addon.proxy.stream.early_end import EarlyEnd
from aibridge_addon.proxy.stream.short_way import ReadingFailed

logger = logging.getLogger(__name__)


@dataclass
class Crashed(events.Event):
    """mitmproxy's code for the stream's connection has raised an exception."""

    error: Exception


class GuardedStream(Protocol):
    """The part of `BridgeHttpStream` that the guard uses."""

    client: ClientSide
    early_end: EarlyEnd
    stream_id: int

    @property
    def maybe_flow(self) -> http.HTTPFlow | None:
        """The flow. None before the request's head."""

    @property
    def ends_with_hook(self) -> bool:
        """Whether the flow's last hook was not called yet."""

    def cancel_current(self, reason: str) -> layer.CommandGenerator[None]:
        """Cancel the current request, if the upstream has it and has not answered it."""


class StreamGuard:
    def __init__(self, stream: GuardedStream) -> None:
        self._stream = stream
        self._over = False

    def before(self, event: events.Event, paused: layer.Paused | None) -> None:
        """Look at an event before the stream handles it. `paused`: the hook or other command that it waits for."""
        if isinstance(event, Crashed | ReadingFailed):
            raise event.error
        flow = self._stream.maybe_flow
        if paused is None or flow is None:
            return
        if isinstance(event, http_events.RequestProtocolError):
            if isinstance(state := state_of(flow), Bridged):
                state.client_gone()  # end the current hook early
        elif isinstance(event, events.HookCompleted) and event.command is paused.command:
            name = event.command.name
            if name in HANDLED and flow.metadata.get(HOOK) != name and FAILED not in flow.metadata:
                internal_error.missed(flow, name)

    def failed(self) -> None:
        """Note an exception of the stream. Call this while it is handled."""
        flow = self._stream.maybe_flow
        if flow is None:
            logger.exception("aibridge: an internal error ends a request before its head was read")
        elif FAILED not in flow.metadata:
            internal_error.fail(flow, "stream")

    def handle_rest(self, _event: events.Event) -> layer.CommandGenerator[None]:
        """End the flow, and ignore all further events. This handles a stream's events after an exception."""
        if self._over:
            return
        self._over = True
        flow, ends_with_hook = self._stream.maybe_flow, self._stream.ends_with_hook
        if flow is None:
            response = internal_error.error_answer()
            yield self._stream.client.head(response)
            yield self._stream.client.data(response.raw_content or b"")
            yield DropStream(self._stream.stream_id)
            yield self._stream.client.end()
            return
        if not ends_with_hook:
            internal_error.abandon(flow)
        yield from self.end(run_hook=ends_with_hook)

    def end(self, *, run_hook: bool) -> layer.CommandGenerator[None]:
        """End a flow that has failed."""
        if run_hook:
            yield from self._stream.early_end.run_error_hook(INTERNAL_ERROR.message)
        yield from self._stream.cancel_current(INTERNAL_ERROR.message)
        yield from self._stream.early_end.send_refusal(INTERNAL_ERROR.message)
