"""The end of a flow: its last record is emitted before it leaves its bridge."""

from __future__ import annotations

from tests.support import fixtures
from tests.support.scene import Scene, chunk

MESSAGES = fixtures.case("messages/simple/streaming")


async def test_a_stream_that_breaks_off_is_recorded_before_its_retired_bridge_ends(scene: Scene) -> None:
    upstream = await scene.answer_stream(MESSAGES)
    scene.playbook.receive(upstream, chunk(MESSAGES.body[: MESSAGES.body.index(b"event: message_stop")]))
    scene.playbook.sent(scene.client)
    rows = [(row["status"], row["ended_at"]) for row in await scene.interceptions()]
    assert rows == [(None, None)]
    scene.bridge.retire()
    await scene.break_off(upstream)
    scene.playbook.sent(scene.client)
    await scene.bridge.stream.drain(10)
    (row,) = await scene.interceptions()
    assert (row["status"], row["error_type"]) == ("failed", "upstream_disconnected")
