"""Traces of a real proxy, as a collector gets them over OTLP."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from tests.conftest import RunToExit, StartProxy
from tests.integration.exchanges import Client, wait_for_ended
from tests.integration.turns import CONNECTED, JSON_BODY, MODES, Turns, call, configuration, text
from tests.support.collector import Collector, attributes
from tests.support.mcp_servers import TOOL_COUNT, HttpMcp
from tests.support.upstream import Answer, ScriptedUpstream, unused_port

TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
TRACEPARENT = f"00-{TRACE}-{PARENT}-01"


def mcp(server: HttpMcp) -> str:
    return f"servers: {{ours: {{type: http, url: '{server.url}'}}}}"


@MODES
def test_an_interception_of_two_turns_is_one_trace_that_continues_the_clients(
    start_proxy: StartProxy, upstream: ScriptedUpstream, ours: HttpMcp, streaming: bool
) -> None:
    turns = Turns("messages", [text("Let me see. "), call("meta")], [text("Done.")])
    upstream.answer(*turns.answers(streaming=streaming))
    with Collector() as collector:
        config = configuration(upstream.url, mcp(ours), "actor: {default: ada}")
        proxy = start_proxy(config=config, env=collector.environment)
        proxy.wait_for_log(CONNECTED)
        with Client(proxy, turns.host) as client:
            headers = [*JSON_BODY, ("traceparent", TRACEPARENT), ("tracestate", "vendor=1")]
            client.post(turns.path, turns.request(streaming=streaming), headers)
        root = collector.wait_for_span("Intercept")
        collector.wait_for_span("chat m", 2)
        spans = collector.spans

    assert {span.trace_id.hex() for span in spans if "ServerProxy" not in span.name} == {TRACE}
    assert root.parent_span_id.hex() == PARENT and root.kind == Span.SPAN_KIND_SERVER
    by_id = {span.span_id: span for span in spans}
    parents = {(span.name, by_id[span.parent_span_id].name) for span in spans if span.parent_span_id in by_id}
    assert parents >= {
        ("Intercept.CreateInterceptor", "Intercept"),
        ("Intercept.RecordInterception", "Intercept"),
        ("Intercept.RecordPromptUsage", "Intercept"),
        ("Intercept.RecordTokenUsage", "Intercept"),
        ("Intercept.RecordToolUsage", "Intercept"),
        ("Intercept.RecordInterceptionEnded", "Intercept"),
        ("Intercept.ProcessRequest", "Intercept"),
        ("invoke_agent Unknown", "Intercept.ProcessRequest"),
        ("chat m", "invoke_agent Unknown"),
        ("Intercept.ProcessRequest.Upstream", "chat m"),
        ("execute_tool meta", "invoke_agent Unknown"),
        ("Intercept.ProcessRequest.ToolCall", "execute_tool meta"),
    }
    own = attributes(root.attributes)
    assert own["user_id"] == own["user.id"] == "ada"
    assert own["provider"] == "anthropic" and own["model"] == "m" and own["streaming"] is streaming
    assert own["request_path"] == "/v1/messages" and own["aws_bedrock"] is False
    chats = [attributes(span.attributes) for span in spans if span.name == "chat m"]
    assert [chat["aibridge.turn"] for chat in chats] == [1, 2]
    billed = [
        (row["input_tokens"] + row["cache_read_input_tokens"] + row["cache_write_input_tokens"], row["output_tokens"])
        for row in proxy.rows("aibridge_token_usages")
    ]
    used = [(chat["gen_ai.usage.input_tokens"], chat["gen_ai.usage.output_tokens"]) for chat in chats]
    assert used == billed
    assert all(("gen_ai.response.time_to_first_chunk" in chat) is streaming for chat in chats)
    assert "gen_ai.input.messages" not in chats[0] and "gen_ai.output.messages" not in chats[0]
    [executed] = [span for span in spans if span.name == "execute_tool meta"]
    row = next(row for row in proxy.rows("aibridge_tool_usages") if row["injected"])
    given = json.loads(row["result"])
    assert given == {"traceparent": f"00-{TRACE}-{executed.span_id.hex()}-01", "tracestate": "vendor=1"}
    assert collector.resources[0]["service.name"] == "aibridge"


def test_a_provider_gets_no_header_of_a_trace_that_the_client_did_not_send(
    start_proxy: StartProxy, upstream: ScriptedUpstream, ours: HttpMcp
) -> None:
    turns = Turns("responses", [call("echo", text="hi")], [text("Done.")])
    upstream.answer(*turns.answers(streaming=True))
    with Collector() as collector:
        proxy = start_proxy(config=configuration(upstream.url, mcp(ours)), env=collector.environment)
        proxy.wait_for_log(CONNECTED)
        with Client(proxy, turns.host) as client:
            client.post(turns.path, turns.request(streaming=True), JSON_BODY)
        collector.wait_for_span("Intercept")
    assert len(upstream.requests) == 2
    assert [request.header("traceparent") for request in upstream.requests] == [None, None]


def test_metrics_of_the_conventions_have_no_label_that_names_a_person(
    start_proxy: StartProxy, upstream: ScriptedUpstream
) -> None:
    turns = Turns("chat_completions", [text("Done.")])
    upstream.answer(*turns.answers(streaming=True))
    with Collector() as collector:
        proxy = start_proxy(config=configuration(upstream.url, "", "actor: {default: ada}"), env=collector.environment)
        with Client(proxy, turns.host) as client:
            client.post(turns.path, turns.request(streaming=True), JSON_BODY)
        duration = collector.wait_for_metric("gen_ai.client.operation.duration")
        usage = collector.wait_for_metric("gen_ai.client.token.usage")
        first = collector.wait_for_metric("gen_ai.client.operation.time_to_first_chunk")
    [point] = duration.histogram.data_points
    assert point.count == 1 and list(point.explicit_bounds)[:2] == [0.01, 0.02] and duration.unit == "s"
    labels = attributes(point.attributes)
    labels.pop("gen_ai.response.model", None)
    assert labels == {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "openai",
        "gen_ai.request.model": "m",
        "server.address": "localhost",
    }
    counted = {attributes(point.attributes)["gen_ai.token.type"]: point.sum for point in usage.histogram.data_points}
    assert counted.keys() == {"input", "output"} and counted["output"] == turns.turns[0].output_tokens
    assert first.histogram.data_points[0].count == 1


def test_texts_are_on_spans_only_if_the_configuration_asks_for_them(
    start_proxy: StartProxy, upstream: ScriptedUpstream, ours: HttpMcp
) -> None:
    turns = Turns("messages", [text("Let me see. "), call("echo", text="hi")], [text("Done.")])
    upstream.answer(*turns.answers(streaming=False))
    with Collector() as collector:
        config = configuration(upstream.url, mcp(ours), "tracing: {content: true}")
        proxy = start_proxy(config=config, env=collector.environment)
        proxy.wait_for_log(CONNECTED)
        with Client(proxy, turns.host) as client:
            client.post(turns.path, turns.request(streaming=False), JSON_BODY)
        collector.wait_for_span("chat m", 2)
        executed = attributes(collector.wait_for_span("execute_tool echo").attributes)
        chat = attributes(collector.named("chat m")[0].attributes)
    [asked] = json.loads(chat["gen_ai.input.messages"])
    assert asked == {"role": "user", "parts": [{"type": "text", "content": "What is there?"}]}
    [answered] = json.loads(chat["gen_ai.output.messages"])
    assert [part["type"] for part in answered["parts"]] == ["text", "tool_call"]
    assert json.loads(executed["gen_ai.tool.call.arguments"]) == {"text": "hi"}
    assert executed["gen_ai.tool.call.result"] == "hi"


def test_a_request_that_is_not_bridged_is_one_span(start_proxy: StartProxy, upstream: ScriptedUpstream) -> None:
    upstream.answer(Answer.json({"data": []}))
    with Collector() as collector:
        proxy = start_proxy(config=configuration(upstream.url, ""), env=collector.environment)
        with Client(proxy, "api.anthropic.com") as client:
            client.ask("GET", "/v1/models?key=secret", [("traceparent", TRACEPARENT)])
        span = collector.wait_for_span("Passthrough")
    seen = attributes(span.attributes)
    assert seen["passthrough_url"] == "/v1/models" and seen["passthrough_method"] == "GET"
    assert seen["passthrough_upstream_url"] == f"{upstream.url}/v1/models"
    assert span.parent_span_id.hex() == PARENT


def test_connecting_to_an_mcp_server_is_a_span_with_its_first_list(
    start_proxy: StartProxy, upstream: ScriptedUpstream, ours: HttpMcp
) -> None:
    with Collector() as collector:
        proxy = start_proxy(config=configuration(upstream.url, mcp(ours)), env=collector.environment)
        proxy.wait_for_log(CONNECTED)
        listed = collector.wait_for_span("StreamableHTTPServerProxy.Init.fetchTools")
        connected = collector.wait_for_span("StreamableHTTPServerProxy.Init")
    assert listed.parent_span_id == connected.span_id
    assert connected.start_time_unix_nano <= listed.start_time_unix_nano
    server = {"mcp_proxy_name": "ours", "mcp_server_name": "ours", "mcp_server_url": ours.url}
    assert attributes(connected.attributes) == server
    assert attributes(listed.attributes) == {**server, "mcp_tool_count": TOOL_COUNT}


def test_a_server_that_cannot_be_reached_is_a_span_with_the_reason(
    start_proxy: StartProxy, upstream: ScriptedUpstream
) -> None:
    dead = f"servers: {{gone: {{type: http, url: 'http://127.0.0.1:{unused_port()}/mcp'}}}}"
    with Collector() as collector:
        start_proxy(config=configuration(upstream.url, dead), env=collector.environment)
        span = collector.wait_for_span("StreamableHTTPServerProxy.Init")
        names = {span.name for span in collector.spans}
    assert (span.status.code, span.status.message) == (2, "it cannot be reached")
    assert "StreamableHTTPServerProxy.Init.fetchTools" not in names


@pytest.mark.parametrize("silent", [True, False], ids=["silent", "refusing"])
def test_a_collector_that_does_not_answer_delays_no_request_and_is_counted(
    start_proxy: StartProxy, upstream: ScriptedUpstream, silent: bool
) -> None:
    turns = Turns("messages", [text("Done.")])
    upstream.answer(*turns.answers(streaming=True) * 3)
    with Collector(status=400, silent=silent) as collector:
        env = {**collector.environment, "OTEL_BSP_MAX_QUEUE_SIZE": "20", "OTEL_BSP_MAX_EXPORT_BATCH_SIZE": "5"}
        proxy = start_proxy(config=configuration(upstream.url, ""), env=env)
        with Client(proxy, turns.host) as client:
            for _ in range(3):
                assert client.post(turns.path, turns.request(streaming=True), JSON_BODY).status == 200
        wait_for_ended(proxy, 3)
        assert collector.asked.wait(20)
        proxy.close()
    assert "lost" in proxy.log


def test_traces_that_are_demanded_without_the_extra_stop_the_start(
    run_to_exit: RunToExit, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from aibridge_addon.telemetry.tracing import sink

    monkeypatch.setattr(sink, "NEEDED", ("opentelemetry.a_package_that_is_not_installed",))
    code, output = run_to_exit(config="tracing: {enabled: true}\n")
    assert code == 1
    assert "tracing.enabled" in output and "aibridge-mitmproxy[otel]" in output
