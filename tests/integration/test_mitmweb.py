"""mitmweb, asked as its own pages ask it: what was streamed is there, as a conversation, with a comment."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pytest
from mitmproxy import command

from tests.integration.exchanges import Client, wait_for_ended
from tests.integration.sockets import CODEX, Provider, read, served, through
from tests.integration.sockets import config as socket_config
from tests.integration.sockets import text as as_text
from tests.integration.turns import BY_DIALECT, CONNECTED, JSON_BODY, MODES, Turns, call, configuration, text, thought
from tests.support import frames
from tests.support.authority import Authority
from tests.support.in_process import InProcessWeb
from tests.support.mcp_servers import HttpMcp
from tests.support.polling import poll_until
from tests.support.running import ProxyOptions
from tests.support.upstream import Answer, ScriptedUpstream

VIEW = "/content/ai%20conversation"


@pytest.fixture
def web(
    tmp_path: Path, ca: Authority, mitmproxy_ca: Path, upstream: ScriptedUpstream, ours: HttpMcp
) -> Iterator[InProcessWeb]:
    config = configuration(upstream.url, f"servers: {{ours: {{type: http, url: '{ours.url}'}}}}")
    with started(tmp_path, ca, mitmproxy_ca, config) as proxy:
        proxy.wait_for_log(CONNECTED)
        yield proxy


def started(folder: Path, ca: Authority, mitmproxy_ca: Path, config: str, *options: str) -> InProcessWeb:
    given: ProxyOptions = {"upstream_ca": ca.pem, "mitmproxy_ca": mitmproxy_ca, "config": config, "options": options}
    return InProcessWeb(folder, **given)


def get(proxy: InProcessWeb, path: str) -> Any:
    with urlopen(proxy.web_url(path), timeout=20) as answer:
        return json.load(answer)


def the_flow(proxy: InProcessWeb) -> dict[str, Any]:
    """The only flow, once its answer is over."""

    def over() -> dict[str, Any] | None:
        flows = [flow for flow in get(proxy, "/flows") if flow["response"]["timestamp_end"] and flow["comment"]]
        return flows[0] if flows else None

    found = poll_until(over, 20, what="a flow with a comment")
    assert found is not None
    return found


def shown(proxy: InProcessWeb, message: str) -> str:
    flow = the_flow(proxy)

    def maybe() -> str | None:
        view = get(proxy, f"/flows/{flow['id']}/{message}{VIEW}.json")
        return str(view["text"]) if view["text"] != "Content is missing." else None

    return str(poll_until(maybe, 20, what="content"))


@BY_DIALECT
@MODES
def test_an_exchange_of_two_turns_is_shown_as_the_client_got_it(
    web: InProcessWeb, upstream: ScriptedUpstream, dialect: str, streaming: bool
) -> None:
    turns = Turns(dialect, [text("Let me see. "), call("echo", text="hi")], [text("All done.")])
    upstream.answer(*turns.answers(streaming=streaming))
    with Client(web, turns.host) as client:
        seen = client.post(turns.path, turns.request(streaming=streaming), JSON_BODY)
    wait_for_ended(web, 1)
    answer = shown(web, "response")
    assert "=== assistant" in answer and "Let me see." in answer and "All done." in answer and "bmcp_" not in answer
    asked = shown(web, "request")
    assert "=== user" in asked and "What is there?" in asked and "Read" in asked
    flow = the_flow(web)
    with urlopen(web.web_url(f"/flows/{flow['id']}/response/content.data"), timeout=20) as body:
        assert body.read() == seen.body
    assert "1 injected calls in 2 turns" in flow["comment"] and " out" in flow["comment"]
    assert flow["marked"] == "🤖"


def test_an_answer_that_is_too_long_is_cut_and_says_so(
    tmp_path: Path, ca: Authority, mitmproxy_ca: Path, upstream: ScriptedUpstream
) -> None:
    turns = Turns("messages", [text("The beginning. "), thought("x" * 5000)])
    upstream.answer(*turns.answers(streaming=True))
    config = configuration(upstream.url, "")
    with started(tmp_path, ca, mitmproxy_ca, config, "aibridge_keep_bodies=900") as web:
        with Client(web, turns.host) as client:
            seen = client.post(turns.path, turns.request(streaming=True), JSON_BODY)
        assert len(seen.body) > 900
        assert "(only the first 900 bytes of this answer are kept)" in shown(web, "response")


def test_no_body_is_kept_where_the_option_says_so(
    tmp_path: Path, ca: Authority, mitmproxy_ca: Path, upstream: ScriptedUpstream
) -> None:
    turns = Turns("messages", [text("Hello")])
    upstream.answer(*turns.answers(streaming=True))
    with started(tmp_path, ca, mitmproxy_ca, configuration(upstream.url, ""), "aibridge_keep_bodies=0") as web:
        with Client(web, turns.host) as client:
            client.post(turns.path, turns.request(streaming=True), JSON_BODY)
        flow = the_flow(web)
        view = get(web, f"/flows/{flow['id']}/response{VIEW}.json")
    assert view["text"] == "Content is missing."


def test_a_failed_request_is_marked_with_its_error(
    tmp_path: Path, ca: Authority, mitmproxy_ca: Path, upstream: ScriptedUpstream
) -> None:
    error = {"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded\x1b[31m"}}
    upstream.answer(Answer.json(error, status=529))
    with started(tmp_path, ca, mitmproxy_ca, configuration(upstream.url, "")) as web:
        turns = Turns("messages", [text("")])
        with Client(web, turns.host) as client:
            client.post(turns.path, turns.request(streaming=True), JSON_BODY)
        flow = the_flow(web)
        assert flow["marked"] == "⚠"
        assert flow["comment"].startswith("overloaded_error: Overloaded\\x1b[31m")
        assert "=== error: overloaded_error" in shown(web, "response")


def test_commands_show_the_state_and_the_tools(web: InProcessWeb) -> None:
    manager: command.CommandManager = web.master.commands

    async def run(name: str) -> list[str]:
        return list(manager.execute(name))

    assert web._loop is not None
    status = asyncio.run_coroutine_threadsafe(run("aibridge.status"), web._loop).result(20)
    tools = asyncio.run_coroutine_threadsafe(run("aibridge.tools"), web._loop).result(20)
    assert any(line.startswith("database: sqlite:///") for line in status)
    assert any(line.startswith("provider anthropic: anthropic, ") for line in status)
    assert "bmcp_ours_echo: Return the text." in tools


def test_a_websocket_has_a_comment_with_the_sums_of_its_requests(
    tmp_path: Path, ca: Authority, mitmproxy_ca: Path
) -> None:
    """A WebSocket may stay open for days, so its comment changes at the end of each request."""
    provider = Provider()
    failed = {"type": "error", "status": 429, "error": {"type": "rate_limit_error", "message": "Too \x1b[31mmany"}}

    def seen(web: InProcessWeb, word: str) -> dict[str, Any]:
        found = poll_until(
            lambda: next((flow for flow in get(web, "/flows") if word in flow["comment"]), None), 20, what=word
        )
        assert found is not None
        return found

    with served(provider.serve) as provider.port:
        for _ in range(2):
            provider.answer(*as_text(*frames.events(CODEX)))
        provider.answer(json.dumps(failed))
        with started(tmp_path, ca, mitmproxy_ca, socket_config(provider.port)) as web, through(web) as client:
            comments = []
            for word, events in ((" out", len(frames.events(CODEX))), ("2 req", len(frames.events(CODEX))), ("3 req", 1)):
                client.send(frames.create(CODEX).decode())
                read(client, events)
                comments.append(seen(web, word))
            rows = web.rows("aibridge_token_usages")
    first, second, third = comments
    assert first["websocket"]["timestamp_end"] is None
    assert [flow["marked"] for flow in comments] == ["🤖", "🤖", "⚠"]
    usage = rows[0]
    cached = usage["cache_read_input_tokens"] + usage["cache_write_input_tokens"]

    def sums(n: int) -> str:
        counts = (usage["input_tokens"] * n, cached * n, usage["output_tokens"] * n)
        return "{:,} in, {:,} cached, {:,} out".format(*counts)

    assert sums(1) in first["comment"] and "requests" not in first["comment"]
    assert second["comment"].startswith(f"2 requests · {usage['model']} · {sums(2)} · cost n/a")
    assert third["comment"].startswith("rate_limit_error: Too \\x1b[31mmany · 3 requests, 1 failed · ")
    assert sums(2) in third["comment"]
