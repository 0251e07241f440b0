"""Which upgrades are refused, and what is kept of the messages of a socket."""

from __future__ import annotations

import pytest
from mitmproxy import http
from mitmproxy.test import tflow

from aibridge_addon.addon import AIBridge
from aibridge_addon.proxy.flow.websocket import is_upgrade


@pytest.mark.parametrize(
    ("method", "headers", "upgrade"),
    [
        ("GET", {"upgrade": "websocket"}, True),
        ("GET", {"Upgrade": "WebSocket"}, True),
        ("GET", {"upgrade": "h2c, websocket"}, True),
        ("GET", {"upgrade": "h2c"}, False),
        ("GET", {}, False),
        ("POST", {"upgrade": "websocket"}, False),
    ],
)
def test_a_websocket_is_asked_for_by_a_get_that_wants_to_upgrade(
    method: str, headers: dict[str | bytes, str | bytes], upgrade: bool
) -> None:
    assert is_upgrade(http.Request.make(method, "https://api.openai.com/v1/responses", headers=headers)) is upgrade


def test_only_the_last_message_of_any_websocket_is_kept() -> None:
    """mitmproxy would keep them all."""
    flow = tflow.twebsocketflow()
    assert flow.websocket is not None and len(flow.websocket.messages) > 1
    last = flow.websocket.messages[-1]
    assert AIBridge().websocket_message(flow) is None
    assert flow.websocket.messages == [last]
