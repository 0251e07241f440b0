"""Free what a stream that is over has.

A stream and its parts refer to each other. So what they have would stay in memory until the garbage collector runs: the
bodies of a request and its answer, and about 80 objects, which the collector would have to look at.
"""

from __future__ import annotations

from mitmproxy.proxy import events, layer
from mitmproxy.proxy.layers.http import HttpStream


def empty(stream: HttpStream) -> None:
    """Remove all that a stream has. Call it when the HTTP layer has dropped it, and it handles no event."""
    stream_id = stream.stream_id
    vars(stream).clear()
    # A timer's event may still come, and the short way of its answer looks at the states.
    states = {"client_state": _ignore, "server_state": _ignore, "_paused": None}
    vars(stream).update(handle_event=_ignore, stream_id=stream_id, **states)


def _ignore(_event: events.Event) -> layer.CommandGenerator[None]:
    yield from ()
