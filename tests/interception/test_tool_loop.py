"""The loop's decisions: what is run, when it goes on, and when it ends."""

from __future__ import annotations

import json
from typing import Any

import pytest

from aibridge_addon.dialects.turns import Call, Result, Text, TurnEnd
from aibridge_addon.interception.tool_loop import REPEATS, ToolLoop
from aibridge_addon.wire.json_object import JSONObject
from tests.support.dialects import INJECTIONS

INJECTED = ("bmcp_a_look", "bmcp_b_now")
OURS = [{"name": name} for name in INJECTED]
OWN = {"name": "Read"}


def loop(max_turns: int = 5, max_calls: int = 8, tools: list[Any] | None = None, **members: Any) -> ToolLoop:
    body = {"messages": [{"role": "user", "content": "hi"}], "tools": tools or [*OURS, OWN]} | members
    request = JSONObject(json.dumps(body).encode())
    return ToolLoop(INJECTIONS["messages"], request, INJECTED, max_turns=max_turns, max_calls=max_calls)


def call(id_: str, name: str = "bmcp_a_look", given: Any = None, anchor: str | None = None) -> Call:
    given = {"id": id_} if given is None else given
    return Call(id_, name, given, {"type": "tool_use", "id": id_, "name": name, "input": given}, anchor)


def turn(made: ToolLoop, *calls: Call, client: tuple[str, ...] = ()) -> dict[str, Any] | None:
    """One turn that ended with these calls; they are run, and the next request is given."""
    number = len(made.response_ids) + 1
    made.turn_ended(TurnEnd(list(calls), list(client), [call.item for call in calls], f"msg_{number}"))
    if not made.pending:
        return None
    request = made.results([Result(call, (Text(f"of {call.id}"),)) for call in made.to_run])
    return None if request is None else json.loads(request)


def results_in(request: dict[str, Any] | None) -> list[tuple[str, str, bool]]:
    """The results at the end of a request: id, text, error."""
    assert request is not None
    blocks = request["messages"][-1]["content"]
    return [(b["tool_use_id"], b["content"][0]["text"], b.get("is_error", False)) for b in blocks]


def test_without_injected_calls_the_answer_ends() -> None:
    made = loop()
    assert turn(made) is None and turn(made, client=("c1",)) is None
    assert (made.calls_hidden, made.mixed, made.to_run) == (False, None, ())


def test_injected_calls_are_run_and_their_results_go_back_in_call_order() -> None:
    request = turn(loop(), call("a"), call("b", "bmcp_b_now"))
    assert results_in(request) == [("a", "of a", False), ("b", "of b", False)]


def test_the_history_grows_turn_by_turn() -> None:
    made = loop()
    turn(made, call("a"))
    request = turn(made, call("b"))
    assert request is not None
    assert [message["role"] for message in request["messages"]] == ["user", *("assistant", "user") * 2]
    assert made.response_ids == ["msg_1", "msg_2"]


def test_only_so_many_calls_of_a_turn_are_run() -> None:
    made = loop(max_calls=2)
    request = turn(made, *(call(str(number)) for number in range(4)))
    not_made = "This call was not made: a turn may make 2 calls."
    assert results_in(request) == [
        ("0", "of 0", False),
        ("1", "of 1", False),
        ("2", not_made, True),
        ("3", not_made, True),
    ]
    assert turn(made, call("again")) is None and made.calls_hidden


def test_calls_without_ids_keep_their_results_apart() -> None:
    """Some servers give none."""
    request = turn(loop(), call("", given={"n": 1}), call("", given={"n": 2}))
    assert len(results_in(request)) == 2


class TestMaxTurns:
    def test_the_last_turn_that_is_allowed_has_the_clients_tools_only(self) -> None:
        made = loop(max_turns=3)
        first, second = turn(made, call("a")), turn(made, call("b"))
        assert first is not None and first["tools"] == [*OURS, OWN]
        assert second is not None and second["tools"] == [OWN] and "tool_choice" not in second

    def test_where_the_client_has_no_tools_ours_cannot_be_used_any_more(self) -> None:
        request = turn(loop(max_turns=2, tools=OURS), call("a"))
        assert request is not None
        assert (request["tools"], request["tool_choice"]) == (OURS, {"type": "none"})

    def test_calls_that_come_all_the_same_are_not_run_and_not_shown(self) -> None:
        made = loop(max_turns=2)
        turn(made, call("a"))
        assert turn(made, call("b")) is None
        assert made.calls_hidden and made.to_run == ()

    def test_one_turn_is_one_turn(self) -> None:
        made = loop(max_turns=1)
        assert turn(made, call("a")) is None and made.calls_hidden


