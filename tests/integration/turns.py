"""Answers of several turns, in which a model calls tools of a real MCP server, for a real proxy in between.

turns = Turns("messages", [text("Let me see. "), call("echo", text="hi")], [text("Done.")])
upstream.answer(*turns.answers(streaming=True))
with Client(proxy, turns.host) as client:
    turns.check(client.post(turns.path, turns.request(streaming=True)).body, streaming=True)
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import pytest

from tests.integration.exchanges import ANTHROPIC, OPENAI, Client
from tests.support.client import RawHttp1
from tests.support.client_view import CLIENTS, View
from tests.support.database import Row
from tests.support.mcp_servers import stdio
from tests.support.running import RunningProxy
from tests.support.script import Answer, Request
from tests.support.stream_forms import FORMS
from tests.support.streams import Block, Style, Turn, Written

DIALECTS = ("messages", "chat_completions", "responses")
MODES = pytest.mark.parametrize("streaming", [True, False], ids=["streaming", "blocking"])
BY_DIALECT = pytest.mark.parametrize("dialect", DIALECTS)
VERSIONS = pytest.mark.parametrize("http2", [False, True], ids=["h1", "h2"])
CONNECTED = r"MCP server ours: connected, \d+ tools"
PATHS = {"messages": "/v1/messages", "chat_completions": "/v1/chat/completions", "responses": "/v1/responses"}
USAGE = {"messages": "plain", "chat_completions": "separate", "responses": "not echoed"}
PREFIX = "bmcp_ours_"
ANY_OF_OURS = "bmcp_"
INJECTED = b"bmcp_"
PROMPT = "What is there?"
READ = {"type": "object", "properties": {"path": {"type": "string"}}}
CLIENTS_RESULT = "the client's own"
JSON_BODY = [("content-type", "application/json")]


def text(words: str) -> Block:
    return Block("text", words)


def thought(words: str) -> Block:
    return Block("thinking", words)


def call(tool: str, **arguments: Any) -> Block:
    """A call of a tool of the MCP server `ours`."""
    return Block("injected", json.dumps(arguments), PREFIX + tool)


def own(**arguments: Any) -> Block:
    """A call of the client's own tool."""
    return Block("client", json.dumps(arguments), "Read")


