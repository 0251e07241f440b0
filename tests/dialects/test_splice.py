"""One answer out of several turns: what generated turns (`test_splice_properties`) do not reach."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import pytest

from aibridge_addon.dialects.turns import Splice, TurnEnd
from aibridge_addon.wire import sse
from tests.support.stream_forms import FORMS
from tests.support.streams import play

Event = Any
"""The data of an event: an object, or `[DONE]`."""
INJECTED = ("bmcp_a_x", "bmcp_a_xy")


def stream(*events: Event) -> bytes:
    out = b""
    for event in events:
        name = "" if isinstance(event, str) else event.get("type", "")
        out += sse.event(name, event.encode() if isinstance(event, str) else json.dumps(event).encode())
    return out


def splice_of(dialect: str) -> Splice:
    return FORMS[dialect].injection.splice(INJECTED)


def played(dialect: str, *turns: Sequence[Event]) -> tuple[list[Any], list[TurnEnd]]:
    """Return the client's events, and the ends of the turns."""
    told = play(FORMS[dialect].dialect, splice_of(dialect), [[stream(*turn)] for turn in turns])
    return read(told.client), told.ends


def read(client: bytes) -> list[Any]:
    datas = [sse.parse(raw)[1] for raw, _ in sse.SSEScanner().feed(client)]
    return [json.loads(data) if data != b"[DONE]" else "[DONE]" for data in datas if data is not None]


# --- Messages ---------------------------------------------------------------------------------------------------


def start(turn: int = 1, **usage: int) -> Event:
    message = {"id": f"msg_{turn}", "usage": {"input_tokens": 10 * turn, "output_tokens": 1} | usage}
    return {"type": "message_start", "message": message}


def block(index: int, content: dict[str, Any], *deltas: dict[str, Any]) -> list[Event]:
    return [
        {"type": "content_block_start", "index": index, "content_block": content},
        *({"type": "content_block_delta", "index": index, "delta": delta} for delta in deltas),
        {"type": "content_block_stop", "index": index},
    ]


def use(index: int, name: str = "bmcp_a_x", *pieces: str) -> list[Event]:
    content = {"type": "tool_use", "id": f"toolu_{index}", "name": name, "input": {}}
    return block(index, content, *({"type": "input_json_delta", "partial_json": piece} for piece in pieces))


def text(index: int, value: str) -> list[Event]:
    return block(index, {"type": "text", "text": ""}, {"type": "text_delta", "text": value})


def end(reason: str, output: int = 5, **more: Any) -> list[Event]:
    delta = {"stop_reason": reason, "stop_sequence": None} | more
    return [{"type": "message_delta", "delta": delta, "usage": {"output_tokens": output}}, {"type": "message_stop"}]


