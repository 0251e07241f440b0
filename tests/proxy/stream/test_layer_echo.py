"""A response repeats the request's tools: the client sees its own there, and not those that were injected."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from mitmproxy.connection import Server
from mitmproxy.proxy.layers.http import _hooks as hooks

from aibridge_addon.proxy.stream.hooks import AibridgeTurnHook
from tests.proxy.conftest import MakeScene
from tests.support.offered_tools import offer
from tests.support.scene import PATHS, Scene, request, sized

OWN: dict[str, Any] = {"type": "function", "name": "Read", "parameters": {"type": "object"}}
NAMESPACE: dict[str, Any] = {"type": "namespace", "name": "files", "tools": [OWN]}
Repeat = Callable[[list[dict[str, Any]]], list[dict[str, Any]]]
"""How the provider repeats the request's tools."""


@pytest.fixture
def scene(make_scene: MakeScene) -> Scene:
    made = make_scene()
    offer(made.bridge, made.database, "look", "find")
    return made


async def ask(scene: Scene, tools: list[dict[str, Any]]) -> tuple[Server, list[dict[str, Any]]]:
    """The client asks with tools of its own. Returns the upstream, and the tools that it was sent."""
    body = json.dumps({"model": "gpt-5", "input": "hello", "tools": tools}).encode()
    await scene.ask(request(body, PATHS["responses"]))
    upstream = scene.playbook.connect()
    sent: list[dict[str, Any]] = json.loads(scene.playbook.sent(upstream).partition(b"\r\n\r\n")[2])["tools"]
    assert {tool.get("name") for tool in sent} >= {"bmcp_ours_look", "bmcp_ours_find"}
    return upstream, sent


def response(tools: list[dict[str, Any]]) -> dict[str, Any]:
    said = {"type": "message", "id": "msg_1", "content": [{"type": "output_text", "text": "hello"}]}
    usage = {"input_tokens": 3, "output_tokens": 4, "total_tokens": 7}
    return {"id": "resp_1", "status": "completed", "model": "gpt-5", "output": [said], "tools": tools, "usage": usage}


def as_asked(asked: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return asked


def in_a_namespace(asked: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [NAMESPACE | {"tools": asked}]


@pytest.mark.parametrize(
    ("tools", "repeated", "seen"),
    [([OWN], as_asked, [OWN]), ([NAMESPACE], as_asked, [NAMESPACE]), ([OWN], in_a_namespace, [NAMESPACE])],
    ids=["a function", "a namespace", "in a namespace"],
)
async def test_a_blocking_response_repeats_the_clients_tools_only(
    scene: Scene, tools: list[dict[str, Any]], repeated: Repeat, seen: list[dict[str, Any]]
) -> None:
    upstream, asked = await ask(scene, tools)
    await scene.answer(upstream, sized(json.dumps(response(repeated(asked))).encode()))
    await scene.hook(AibridgeTurnHook)
    sent = scene.playbook.sent(scene.client)
    await scene.hook(hooks.HttpResponseHook)
    head, _, body = (sent + scene.playbook.sent(scene.client)).partition(b"\r\n\r\n")
    assert b"\r\ncontent-length: %d\r\n" % len(body) in head.lower() + b"\r\n"
    assert b"bmcp" not in body
    assert json.loads(body) == response(seen)
