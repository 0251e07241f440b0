"""Tools of MCP servers: their names, which are offered, and how calls are run.

    servers ─ listings ─▶ catalog (names from naming) ─▶ a request's injected tools
       ▲                                                          │ the model calls one
       └──────────────── call ─── calls ◀─────────────────────────┘
                                   └─ results ─▶ Result: what the model sees

The `mcp` package takes most of a second to import. Only `servers` and the modules that it imports load it, and only if
servers are configured.
"""


class CallError(Exception):
    """A call has no result. The message goes to models and records, so it is short and has no secrets."""