class TestMessages:
    def test_the_input_is_the_first_turns_and_the_work_that_of_all(self) -> None:
        first = [start(1, cache_read_input_tokens=7), *use(0), *end("tool_use", 5)]
        searched = {"server_tool_use": {"web_search_requests": 2}, "output_tokens_details": {"thinking_tokens": 1}}
        first[-2]["usage"] |= searched
        second = [start(2, cache_read_input_tokens=90), *text(0, "a"), *end("end_turn", 6)]
        second[-2]["usage"] |= {"input_tokens": 20, "output_tokens_details": {"thinking_tokens": 3}}
        told, _ = played("messages", first, second)
        assert told[-2]["usage"] == {
            "input_tokens": 10,
            "output_tokens": 11,
            "cache_read_input_tokens": 7,
            "server_tool_use": {"web_search_requests": 2},
            "output_tokens_details": {"thinking_tokens": 4},
        }

    @pytest.mark.parametrize("reason", ["max_tokens", "refusal", "model_context_window_exceeded", "pause_turn"])
    def test_a_message_that_was_cut_short_has_no_calls_to_run(self, reason: str) -> None:
        told, (only,) = played("messages", [start(), *text(0, "a"), *use(1, "bmcp_a_x", '{"a": '), *end(reason)])
        assert only.calls == []
        assert told[-2]["delta"]["stop_reason"] == reason
        assert [event["type"] for event in told].count("content_block_start") == 1
        body = {"id": "m", "content": [{"type": "tool_use", "id": "t", "name": "bmcp_a_x", "input": {}}]}
        assert splice_of("messages").take_body(body | {"stop_reason": reason}).calls == []

    def test_an_error_in_a_later_turn_is_the_end_of_the_answer(self) -> None:
        error: Event = {"type": "error", "error": {"type": "overloaded_error", "message": "no"}}
        told, ends = played("messages", [start(), *use(0), *end("tool_use")], [start(2), *text(0, "b"), *use(1), error])
        assert told[-1] == error and ends[-1].calls == []

    def test_input_that_is_no_json_object_is_kept_as_the_vendor_wants_it_and_never_becomes_an_empty_one(self) -> None:
        _, ends = played("messages", [start(), *use(0, "bmcp_a_x", '{"a": [', "1"), *end("tool_use")], [])
        (call,) = ends[0].calls
        assert call.input == '{"a": [1'
        assert call.item["input"] == {"INVALID_JSON": '{"a": [1'}

    def test_a_container_stays_that_of_the_answer_and_is_named_in_the_next_request(self) -> None:
        first = [start(), *use(0), *end("tool_use", container={"id": "cntr_1", "expires_at": "x"})]
        told, ends = played("messages", first, [start(2), *text(0, "a"), *end("end_turn", container=None)])
        assert ends[0].container == "cntr_1"
        assert told[-2]["delta"]["container"]["id"] == "cntr_1"

    def test_a_stop_sequence_is_the_last_turns(self) -> None:
        second = [start(2), *text(0, "a"), *end("stop_sequence", stop_sequence="END")]
        told, _ = played("messages", [start(), *use(0), *end("tool_use")], second)
        assert told[-2]["delta"] == {"stop_reason": "stop_sequence", "stop_sequence": "END"}

    def test_what_follows_the_end_stays_in_its_place(self) -> None:
        answer = stream(start(), *text(0, "a"), *end("end_turn")) + b": bye\n\n"
        told = play(FORMS["messages"].dialect, splice_of("messages"), [[answer]])
        assert told.client == answer

    def test_an_unknown_event_passes_in_every_turn(self) -> None:
        news: Event = {"type": "news", "index": 3}
        told, _ = played("messages", [start(), *use(0), *end("tool_use")], [start(2), news, *end("end_turn")])
        assert told[1] == news


# --- Chat Completions -------------------------------------------------------------------------------------------


def chunk(delta: dict[str, Any] | None = None, reason: str | None = None, **more: Any) -> Event:
    choices = [] if delta is None else [{"index": 0, "delta": delta, "finish_reason": reason}]
    return {"id": "c1", "created": 1, "choices": choices} | more


def called(index: int, id_: str | None = None, name: str = "", arguments: str = "") -> dict[str, Any]:
    call = {"index": index} | ({"id": id_, "type": "function"} if id_ else {})
    return {"tool_calls": [call | {"function": {"name": name, "arguments": arguments}}]}


def deltas(told: Sequence[Any]) -> list[Any]:
    return [choice["delta"] for event in told if event != "[DONE]" for choice in event["choices"]]


ROLE = chunk({"role": "assistant", "content": ""})
SECOND: list[Event] = [ROLE | {"id": "c2"}, chunk({"content": "done"}, id="c2"), chunk({}, "stop", id="c2"), "[DONE]"]


