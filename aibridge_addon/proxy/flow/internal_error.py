"""The one way out after an error of the bridge itself.

    a hook raises   ─┐                                            ┌─ the answer has not begun: 500 in its shape
    a stream raises ─┼─▶ the interception ends as `internal_error` ─┤
    a hook is missed ┘   the request is refused                   └─ it has: an error event, or a cut

mitmproxy logs what a hook raises, and goes on with the flow: unrecorded, half prepared, or for ever. So each hook of
the addon runs in `guarded`, and each stream in `proxy/stream/guard.py`. A hook is missed if another addon raises before
the bridge's turn comes: mitmproxy then skips the scripts behind it.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

from mitmproxy import http

from aibridge_addon.proxy.flow import answer
from aibridge_addon.proxy.flow.bridged_socket import INTERNAL_ERROR as MESSAGE
from aibridge_addon.proxy.flow.bridged_socket import SOCKET, BridgedSocket
from aibridge_addon.proxy.flow.request import begin_unread
from aibridge_addon.proxy.flow.request_head import forget_password
from aibridge_addon.proxy.flow.state import (
    HOOK,
    KEY,
    Bridged,
    Passthrough,
    Refusal,
    Refused,
    Served,
    error_response,
    json_response,
    state_of,
)

logger = logging.getLogger(__name__)

FAILED = "aibridge_failed"
"""Key in `flow.metadata` of a flow that ended with an error of the bridge. Its stream has to end the answer."""
INTERNAL_ERROR = Refusal(500, MESSAGE, "internal_error")
ENDS = frozenset({"response", "error"})
"""Hooks that end a flow. mitmproxy calls no other one afterwards."""
BEFORE_THE_REQUEST = frozenset({"http_connect", "requestheaders", "request"})
"""Hooks after which mitmproxy itself sends a `flow.response` in place of the request."""
HEADS = frozenset({"http_connect", "requestheaders"})
"""Hooks in which it is decided what a request is, and whether it may go anywhere."""
HANDLED = frozenset({*BEFORE_THE_REQUEST, *ENDS, "responseheaders"})
"""The hooks of mitmproxy that decide about a flow."""

Hook = Callable[[Any, http.HTTPFlow], Awaitable[None] | None]


def guarded(hook: Hook) -> Hook:
    """Wrap a hook of the addon: an exception ends the flow."""
    name = hook.__name__

    def run(addon: Any, flow: http.HTTPFlow) -> Awaitable[None] | None:
        try:
            waiting = hook(addon, flow)
        except Exception:  # noqa: BLE001 (`fail` logs it)
            fail(flow, name)
            waiting = None
        if waiting is not None:
            return _awaited(waiting, flow, name)
        flow.metadata[HOOK] = name
        return None

    run.__doc__ = hook.__doc__
    return run


async def _awaited(waiting: Awaitable[None], flow: http.HTTPFlow, name: str) -> None:
    try:
        await waiting
    except Exception:  # noqa: BLE001 (`fail` logs it)
        fail(flow, name)
    flow.metadata[HOOK] = name


def fail(flow: http.HTTPFlow, place: str) -> None:
    """End a flow after an exception in a hook. Call this while the exception is handled. Never raises.

    `place`: the hook's name.
    """
    logger.exception("aibridge: an internal error ends a request: hook=%s", place)
    stop(flow, place, INTERNAL_ERROR)


def missed(flow: http.HTTPFlow, place: str) -> None:
    """Handle a hook that another addon's exception has kept from the bridge. The last ones are made up for.

    Nothing is decided about other requests than bridged ones after their head.
    """
    logger.error("aibridge: the error of another addon has kept a hook from the bridge: hook=%s", place)
    if place == "response":
        answer.answered_unawaited(flow)
    elif place == "error":
        answer.failed(flow)
    elif place in HEADS or isinstance(state_of(flow), Bridged):
        if place in HEADS:
            forget_password(flow)
        stop(flow, place, INTERNAL_ERROR)


def stop(flow: http.HTTPFlow, place: str, refusal: Refusal) -> None:
    """End the interception of a flow, and answer it. After the last hook, the flow leaves at once. Never raises."""
    if place not in BEFORE_THE_REQUEST:
        flow.metadata[FAILED] = True
    state = state_of(flow)
    if isinstance(state, Served):
        _refuse(flow, state, refusal)
        state = state_of(flow)
    elif flow.response is None or place not in BEFORE_THE_REQUEST:
        flow.request.stream = False
        flow.response = error_answer(refusal)
    if place in ENDS and isinstance(state, Refused):
        state.left()


def error_answer(refusal: Refusal = INTERNAL_ERROR) -> http.Response:
    """Return the answer to a request whose provider is not known. Clients of all dialects find its message."""
    error = {"type": "error", "error": {"type": "api_error", "message": refusal.message}}
    return json_response(refusal.status, json.dumps(error).encode())


def _refuse(flow: http.HTTPFlow, state: Served, refusal: Refusal) -> None:
    if isinstance(state, Bridged):
        _end(flow, state, refusal)
    route = state.head.route
    flow.metadata[KEY] = Refused(route, state.left, refusal.message, reported=True)
    flow.request.stream = False  # as in `refuse`
    flow.response = error_response(route.errors, refusal.status, refusal.message)


def _end(flow: http.HTTPFlow, state: Bridged, refusal: Refusal) -> None:
    """End the interception, whose request or answer may not have been read."""
    with suppress(Exception):
        state.client_gone()
    if state.once is not None:  # the request itself is a passthrough: its result can be fetched again
        state.once = state.exchange = None
        return
    if state.exchange is None or (state.exchange.started_at is None and not state.exchange.ended):
        with suppress(Exception):  # the first exception was reported
            state.exchange = begin_unread(flow, state)
    if state.exchange is not None:
        state.exchange.fail(refusal.error_type, refusal.message)


def abandon(flow: http.HTTPFlow) -> None:
    """End a flow for which mitmproxy will call no further hook. Never raises."""
    state = state_of(flow)
    if isinstance(socket := flow.metadata.get(SOCKET), BridgedSocket):
        socket.fail()
    if isinstance(state, Served):
        _refuse(flow, state, INTERNAL_ERROR)
    flow.metadata[FAILED] = True
    flow.live = False
    if isinstance(state, Bridged | Passthrough | Refused):
        state.left()