class TestDemandedCall:
    @pytest.mark.parametrize("choice", [{"type": "any"}, {"type": "tool", "name": "Read"}])
    def test_it_is_demanded_in_every_turn(self, choice: dict[str, Any]) -> None:
        made = loop(max_turns=4, tool_choice=choice)
        requests = [turn(made, call(id_)) for id_ in "abc"]
        assert [request and request["tool_choice"] for request in requests] == [choice] * 3
        assert requests[-1] is not None and requests[-1]["tools"] == [OWN]

    def test_a_thread_that_keeps_our_tools_does_not_forbid_the_call(self) -> None:
        made = loop(max_turns=2, tool_choice={"type": "any"}, thread={"type": "create"})
        request = turn(made, call("a"))
        assert request is not None and request["tool_choice"] == {"type": "any"}


SAME: Any = {"q": 1, "r": [2]}


class TestRepeats:
    def test_the_third_call_with_the_same_arguments_is_refused_and_the_next_turn_is_the_last(self) -> None:
        made = loop(max_turns=50)
        for id_ in "ab":
            request = turn(made, call(id_, given=SAME))
            assert request is not None and request["tools"] == [*OURS, OWN]
        request = turn(made, call("c", given={"r": [2], "q": 1}))
        ((id_, text, is_error),) = results_in(request)
        assert id_ == "c" and is_error and f"{REPEATS} times" in text
        assert request is not None and request["tools"] == [OWN]
        assert turn(made, call("d")) is None and made.calls_hidden

    def test_the_others_of_that_turn_are_run(self) -> None:
        made = loop(max_turns=50)
        for id_ in "ab":
            turn(made, call(id_, given=SAME))
        request = turn(made, call("x"), call("c", given=SAME), call("y"))
        assert [(id_, is_error) for id_, _, is_error in results_in(request)] == [
            ("x", False),
            ("c", True),
            ("y", False),
        ]

    def test_calls_that_repeat_as_a_group_are_found_too(self) -> None:
        made = loop(max_turns=50)
        for _ in range(2):
            turn(made, call("a", given=SAME), call("b", "bmcp_b_now", {}))
        request = turn(made, call("a", given=SAME), call("b", "bmcp_b_now", {}))
        assert [is_error for _, _, is_error in results_in(request)] == [True, True]

    def test_three_in_one_turn_are_in_a_row(self) -> None:
        request = turn(loop(), *(call(id_, given=SAME) for id_ in "abc"))
        assert [is_error for _, _, is_error in results_in(request)] == [False, False, True]

    @pytest.mark.parametrize(
        "between", [call("x"), call("x", "bmcp_b_now", SAME), call("x", given={"q": 1, "r": [2.5]})], ids=str
    )
    def test_another_call_in_between_begins_anew(self, between: Call) -> None:
        made = loop(max_turns=50)
        made_calls = [call("a", given=SAME), call("b", given=SAME), between, call("c", given=SAME)]
        for each in made_calls:
            assert not any(is_error for _, _, is_error in results_in(turn(made, each)))


class TestMixedTurns:
    def test_the_answer_ends_and_the_results_are_kept_with_their_places(self) -> None:
        made = loop()
        turn(made, call("a"))
        mine = (call("b", anchor="c1"), call("c", anchor=None))
        assert turn(made, *mine, client=("c1", "c2")) is None
        assert made.mixed is not None
        assert (made.mixed.response_id, made.mixed.client_calls) == ("msg_2", ("c1", "c2"))
        assert [(result.call, result.parts) for result in made.mixed.results] == [
            (mine[0], (Text("of b"),)),
            (mine[1], (Text("of c"),)),
        ]
        assert not made.calls_hidden and made.pending == ()

    def test_they_are_run_in_the_last_turn_too(self) -> None:
        """The client goes on, and its next request has its own turns."""
        made = loop(max_turns=1)
        assert turn(made, call("b", anchor="c1"), client=("c1",)) is None
        assert made.mixed is not None and len(made.mixed.results) == 1 and not made.calls_hidden
