"""Tools of MCP servers: their names, which are offered, and how calls are run.

    servers ─ listings ─▶ catalog (names from naming) ─▶ a request's injected tools
       ▲                                                          │ the model calls one
       └──────────────── call ─── calls ◀─────────────────────────┘
                                   └─ results ─▶ Result: what the model sees

The `mcp` package takes most of a second to import. Only `servers` and the modules that it imports load it, and only if
servers are configured.
"""

from typing import Literal

ErrorKind = Literal[
    "tool", "server", "timeout", "connection", "busy", "rate", "request", "login", "cancelled", "internal"
]
"""Why an invocation has failed.

- tool: the tool's own error.
- server: the server has refused the call.
- timeout, connection: no answer in time, or none because the connection is away.
- busy, rate: too many calls at the same time, or too often.
- request: the model's arguments, or there is no such tool.
- login: the actor has to log in at the server first.
- cancelled: the client has disconnected.
- internal: an error of the bridge.
"""


class CallError(Exception):
    """A call has no result. The message goes to models and records, so it is short and has no secrets."""

    def __init__(self, text: str, kind: ErrorKind = "server") -> None:
        super().__init__(text)
        self.kind: ErrorKind = kind


class SessionExpired(CallError):
    """The server has dropped our session and has not run the call."""


class NotConnected(CallError):
    """The server is away. The call was not sent."""

    def __init__(self, text: str, *, returning: bool) -> None:
        super().__init__(text, "connection")
        self.returning = returning
        """It was connected a moment ago, and no attempt to connect again has failed."""
