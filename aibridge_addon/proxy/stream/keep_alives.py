"""Keep-alives for a client whose answer has begun, while nothing visible comes from the upstream."""

from __future__ import annotations

from typing import Protocol

from mitmproxy.proxy import commands, layer

from aibridge_addon.proxy.flow.state import Bridged, FlowState
from aibridge_addon.proxy.stream.answer import Spliced, Tapped
from aibridge_addon.proxy.stream.client_side import ClientSide


class WaitingStream(Protocol):
    """The part of `BridgeHttpStream` that keep-alives use."""

    client: ClientSide
    answer: Tapped | Spliced | None
    answer_begun: bool

    @property
    def state(self) -> FlowState: ...


class KeepAlives:
    def __init__(self, stream: WaitingStream) -> None:
        self.timer: commands.RequestWakeup | None = None
        """Fires after the next interval."""
        self._stream = stream

    def start(self) -> layer.CommandGenerator[None]:
        """Start the timer of the next interval."""
        if isinstance(state := self._stream.state, Bridged):
            self.timer = commands.RequestWakeup(state.head.bridge.settings.mcp.keepalive_interval)
            yield self.timer

    def interval_over(self) -> layer.CommandGenerator[None]:
        """Send a keep-alive if nothing was sent in the last interval, until the answer has ended."""
        if isinstance(answer := self._stream.answer, Spliced) and not answer.exchange.ended:
            yield from self._stream.client.maybe_data(answer.due_keepalive())
            yield from self.start()

    def send(self) -> layer.CommandGenerator[None]:
        """Send a keep-alive, if the answer's headers were sent to the client."""
        if self._stream.answer_begun and isinstance(self._stream.answer, Spliced):
            yield from self._stream.client.maybe_data(self._stream.answer.keepalive())