class TestChat:
    def test_a_name_in_pieces_waits_until_it_is_known_and_keeps_its_place(self) -> None:
        turn = [ROLE, chunk(called(0, "a", "bm")), chunk({"content": "x"}), chunk(called(0, None, "x", "{}"))]
        answer = stream(*turn, chunk({}, "tool_calls"), "[DONE]")
        splice = splice_of("chat_completions")
        splice.begin_turn()
        told = []
        for raw, _ in sse.SSEScanner().feed(answer):
            _, data = sse.parse(raw)
            told.append(splice.event(raw, "", json.loads(data or b"") if data != b"[DONE]" else b"[DONE]"))
        assert [bool(part) for part in told] == [True, False, False, True, False, False]
        assert b"".join(told) + splice.finish() == answer

    def test_a_tool_whose_name_is_a_prefix_of_another_is_recognised(self) -> None:
        turn = [ROLE, chunk(called(0, "a", "bmcp_a_x")), chunk(called(0, None, "y")), chunk(called(1, "b", "bmcp_a_x"))]
        _, ends = played("chat_completions", [*turn, chunk({}, "tool_calls"), "[DONE]"], SECOND)
        assert [call.name for call in ends[0].calls] == ["bmcp_a_xy", "bmcp_a_x"]

    def test_a_name_that_every_delta_repeats_is_one_name(self) -> None:
        turn = [ROLE, *(chunk(called(0, "a", "bmcp_a_x", piece)) for piece in ("", "{", "}"))]
        told, ends = played("chat_completions", [*turn, chunk({}, "tool_calls"), "[DONE]"], SECOND)
        assert [call.name for call in ends[0].calls] == ["bmcp_a_x"] and "bmcp" not in json.dumps(told)

    def test_indexes_go_on_from_where_the_client_has_seen_them_begin(self) -> None:
        turn = [ROLE, *(chunk(called(i, f"id{i}", name, "{}")) for i, name in enumerate(("R", "bmcp_a_x", "S"), 1))]
        told, (only,) = played("chat_completions", [*turn, chunk({}, "tool_calls"), "[DONE]"])
        assert [d["tool_calls"][0]["index"] for d in deltas(told) if "tool_calls" in d] == [1, 2]
        assert (only.client_calls, only.calls[0].anchor) == (["id1", "id3"], "id3")
        turn = [ROLE, *(chunk(called(i, f"id{i}", name, "{}")) for i, name in enumerate(("bmcp_a_x", "S"), 1))]
        told, _ = played("chat_completions", [*turn, chunk({}, "tool_calls"), "[DONE]"])
        assert [d["tool_calls"][0]["index"] for d in deltas(told) if "tool_calls" in d] == [0]

    def test_calls_that_share_an_index_are_distinguished_by_their_ids(self) -> None:
        turn = [ROLE, chunk(called(0, "a", "Read", "{}")), chunk(called(0, "b", "bmcp_a_x", '{"n":1}'))]
        told, (only,) = played("chat_completions", [*turn, chunk({}, "tool_calls"), "[DONE]"])
        assert [(call.id, call.input) for call in only.calls] == [("b", {"n": 1})]
        assert only.client_calls == ["a"] and "bmcp" not in json.dumps(told)

    def test_the_first_id_is_the_answers_even_if_a_chunk_without_one_came_before(self) -> None:
        azure = {"id": "", "created": 0, "model": "", "choices": [], "prompt_filter_results": []}
        turn = [azure, ROLE, chunk(called(0, "a", "bmcp_a_x", "{}")), chunk({}, "tool_calls"), "[DONE]"]
        told, ends = played("chat_completions", turn, [azure, *SECOND])
        assert [event["id"] for event in told if event != "[DONE]"][-2:] == ["c1", "c1"]
        assert [end.response_id for end in ends] == ["c1", "c2"]

    @pytest.mark.parametrize("reason", ["length", "content_filter"])
    def test_a_completion_that_was_cut_short_has_no_calls_to_run(self, reason: str) -> None:
        told, (only,) = played("chat_completions", [ROLE, chunk(called(0, "a", "bmcp_a_x", '{"')), chunk({}, reason)])
        assert only.calls == [] and told[-1]["choices"][0]["finish_reason"] == reason

    def test_an_error_in_a_later_turn_passes_and_nothing_is_run(self) -> None:
        first = [ROLE, chunk(called(0, "a", "bmcp_a_x", "{}")), chunk({}, "tool_calls"), "[DONE]"]
        error: Event = {"error": {"message": "no"}}
        told, ends = played("chat_completions", first, [chunk(called(0, "b", "bmcp_a_x", "{}")), error, "[DONE]"])
        assert told[1:] == [error, "[DONE]"] and ends[-1].calls == []

    def test_usage_that_only_the_first_turn_reports_is_sent(self) -> None:
        usage = {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7}
        first = [ROLE, chunk(called(0, "a", "bmcp_a_x", "{}")), chunk({}, "tool_calls", usage=usage), "[DONE]"]
        told, _ = played("chat_completions", first, SECOND)
        assert told[-2]["usage"] == usage

    def test_interim_usage_of_a_later_turn_is_not_sent(self) -> None:
        usage = {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7}
        first = [ROLE, chunk(called(0, "a", "bmcp_a_x", "{}")), chunk({}, "tool_calls", usage=usage), "[DONE]"]
        seen, _ = played("chat_completions", first, [*(event | {"usage": usage} for event in SECOND[:-1]), "[DONE]"])
        assert [event["usage"] for event in seen[1:-1]] == [None, usage | {"completion_tokens": 8, "total_tokens": 11}]

    def test_a_custom_tool_is_never_ours(self) -> None:
        call = {"index": 0, "id": "a", "type": "custom", "custom": {"name": "bmcp_a_x", "input": ""}}
        answer = stream(ROLE, chunk({"tool_calls": [call]}), chunk({}, "tool_calls"), "[DONE]")
        assert play(FORMS["chat_completions"].dialect, splice_of("chat_completions"), [[answer]]).client == answer

    def test_text_and_calls_in_two_choices_are_one_message(self) -> None:
        call: Any = {"id": "a", "type": "function", "function": {"name": "bmcp_a_x", "arguments": ""}}
        message = {"role": "assistant", "content": None, "tool_calls": [call]}
        choices: list[Any] = [{"message": {"role": "assistant", "content": "I'll look."}}, {"message": message}]
        splice = splice_of("chat_completions")
        ended = splice.take_body({"id": "c1", "choices": [c | {"finish_reason": "tool_calls"} for c in choices]})
        assert ended.calls[0].input == {} and ended.content[0]["content"] == "I'll look."
        done = {"index": 0, "message": {"role": "assistant", "content": " Done."}, "finish_reason": "stop"}
        splice.take_body({"id": "c2", "choices": [done]})
        whole = {"index": 0, "message": {"role": "assistant", "content": "I'll look. Done."}, "finish_reason": "stop"}
        assert splice.body() == {"id": "c1", "choices": [whole]}

    def test_log_probabilities_are_those_of_all_turns(self) -> None:
        splice = splice_of("chat_completions")
        call: Any = {"id": "a", "type": "function", "function": {"name": "bmcp_a_x", "arguments": "{}"}}
        for turn, calls in ((1, [call]), (2, [])):
            message = {"content": str(turn)} | ({"tool_calls": calls} if calls else {})
            choice = {"message": message, "logprobs": {"content": [{"token": str(turn)}]}, "finish_reason": "stop"}
            splice.take_body({"id": "c", "choices": [choice]})
        assert splice.body()["choices"][0]["logprobs"]["content"] == [{"token": "1"}, {"token": "2"}]

    def test_pieces_of_reasoning_are_put_together_for_the_next_request(self) -> None:
        pieces = [{"index": 0, "type": "reasoning.text", "format": "f", "text": t} for t in ("a", "b")]
        signed = {"index": 0, "type": "reasoning.text", "format": "f", "signature": "s"}
        thoughts = [chunk({"reasoning_details": [piece]}) for piece in (*pieces, signed)]
        turn = [ROLE, *thoughts, chunk(called(0, "a", "bmcp_a_x", "{}")), chunk({}, "tool_calls"), "[DONE]"]
        _, ends = played("chat_completions", turn, SECOND)
        assert ends[0].content[0]["reasoning_details"] == [pieces[0] | {"text": "ab", "signature": "s"}]


