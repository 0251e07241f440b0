"""Leave a turn's upstream stream after its tools have run, and start the next turn.

terminal event ─▶ tools run ─▶ leave ─┬─ the body ends ─▶ state_left ─▶ timer ─▶ start_turn
                                      └─ END_TIMEOUT ─▶ its rest is cancelled ─▶ start_turn
"""

from __future__ import annotations

from typing import Protocol

from mitmproxy.proxy import commands, events, layer
from mitmproxy.proxy.layers.http import _events as http_events

END_TIMEOUT = 0.2
"""Seconds. Maximum wait for the end of a turn's body after its tools have run, so that its connection can be reused.

Some servers end the body minutes after the terminal event.
"""


class TurningStream(Protocol):
    """The part of `BridgeHttpStream` that a change of turns uses."""

    def start_turn(self) -> layer.CommandGenerator[None]: ...
    def cancel_upstream(self, reason: str) -> layer.CommandGenerator[None]: ...


class NextTurn:
    def __init__(self, stream: TurningStream) -> None:
        self.timer: commands.RequestWakeup | None = None
        """Starts the next turn. None: the last turn has not been left."""
        self._stream = stream
        self._body_ended = False

    def leave(self) -> layer.CommandGenerator[None]:
        """Start the next turn when the last one's body has ended. It may have ended while the tools ran."""
        self._body_ended = False
        self.timer = commands.RequestWakeup(END_TIMEOUT)
        yield self.timer

    def state_leave(self, event: events.Event) -> layer.CommandGenerator[None]:
        """Drop the bytes behind a turn's terminal event. This is the stream's `server_state` meanwhile."""
        ended = isinstance(event, http_events.ResponseEndOfMessage | http_events.ResponseProtocolError)
        if ended and not self._body_ended:
            # mitmproxy's Http1Client frees its stream only after this event was handled, so a timer follows.
            self._body_ended = True
            self.timer = commands.RequestWakeup(0)
            yield self.timer

    def start(self) -> layer.CommandGenerator[None]:
        """Start the next turn, after the timer has fired."""
        self.timer = None
        if not self._body_ended:
            yield from self._stream.cancel_upstream("the rest of a turn is not read")
        yield from self._stream.start_turn()
