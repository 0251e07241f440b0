"""What is decided about a request when only its head is there."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from mitmproxy.proxy.layers.http import _hooks as hooks

from aibridge_addon.config.schema import Egress
from aibridge_addon.proxy.connection.egress import EgressGuard
from tests.support.scene import Scene, request


async def private(client: str, host: str) -> Sequence[str]:
    return ["10.0.0.1"]


@pytest.mark.parametrize("url", ["http://api.openai.com/v1/files", "http://internal.example/x"])
async def test_a_streamed_body_does_not_keep_the_egress_guard_from_refusing(scene: Scene, url: str) -> None:
    """mitmproxy raises where a request streams and is answered by an addon."""
    scene._addon._guard = EgressGuard(Egress(guard="on", ports=(80,)), resolve=private)
    scene.playbook.receive(scene.client, request(b'{"a":1}', url))
    flow = await scene.hook(hooks.HttpRequestHeadersHook)
    assert flow.response is not None and flow.response.status_code == 403
    await scene.hook(hooks.HttpRequestHook)
    await scene.hook(hooks.HttpResponseHeadersHook)
    await scene.hook(hooks.HttpResponseHook)
    assert scene.playbook.sent(scene.client).startswith(b"HTTP/1.1 403")