# --- Responses --------------------------------------------------------------------------------------------------

OURS = {"type": "function", "name": "bmcp_a_x"}


def response(turn: int, *output: dict[str, Any], status: str = "completed", **more: Any) -> dict[str, Any]:
    return {"id": f"resp_{turn}", "status": status, "output": list(output), "tools": [OURS]} | more


def message(turn: int) -> dict[str, Any]:
    return {"id": f"msg_{turn}", "type": "message", "content": [{"type": "output_text", "text": str(turn)}]}


def call(turn: int, name: str = "bmcp_a_x", **more: Any) -> dict[str, Any]:
    item = {"id": f"fc_{turn}", "type": "function_call", "call_id": f"call_{turn}", "name": name, "arguments": "{}"}
    return item | more


def answer(turn: int, *items: dict[str, Any], kind: str = "completed", **more: Any) -> list[Event]:
    events: list[Event] = [{"type": "response.created", "response": response(turn, status="in_progress", **more)}]
    for index, item in enumerate(items):
        events += [
            {"type": "response.output_item.added", "output_index": index, "item": item},
            {"type": "response.output_item.done", "output_index": index, "item": item},
        ]
    events.append({"type": f"response.{kind}", "response": response(turn, *items, status=kind, **more)})
    return [event | {"sequence_number": number} for number, event in enumerate(events)]


