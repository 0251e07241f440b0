"""The next turn's request: in the request's own way, with the provider's own words and every result."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import pytest

from aibridge_addon.dialects.chat_completions.inject import tool_message
from aibridge_addon.dialects.messages.inject import tool_result
from aibridge_addon.dialects.responses.inject import function_call_output
from aibridge_addon.dialects.turns import Call, FollowUp, Media, Part, Result, Text, TurnEnd
from aibridge_addon.wire.json_object import JSONObject
from tests.support.dialects import INJECTIONS

DIALECTS = tuple(INJECTIONS)
INJECTED = ("bmcp_a_look", "bmcp_b_now")
NAMES = {"messages": "messages", "chat_completions": "messages", "responses": "input"}
"""The member that holds the history."""


def tool(dialect: str, name: str) -> dict[str, Any]:
    return {"function": {"name": name}, "type": "function"} if dialect == "chat_completions" else {"name": name}


def called(*ids: str) -> list[Call]:
    return [Call(id_, "bmcp_a_look", {}, {"id": id_}) for id_ in ids]


def ended(*said: dict[str, Any], ids: tuple[str, ...] = ("c1", "c2"), container: str = "") -> TurnEnd:
    return TurnEnd(called(*ids), [], list(said), "turn_1", container)


def request(dialect: str, **members: Any) -> JSONObject:
    history = [{"role": "user", "content": "hi"}]
    return JSONObject(json.dumps({"model": "m", NAMES[dialect]: history} | members).encode())


def after(
    body: JSONObject,
    end: TurnEnd,
    results: Sequence[Result] = (),
    *,
    last: bool = False,
    first: JSONObject | None = None,
    injected: Sequence[str] = (),
) -> FollowUp:
    return FollowUp(body, end, results, last, first or body, injected)


def follow_up(dialect: str, body: JSONObject, end: TurnEnd, **more: Any) -> dict[str, Any]:
    results = [Result(call, (Text(f"of {call.id}"),)) for call in end.calls]
    told = json.loads(INJECTIONS[dialect].follow_up(after(body, end, results, **more)))
    assert isinstance(told, dict)
    return told


ANSWERS: dict[str, list[dict[str, Any]]] = {
    "messages": [
        {
            "role": "user",
            "content": [
                {"type": "tool_result", "tool_use_id": id_, "content": [{"type": "text", "text": f"of {id_}"}]}
                for id_ in ("c1", "c2")
            ],
        }
    ],
    "chat_completions": [{"role": "tool", "tool_call_id": id_, "content": f"of {id_}"} for id_ in ("c1", "c2")],
    "responses": [{"type": "function_call_output", "call_id": id_, "output": f"of {id_}"} for id_ in ("c1", "c2")],
}


@pytest.mark.parametrize("dialect", DIALECTS)
class TestEveryDialect:
    def test_what_was_said_and_the_results_follow_the_history_and_all_else_stays(self, dialect: str) -> None:
        said = {"type": "unknown", "odd": 123456789012345678901234567890, "text": "a"}
        body = request(dialect, tools=[tool(dialect, "Read")], tool_choice=None, temperature=1.0)
        told = follow_up(dialect, body, ended(said))
        spoken = {"role": "assistant", "content": [said]} if dialect == "messages" else said
        history = [{"role": "user", "content": "hi"}, spoken, *ANSWERS[dialect]]
        expected = json.loads(body.replaced({})) | {NAMES[dialect]: history}
        assert told == expected and list(told) == list(expected)

    def test_the_history_so_far_is_not_touched_by_a_byte(self, dialect: str) -> None:
        old = b'{ "role":"user","content":"\\u00e9", "n":[1e2,1.0] }'
        body = JSONObject(b'{"%s":[ %s ],"x": 1.0E+1}' % (NAMES[dialect].encode(), old))
        made = {INJECTIONS[dialect].follow_up(after(body, ended())) for _ in range(10)}
        assert len(made) == 1
        assert old in next(iter(made)) and b'"x":1.0E+1' in next(iter(made))

    def test_a_demanded_call_is_demanded_until_the_client_gets_one(self, dialect: str) -> None:
        """A turn that another one follows has called only tools of ours, or some that the provider runs."""
        by_name: dict[str, Any] = {"type": "tool", "name": "Read", "disable_parallel_tool_use": True}
        choices: list[tuple[Any, Any]] = [
            (by_name, {"type": "auto", "disable_parallel_tool_use": True}),
            ({"type": "any"}, {"type": "auto"}),
            ({"type": "auto", "disable_parallel_tool_use": True}, {"type": "auto", "disable_parallel_tool_use": True}),
        ]
        hosted: list[dict[str, Any]] = [{"type": "server_tool_use", "id": "s", "name": "web_search", "input": {}}]
        if dialect != "messages":
            by_name = {"type": "function", "name": "Read"}
            choices = [("required", "auto"), (by_name, "auto"), ("auto", "auto")]
            hosted = [{"type": "web_search_call", "id": "s", "status": "completed"}]
        for choice, met in choices:
            body = request(dialect, tool_choice=choice)
            assert follow_up(dialect, body, ended())["tool_choice"] == choice
            if dialect != "chat_completions":
                assert follow_up(dialect, body, ended(*hosted))["tool_choice"] == met
        assert "tool_choice" not in follow_up(dialect, request(dialect), ended())

    def test_the_last_turn_goes_back_to_the_clients_own_tools_and_choice(self, dialect: str) -> None:
        own = json.dumps(tool(dialect, "Read")).encode()[:-1] + b', "n": 1.0E+2}'
        ours = b",".join(json.dumps(tool(dialect, name)).encode() for name in INJECTED)
        forced = b'{ "type":"any" }' if dialect == "messages" else b'"required"'
        first = JSONObject(b'{"tools":[' + ours + b"," + own + b'],"tool_choice":' + forced + b"}")
        then = JSONObject(INJECTIONS[dialect].follow_up(after(first, ended(), injected=INJECTED)))
        told = INJECTIONS[dialect].follow_up(after(then, ended(), last=True, first=first, injected=INJECTED))
        assert b'"tools":[' + own + b"]" in told
        assert b'"tool_choice":' + forced in told

    def test_where_all_tools_are_ours_they_stay_but_cannot_be_used(self, dialect: str) -> None:
        """A history with calls is only valid with tools."""
        tools = [tool(dialect, name) for name in INJECTED]
        none = {"type": "none"} if dialect == "messages" else "none"
        for known in ({"injected": INJECTED}, {}):
            told = follow_up(dialect, request(dialect, tools=tools), ended(), last=True, **known)
            assert (told["tools"], told["tool_choice"]) == (tools, none)


class TestMessages:
    def test_blank_texts_that_the_model_said_are_left_out(self) -> None:
        """No request may hold one."""
        said = [{"type": "text", "text": text} for text in ("", " \n", "a ")] + [{"type": "thinking", "thinking": ""}]
        told = follow_up("messages", request("messages"), ended(*said))
        assert told["messages"][1]["content"] == said[2:]

    @pytest.mark.parametrize("thread", [{"type": "create"}, {"type": "continue", "previous_message_id": "msg_0"}])
    def test_a_thread_goes_on_as_a_thread(self, thread: dict[str, Any]) -> None:
        """With what the server lacks, and without what a thread has from its first request."""
        body = request("messages", thread=thread, system="s", tools=[{"name": "Read"}], max_tokens=9)
        expected = {
            "model": "m",
            "messages": ANSWERS["messages"],
            "thread": {"type": "continue", "previous_message_id": "turn_1"},
            "max_tokens": 9,
        }
        assert follow_up("messages", body, ended({"type": "text", "text": "a"})) == expected
        last = follow_up("messages", body, ended(), last=True, injected=INJECTED, first=body)
        assert last == expected | {"tool_choice": {"type": "none"}}

    @pytest.mark.parametrize(
        ("asked", "named"),
        [
            (None, "cntr_1"),
            ("cntr_0", "cntr_1"),
            ({"skills": [{"skill_id": "pdf"}]}, {"skills": [{"skill_id": "pdf"}], "id": "cntr_1"}),
        ],
    )
    def test_the_container_of_the_turn_is_used_again(self, asked: Any, named: Any) -> None:
        body = request("messages", **({} if asked is None else {"container": asked}))
        assert follow_up("messages", body, ended(container="cntr_1"))["container"] == named


class TestResponses:
    CALL = ({"type": "function_call", "call_id": "c1", "name": "bmcp_a_look", "arguments": "{}"},)

    def test_a_text_becomes_the_message_that_it_stands_for(self) -> None:
        told = follow_up("responses", request("responses", input="hi"), ended(*self.CALL))
        message = {"type": "message", "role": "user", "content": "hi"}
        assert told["input"] == [message, *self.CALL, *ANSWERS["responses"]]

    def test_after_a_previous_response_only_the_results_are_sent(self) -> None:
        body = request("responses", previous_response_id="resp_0")
        told = follow_up("responses", body, ended(*self.CALL))
        assert told == {"model": "m", "input": ANSWERS["responses"], "previous_response_id": "turn_1"}

    def test_what_is_not_stored_cannot_be_named(self) -> None:
        body = request("responses", previous_response_id="resp_0", store=False)
        told = follow_up("responses", body, ended(*self.CALL))
        assert told["previous_response_id"] == "resp_0"
        assert told["input"][1:] == [*self.CALL, *ANSWERS["responses"]]

    @pytest.mark.parametrize("conversation", ["conv_1", {"id": "conv_1"}])
    def test_a_conversation_holds_all_that_was_said(self, conversation: Any) -> None:
        body = request("responses", conversation=conversation)
        told = follow_up("responses", body, ended(*self.CALL))
        assert told == {"model": "m", "input": ANSWERS["responses"], "conversation": conversation}

    def test_reasoning_is_repeated_where_the_server_can_know_it(self) -> None:
        sealed = {"type": "reasoning", "id": "rs_1", "summary": [], "encrypted_content": "x"}
        bare = {"type": "reasoning", "id": "rs_2", "summary": []}
        stored = follow_up("responses", request("responses"), ended(sealed, bare))
        assert stored["input"][1:3] == [sealed, bare]
        unstored = follow_up("responses", request("responses", store=False), ended(sealed, bare))
        assert unstored["input"][1:] == [sealed, *ANSWERS["responses"]]

    def test_the_last_turn_takes_our_tools_out_of_the_input_too(self) -> None:
        ours = [{"type": "function", "name": name} for name in INJECTED]
        first = {"type": "additional_tools", "tools": [{"type": "namespace", "name": "functions"}, *ours]}
        body = request("responses", input=[first, {"role": "user", "content": "a"}], tool_choice="auto")
        told = follow_up("responses", body, ended(*self.CALL), last=True, injected=INJECTED)
        assert told["input"][0] == first | {"tools": [{"type": "namespace", "name": "functions"}]}
        assert told["tool_choice"] == "auto" and "tools" not in told
        kept = follow_up("responses", body, ended(*self.CALL), last=False, injected=INJECTED)
        assert kept["input"][0] == first

    def test_the_caller_of_a_call_is_repeated_with_its_output(self) -> None:
        caller = {"type": "program", "caller_id": "prog_1"}
        output = function_call_output(Result(Call("c1", "bmcp_a_look", {}, {"caller": caller}), (Text("a"),)))
        assert output == {"type": "function_call_output", "call_id": "c1", "output": "a", "caller": caller}


PNG, PDF, WAV = Media("image/png", "aGk="), Media("application/pdf", "aGk="), Media("audio/wav", "aGk=", "file:///a")
JPG, SVG = Media("image/JPG; q=1", "aGk="), Media("image/svg+xml", "aGk=")
A = Text("a")
NOTE = "[audio/wav, 3 bytes, file:///a: cannot be shown here]"


def block(text: str) -> dict[str, str]:
    return {"type": "text", "text": text}


def source(kind: str) -> dict[str, str]:
    return {"type": "base64", "media_type": kind, "data": "aGk="}


@pytest.mark.parametrize(
    ("parts", "is_error", "content"),
    [
        ((A,), False, [block("a")]),
        ((A, Text(" \n"), Text("")), False, [block("a")]),
        ((), False, [block("(no output)")]),
        ((Text(""),), True, [block("(no output)")]),
        ((PNG, A), False, [{"type": "image", "source": source("image/png")}, block("a")]),
        ((JPG,), False, [{"type": "image", "source": source("image/jpeg")}]),
        ((PDF,), False, [{"type": "document", "source": source("application/pdf")}]),
        ((WAV, SVG), False, [block(NOTE), block(SVG.note)]),
        ((A, PNG), True, [block("a"), block(PNG.note)]),  # an error may hold nothing but text
    ],
)
def test_a_result_in_messages(parts: tuple[Part, ...], is_error: bool, content: list[Any]) -> None:
    told = {"type": "tool_result", "tool_use_id": "c1", "content": content} | ({"is_error": True} if is_error else {})
    assert tool_result(Result(called("c1")[0], parts, is_error)) == told


@pytest.mark.parametrize(
    ("parts", "is_error", "content"),
    [
        ((A, Text("b")), False, "a\nb"),
        ((), False, "(no output)"),
        ((A, PNG, WAV), False, f"a\n{PNG.note}\n{NOTE}"),
        ((A,), True, "Error: a"),
        ((Text("Error: a"),), True, "Error: a"),
        ((PNG,), True, f"Error: {PNG.note}"),
        ((), True, "Error: (no output)"),
    ],
)
def test_a_result_in_chat_completions(parts: tuple[Part, ...], is_error: bool, content: str) -> None:
    told = {"role": "tool", "tool_call_id": "c1", "content": content}
    assert tool_message(Result(called("c1")[0], parts, is_error)) == told


IMAGE = {"type": "input_image", "image_url": "data:image/png;base64,aGk="}


@pytest.mark.parametrize(
    ("parts", "is_error", "output"),
    [
        ((A, Text("b")), False, "a\nb"),
        ((), False, "(no output)"),
        ((A, PNG), False, [{"type": "input_text", "text": "a"}, IMAGE]),
        ((JPG,), False, [{"type": "input_image", "image_url": "data:image/jpeg;base64,aGk="}]),
        (
            (PDF,),
            False,
            [{"type": "input_file", "filename": "file.pdf", "file_data": "data:application/pdf;base64,aGk="}],
        ),
        ((WAV, SVG), False, [{"type": "input_text", "text": text} for text in (NOTE, SVG.note)]),
        ((A,), True, "Error: a"),
        ((Text("Error: a"),), True, "Error: a"),
        ((), True, "Error: (no output)"),
        ((A, PNG), True, [{"type": "input_text", "text": "Error: a"}, IMAGE]),
        ((PNG,), True, [{"type": "input_text", "text": "Error:"}, IMAGE]),
    ],
)
def test_a_result_in_responses(parts: tuple[Part, ...], is_error: bool, output: Any) -> None:
    told = {"type": "function_call_output", "call_id": "c1", "output": output}
    assert function_call_output(Result(called("c1")[0], parts, is_error)) == told
