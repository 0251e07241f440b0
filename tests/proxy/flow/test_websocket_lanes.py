"""Several requests over one WebSocket at once, in mitmproxy's layer: each answer belongs to its own request."""

from __future__ import annotations

import json
from typing import Any

import pytest
from mitmproxy.connection import Server
from mitmproxy.proxy.layers import websocket
from mitmproxy.proxy.layers.http import _hooks as hooks

from aibridge_addon.interception.responses_socket import ResponsesSocket
from tests.proxy.conftest import MakeScene
from tests.support import fixtures, frames
from tests.support.scene import Scene

UPGRADE = (
    b"GET http://api.openai.com/v1/responses HTTP/1.1\r\nHost: api.openai.com\r\n"
    b"Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
)
SWITCHED = (
    b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    b"Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n"
)
GOING = b"\x88\x02\x03\xe8"
"""A close frame with 1000, "normal closure"."""
SIMPLE = fixtures.case("responses/simple/streaming")


class Socket:
    """An open WebSocket between the scene's client and its upstream."""

    def __init__(self, scene: Scene) -> None:
        self.scene = scene
        self.playbook = scene.playbook
        self._upstream: Server | None = None

    async def open(self) -> None:
        await self.scene.ask(UPGRADE)
        self._upstream = self.playbook.connect()
        assert b"Upgrade: websocket" in self.playbook.sent(self._upstream)
        await self.scene.answer(self._upstream, SWITCHED)
        await self.scene.hook(hooks.HttpResponseHook)
        assert self.playbook.sent(self.scene.client).startswith(b"HTTP/1.1 101 ")
        await self.scene.hook(websocket.WebsocketStartHook)

    async def ask(self, lane: str, prompt: str) -> None:
        """The client sends a request in a lane."""
        said = [{"role": "user", "content": prompt}]
        await self._say(frames.create(SIMPLE, stream_id=lane, input=said), from_client=True)

    async def answer(self, lane: str, response_id: str) -> None:
        """The upstream sends the whole answer of a lane."""
        for event in frames.events(SIMPLE):
            await self._say(in_lane(event, lane, response_id), from_client=False)

    async def _say(self, message: bytes, *, from_client: bool) -> None:
        upstream = self._upstream
        assert upstream is not None
        sender, receiver = (self.scene.client, upstream) if from_client else (upstream, self.scene.client)
        self.playbook.receive(sender, text_frame(message, masked=from_client))
        await self.scene.hook(websocket.WebsocketMessageHook)
        passed = self.playbook.sent(receiver)
        assert passed if from_client else passed.endswith(message)  # to the upstream it is masked anew

    async def close(self) -> None:
        """The upstream goes away."""
        assert self._upstream is not None
        self.playbook.close(self._upstream)
        self.playbook.expect_close(self._upstream)
        assert self.playbook.sent(self.scene.client) == GOING
        self.playbook.expect_close(self.scene.client)
        await self.scene.hook(websocket.WebsocketEndHook)


def text_frame(payload: bytes, *, masked: bool) -> bytes:
    """A whole text message (RFC 6455, section 5.2); the mask is all zeros."""
    mask = 0x80 if masked else 0
    size = len(payload)
    length = bytes([mask | size]) if size < 126 else bytes([mask | 126]) + size.to_bytes(2, "big")
    return b"\x81" + length + (b"\0\0\0\0" if masked else b"") + payload


def in_lane(event: bytes, lane: str, response_id: str) -> bytes:
    members: dict[str, Any] = json.loads(event)
    members["stream_id"] = lane
    if "response" in members:
        members["response"]["id"] = response_id
    return json.dumps(members).encode()


@pytest.fixture
async def socket(make_scene: MakeScene) -> Socket:
    made = Socket(make_scene())
    await made.open()
    return made


async def test_answers_in_another_order_are_recorded_with_their_own_requests(socket: Socket) -> None:
    for lane in "abc":
        await socket.ask(lane, f"the prompt of {lane}")
    for lane in "cab":
        await socket.answer(lane, f"resp_{lane}")
    prompts = await socket.scene.rows("aibridge_user_prompts")
    assert {(row["prompt"], row["provider_response_id"]) for row in prompts} == {
        (f"the prompt of {lane}", f"resp_{lane}") for lane in "abc"
    }
    usages = await socket.scene.rows("aibridge_token_usages")
    assert {row["interception_id"]: row["provider_response_id"] for row in usages} == {
        row["interception_id"]: row["provider_response_id"] for row in prompts
    }
    await socket.close()


@pytest.mark.parametrize("answered", ["a", "b"])
async def test_a_stop_cuts_the_lane_that_has_no_answer_yet(socket: Socket, answered: str) -> None:
    """The other one has left already: which one is cut must not depend on which came first."""
    for lane in "ab":
        await socket.ask(lane, f"the prompt of {lane}")
    await socket.answer(answered, "resp_1")
    assert len(socket.scene.bridge.in_flight) == 1
    socket.scene.bridge.in_flight.cut_off()
    prompts = {row["interception_id"]: row["prompt"] for row in await socket.scene.rows("aibridge_user_prompts")}
    ends = {prompts[row["id"]]: row["error_type"] for row in await socket.scene.interceptions()}
    left = "b" if answered == "a" else "a"
    assert ends == {f"the prompt of {answered}": None, f"the prompt of {left}": "shutdown"}
    await socket.close()


async def test_a_message_that_cannot_be_handled_ends_the_requests_of_its_socket(
    make_scene: MakeScene, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Nothing is waited for afterwards."""

    def broken(*_: object) -> None:
        raise ValueError("a fault for a test")

    scene = make_scene()
    socket = Socket(scene)
    await socket.open()
    await socket.ask("a", "first")
    with monkeypatch.context() as patch:
        patch.setattr(ResponsesSocket, "from_server", broken)
        await socket.answer("a", "resp_1")
    [row] = await scene.interceptions()
    assert (row["status"], row["error_type"]) == ("failed", "internal_error")
    assert len(scene.bridge.in_flight) == 0
    assert "a fault for a test" in caplog.text
