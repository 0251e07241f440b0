"""What a bridge has opened is closed with it."""

from __future__ import annotations

import json

from mitmproxy.proxy.layers.http import _hooks as hooks

from tests.proxy.conftest import MakeScene
from tests.support.scene import PATHS, Scene, request, sized
from tests.support.upstream import unused_port

REQUEST = json.dumps({"model": "gpt-5", "input": "go on", "previous_response_id": "resp_0"}).encode()
ANSWER = json.dumps({"id": "resp_1", "status": "completed", "output": []}).encode()


async def go_on(scene: Scene) -> None:
    """The client goes on from an earlier answer, for which the database is read."""
    await scene.ask(request(REQUEST, PATHS["responses"]))
    upstream = scene.playbook.connect()
    assert scene.playbook.sent(upstream)
    await scene.answer(upstream, sized(ANSWER))
    scene.playbook.sent(scene.client)
    await scene.hook(hooks.HttpResponseHook)
    assert scene.playbook.sent(scene.client)


async def test_no_connection_to_the_database_is_left_open(make_scene: MakeScene) -> None:
    """SQLite removes the files of its write-ahead log with the last connection, the reader's included."""
    server = {"url": f"http://127.0.0.1:{unused_port()}/mcp"}
    scene = make_scene({"mcp": {"servers": {"srv": server}}})
    await go_on(scene)
    log = scene.database.with_name(scene.database.name + "-wal")
    assert log.exists()
    await scene.bridge.close(10)
    assert scene.database.exists() and not log.exists()
