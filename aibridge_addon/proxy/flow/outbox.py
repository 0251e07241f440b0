"""Messages of the bridge itself into a WebSocket, in whole frames.

mitmproxy cuts a message that an addon has changed or injected into frames of 4000 bytes, each decoded as UTF-8 by
itself. A character at a cut would be lost. So the bridge's own layer sends these messages.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from mitmproxy import ctx, http
from mitmproxy.proxy import events


@dataclass(frozen=True, slots=True)
class Outgoing:
    to_client: bool
    content: bytes | None
    """The text of the message; None: a ping."""


@dataclass
class OutboxFilled(events.MessageInjected[None]):
    """The outbox of a WebSocket has messages that no hook has put there."""

    message: None = None


class Outbox:
    def __init__(self, flow: http.HTTPFlow) -> None:
        self._flow = flow
        self._messages: list[Outgoing] = []

    def to_client(self, messages: Iterable[bytes | None]) -> None:
        self._messages += (Outgoing(True, message) for message in messages)

    def to_server(self, message: bytes) -> None:
        self._messages.append(Outgoing(False, message))

    def take(self) -> list[Outgoing]:
        """Return the messages to send, in their order, and forget them."""
        messages, self._messages = self._messages, []
        return messages

    def send(self) -> None:
        """Have the messages sent outside of a hook. The connection may have been closed meanwhile."""
        server = ctx.master.addons.get("proxyserver")
        if self._messages and self._flow.client_conn.id in server.connections:
            server.inject_event(OutboxFilled(self._flow))
