"""Calls with the same id in different conversations: each request gets what belongs to it, and nothing of another."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from tests.conftest import MakeUpstream, StartProxy
from tests.integration.test_mixed_turns import NAMING
from tests.integration.turns import (
    BY_DIALECT,
    CLIENTS_RESULT,
    CONNECTED,
    PROMPT,
    Turns,
    call,
    configuration,
    own,
    results,
    text,
    thought,
)
from tests.support.client import gateway_client
from tests.support.in_process import InProcessProxy
from tests.support.mcp_servers import HttpMcp
from tests.support.upstream import HTTP1, ScriptedUpstream

Headers = dict[str, str]
ADA: Headers = {"x-user": "ada", "authorization": "Bearer sk-one", "user-agent": "opencode/1", "x-session-id": "s1"}
SESSIONLESS: Headers = {"x-user": "ada", "authorization": "Bearer sk-one"}
OTHERS: dict[str, Headers] = {
    "another credential": {"authorization": "Bearer sk-two"},
    "another kind of credential": {"authorization": "", "x-api-key": "sk-two"},
    "a credential in an unknown form": {"authorization": "Token sk-one"},
    "no credential": {"authorization": ""},
    "another actor": {"x-user": "eve"},
    "another session": {"x-session-id": "s2"},
}
MIXED = [text("Both. "), call("echo", text="hi"), own(path="a")]
DONE = [text("Done.")]


@pytest.fixture
def upstream(make_upstream: MakeUpstream) -> ScriptedUpstream:
    return make_upstream(alpn=[HTTP1])


@pytest.fixture
def proxy(start_proxy: StartProxy, upstream: ScriptedUpstream, ours: HttpMcp) -> InProcessProxy:
    mcp = f"servers: {{ours: {{type: http, url: '{ours.url}'}}}}"
    proxy = start_proxy(config=configuration(upstream.url, mcp, "actor: {header: x-user}"))
    proxy.wait_for_log(CONNECTED)
    return proxy


def post(proxy: InProcessProxy, turns: Turns, body: bytes, headers: Headers) -> bytes:
    provider = "anthropic" if turns.dialect == "messages" else "openai"
    with gateway_client(proxy) as client:
        sent = {name: value for name, value in headers.items() if value}
        seen = client.post(f"/{provider}{turns.path}", content=body, headers=sent)
    assert seen.status_code == 200
    return seen.content


def began(proxy: InProcessProxy, upstream: ScriptedUpstream, dialect: str) -> tuple[Turns, bytes]:
    """Ada's conversation after a mixed turn, and the client's next request of it."""
    turns, done = Turns(dialect, MIXED), Turns(dialect, DONE)
    upstream.answer(*turns.answers(streaming=False), *done.answers(streaming=False) * 3)
    answer = post(proxy, turns, turns.request(streaming=False), ADA)
    return turns, turns.next_request(answer, streaming=False)


@pytest.mark.parametrize("other", OTHERS)
@BY_DIALECT
def test_a_request_of_another_scope_gets_no_hidden_call(
    proxy: InProcessProxy, upstream: ScriptedUpstream, dialect: str, other: str
) -> None:
    turns, sent = began(proxy, upstream, dialect)
    post(proxy, turns, sent, ADA | OTHERS[other])
    post(proxy, turns, sent, ADA)
    assert [results(request) for request in upstream.requests[1:]] == [[CLIENTS_RESULT], ["hi", CLIENTS_RESULT]]


CHANGES: dict[str, Callable[[bytes], bytes]] = {
    "other arguments": lambda sent: sent.replace(b"path", b"way"),
    "another name": lambda sent: sent.replace(b'"Read"', b'"Write"'),
    "another prompt before it": lambda sent: sent.replace(PROMPT.encode(), b"What else?"),
}


@pytest.mark.parametrize("change", CHANGES)
@BY_DIALECT
def test_a_call_with_the_same_id_in_another_conversation_is_another_call(
    proxy: InProcessProxy, upstream: ScriptedUpstream, dialect: str, change: str
) -> None:
    turns, sent = began(proxy, upstream, dialect)
    post(proxy, turns, CHANGES[change](sent), ADA)
    assert results(upstream.requests[1]) == [CLIENTS_RESULT]


def image(dialect: str, name: int) -> dict[str, object]:
    url = f"https://images.example/{name}.png"
    if dialect == "messages":
        return {"type": "image", "source": {"type": "url", "url": url}}
    if dialect == "responses":
        return {"type": "input_image", "image_url": url}
    return {"type": "image_url", "image_url": {"url": url}}


def earlier(dialect: str, result: str) -> list[dict[str, object]]:
    """A call with its result, before the call of the mixed turn."""
    name = "functions.ls:0"
    if dialect == "messages":
        used: list[object] = [{"type": "tool_use", "id": name, "name": "ls", "input": {}}]
        returned: list[object] = [{"type": "tool_result", "tool_use_id": name, "content": result}]
        return [{"role": "assistant", "content": used}, {"role": "user", "content": returned}]
    if dialect == "responses":
        call_: dict[str, object] = {"type": "function_call", "call_id": name, "name": "ls", "arguments": "{}"}
        return [call_, {"type": "function_call_output", "call_id": name, "output": result}]
    made = {"id": name, "type": "function", "function": {"name": "ls", "arguments": "{}"}}
    called: dict[str, object] = {"role": "assistant", "content": None, "tool_calls": [made]}
    return [called, {"role": "tool", "tool_call_id": name, "content": result}]


def conversation(dialect: str, sent: bytes, difference: str, number: int) -> bytes:
    """The same request in conversation 1 or 2, which differ in one thing before the call."""
    body = json.loads(sent)
    history = body["input" if dialect == "responses" else "messages"]
    if difference == "only an image":
        history[0]["content"] = [image(dialect, number)]
    elif difference == "an image beside a text":
        kind = "input_text" if dialect == "responses" else "text"
        history[0]["content"] = [{"type": kind, "text": "What is it?"}, image(dialect, number)]
    elif difference == "a result before it":
        history[1:1] = earlier(dialect, f"the files of repository {number}")
    elif dialect == "chat_completions":
        history.insert(0, {"role": "system", "content": f"You speak with user {number}."})
    else:
        body["system" if dialect == "messages" else "instructions"] = f"You speak with user {number}."
    return json.dumps(body).encode()


@pytest.mark.parametrize(
    "difference", ["only an image", "an image beside a text", "a result before it", "instructions"]
)
@BY_DIALECT
def test_without_a_session_all_that_stands_before_a_call_separates_conversations(
    proxy: InProcessProxy, upstream: ScriptedUpstream, dialect: str, difference: str
) -> None:
    turns = Turns(dialect, MIXED)
    upstream.answer(*turns.answers(streaming=False), *Turns(dialect, DONE).answers(streaming=False) * 2)
    first = conversation(dialect, turns.request(streaming=False), difference, 1)
    later = turns.next_request(post(proxy, turns, first, SESSIONLESS), streaming=False)
    for number in (2, 1):
        post(proxy, turns, conversation(dialect, later, difference, number), SESSIONLESS)
    before = ["the files of repository 2"] if difference == "a result before it" else []
    assert results(upstream.requests[1]) == [*before, CLIENTS_RESULT]
    assert results(upstream.requests[2])[-2:] == ["hi", CLIENTS_RESULT]
    assert parents(proxy) == [None, None, 0]


@pytest.mark.parametrize("other", OTHERS)
@pytest.mark.parametrize("naming", NAMING)
def test_the_id_of_an_answer_is_another_scopes_own(
    proxy: InProcessProxy, upstream: ScriptedUpstream, naming: str, other: str
) -> None:
    if other == "another session":
        pytest.skip("ids of answers do not repeat within a provider's account")
    dialect, members = NAMING[naming]
    turns = Turns(dialect, [text("See. "), call("echo", text="hi")], DONE)
    upstream.answer(*turns.answers(streaming=False), *Turns(dialect, DONE).answers(streaming=False) * 2)
    known = turns.view(post(proxy, turns, turns.request(streaming=False), ADA), streaming=False).id
    body = turns.request(streaming=False, **members(known))
    post(proxy, turns, body, ADA | OTHERS[other])
    post(proxy, turns, body, ADA)
    expected = members(known), members(turns.written[1].body["id"])
    for request, named in zip(upstream.requests[2:], expected, strict=True):
        assert {name: request.json()[name] for name in named} == named


@pytest.mark.parametrize("other", OTHERS)
@pytest.mark.parametrize("dialect", ["messages", "responses"])
def test_reasoning_of_another_scope_is_followed_by_nothing(
    proxy: InProcessProxy, upstream: ScriptedUpstream, dialect: str, other: str
) -> None:
    if other == "another session":
        pytest.skip("reasoning is named by what the provider has encrypted or signed")
    turns = Turns(dialect, [thought("Hm."), call("echo", text="hi")], [thought("So."), own(path="a")])
    upstream.answer(*turns.answers(streaming=False), *Turns(dialect, DONE).answers(streaming=False) * 2)
    sent = turns.next_request(post(proxy, turns, turns.request(streaming=False), ADA), streaming=False)
    post(proxy, turns, sent, ADA | OTHERS[other])
    post(proxy, turns, sent, ADA)
    histories = [request.json()["input" if dialect == "responses" else "messages"] for request in upstream.requests]
    assert ["bmcp_ours_echo" in json.dumps(history) for history in histories[2:]] == [False, True]


# --- threads ----------------------------------------------------------------------------------------------------


def parents(proxy: InProcessProxy) -> list[int | None]:
    """For each interception in its order, the number of the one that it follows."""
    rows = proxy.rows("aibridge_interceptions")
    numbers = {row["id"]: number for number, row in enumerate(rows)}
    return [numbers.get(row["thread_parent_id"]) for row in rows]


@BY_DIALECT
def test_each_result_belongs_to_the_thread_of_its_own_conversation(
    proxy: InProcessProxy, upstream: ScriptedUpstream, dialect: str
) -> None:
    """Two conversations of one person with one key, and others that have a call of the same id."""
    one = ADA | {"x-session-id": ""}
    turns = Turns(dialect, [own(path="a")])
    upstream.answer(*turns.answers(streaming=False) * 9)

    def begin(prompt: str, headers: Headers) -> bytes:
        def said(body: bytes) -> bytes:
            return body.replace(PROMPT.encode(), prompt.encode())

        return said(
            turns.next_request(post(proxy, turns, said(turns.request(streaming=False)), headers), streaming=False)
        )

    first, second = begin("One?", one), begin("Two?", one)
    for headers in (ADA, one | {"x-user": "eve"}, one | {"authorization": "Bearer sk-two"}):
        begin("One?", headers)
    post(proxy, turns, first, one)
    post(proxy, turns, second, one)
    post(proxy, turns, second.replace(b"path", b"way"), one)
    post(proxy, turns, first, ADA | {"x-session-id": "s2"})
    assert parents(proxy) == [None] * 5 + [0, 1, None, None]


@pytest.mark.parametrize("session", ["s1", ""])
@BY_DIALECT
def test_an_id_alone_does_not_identify_a_call_that_the_request_has(
    proxy: InProcessProxy, upstream: ScriptedUpstream, dialect: str, session: str
) -> None:
    turns = Turns(dialect, [own(path="a")])
    upstream.answer(*turns.answers(streaming=False) * 2)
    headers = ADA | {"x-session-id": session}
    later = turns.next_request(post(proxy, turns, turns.request(streaming=False), headers), streaming=False)
    post(proxy, turns, conversation(dialect, later.replace(b"path", b"way"), "only an image", 2), headers)
    assert parents(proxy) == [None, None]


@BY_DIALECT
def test_a_result_belongs_to_the_agent_that_has_made_the_call(
    proxy: InProcessProxy, upstream: ScriptedUpstream, dialect: str
) -> None:
    """A main agent and its subagent share a session. The main agent's client has changed the opening."""
    main = SESSIONLESS | {"user-agent": "claude-cli/2.1.329 (external, cli)", "x-claude-code-session-id": "s1"}
    subagent = main | {"x-claude-code-agent-id": "a1"}
    turns = Turns(dialect, [own(path="a")])
    upstream.answer(*turns.answers(streaming=False) * 4)
    later = turns.next_request(post(proxy, turns, turns.request(streaming=False), main), streaming=False)
    post(proxy, turns, turns.request(streaming=False).replace(PROMPT.encode(), b"A task."), subagent)
    changed = later.replace(PROMPT.encode(), b"Another opening.")
    post(proxy, turns, changed, main)
    post(proxy, turns, changed, subagent)
    assert parents(proxy) == [None, None, 0, 1]
