"""`/metrics` of a real proxy: every metric and label, after traffic of which all numbers are known."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any
from urllib.error import HTTPError
from urllib.request import urlopen

import pytest
from prometheus_client.parser import text_string_to_metric_families

from aibridge_addon.telemetry.prometheus.metrics import MODELS
from tests.conftest import StartProxy
from tests.integration.exchanges import ANTHROPIC, OPENAI, Client, wait_for_ended
from tests.integration.turns import JSON_BODY, Turns, call, configuration, own, text
from tests.support.client import connect_through
from tests.support.mcp_servers import HttpMcp
from tests.support.polling import poll_until
from tests.support.running import RunningProxy
from tests.support.upstream import Answer, ScriptedUpstream, unused_port

SONNET, GPT = "claude-sonnet-4-5-20250929", "gpt-4.1-2025-04-14"
CLAUDE_CODE = ("user-agent", "claude-cli/2.0.67 (external, cli)")
CODEX = ("user-agent", "codex_cli_rs/0.87.0 (Mac OS 26.2.0; arm64)")

Series = dict[tuple[str, frozenset[tuple[str, str]]], float]


def priced(config: str) -> str:
    """Give each provider the prices of the vendor that its type is named after, since the upstream is no vendor's."""
    return re.sub(r"type: (anthropic|openai),", r"type: \1, price_as: \1,", config)


class Scraped:
    """A proxy whose metrics are read as Prometheus reads them."""

    def __init__(self, start: StartProxy, upstream: ScriptedUpstream, metrics: str = "", mcp: str = "") -> None:
        self.upstream = upstream
        self.port = unused_port()
        more = f"actor: {{default: ada}}\nmetrics: {{listen: '127.0.0.1:{self.port}'{metrics}}}"
        self.proxy: RunningProxy = start(config=priced(configuration(upstream.url, mcp, more)))

    def get(self, path: str) -> tuple[int, str]:
        try:
            with urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=10) as answer:
                return answer.status, answer.read().decode()
        except HTTPError as e:
            return e.code, e.read().decode()

    def series(self) -> Series:
        """What is counted once every record so far has reached the sinks."""
        poll_until(lambda: "recorder_queue_depth 0.0" in self.get("/metrics")[1], 20, what="an empty queue of records")
        return parsed(self.get("/metrics")[1])

    def post(self, host: str, path: str, body: Mapping[str, Any], answer: Answer, *headers: tuple[str, str]) -> None:
        self.upstream.answer(answer)
        with Client(self.proxy, host) as client:
            client.post(path, json.dumps(body).encode(), [*JSON_BODY, *headers])


