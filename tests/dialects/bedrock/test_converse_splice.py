"""One Converse answer out of several turns: what generated turns (`test_splice_properties`) do not reach."""

from __future__ import annotations

import json
from typing import Any

import pytest

from aibridge_addon.dialects import CONVERSE_STREAM
from aibridge_addon.dialects.bedrock.converse_splice import ConverseSplice
from aibridge_addon.dialects.turns import TurnEnd
from aibridge_addon.wire import sse
from tests.support import aws_frames
from tests.support.streams import play

Event = tuple[str, dict[str, Any]]
INJECTED = ("bmcp_a_x", "bmcp_a_xy")
START: Event = ("messageStart", {"role": "assistant"})


def frame(event: Event) -> bytes:
    return aws_frames.event(event[0], json.dumps(event[1]).encode())


def text(index: int, value: str) -> list[Event]:
    delta = {"contentBlockIndex": index, "delta": {"text": value}}
    return [("contentBlockDelta", delta), ("contentBlockStop", {"contentBlockIndex": index})]


def use(index: int, name: str = "bmcp_a_x", *pieces: str, **more: str) -> list[Event]:
    begun = {"toolUse": {"toolUseId": f"t{index}", "name": name, **more}}
    return [
        ("contentBlockStart", {"contentBlockIndex": index, "start": begun}),
        *(("contentBlockDelta", {"contentBlockIndex": index, "delta": {"toolUse": {"input": p}}}) for p in pieces),
        ("contentBlockStop", {"contentBlockIndex": index}),
    ]


def end(reason: str, tokens: int = 5, **more: Any) -> list[Event]:
    usage = {"inputTokens": 10, "outputTokens": tokens, "totalTokens": 10 + tokens}
    return [
        ("messageStop", {"stopReason": reason, **more}),
        ("metadata", {"usage": usage, "metrics": {"latencyMs": 7}}),
    ]


def played(*turns: list[Event]) -> tuple[list[Event], list[TurnEnd]]:
    """Return the client's events, and the ends of the turns."""
    streams = [[b"".join(map(frame, turn))] for turn in turns]
    seen = play(CONVERSE_STREAM, ConverseSplice(INJECTED), streams)
    read = map(aws_frames.read, aws_frames.split(seen.client))
    return [(message.kind, json.loads(message.payload)) for message in read], seen.ends


@pytest.mark.parametrize(
    "reason",
    ["max_tokens", "guardrail_intervened", "content_filtered", "malformed_tool_use", "model_context_window_exceeded"],
)
def test_a_message_that_was_cut_short_has_no_calls_to_run(reason: str) -> None:
    seen, (only,) = played([START, *text(0, "a"), *use(1, "bmcp_a_x", '{"a": '), *end(reason)])
    assert only.calls == [] and seen[-2][1]["stopReason"] == reason
    assert "bmcp" not in json.dumps(seen)
    content = [{"toolUse": {"toolUseId": "t", "name": "bmcp_a_x", "input": {}}}]
    body = {"output": {"message": {"role": "assistant", "content": content}}, "stopReason": reason}
    assert ConverseSplice(INJECTED).take_body(body).calls == []


def test_a_call_of_bedrocks_own_tool_is_never_ours() -> None:
    turn = [START, *use(0, "bmcp_a_x", "{}", type="server_tool_use"), *end("end_turn")]
    answer = b"".join(map(frame, turn))
    seen = play(CONVERSE_STREAM, ConverseSplice(INJECTED), [[answer]])
    assert seen.client == answer and seen.ends[0].client_calls == []


@pytest.mark.parametrize(
    ("pieces", "given", "sent"),
    [
        ((), {}, {}),
        (("",), {}, {}),
        (('{"n"', ": 1}"), {"n": 1}, {"n": 1}),
        (('{"a": [', "1"), '{"a": [1', {"INVALID_JSON": '{"a": [1'}),
        (("[1]",), "[1]", {"INVALID_JSON": "[1]"}),
    ],
)
def test_input_is_an_object_in_the_next_request_whatever_the_model_wrote(
    pieces: tuple[str, ...], given: Any, sent: dict[str, Any]
) -> None:
    _, ends = played([START, *use(0, "bmcp_a_x", *pieces), *end("tool_use")], [])
    (call,) = ends[0].calls
    assert call.input == given and call.item["toolUse"]["input"] == sent


