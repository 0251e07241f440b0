"""The log of a whole run: one line for each interception, or JSON objects that fit the schema."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import httpx
import jsonschema  # type: ignore[import-untyped]
import pytest

from tests.conftest import RunToExit, StartProxy
from tests.integration.exchanges import ANTHROPIC, Client
from tests.integration.turns import CONNECTED, Turns, call, configuration, own, text, thought
from tests.support import fixtures
from tests.support.client import gateway_client
from tests.support.mcp_servers import HttpMcp
from tests.support.polling import poll_until
from tests.support.running import RunningProxy
from tests.support.upstream import Answer, ScriptedUpstream

SCHEMA = json.loads((Path(__file__).parents[2] / "docs" / "log.schema.json").read_text())
SIMPLE = fixtures.case("messages/simple/streaming")
FAILING = fixtures.case("messages/error_before_429/blocking")
PATH = "/v1/messages"
LINE = re.compile(r"^\d\d:\d\d:\d\d \S", re.MULTILINE)


def config(upstream: ScriptedUpstream, *more: str) -> str:
    return "\n".join([*more, f"providers: [{{name: anthropic, type: anthropic, base_url: '{upstream.url}'}}]"])


def ask(proxy: RunningProxy, upstream: ScriptedUpstream, case: fixtures.Case = SIMPLE) -> None:
    upstream.answer(Answer(case.status, [("content-type", case.content_type)], case.body))
    with Client(proxy, ANTHROPIC) as client:
        client.post(PATH, case.request)


def lines(proxy: RunningProxy, n: int) -> list[str]:
    """Wait for n lines of interceptions."""

    def maybe() -> list[str] | None:
        found = [line for line in proxy.log.splitlines() if LINE.match(line)]
        return found if len(found) >= n else None

    return poll_until(maybe, 30, what=f"{n} lines of interceptions")


def objects(proxy: RunningProxy, kind: str, n: int) -> list[dict[str, Any]]:
    """Wait for n objects of a kind, and return all objects so far. Every line after the load has to be one."""

    def maybe() -> list[dict[str, Any]] | None:
        _, _, log = proxy.log.partition("main.py\n")
        made = [json.loads(line) for line in log.splitlines() if line.endswith("}")]
        return made if sum(each["record_type"] == kind for each in made) >= n else None

    return poll_until(maybe, 30, what=f"{n} objects of {kind}")


# --- text


def test_five_requests_make_five_lines(start_proxy: StartProxy, upstream: ScriptedUpstream) -> None:
    proxy = start_proxy(config=config(upstream))
    before = len(proxy.log.splitlines())
    for _ in range(5):
        ask(proxy, upstream)
    made = lines(proxy, 5)
    assert proxy.log.splitlines()[before:] == made
    for line in made:
        assert "anthropic/claude" in line and " in " in line and " out " in line and line.endswith("ok")


def test_a_failure_shows_the_type_of_its_error(start_proxy: StartProxy, upstream: ScriptedUpstream) -> None:
    proxy = start_proxy(config=config(upstream))
    ask(proxy, upstream, FAILING)
    [line] = lines(proxy, 1)
    assert line.endswith("failed: rate_limit_error (429)")


def test_traffic_of_other_hosts_makes_no_line(start_proxy: StartProxy, upstream: ScriptedUpstream) -> None:
    proxy = start_proxy(config="egress: {guard: 'off'}")
    before = proxy.log
    upstream.answer(*[Answer.json({})] * 3)
    for _ in range(3):
        with httpx.Client(proxy=proxy.proxy_url, verify=False) as client:
            client.get(upstream.url)
    with httpx.Client(proxy=proxy.proxy_url) as client:
        client.get("http://localhost:1/")
    assert proxy.log == before


@pytest.mark.parametrize("option", ["flow_detail=1", "flow_detail=2", "flow_detail=3"])
def test_flows_are_shown_again_by_mitmproxys_option(
    start_proxy: StartProxy, upstream: ScriptedUpstream, option: str
) -> None:
    proxy = start_proxy(config=config(upstream), options=[option])
    ask(proxy, upstream)
    proxy.wait_for_log(r"POST https?://\S+/v1/messages")


def test_hostile_names_do_not_reach_the_terminal(start_proxy: StartProxy, upstream: ScriptedUpstream) -> None:
    proxy = start_proxy(config=config(upstream))
    upstream.answer(Answer(400, [("content-type", "application/json")], b'{"error":{"type":"\\u001b[2Jx\\n"}}'))
    with Client(proxy, ANTHROPIC) as client:
        client.post(PATH, b'{"model":"\\u001b]0;evil\\u0007\\u202e\\ud800\\nx","messages":[]}')
    [line] = lines(proxy, 1)
    assert line.isprintable() and "\\x1b]0;evil" in line
    assert proxy.log.replace("\n", "").isprintable()


def test_a_client_without_the_authority_has_one_line(start_proxy: StartProxy, upstream: ScriptedUpstream) -> None:
    proxy = start_proxy(config=config(upstream))
    before = len(proxy.log.splitlines())
    for _ in range(3):
        with pytest.raises(httpx.ConnectError), httpx.Client(proxy=proxy.proxy_url) as client:
            client.post(f"https://{ANTHROPIC}{PATH}", json={})
    proxy.wait_for_log(f"TLS with a client failed: client=127.0.0.1 host='{ANTHROPIC}'")
    assert len(proxy.log.splitlines()) == before + 1
    assert str(proxy.ca_file) in proxy.log


def test_a_gateway_request_to_no_provider_has_a_line(start_proxy: StartProxy, upstream: ScriptedUpstream) -> None:
    proxy = start_proxy(config=config(upstream))
    with gateway_client(proxy) as client:
        assert client.get("/nowhere/v1/messages?key=sk-ant-api03-abcdefghijklmnopqrstuvwxyz012345").status_code == 404
        assert client.get("/sk-ant-api03-abcdefghijklmnopqrstuvwxyz012345/v1").status_code == 404
    proxy.wait_for_log(
        r"refused: unknown_route http_status=404 method=GET provider=- route=- client=127\.0\.0\.1"
        r" path=/nowhere/v1/messages"
    )
    poll_until(lambda: proxy.log.count("unknown_route") == 2, 30, what="both lines")
    assert "abcdefghij" not in proxy.log


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("HEAD", "/", 200),
        ("HEAD", "/anthropic", 200),
        ("HEAD", "/api/v2/aibridge/anthropic", 200),
        ("HEAD", "/antropic", 404),
        ("GET", "/", 404),
    ],
)
def test_probes_of_a_base_url_have_no_line(
    start_proxy: StartProxy, upstream: ScriptedUpstream, method: str, path: str, status: int
) -> None:
    proxy = start_proxy(config=config(upstream))
    with gateway_client(proxy) as client:
        assert client.request(method, path).status_code == status
        assert client.get("/nowhere").status_code == 404
    proxy.wait_for_log("path=/nowhere")
    assert proxy.log.count("refused:") == (2 if path == "/antropic" else 1)
    assert not upstream.requests


# --- JSON


def test_every_line_of_a_run_fits_the_schema(
    start_proxy: StartProxy, upstream: ScriptedUpstream, ours: HttpMcp
) -> None:
    mcp = f"servers: {{ours: {{type: http, url: '{ours.url}'}}}}"
    budgets = "budgets: [{name: few, per: model, match: {models: [few]}, period: month, requests: 1}]"
    more = f"log: {{format: json}}\nactor: {{default: '\x41lice\\u202e'}}\n{budgets}"
    proxy = start_proxy(config=configuration(upstream.url, mcp, more))
    proxy.wait_for_log(CONNECTED)
    turns = Turns(
        "messages", [thought("hm"), text("Let me see."), call("echo", text="a")], [own(path="b"), text("\x1b[2J")]
    )
    upstream.answer(*turns.answers(streaming=True))
    with Client(proxy, turns.host) as client:
        client.post(turns.path, turns.request(streaming=True))
        upstream.answer(Answer(429, [("content-type", FAILING.content_type)], FAILING.body))
        client.post(turns.path, turns.request(streaming=True))
        upstream.answer(Answer.json({}), Answer.json({"data": []}))
        client.post(turns.path, turns.request(streaming=False, model="few"))
        client.ask("GET", "/v1/models")
        client.post(turns.path, turns.request(streaming=False, model="few"))
        client.post(turns.path, b"no JSON")
    with gateway_client(proxy) as gateway:
        gateway.get("/nowhere")
    with pytest.raises(httpx.ConnectError), httpx.Client(proxy=proxy.proxy_url) as untrusting:
        untrusting.get(f"https://{ANTHROPIC}/")
    made = objects(proxy, "request_refused", 3)
    made = objects(proxy, "interception_end", 4)
    for each in made:
        jsonschema.validate(each, SCHEMA, format_checker=jsonschema.FormatChecker())
    kinds = {each["record_type"] for each in made}
    assert kinds == set(SCHEMA["$defs"])
    assert {each["reason"] for each in made if each["record_type"] == "request_refused"} == {
        "budget_exceeded",
        "invalid_request",
        "unknown_route",
    }
    assert [each["tool"] for each in made if each["record_type"] == "tool_usage" and each["injected"]] == ["echo"]


def test_texts_that_are_not_recorded_are_not_logged(start_proxy: StartProxy, upstream: ScriptedUpstream) -> None:
    off = "recording: {prompts: false, answers: false, thoughts: false, tool_inputs: false, tool_results: false}"
    proxy = start_proxy(config=config(upstream, "log: {format: json}", off))
    ask(proxy, upstream)
    made = objects(proxy, "interception_end", 1)
    texts = [
        each.get("prompt", each.get("content")) for each in made if each["record_type"] in ("prompt_usage", "answer")
    ]
    assert texts and set(texts) == {None}


def test_the_errors_of_a_configuration_are_objects_too(run_to_exit: RunToExit) -> None:
    ended = run_to_exit(config="log: {format: json}\ndrain_timeout: soon")
    assert ended.code == 1
    [error] = [json.loads(line) for line in ended.output.splitlines() if "cannot start" in line]
    assert error["level"] == "error" and "drain_timeout" in error["message"]


def test_the_schema_has_every_member_and_requires_it() -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    for name, kind in SCHEMA["$defs"].items():
        optional = {"client_address", "exception"} if name == "log" else set()
        assert set(kind["properties"]) - set(kind["required"]) == optional
        assert kind["additionalProperties"] is False
