"""What Bedrock sends passes through a splice byte for byte where no tool of ours is called."""

from __future__ import annotations

import json

import pytest

from aibridge_addon.dialects import CONVERSE_STREAM, INVOKE_STREAM
from aibridge_addon.dialects.base import Dialect
from aibridge_addon.dialects.turns import Splice
from tests.support import aws_frames, fixtures
from tests.support.fixtures import Case
from tests.support.streams import chunks, play

DIALECTS: dict[str, Dialect] = {"converse": CONVERSE_STREAM, "invoke": INVOKE_STREAM}
EVERY = [*fixtures.cases(), *fixtures.invoke_cases()]
CASES = [case for case in EVERY if case.dialect in DIALECTS and case.status == 200]
STREAMS = [case for case in CASES if case.is_event_stream]
BODIES = [case for case in CASES if not case.is_event_stream and case.body.startswith(b"{")]


def splice_of(case: Case) -> Splice:
    injection = DIALECTS[case.dialect].injection
    assert injection is not None
    return injection.splice(("bmcp_a_x",))


@pytest.mark.parametrize("case", STREAMS, ids=str)
def test_a_stream_passes_byte_for_byte(case: Case) -> None:
    for seed in range(3):
        seen = play(DIALECTS[case.dialect], splice_of(case), [chunks(case.body, seed)])
        whole = b"".join(aws_frames.split(case.body))  # a message that is cut off is no event
        assert seen.client == whole
        assert seen.ends[0].calls == []


@pytest.mark.parametrize("case", BODIES, ids=str)
def test_a_body_stays_as_it_is(case: Case) -> None:
    body = json.loads(case.body)
    splice = splice_of(case)
    end = splice.take_body(body)
    assert splice.body() == body and not splice.spliced and end.calls == []
    calls = [tool for tool in case.expected.get("tools", ()) if not tool.get("server_side")]
    assert end.client_calls == [tool["provider_tool_call_id"] for tool in calls]
