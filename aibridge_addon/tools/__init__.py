"""Tools of MCP servers: what they are called, what is offered, how a call is run, and what came of it.

    servers ─ listings ─▶ catalog (names from naming) ─▶ a request's injected tools
       ▲                                                          │ the model calls one
       └──────────────── call ── invoke ◀─────────────────────────┘
                                   └─ results ─▶ Result: what the model sees

Only `servers` imports the `mcp` package, which takes most of a second: nobody who has no servers pays for it.
"""


class CallError(Exception):
    """A call has no result. The text is for models and records: short, and without secrets."""