def test_a_stream_without_metadata_has_none_in_the_merged_answer_either() -> None:
    first = [START, *use(0), *end("tool_use")[:1]]
    seen, _ = played(first, [START, *text(0, "a"), *end("end_turn")[:1]])
    assert [name for name, _ in seen] == ["messageStart", "contentBlockDelta", "contentBlockStop", "messageStop"]
    seen, _ = played([START, *use(0), *end("tool_use")], [START, *text(0, "a"), *end("end_turn")[:1]])
    assert seen[-1][0] == "metadata" and seen[-1][1]["usage"]["inputTokens"] == 10


def test_the_total_keeps_what_the_first_turn_counted_beside_its_output() -> None:
    cached = end("tool_use", 5)
    cached[1][1]["usage"] |= {"cacheReadInputTokens": 100, "totalTokens": 115}
    seen, _ = played([START, *use(0), *cached], [START, *text(0, "a"), *end("end_turn", 6)])
    usage = {"inputTokens": 10, "outputTokens": 11, "totalTokens": 121, "cacheReadInputTokens": 100}
    assert seen[-1][1] == {"usage": usage, "metrics": {"latencyMs": 14}}


def test_an_exception_in_a_later_turn_is_the_end_of_the_answer() -> None:
    error = aws_frames.exception("throttlingException", {"message": "no"})
    first = b"".join(map(frame, [START, *use(0), *end("tool_use")]))
    second = b"".join(map(frame, [START, *text(0, "b"), *use(1)])) + error
    seen = play(CONVERSE_STREAM, ConverseSplice(INJECTED), [[first], [second]])
    assert seen.client.endswith(error) and seen.ends[-1].calls == []


def test_the_fields_of_the_last_turn_are_the_answers() -> None:
    first = [START, *use(0), *end("tool_use", additionalModelResponseFields={"stop_sequence": None})]
    second = [START, *text(0, "a"), *end("stop_sequence", additionalModelResponseFields={"stop_sequence": "END"})]
    seen, _ = played(first, second)
    assert seen[-2][1] == {"stopReason": "stop_sequence", "additionalModelResponseFields": {"stop_sequence": "END"}}


def test_an_unknown_event_passes_in_every_turn_and_one_of_a_hidden_block_does_not() -> None:
    news, hidden = ("news", {"n": 3}), ("contentBlockNews", {"contentBlockIndex": 0})
    begun, *rest = use(0)
    seen, _ = played([START, begun, hidden, *rest, *end("tool_use")], [START, news, *end("end_turn")])
    assert [name for name, _ in seen] == ["messageStart", "news", "messageStop", "metadata"]


def test_calls_without_an_id_get_one_of_ours_that_is_the_same_in_the_next_request() -> None:
    content = [{"toolUse": {"name": "bmcp_a_x", "input": {"n": n}}} for n in (1, 2)]
    body = {"output": {"message": {"role": "assistant", "content": content}}, "stopReason": "tool_use"}
    ends = [ConverseSplice(INJECTED).take_body(json.loads(json.dumps(body))) for _ in range(2)]
    ids = [[call.id for call in ended.calls] for ended in ends]
    assert ids[0] == ids[1] and len(set(ids[0])) == 2
    assert [block["toolUse"]["toolUseId"] for block in ends[0].content] == ids[0]


def test_server_sent_events_of_a_compatible_server_are_merged_as_well() -> None:
    def stream(*events: Event) -> bytes:
        return b"".join(sse.event(name, json.dumps(members).encode()) for name, members in events)

    turns = [[START, *use(0), *end("tool_use")], [START, *text(0, "a"), *text(1, "b"), *end("end_turn")]]
    seen = play(CONVERSE_STREAM, ConverseSplice(INJECTED), [[stream(*turn)] for turn in turns])
    parsed = [sse.parse(raw) for raw, _ in sse.SSEScanner().feed(seen.client)]
    names = [name for name, _ in parsed]
    assert names[:2] == ["messageStart", "contentBlockDelta"] and names[-2:] == ["messageStop", "metadata"]
    assert json.loads(parsed[-1][1] or b"")["usage"]["outputTokens"] == 10


def test_redacted_thinking_in_pieces_is_one_for_the_next_request() -> None:
    pieces = [
        ("contentBlockDelta", {"contentBlockIndex": 0, "delta": {"reasoningContent": {"redactedContent": p}}})
        for p in ("aGVsbG8=", "IHdvcmxk")
    ]
    stop: Event = ("contentBlockStop", {"contentBlockIndex": 0})
    _, ends = played([START, *pieces, stop, *use(1), *end("tool_use")], [])
    assert ends[0].content[0] == {"reasoningContent": {"redactedContent": "aGVsbG8gd29ybGQ="}}