class Turns:
    """What the model does in each turn, in the words of one dialect."""

    def __init__(self, dialect: str, *turns: Sequence[Block], style: Style | None = None) -> None:
        self.dialect = dialect
        self.path = PATHS[dialect]
        self.host = ANTHROPIC if dialect == "messages" else OPENAI
        self.turns = [Turn(tuple(blocks), 10 + n, 100, 5 + n) for n, blocks in enumerate(turns)]
        self._style = style or Style(usage=USAGE[dialect], pieces=1)

    def __len__(self) -> int:
        return len(self.turns)

    @cached_property
    def written(self) -> list[Written]:
        return [FORMS[self.dialect].write(turn, number, self._style) for number, turn in enumerate(self.turns)]

    @property
    def first_id(self) -> str:
        return str(self.written[0].body["id"])

    # --- the provider -----------------------------------------------------------------------------------------

    def answers(self, *, streaming: bool) -> list[Answer]:
        """Each turn's answer; of a stream, every event is a piece of its own."""
        if not streaming:
            return [Answer.json(written.body) for written in self.written]
        return [Answer.event_stream(*self.events(number)) for number in range(len(self))]

    def events(self, number: int) -> list[bytes]:
        return [event + b"\n\n" for event in self.written[number].stream.split(b"\n\n") if event]

    def broken(self, number: int) -> list[bytes]:
        """The turn's events up to the middle."""
        events = self.events(number)
        return events[: len(events) // 2]

    # --- the client -------------------------------------------------------------------------------------------

    def request(self, *, streaming: bool, usage: bool = True, **members: Any) -> bytes:
        """A request with one tool of the client's own. `usage`: whether a chat stream is asked for it."""
        body: dict[str, Any] = {"model": "m"}
        if self.dialect == "messages":
            body["max_tokens"] = 900
            body["tools"] = [{"name": "Read", "input_schema": READ}]
        elif self.dialect == "chat_completions":
            body["tools"] = [{"type": "function", "function": {"name": "Read", "parameters": READ}}]
        else:
            body["tools"] = [{"type": "function", "name": "Read", "parameters": READ}]
        body["input" if self.dialect == "responses" else "messages"] = [{"role": "user", "content": PROMPT}]
        if streaming:
            body["stream"] = True
        if streaming and usage and self.dialect == "chat_completions":
            body["stream_options"] = {"include_usage": True}
        return json.dumps(body | members).encode()

    def next_request(self, answer: bytes, *, streaming: bool, **members: Any) -> bytes:
        """The client's next request: the answer that it got, and the results of its own calls."""
        told = self.view(answer, streaming=streaming).visible
        asked = {"role": "user", "content": PROMPT}
        if self.dialect == "responses":
            outputs = [
                {"type": "function_call_output", "call_id": item["call_id"], "output": CLIENTS_RESULT}
                for item in told
                if item["type"] == "function_call"
            ]
            history = {"input": [asked, *told, *outputs]}
        elif self.dialect == "chat_completions":
            spoken = {"role": "assistant", **{name: value for name, value in told.items() if value}}
            answers = [
                {"role": "tool", "tool_call_id": call["id"], "content": CLIENTS_RESULT} for call in told["tool_calls"]
            ]
            history = {"messages": [asked, spoken, *answers]}
        else:
            blocks = [
                {"type": "tool_result", "tool_use_id": block["id"], "content": CLIENTS_RESULT}
                for block in told
                if block["type"] == "tool_use"
            ]
            history = {"messages": [asked, {"role": "assistant", "content": told}, {"role": "user", "content": blocks}]}
        return self.request(streaming=streaming, **(history | members))

    def view(self, answer: bytes, *, streaming: bool) -> View:
        """What a strict client reads."""
        client = CLIENTS[self.dialect]
        return client.stream(answer) if streaming else client.body(json.loads(answer))

    def check(self, answer: bytes, *, streaming: bool) -> View:
        """The answer is one message with all that is visible, and nothing of what is not."""
        assert INJECTED not in answer
        view = self.view(answer, streaming=streaming)
        assert view.id == self.first_id
        assert view.visible == CLIENTS[self.dialect].expected(self._visible())
        last = self.turns[-1]
        assert view.ends_for_calls == last.has("client")
        return view

    def check_usage(self, view: View) -> None:
        """Output tokens of all turns, input tokens of the first."""
        first = self.turns[0]
        assert view.usage == (first.input_tokens, first.cached_tokens, sum(turn.output_tokens for turn in self.turns))

    def check_follow_up(self, request: Request, number: int) -> None:
        """The request after turn `number` carries all that was said in it, verbatim, and then the results."""
        said = self.written[number].said
        CLIENTS[self.dialect].check_history(request.json(), said, self.call_ids(number))

    def call_ids(self, number: int) -> list[str]:
        """The ids of all calls of a turn, in order."""
        return [id_ for id_, _ in self._calls(number)]

    def injected_ids(self, number: int) -> list[str]:
        return [id_ for id_, name in self._calls(number) if name.startswith(ANY_OF_OURS)]

    def _calls(self, number: int) -> list[tuple[str, str]]:
        said = self.written[number].said
        if self.dialect == "chat_completions":
            return [(c["id"], c["function"]["name"]) for message in said for c in message.get("tool_calls", ())]
        named = [block for block in said if block["type"] in ("tool_use", "function_call")]
        return [(block.get("call_id") or block["id"], block["name"]) for block in named]

    def _visible(self) -> list[list[dict[str, Any]]]:
        """What was said in each turn, without our calls."""
        turns = [written.said for written in self.written]
        if self.dialect != "chat_completions":
            return [[block for block in said if not block.get("name", "").startswith(ANY_OF_OURS)] for said in turns]
        return [[self._without_ours(message) for message in said] for said in turns]

    @staticmethod
    def _without_ours(message: dict[str, Any]) -> dict[str, Any]:
        calls = message.get("tool_calls", ())
        kept = [c for c in calls if not c["function"]["name"].startswith(ANY_OF_OURS)]
        return message | {"tool_calls": kept}


def results(request: Request) -> list[str]:
    """The texts of the results at the end of a follow-up request, in their order."""
    body = request.json()
    if "input" in body:
        return [_joined(item["output"]) for item in body["input"] if item.get("type") == "function_call_output"]
    messages = body["messages"]
    if messages[-1]["role"] == "tool":
        return [_joined(message["content"]) for message in messages if message["role"] == "tool"]
    given = [message["content"] for message in messages if isinstance(message["content"], list)]
    blocks = [block for content in given for block in content]
    return [_joined(block["content"]) for block in blocks if block["type"] == "tool_result"]


def _joined(content: Any) -> str:
    return content if isinstance(content, str) else "".join(part["text"] for part in content)


def tool_names(request: Request) -> list[str]:
    """The names of the tools that a request offers."""
    return [tool.get("name") or tool["function"]["name"] for tool in request.json().get("tools", ())]


class Asked:
    """A request that has been sent, and its answer piece by piece, in whatever HTTP the client speaks."""

    def __init__(self, client: Client, path: str, body: bytes) -> None:
        self._raw = client.raw
        if isinstance(self._raw, RawHttp1):
            self._raw.request("POST", path, JSON_BODY, body)
        else:
            self._stream = self._raw.request("POST", path, [(b"content-length", b"%d" % len(body))], body)

    def status(self) -> int:
        if isinstance(self._raw, RawHttp1):
            return self._raw.read_head().status
        return self._raw.read_head(self._stream)[0]

    def pieces(self) -> Iterator[bytes]:
        """All pieces until the proper end."""
        raw = self._raw
        yield from iter(raw.read_body_chunk if isinstance(raw, RawHttp1) else lambda: raw.read_data(self._stream), b"")

    def until(self, sign: bytes) -> bytes:
        """Read until this has come."""
        body = b""
        for piece in self.pieces():
            body += piece
            if sign in body:
                return body
        raise EOFError(f"the answer ended without {sign!r}: {body!r}")

    def rest(self) -> bytes:
        return b"".join(self.pieces())

    def leave(self) -> None:
        """Hang up, or reset the stream."""
        if isinstance(self._raw, RawHttp1):
            self._raw.close()
        else:
            self._raw.reset(self._stream)


def configuration(upstream_url: str, mcp: str, more: str = "", inject: str = "") -> str:
    """Both providers at one upstream; `mcp` is the section's content, as flow mappings in lines of their own."""
    lines = "".join(f"  {line}\n" for line in mcp.splitlines())
    return (
        f"{more}\n"
        "providers:\n"
        f"  - {{name: anthropic, type: anthropic, base_url: '{upstream_url}'{inject}}}\n"
        f"  - {{name: openai, type: openai, base_url: '{upstream_url}/v1'{inject}}}\n"
    ) + (f"mcp:\n{lines}" if mcp else "")


def program() -> str:
    """The section's content for our MCP server as a program."""
    entry = stdio()
    return f"servers: {{ours: {json.dumps({'command': entry.command, 'args': list(entry.args)})}}}"


@dataclass(frozen=True)
class Recorded:
    """One interception and its rows."""

    interception: Row
    tokens: list[Row]
    prompts: list[Row]
    tools: list[Row]
    thoughts: list[Row]

    @property
    def outcome(self) -> tuple[str, int, str | None]:
        row = self.interception
        return row["status"], row["turns"], row["error_type"]

    @property
    def injected(self) -> list[Row]:
        return [row for row in self.tools if row["injected"]]


def recorded(proxy: RunningProxy) -> Recorded:
    """The newest interception, as its rows are at this moment."""
    interception = proxy.rows("aibridge_interceptions")[-1]
    tables = Recorded(
        interception,
        proxy.rows("aibridge_token_usages"),
        proxy.rows("aibridge_user_prompts"),
        proxy.rows("aibridge_tool_usages"),
        proxy.rows("aibridge_model_thoughts"),
    )
    ours: dict[str, Any] = {
        name: [row for row in getattr(tables, name) if row["interception_id"] == interception["id"]]
        for name in ("tokens", "prompts", "tools", "thoughts")
    }
    return replace(tables, **ours)