class TestResponses:
    def test_the_clients_response_keeps_what_the_client_had_asked_for(self) -> None:
        """What the follow-up request changed for our sake is not shown."""
        told, _ = played(
            "responses",
            answer(1, call(1), tool_choice="required", tools=[{"name": "Read"}, OURS], model="m"),
            answer(2, message(2), tool_choice="none", previous_response_id="resp_1", tools=[OURS], model="m-2"),
        )
        assert told[-1]["response"] == {
            "id": "resp_1",
            "status": "completed",
            "output": [message(2)],
            "tools": [],
            "tool_choice": "required",
            "model": "m-2",
        }

    def test_our_tools_are_taken_out_of_namespaces_too(self) -> None:
        tools = [{"type": "namespace", "name": "functions", "tools": [OURS, {"name": "Read"}]}]
        told, _ = played("responses", answer(1, message(1), tools=tools))
        kept = [tools[0] | {"tools": [{"name": "Read"}]}]
        assert [event["response"]["tools"] for event in told if "response" in event] == [kept, kept]

    @pytest.mark.parametrize("kind", ["incomplete", "failed", "cancelled"])
    def test_a_response_that_was_cut_short_has_no_calls_to_run(self, kind: str) -> None:
        told, (only,) = played("responses", answer(1, message(1), call(1), kind=kind))
        assert only.calls == []
        assert told[-1]["type"] == f"response.{kind}" and told[-1]["response"]["output"] == [message(1)]

    def test_an_error_in_a_later_turn_is_the_end_of_the_answer(self) -> None:
        error = {"type": "error", "message": "no", "sequence_number": 3}
        told, ends = played("responses", answer(1, call(1)), [*answer(2, call(2))[:3], error])
        assert told[-1] == error | {"sequence_number": 1}
        assert ends[-1].calls == []

    def test_an_item_is_hidden_even_if_it_was_never_added(self) -> None:
        first = [event for event in answer(1, call(1), message(1)) if event["type"] != "response.output_item.added"]
        told, ends = played("responses", first, answer(2, message(2)))
        assert "bmcp" not in json.dumps(told) and len(ends[0].calls) == 1
        assert [event["output_index"] for event in told if "output_index" in event] == [0, 1, 1]

    def test_events_that_know_an_item_by_its_id_only_are_hidden_with_it(self) -> None:
        first = answer(1, call(1))
        first.insert(2, {"type": "response.odd", "item_id": "fc_1"})
        told, _ = played("responses", first, answer(2, message(2)))
        assert "response.odd" not in [event["type"] for event in told]

    def test_a_server_that_ends_with_done_does_so_once(self) -> None:
        splice = splice_of("responses")
        turns = [stream(*answer(1, call(1)), "[DONE]"), stream(*answer(2, message(2)), "[DONE]")]
        told = play(FORMS["responses"].dialect, splice, [[turn] for turn in turns]).client
        assert told.count(b"[DONE]") == 1 and told.endswith(b"data: [DONE]\n\n")
        late = [[turn.removesuffix(b"data: [DONE]\n\n"), b"data: [DONE]\n\n"] for turn in turns]
        assert play(FORMS["responses"].dialect, splice_of("responses"), late).client == told

    @pytest.mark.parametrize(
        ("item", "is_clients"),
        [
            (call(2, "Read"), True),
            ({"type": "custom_tool_call", "call_id": "call_2", "name": "exec", "input": ""}, True),
            ({"type": "shell_call", "call_id": "call_2"}, True),
            ({"type": "tool_search_call", "call_id": "call_2", "execution": "client"}, True),
            ({"type": "mcp_approval_request", "id": "call_2"}, True),
            ({"type": "web_search_call", "id": "ws_2"}, False),
            ({"type": "mcp_call", "id": "mcp_2", "name": "bmcp_a_x"}, False),
            ({"type": "reasoning", "id": "rs_2"}, False),
        ],
    )
    def test_a_turn_is_mixed_if_the_client_has_to_answer_an_item_of_it(
        self, item: dict[str, Any], is_clients: bool
    ) -> None:
        ended = splice_of("responses").take_body(response(1, call(1), item))
        assert ended.client_calls == (["call_2"] if is_clients else [])
        assert [mine.anchor for mine in ended.calls] == ["call_2" if is_clients else None]

    def test_a_call_that_the_server_has_answered_itself_is_not_the_clients(self) -> None:
        """A hosted shell."""
        shell = [{"type": kind, "call_id": "sh_1"} for kind in ("shell_call", "shell_call_output")]
        assert splice_of("responses").take_body(response(1, *shell, call(1))).client_calls == []


