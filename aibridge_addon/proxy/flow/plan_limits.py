"""Record the limits of a plan that an upstream answer names. Headers and events are sent on as they came."""

from __future__ import annotations

from collections.abc import Sequence

from mitmproxy import http

from aibridge_addon.credentials.client import client_credential, mask
from aibridge_addon.credentials.identity import CENTRAL
from aibridge_addon.dialects.limits import LimitWindow, limits_in_headers
from aibridge_addon.interception.plan_limits import Holder, of_endpoint
from aibridge_addon.proxy.flow.state import Dispatch, Head
from aibridge_addon.records import utc_now


def limits_came(head: Head, headers: http.Headers) -> None:
    """Record the limits in the headers of an upstream answer, also of one that the client does not get."""
    if windows := limits_in_headers(headers.items(multi=True), utc_now()):
        route = head.route
        is_passthrough = route.dialect is None and route.websocket is None and route.results is None
        limits_said(head, of_endpoint(windows, route.template) if is_passthrough else windows)


def limits_said(head: Head, windows: Sequence[LimitWindow]) -> None:
    """Record those limits that have changed."""
    central = central_hint(head.dispatch)
    if central is None:
        own = client_credential(head.headers, head.route.type.credential_headers)
        hint, credential = mask(own or ""), head.credential
    else:
        hint, credential = central, f"{CENTRAL} {central}"
    holder = Holder(head.actor.id, head.route.provider.name, hint, credential)
    head.bridge.plan_limits.said(holder, windows, utc_now())


def central_hint(dispatch: Dispatch) -> str | None:
    """Return the hint of the central credential. None: the client's own is used."""
    if dispatch.translation is not None:
        return mask(dispatch.translation.signer.key_id)
    if dispatch.attempts.pool is None:
        return None
    return dispatch.attempts.key.hint if dispatch.attempts.key is not None else ""