def parsed(exposition: str) -> Series:
    return {
        (sample.name.removeprefix("aibridge_"), frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(exposition)
        for sample in family.samples
    }


def stream(*events: Mapping[str, Any]) -> Answer:
    return Answer.event_stream(
        *(b"event: %s\ndata: %s\n\n" % (event["type"].encode(), json.dumps(event).encode()) for event in events)
    )


MESSAGE = {"id": "msg_1", "type": "message", "role": "assistant", "model": SONNET, "content": []}
USAGE = {"input_tokens": 2, "cache_creation_input_tokens": 22, "cache_read_input_tokens": 13993, "output_tokens": 5}
MESSAGES = stream(
    {"type": "message_start", "message": MESSAGE | {"usage": USAGE}},
    {"type": "content_block_start", "index": 0, "content_block": {"type": "tool_use", "id": "t", "name": "Read"}},
    {"type": "content_block_stop", "index": 0},
    {"type": "message_delta", "delta": {"stop_reason": "tool_use"}, "usage": {"output_tokens": 66}},
    {"type": "message_stop"},
)
CHAT = Answer.json(
    {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "model": GPT,
        "choices": [{"index": 0, "message": {"role": "assistant", "content": "Hi."}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 19, "completion_tokens": 200, "total_tokens": 219},
    }
)
RESPONSES = stream(
    {
        "type": "response.completed",
        "response": {
            "id": "resp_1",
            "object": "response",
            "status": "completed",
            "model": GPT,
            "output": [],
            "usage": {
                "input_tokens": 12033,
                "input_tokens_details": {"cached_tokens": 11904},
                "output_tokens": 44,
                "output_tokens_details": {"reasoning_tokens": 0},
                "total_tokens": 12077,
            },
        },
    }
)
OVERLOADED = Answer.json({"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}}, 529)

A, G = f'provider="anthropic",model="{SONNET}"', f'provider="openai",model="{GPT}"'
M = 'provider="anthropic",model="m"'
ADA, CLAUDE, CX, UN = 'initiator_id="ada"', 'client="Claude Code"', 'client="Codex"', 'client="Unknown"'
ROUTE, CHAT_ROUTE, RESPONSES_ROUTE = (f'route="/v1/{name}"' for name in ("messages", "chat/completions", "responses"))

EXPECTED = f"""
interceptions_total{{{A},status="completed",{ROUTE},method="POST",{ADA},{CLAUDE}}} 1
interceptions_total{{{A},status="failed",{ROUTE},method="POST",{ADA},{CLAUDE}}} 1
interceptions_total{{{M},status="completed",{ROUTE},method="POST",{ADA},{UN}}} 1
interceptions_total{{{G},status="completed",{CHAT_ROUTE},method="POST",{ADA},{UN}}} 1
interceptions_total{{{G},status="completed",{RESPONSES_ROUTE},method="POST",{ADA},{CX}}} 1
interceptions_inflight{{{A},{ROUTE}}} 0
interceptions_inflight{{{M},{ROUTE}}} 0
interceptions_inflight{{{G},{CHAT_ROUTE}}} 0
interceptions_inflight{{{G},{RESPONSES_ROUTE}}} 0
interceptions_duration_seconds_count{{{A}}} 2
interceptions_duration_seconds_count{{{M}}} 1
interceptions_duration_seconds_count{{{G}}} 2
passthrough_total{{provider="anthropic",route="/v1/models",method="GET",billable="false"}} 1
passthrough_total{{provider="openai",route="other",method="other",billable="true"}} 1
prompts_total{{{A},{ADA},{CLAUDE}}} 2
prompts_total{{{M},{ADA},{UN}}} 1
prompts_total{{{G},{ADA},{UN}}} 1
prompts_total{{{G},{ADA},{CX}}} 1
tokens_total{{{A},type="input",{ADA},{CLAUDE}}} 2
tokens_total{{{A},type="output",{ADA},{CLAUDE}}} 66
tokens_total{{{A},type="cache_read_input_tokens",{ADA},{CLAUDE}}} 13993
tokens_total{{{A},type="cache_write_input_tokens",{ADA},{CLAUDE}}} 22
tokens_total{{{M},type="input",{ADA},{UN}}} 21
tokens_total{{{M},type="output",{ADA},{UN}}} 11
tokens_total{{{M},type="cache_read_input_tokens",{ADA},{UN}}} 200
tokens_total{{{M},type="cache_write_input_tokens",{ADA},{UN}}} 6
tokens_total{{{G},type="input",{ADA},{UN}}} 19
tokens_total{{{G},type="output",{ADA},{UN}}} 200
tokens_total{{{G},type="cache_read_input_tokens",{ADA},{UN}}} 0
tokens_total{{{G},type="cache_write_input_tokens",{ADA},{UN}}} 0
tokens_total{{{G},type="total_tokens",{ADA},{UN}}} 219
tokens_total{{{G},type="input",{ADA},{CX}}} 129
tokens_total{{{G},type="output",{ADA},{CX}}} 44
tokens_total{{{G},type="cache_read_input_tokens",{ADA},{CX}}} 11904
tokens_total{{{G},type="cache_write_input_tokens",{ADA},{CX}}} 0
tokens_total{{{G},type="total_tokens",{ADA},{CX}}} 12077
tokens_total{{{G},type="output_tokens_details.reasoning_tokens",{ADA},{CX}}} 0
injected_tool_invocations_total{{{M},server="SERVER",name="echo"}} 1
non_injected_tool_selections_total{{{A},name="Read"}} 1
non_injected_tool_selections_total{{{M},name="Read"}} 1
cost_usd_total{{{A},{ADA},{CLAUDE}}} 0.0052764
cost_usd_total{{{G},{ADA},{UN}}} 0.001638
cost_usd_total{{{G},{ADA},{CX}}} 0.006562
unpriced_token_usages_total{{provider="anthropic",model="claude-1"}} 2
time_to_first_byte_seconds_count{{{A}}} 2
time_to_first_byte_seconds_count{{{M}}} 1
time_to_first_byte_seconds_count{{{G}}} 2
overhead_seconds_count{{provider="anthropic"}} 3
overhead_seconds_count{{provider="openai"}} 2
upstream_attempts_total{{provider="anthropic",{ROUTE},step="show"}} 4
upstream_attempts_total{{provider="anthropic",route="/v1/models",step="show"}} 1
upstream_attempts_total{{provider="openai",{CHAT_ROUTE},step="show"}} 1
upstream_attempts_total{{provider="openai",{RESPONSES_ROUTE},step="show"}} 1
upstream_attempts_total{{provider="openai",route="other",step="show"}} 1
provider_info{{provider_name="anthropic",provider_type="anthropic",status="enabled"}} 1
provider_info{{provider_name="openai",provider_type="openai",status="enabled"}} 1
mcp_server_up{{server="ours"}} 1
mcp_tools{{server="ours"}} 24
mcp_tools_left_out{{server="ours"}} 0
mcp_calls_total{{server="ours"}} 1
mcp_call_duration_seconds_count{{server="ours"}} 1
internal_errors_total 0
buffered_bytes 0
recorder_queue_depth 0
recorder_spooled_bytes 0
retention_backlog 0
recorder_lost_records_total 0
lost_spans_total 0
tunnels_total 1
"""


def test_every_metric_has_its_labels_and_numbers(
    start_proxy: StartProxy, upstream: ScriptedUpstream, ours: HttpMcp
) -> None:
    mcp = f"servers: {{ours: {{type: http, url: '{ours.url}'}}}}"
    scraped = Scraped(start_proxy, upstream, mcp=mcp)
    scraped.proxy.wait_for_log(r"MCP server ours: connected, \d+ tools")
    asked = {"model": SONNET, "max_tokens": 9, "stream": True, "messages": [{"role": "user", "content": "Hi"}]}
    scraped.post(ANTHROPIC, "/v1/messages", asked, MESSAGES, CLAUDE_CODE)
    scraped.post(ANTHROPIC, "/v1/messages", asked, OVERLOADED, CLAUDE_CODE)
    scraped.post(OPENAI, "/v1/chat/completions", {"model": GPT, "messages": asked["messages"]}, CHAT)
    scraped.post(OPENAI, "/v1/responses", {"model": GPT, "stream": True, "input": "Hi"}, RESPONSES, CODEX)
    turns = Turns("messages", [call("echo", text="hi")], [text("Done."), own(path="x")])
    upstream.answer(*turns.answers(streaming=True), Answer.json({"data": []}), Answer.json({}))
    with Client(scraped.proxy, ANTHROPIC) as client:
        client.post(turns.path, turns.request(streaming=True))
        client.ask("GET", "/v1/models?limit=3")
    with Client(scraped.proxy, OPENAI) as client:
        client.ask("BREW", "/v1/cup/7f3a")
    with pytest.raises(OSError):
        connect_through(scraped.proxy, "localhost", upstream.port)  # an unknown CA: tunnelled, and not trusted
    wait_for_ended(scraped.proxy, 5)
    expected = parsed(re.sub(r"^(?=\w)", "aibridge_", EXPECTED.replace("SERVER", ours.url), flags=re.MULTILINE))
    poll_until(lambda: scraped.series()["recorder_queue_depth", frozenset()] == 0, what="an empty queue")
    assert untimed(scraped.series()) == pytest.approx(expected)


def untimed(series: Series) -> Series:
    return {key: value for key, value in series.items() if not key[0].endswith(("_bucket", "_sum"))}


def test_no_metric_names_the_initiator_where_that_is_not_wanted(
    start_proxy: StartProxy, upstream: ScriptedUpstream
) -> None:
    scraped = Scraped(start_proxy, upstream, ", initiator_label: false, prefix: coder_ai_gateway_")
    scraped.post(OPENAI, "/v1/chat/completions", {"model": GPT, "messages": [{"role": "user", "content": "Hi"}]}, CHAT)
    wait_for_ended(scraped.proxy, 1)
    series = scraped.series()
    assert all(name.startswith("coder_ai_gateway_") for name, _ in series)
    labels = {name for _, pairs in series for name, _ in pairs}
    assert labels == {
        *("provider", "model", "route", "method", "status", "client", "type", "step", "le"),
        *("provider_name", "provider_type"),
    }
    [ended] = [value for (name, _), value in series.items() if name == "coder_ai_gateway_interceptions_total"]
    assert ended == 1


def test_a_client_that_makes_up_models_routes_methods_and_agents_makes_no_more_series(
    start_proxy: StartProxy, upstream: ScriptedUpstream
) -> None:
    upstream.answer(*[Answer.json({"error": {"message": "no"}}, 404)] * (MODELS + 160))
    scraped = Scraped(start_proxy, upstream)
    with Client(scraped.proxy, OPENAI) as client:
        for number in range(MODELS + 100):
            body = json.dumps({"model": f"model-{number}", "messages": []}).encode()
            client.post("/v1/chat/completions", body, [*JSON_BODY, ("user-agent", f"agent-{number}")])
        for number in range(30):
            client.ask("GET", f"/v1/made/up/{number}")
            client.ask(f"M{number}", "/v1/models")
    wait_for_ended(scraped.proxy, MODELS + 100, timeout=30)
    series = scraped.series()
    ended = {dict(labels)["model"]: n for (name, labels), n in series.items() if name == "interceptions_total"}
    assert len(ended) == MODELS + 1 and ended["other"] == 100
    passed = {labels: n for (name, labels), n in series.items() if name == "passthrough_total"}
    assert sorted(passed.values()) == [30, 30] and len(passed) == 2
    assert {dict(labels)["client"] for (name, labels) in series if name == "interceptions_total"} == {"Unknown"}


def test_the_endpoint_says_whether_the_proxy_lives_and_is_ready(
    start_proxy: StartProxy, upstream: ScriptedUpstream
) -> None:
    scraped = Scraped(start_proxy, upstream)
    assert scraped.get("/healthz") == (200, "ok\n")
    status, body = scraped.get("/readyz")
    assert (status, json.loads(body)["ready"]) == (200, True)
    assert scraped.get("/other")[0] == 404