@pytest.mark.parametrize("dialect", FORMS)
def test_hidden_calls_without_an_id_get_one_of_ours_that_is_the_same_in_the_next_request(dialect: str) -> None:
    functions = [{"function": {"name": "bmcp_a_x", "arguments": f"{n}"}} for n in (1, 2)]
    body: dict[str, Any] = {
        "messages": {
            "id": "msg_1",
            "content": [{"type": "tool_use", "name": "bmcp_a_x", "input": {"n": n}} for n in (1, 2)],
            "stop_reason": "tool_use",
        },
        "chat_completions": {
            "id": "c1",
            "choices": [
                {
                    "message": {"tool_calls": functions},
                    "finish_reason": "tool_calls",
                }
            ],
        },
        "responses": {
            "id": "resp_1",
            "status": "completed",
            "output": [{"type": "function_call", "name": "bmcp_a_x", "arguments": f"{n}"} for n in (1, 2)],
        },
    }[dialect]
    ends = [splice_of(dialect).take_body(json.loads(json.dumps(body))) for _ in range(2)]
    ids = [[call.id for call in ended.calls] for ended in ends]
    assert ids[0] == ids[1] and len(set(ids[0])) == 2 and all(ids[0])
    sent = json.dumps(ends[0].content)
    assert all(id_ in sent for id_ in ids[0])


@pytest.mark.parametrize("dialect", FORMS)
def test_a_keep_alive_is_nothing_to_a_client(dialect: str) -> None:
    told = splice_of(dialect).keepalive()
    name, data = sse.parse(told)
    assert told.endswith(b"\n\n")
    assert (name, json.loads(data or b"null")) in (("", None), ("ping", {"type": "ping"}))
