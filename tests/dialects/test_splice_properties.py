"""Whatever the turns, the client gets one well-formed answer, and the provider a complete history.

Generated turns (see `tests.support.streams`) go through a splice as streams and as bodies. `make soak` runs many more.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any, cast

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from aibridge_addon.dialects.turns import Call, FollowUp, Splice, TurnEnd
from aibridge_addon.wire import sse
from aibridge_addon.wire.aws_eventstream import EventStreamScanner
from aibridge_addon.wire.json_object import JSONObject
from tests.support.bedrock_forms import ALL_BODY_PARSERS, ALL_CLIENTS, ALL_FORMS, ALL_PARSERS, BEDROCK_FORMS
from tests.support.client_view import View
from tests.support.soak import MANY, TIMEOUT
from tests.support.stream_forms import FORMS, Form
from tests.support.streams import INJECTED, Conversation, Played, Turn, Written, chunks, play, results_for

# The SDKs warn of blocks that they do not know.
pytestmark = pytest.mark.filterwarnings("ignore:Pydantic serializer warnings")

QUERY = {"model": "m", "messages": [], "input": "hi", "tools": [{"name": "Read"}], "seed": 10**30, "top_p": 1e-07}
MAX_TURNS = 5


class Example:
    """A generated conversation, its turns as a provider gives them, and what the client gets."""

    def __init__(self, dialect: str, data: st.DataObject) -> None:
        self.form: Form = ALL_FORMS[dialect]
        self.client = ALL_CLIENTS[dialect]
        self.is_bedrock = dialect in BEDROCK_FORMS
        self.conversation: Conversation = data.draw(self.form.conversations)
        self.written: list[Written] = self.form.written(self.conversation)
        self.turns: tuple[Turn, ...] = self.conversation.turns
        self.hides = any(turn.has("injected") for turn in self.turns)
        self.echoes = self.conversation.style.usage == "ours echoed"
        unknown = any(turn.has("unknown") for turn in self.conversation.turns)
        self.has_unknown_items = unknown and self.form.dialect.name == "responses"
        self.is_parsed = not unknown or self.form.dialect.name != "converse"
        """botocore leaves out blocks that it does not know."""
        """The deltas of an item of an unknown type are not known, so a stream that is made of a body has none."""

    def play(self, seed: int = 0) -> Played:
        cuts = [chunks(turn.stream, self.conversation.style.seed + seed) for turn in self.written]
        return play(self.form.dialect, self.form.injection.splice(INJECTED), cuts)

    def taken(self) -> tuple[dict[str, Any], list[TurnEnd]]:
        """The blocking answer, and the ends of its turns."""
        splice = self.form.injection.splice(INJECTED)
        ends = []
        for turn in self.written:
            splice.begin_turn()
            ends.append(splice.take_body(turn.body))
        return splice.body(), ends

    def follow_ups(self, ends: list[TurnEnd]) -> list[bytes]:
        body = JSONObject(json.dumps(QUERY).encode())
        return [
            self.form.injection.follow_up(
                FollowUp(body, end, results_for(end), last=last, first=body, injected=INJECTED)
            )
            for end in ends
            if end.calls and not end.client_calls
            for last in (False, True)
        ]


def example(test: Callable[[Example], None]) -> Callable[[str], None]:
    """Run a property over generated conversations in every dialect."""

    @TIMEOUT
    @pytest.mark.parametrize("dialect", ALL_FORMS)
    @settings(MANY, suppress_health_check=list(HealthCheck))
    @given(data=st.data())
    def run(dialect: str, data: st.DataObject) -> None:
        test(Example(dialect, data))

    run.__name__ = test.__name__
    run.__doc__ = test.__doc__
    return cast(Callable[[str], None], run)


@example
def test_no_byte_of_an_injected_tool_reaches_the_client(example: Example) -> None:
    body, _ = example.taken()
    assert b"bmcp_" not in example.play().client
    assert b"bmcp_" not in json.dumps(body).encode()


@example
def test_the_client_gets_one_well_formed_answer(example: Example) -> None:
    """One start, one end, one id; numbers without gaps; all that is visible, and only that; its own calls only."""
    view = example.client.stream(example.play().client)
    assert view.id == example.written[0].body.get("id", "")
    assert view.visible == example.client.expected([turn.said for turn in example.written])
    assert view.ends_for_calls == example.turns[-1].has("client", "custom")


@example
def test_the_clients_usage_is_the_first_turns_input_and_the_output_of_all(example: Example) -> None:
    first, style = example.turns[0], example.conversation.style
    output = sum(turn.output_tokens for turn in example.turns)
    view = example.client.stream(example.play().client)
    if style.usage == "none":
        assert view.usage is None
        return
    passes_zeros = style.usage == "zeros" and not example.hides
    assert view.usage == ((0, 0, output) if passes_zeros else (first.input_tokens, first.cached_tokens, output))
    if example.form is FORMS["messages"] or example.is_bedrock:
        assert view.written == (0 if passes_zeros else first.written_tokens)
    else:
        assert view.reasoning == sum(turn.reasoning_tokens for turn in example.turns)


@example
def test_the_vendors_own_parser_accepts_the_answer(example: Example) -> None:
    style = example.conversation.style
    # They cannot read all that providers do: counts that become zero at the end, calls that begin at 1, events without
    # numbers, a response without its items. Where we leave the answer alone, that is how it stays.
    assume(example.hides or style.usage != "zeros")
    assume(example.is_parsed)
    if example.form is FORMS["chat_completions"]:
        assume(not (style.first_index and example.turns[-1].has("client")))
    if example.form is FORMS["responses"]:
        assume(style.numbered and (style.whole_output or example.hides))
    client = example.play().client
    check_parsed(example.client.body(ALL_PARSERS[example.form.dialect.name](client)), example.client.stream(client))


@example
def test_the_vendors_own_parser_accepts_the_blocking_answer(example: Example) -> None:
    assume(example.is_parsed)
    body, _ = example.taken()
    parsed = ALL_BODY_PARSERS[example.form.dialect.name](json.dumps(body).encode())
    check_parsed(example.client.body(parsed), example.client.body(body))


def check_parsed(parsed: View, told: View) -> None:
    assert replace(parsed, visible=without_additions(parsed.visible, told.visible)) == told


def without_additions(parsed: Any, told: Any) -> Any:
    """What was parsed, without the members that the parser has added; blocks that it does not know do not grow."""
    if isinstance(parsed, dict) and isinstance(told, dict):
        if told.get("type") == "hologram":
            parsed = parsed | {"frames": told["frames"]}
        return {name: without_additions(parsed[name], told[name]) for name in told if name in parsed}
    if isinstance(parsed, list) and isinstance(told, list) and len(parsed) == len(told):
        return [without_additions(a, b) for a, b in zip(parsed, told, strict=True)]
    return parsed


def as_stream(splice: Splice, body: dict[str, Any]) -> bytes:
    """The stream with the content of a body."""
    return b"".join(splice.framed(name, event) for name, event in splice.events_of(body, usage=True))


def raw_events(example: Example, stream: bytes) -> list[bytes]:
    scanner = EventStreamScanner() if example.is_bedrock else sse.SSEScanner()
    return [raw for raw, _ in scanner.feed(stream)]


@example
def test_a_body_and_the_stream_that_is_made_of_it_are_the_same_answer(example: Example) -> None:
    assume(not example.hides and not example.echoes and not example.has_unknown_items)
    splice = example.form.injection.splice(INJECTED)
    for turn in example.written:
        made = as_stream(splice, turn.body)
        assert example.client.stream(made) == example.client.body(turn.body)
        if not example.is_parsed:
            continue
        check_parsed(example.client.body(ALL_PARSERS[example.form.dialect.name](made)), example.client.stream(made))


@example
def test_a_stream_and_the_body_that_is_made_of_it_are_the_same_answer(example: Example) -> None:
    assume(not example.hides and not example.echoes and example.conversation.style.usage != "zeros")
    splice = example.form.injection.splice(INJECTED)
    for turn in example.written:
        made = splice.body_of(raw_events(example, turn.stream))
        assert example.client.body(made) == example.client.body(turn.body)


@example
def test_turns_in_the_other_form_give_the_same_answer(example: Example) -> None:
    assume(not example.has_unknown_items)
    splice = example.form.injection.splice(INJECTED)
    made = [[as_stream(splice, turn.body)] for turn in example.written]
    told = play(example.form.dialect, example.form.injection.splice(INJECTED), made).client
    body, _ = example.taken()
    assert b"bmcp_" not in told
    assert example.client.stream(told) == example.client.body(body)


@example
def test_what_hides_nothing_passes_byte_for_byte(example: Example) -> None:
    assume(not example.hides and not example.echoes)
    body, _ = example.taken()
    assert example.play().client == example.written[0].stream
    assert body == example.written[0].body


@example
def test_streams_and_bodies_give_the_same_answer(example: Example) -> None:
    played = example.play()
    body, ends = example.taken()
    if not (example.conversation.style.usage == "zeros" and not example.hides):
        assert example.client.body(body) == example.client.stream(played.client)
    assert [end.response_id for end in ends] == [end.response_id for end in played.ends]
    assert [end.client_calls for end in ends] == [end.client_calls for end in played.ends]
    assert [list(map(same, end.calls)) for end in ends] == [list(map(same, end.calls)) for end in played.ends]
    requests = ([json.loads(body) for body in example.follow_ups(told)] for told in (ends, played.ends))
    assert next(requests) == next(requests)


def same(call: Call) -> tuple[Any, ...]:
    return call.id, call.name, call.input, call.anchor


@example
def test_the_next_request_carries_what_was_said_verbatim_and_every_result(example: Example) -> None:
    ends = example.play().ends
    bodies = iter(example.follow_ups(ends))
    for end, turn in zip(ends, example.written, strict=True):
        if not end.calls or end.client_calls:
            continue
        for request in (next(bodies), next(bodies)):
            members = json.loads(request)
            assert {n: members[n] for n in ("model", "seed", "top_p")} == {
                n: QUERY[n] for n in ("model", "seed", "top_p")
            }
            example.client.check_history(members, turn.said, [call.id for call in end.calls])


@example
def test_every_injected_call_is_to_be_run_in_order_and_knows_its_place(example: Example) -> None:
    ends = example.play().ends
    assert len(ends) == len(example.turns) <= MAX_TURNS
    for turn, end in zip(example.turns, ends, strict=True):
        asked = [block for block in turn.blocks if block.kind in ("client", "custom", "injected")]
        expected = []
        own = 0
        for block in asked:
            if block.kind == "injected":
                anchor = end.client_calls[own] if own < len(end.client_calls) else None
                expected.append((block.name, json.loads(block.text or "{}"), anchor))
            else:
                own += 1
        assert [(call.name, call.input, call.anchor) for call in end.calls] == expected
        assert len(end.client_calls) == own


@example
def test_the_same_chunks_give_the_same_bytes_and_other_chunks_the_same_answer(example: Example) -> None:
    first = example.play().client
    otherwise = example.play(seed=1).client
    assert example.play().client == first
    if example.is_bedrock:
        assert otherwise == first
        return
    # Where a chunk ends between CR and LF, the LF counts as the next event's, and may go with it.
    assert [line for line in otherwise.splitlines() if line] == [line for line in first.splitlines() if line]
    if example.conversation.style.newline != "\r\n":
        assert otherwise == first
