"""What goes back upstream of a turn: only what the format of a request has."""

from __future__ import annotations

import json
from typing import Any

from aibridge_addon.dialects.chat_completions.splice import ChatSplice
from aibridge_addon.dialects.messages.splice import MessagesSplice
from aibridge_addon.dialects.responses.splice import ResponsesSplice
from aibridge_addon.wire import sse

HIDDEN = {"type": "tool_use", "id": "t1", "name": "f", "input": {}}


def streamed(*events: dict[str, Any]) -> MessagesSplice:
    splice = MessagesSplice({"f"})
    splice.begin_turn()
    for event in events:
        splice.event(sse.event(event["type"], json.dumps(event).encode()), event["type"], event)
    return splice


def block(index: int, start: dict[str, Any], *deltas: dict[str, Any]) -> list[dict[str, Any]]:
    begin = {"type": "content_block_start", "index": index, "content_block": start}
    pieces = [{"type": "content_block_delta", "index": index, "delta": delta} for delta in deltas]
    return [begin, *pieces, {"type": "content_block_stop", "index": index}]


END: list[dict[str, Any]] = [{"type": "message_delta", "delta": {"stop_reason": "tool_use"}}, {"type": "message_stop"}]
ESTIMATE = {"type": "thinking_delta", "thinking": "", "estimated_tokens": 50}


def test_estimates_of_thinking_do_not_go_back() -> None:
    end = streamed(
        *block(
            0,
            {"type": "thinking", "thinking": "", "signature": ""},
            ESTIMATE | {"thinking": "Hm."},
            {"type": "signature_delta", "signature": "s"},
        ),
        *block(1, {"type": "redacted_thinking", "data": "d"}, ESTIMATE),
        *block(2, HIDDEN),
        *END,
    ).end_turn()
    assert end.content == [
        {"type": "thinking", "thinking": "Hm.", "signature": "s"},
        {"type": "redacted_thinking", "data": "d"},
        HIDDEN,
    ]
    body = MessagesSplice({"f"})
    said = [{"type": "redacted_thinking", "data": "d", "estimated_tokens": 50}, HIDDEN]
    assert body.take_body({"content": said, "stop_reason": "tool_use"}).content[0] == {
        "type": "redacted_thinking",
        "data": "d",
    }


def test_a_call_before_a_fallback_is_not_run_and_does_not_go_back() -> None:
    fallback = {"type": "fallback", "from": {"model": "a"}, "to": {"model": "b"}}
    client = {"type": "tool_use", "id": "t0", "name": "Read", "input": {}}
    later = HIDDEN | {"id": "t2"}
    blocks = [client, HIDDEN, fallback, later]
    end = streamed(*(event for i, one in enumerate(blocks) for event in block(i, one)), *END).end_turn()
    assert ([call.id for call in end.calls], end.client_calls, end.content) == (["t2"], [], [fallback, later])
    whole = MessagesSplice({"f"}).take_body({"content": blocks, "stop_reason": "tool_use"})
    assert (whole.calls, whole.client_calls, whole.content) == (end.calls, [], end.content)


def test_only_the_id_of_audio_goes_back() -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    message = {"role": "assistant", "content": None, "audio": {"id": "a1", "data": "AAAA", "transcript": "Hi."}}
    choice = {"index": 0, "message": message | {"tool_calls": [call]}, "finish_reason": "tool_calls"}
    end = ChatSplice({"f"}).take_body({"id": "c", "choices": [choice]})
    assert end.content == [message | {"audio": {"id": "a1"}, "tool_calls": [call]}]


def test_items_of_an_answer_lose_what_a_request_is_refused_for() -> None:
    call = {"type": "function_call", "call_id": "c1", "name": "f", "arguments": "{}"}
    compaction = {"type": "compaction", "id": "cmp", "encrypted_content": "x"}
    output = [compaction | {"created_by": "m"}, {"type": "reasoning", "id": "r", "summary": [], "content": None}, call]
    end = ResponsesSplice({"f"}).take_body({"id": "r1", "status": "completed", "output": output})
    assert end.content == [compaction, {"type": "reasoning", "id": "r", "summary": []}, call]


def test_items_without_an_index_stay_apart() -> None:
    splice = ResponsesSplice({"f"})
    splice.begin_turn()
    call = {"type": "function_call", "id": "fc", "call_id": "c1", "name": "f", "arguments": {"p": 1}}
    own = call | {"id": "own", "call_id": "c2", "name": "Read"}
    seen = b""
    for item in (call, own):
        for kind in ("response.output_item.added", "response.output_item.done"):
            event = {"type": kind, "item": item}
            seen += splice.event(sse.event(kind, json.dumps(event).encode()), kind, event)
    done = {"type": "response.done", "response": {"id": "r1", "status": "completed", "output": []}}
    splice.event(sse.event("response.done", json.dumps(done).encode()), "response.done", done)
    end = splice.end_turn()
    assert [(call.id, call.input) for call in end.calls] == [("c1", {"p": 1})]
    assert end.client_calls == ["c2"] and b"c1" not in seen and seen.count(b"c2") == 2
