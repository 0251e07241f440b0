"""From (host, method, path) to a provider, a dialect and an upstream address."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aibridge_addon.config.providers import DEFAULT_PROVIDERS, Provider
from aibridge_addon.config.urls import parse_base_url
from aibridge_addon.dialects import (
    CHAT_COMPLETIONS,
    CONVERSE,
    CONVERSE_STREAM,
    INVOKE,
    INVOKE_STREAM,
    MESSAGES,
    RESPONSES,
)
from aibridge_addon.dialects.base import Dialect
from aibridge_addon.interception.routing import OTHER, WEBSOCKET, Route, Router, host_pattern
from aibridge_addon.providers import TYPES

DEFAULTS = Router(DEFAULT_PROVIDERS)
AZURE_HOST = "mine.openai.azure.com"
BEDROCK_HOST = "bedrock-runtime.us-east-1.amazonaws.com"
CLAUDE = "us.anthropic.claude-sonnet-4-5-20250929-v1:0"

# host, path below it, dialect, template; each is bridged by POST
PROXIED_BRIDGED: tuple[tuple[str, str, Dialect, str], ...] = (
    ("api.anthropic.com", "/v1/messages", MESSAGES, "/v1/messages"),
    ("api.openai.com", "/v1/chat/completions", CHAT_COMPLETIONS, "/v1/chat/completions"),
    ("api.openai.com", "/v1/responses", RESPONSES, "/v1/responses"),
    ("chatgpt.com", "/backend-api/codex/responses", RESPONSES, "/v1/responses"),
    ("api.githubcopilot.com", "/chat/completions", CHAT_COMPLETIONS, "/chat/completions"),
    ("api.individual.githubcopilot.com", "/responses", RESPONSES, "/responses"),
    ("api.business.githubcopilot.com", "/v1/messages", MESSAGES, "/v1/messages"),
    ("api.enterprise.githubcopilot.com", "/chat/completions", CHAT_COMPLETIONS, "/chat/completions"),
    (
        AZURE_HOST,
        "/openai/deployments/gpt-5/chat/completions",
        CHAT_COMPLETIONS,
        "/openai/deployments/{id}/chat/completions",
    ),
    (AZURE_HOST, "/openai/v1/chat/completions", CHAT_COMPLETIONS, "/openai/v1/chat/completions"),
    ("mine.cognitiveservices.azure.com", "/openai/responses", RESPONSES, "/openai/responses"),
    ("mine.services.ai.azure.com", "/openai/v1/responses", RESPONSES, "/openai/v1/responses"),
    ("mine.services.ai.azure.com", "/anthropic/v1/messages", MESSAGES, "/anthropic/v1/messages"),
    (BEDROCK_HOST, f"/model/{CLAUDE}/invoke", INVOKE, "/model/{id}/invoke"),
    (BEDROCK_HOST, f"/model/{CLAUDE}/converse", CONVERSE, "/model/{id}/converse"),
    (BEDROCK_HOST, f"/model/{CLAUDE}/converse-stream", CONVERSE_STREAM, "/model/{id}/converse-stream"),
    (
        BEDROCK_HOST,
        f"/model/{CLAUDE}/invoke-with-response-stream",
        INVOKE_STREAM,
        "/model/{id}/invoke-with-response-stream",
    ),
    ("bedrock-mantle.eu-west-1.api.aws", "/anthropic/v1/messages", MESSAGES, "/anthropic/v1/messages"),
    ("bedrock-mantle.eu-west-1.api.aws", "/openai/v1/responses", RESPONSES, "/openai/v1/responses"),
    ("aws-external-anthropic.us-west-2.api.aws", "/v1/messages", MESSAGES, "/v1/messages"),
    ("eu.api.openai.com", "/v1/responses", RESPONSES, "/v1/responses"),
    ("au.api.openai.com", "/v1/chat/completions", CHAT_COMPLETIONS, "/v1/chat/completions"),
    ("ours.openai.azure.us", "/openai/v1/responses", RESPONSES, "/openai/v1/responses"),
    ("bedrock-runtime-fips.us-gov-west-1.amazonaws.com", f"/model/{CLAUDE}/invoke", INVOKE, "/model/{id}/invoke"),
    ("bedrock-runtime.cn-north-1.amazonaws.com.cn", f"/model/{CLAUDE}/converse", CONVERSE, "/model/{id}/converse"),
    (
        "vpce-0a1b-2c3d.bedrock-runtime.us-east-1.vpce.amazonaws.com",
        f"/model/{CLAUDE}/converse",
        CONVERSE,
        "/model/{id}/converse",
    ),
    ("openrouter.ai", "/api/v1/chat/completions", CHAT_COMPLETIONS, "/v1/chat/completions"),
    ("openrouter.ai", "/api/v1/responses", RESPONSES, "/v1/responses"),
    ("api.x.ai", "/v1/responses", RESPONSES, "/v1/responses"),
    ("api.mistral.ai", "/v1/chat/completions", CHAT_COMPLETIONS, "/v1/chat/completions"),
    ("api.deepseek.com", "/chat/completions", CHAT_COMPLETIONS, "/v1/chat/completions"),
    ("api.deepseek.com", "/v1/chat/completions", CHAT_COMPLETIONS, "/v1/chat/completions"),
    ("api.groq.com", "/openai/v1/chat/completions", CHAT_COMPLETIONS, "/v1/chat/completions"),
    (
        "generativelanguage.googleapis.com",
        "/v1beta/openai/chat/completions",
        CHAT_COMPLETIONS,
        "/v1/chat/completions",
    ),
)

# host, method, path, template; none is bridged
PASSTHROUGH = (
    ("api.anthropic.com", "GET", "/v1/messages", "/v1/messages"),
    ("api.anthropic.com", "POST", "/v1/messages/count_tokens", "/v1/messages/count_tokens"),
    ("api.anthropic.com", "GET", "/v1/models/claude-1", "/v1/models/*"),
    ("api.anthropic.com", "POST", "/v1/messagesX", "other"),
    ("api.anthropic.com", "POST", "/V1/messages", "other"),
    ("api.anthropic.com", "GET", "/", "other"),
    ("api.openai.com", "GET", "/v1/models", "/v1/models"),
    ("api.openai.com", "GET", "/v1/responses/resp_1", "/v1/responses/{id}"),
    ("api.openai.com", "GET", "/v1/responses/resp_1/input_items", "/v1/responses/*"),
    ("api.openai.com", "POST", "/v1/responses/input_tokens", "/v1/responses/input_tokens"),
    ("api.openai.com", "GET", "/v1/embeddings", "/v1/embeddings"),
    ("api.openai.com", "POST", "/chat/completions", "other"),
    ("api.openai.com", "POST", "/v1chat/completions", "other"),
    ("chatgpt.com", "GET", "/", "other"),
    ("api.githubcopilot.com", "GET", "/models", "/models"),
    ("api.githubcopilot.com", "GET", "/_ping", "/_ping"),
    ("api.githubcopilot.com", "POST", "/auto", "/auto"),
    ("api.githubcopilot.com", "POST", "/mcp/readonly", "/mcp/*"),
    ("api.githubcopilot.com", "POST", "/images/generations", "other"),
    (AZURE_HOST, "POST", "/openai/deployments/a/b/chat/completions", "other"),
    (AZURE_HOST, "GET", "/openai/v1/responses/resp_1", "/openai/v1/responses/{id}"),
    (BEDROCK_HOST, "POST", "/model/m/count-tokens", "/model/{id}/count-tokens"),
    (BEDROCK_HOST, "POST", "/model/m/invoke-with-bidirectional-stream", "other"),
    (BEDROCK_HOST, "GET", "/model/m/invoke", "/model/{id}/invoke"),
    (BEDROCK_HOST, "POST", "/model//invoke", "other"),
    (BEDROCK_HOST, "POST", "/guardrail/g/version/1/apply", "other"),
)


def proxied(host: str, method: str, target: str, router: Router = DEFAULTS) -> Route:
    route = router.proxied(host, method, target)
    assert route is not None
    return route


@pytest.mark.parametrize(("host", "path", "dialect", "template"), PROXIED_BRIDGED)
def test_a_bridged_route_of_a_default_provider_is_found(host: str, path: str, dialect: Dialect, template: str) -> None:
    route = proxied(host, "POST", path + "?beta=true")
    assert (route.dialect, route.template) == (dialect, template)
    assert route.target == path + "?beta=true"
    assert route.query == "beta=true"


ARN = "arn:aws:bedrock:us-east-1:123456789012:application-inference-profile/a1b2c3"


@pytest.mark.parametrize(
    ("segment", "model"),
    [
        (CLAUDE, CLAUDE),
        (CLAUDE.replace(":", "%3A"), CLAUDE),
        (CLAUDE.replace(":", "%3a"), CLAUDE),
        (ARN.replace(":", "%3A").replace("/", "%2F"), ARN),
        ("%FF", "\N{REPLACEMENT CHARACTER}"),
        ("100%", "100%"),
    ],
)
def test_bedrocks_path_names_the_model_and_goes_upstream_as_it_came(segment: str, model: str) -> None:
    for operation in ("invoke", "invoke-with-response-stream", "converse", "converse-stream"):
        target = f"/model/{segment}/{operation}"
        route = proxied(BEDROCK_HOST, "POST", target)
        assert (route.model, route.target) == (model, target)


def test_no_other_path_names_a_model() -> None:
    """A deployment of Azure's is not its model."""
    assert proxied(AZURE_HOST, "POST", "/openai/deployments/gpt-5/chat/completions").model == ""
    assert proxied(BEDROCK_HOST, "POST", "/model/m/count-tokens").model == ""


@pytest.mark.parametrize(("host", "method", "target", "template"), PASSTHROUGH)
def test_everything_else_of_a_provider_is_passthrough(host: str, method: str, target: str, template: str) -> None:
    route = proxied(host, method, target)
    assert (route.dialect, route.template, route.target) == (None, template, target)


@pytest.mark.parametrize("host", ["example.com", "api.anthropic.com.example.com", "xapi.openai.com", "openai.com", ""])
def test_the_host_of_no_provider_has_no_route(host: str) -> None:
    assert DEFAULTS.proxied(host, "POST", "/v1/messages") is None


def test_a_name_that_no_host_can_have_belongs_to_no_provider() -> None:
    longest = "a." * 150
    assert DEFAULTS.provider_for_host(f"{longest}openai.azure.com") is None
    assert DEFAULTS.proxied("a.bedrock-runtime." * 6000, "POST", "/v1/messages") is None
    assert DEFAULTS.provider_for_host("a." * 100 + "openai.azure.com") is not None


@pytest.mark.parametrize("host", ["API.Anthropic.com", "api.anthropic.com.", "API.ANTHROPIC.COM."])
def test_a_host_is_found_in_any_case_and_with_the_root_dot(host: str) -> None:
    assert proxied(host, "POST", "/v1/messages").provider.name == "anthropic"


@pytest.mark.parametrize(
    ("host", "matches"),
    [
        ("mine.openai.azure.com", True),
        ("a.b.openai.azure.com", True),
        ("openai.azure.com", False),
        (".openai.azure.com", False),
        ("mine.openai.azure.com.evil.example", False),
        ("evil.example/.openai.azure.com", False),
        ("evil.example\n.openai.azure.com", False),
        ("mineXopenai.azure.com", False),
    ],
)
def test_a_wildcard_stands_for_one_or_more_labels_and_nothing_else(host: str, matches: bool) -> None:
    assert (host_pattern("*.openai.azure.com").fullmatch(host) is not None) is matches


def test_the_first_provider_that_claims_a_host_has_it() -> None:
    first = Provider(name="first", type="openai", hosts=("api.example",))
    second = Provider(name="second", type="anthropic", hosts=("api.example",))
    assert proxied("api.example", "GET", "/", Router([first, second])).provider is first


def test_a_base_url_redirects_a_proxied_request_and_keeps_its_path() -> None:
    provider = Provider(name="anthropic", type="anthropic", base_url=parse_base_url("http://localhost:8123"))
    route = proxied("api.anthropic.com", "POST", "/v1/messages?beta=true", Router([provider]))
    assert route.base is not None
    assert (route.base.origin, route.target) == ("http://localhost:8123", "/v1/messages?beta=true")


def test_a_base_url_with_another_path_takes_the_place_of_the_vendors_prefix() -> None:
    provider = Provider(name="openai", type="openai", base_url=parse_base_url("http://localhost:8123/deep/v2"))
    route = proxied("api.openai.com", "POST", "/v1/responses?x=1", Router([provider]))
    assert (route.dialect, route.target) == (RESPONSES, "/deep/v2/responses?x=1")


def test_without_a_base_url_a_request_goes_to_the_host_that_the_client_asked_for() -> None:
    assert proxied(AZURE_HOST, "POST", "/openai/v1/responses").base is None


# target, provider, upstream origin, upstream target, template
GATEWAY = (
    ("/anthropic/v1/messages", "anthropic", "https://api.anthropic.com", "/v1/messages", "/v1/messages"),
    (
        "/anthropic/v1/messages?beta=true",
        "anthropic",
        "https://api.anthropic.com",
        "/v1/messages?beta=true",
        "/v1/messages",
    ),
    ("/openai/v1/responses", "openai", "https://api.openai.com", "/v1/responses", "/v1/responses"),
    ("/openai/v1/embeddings", "openai", "https://api.openai.com", "/v1/embeddings", "/v1/embeddings"),
    ("/chatgpt/v1/responses", "chatgpt", "https://chatgpt.com", "/backend-api/codex/responses", "/v1/responses"),
    (
        "/copilot-business/chat/completions",
        "copilot-business",
        "https://api.business.githubcopilot.com",
        "/chat/completions",
        "/chat/completions",
    ),
    (
        "/api/v2/aibridge/anthropic/v1/messages",
        "anthropic",
        "https://api.anthropic.com",
        "/v1/messages",
        "/v1/messages",
    ),
)


@pytest.mark.parametrize(("target", "provider", "origin", "upstream", "template"), GATEWAY)
def test_a_gateway_path_names_the_provider_and_then_the_path_of_its_api(
    target: str, provider: str, origin: str, upstream: str, template: str
) -> None:
    route = DEFAULTS.gateway("POST", target)
    assert route is not None and route.base is not None
    assert (route.provider.name, route.base.origin) == (provider, origin)
    assert (route.target, route.template) == (upstream, template)


@pytest.mark.parametrize(
    "target",
    [
        "/",
        "",
        "*",
        "/nobody/v1/messages",
        "/anthropic",
        "/anthropic?v1/messages",
        "/Anthropic/v1/messages",
        "/openai/chat/completions",
        "/openai/v1chat",
        "/azure/openai/v1/responses",
        "/api/v2/aibridge",
        "/api/v2/aibridge/",
        "/api/v2/aibridgeanthropic/v1/messages",
    ],
)
def test_any_other_gateway_path_has_no_route(target: str) -> None:
    """Azure's and Bedrock's default hosts have wildcards: without a base URL the upstream is unknown."""
    assert DEFAULTS.gateway("POST", target) is None


def test_errors_of_a_passthrough_route_have_the_shape_of_their_provider() -> None:
    assert proxied("api.anthropic.com", "GET", "/v1/models").errors is MESSAGES
    assert proxied("api.openai.com", "GET", "/v1/models").errors is RESPONSES
    assert proxied(BEDROCK_HOST, "POST", "/model/m/count-tokens").errors is INVOKE


DOTS = ["..", "%2e%2e", "%2E.", "..;x=1", "a%2f..", "a%5C..", "%2e%2e%2fa"]
DOTS_ENCODED_TWICE = ["%252e%252e", "%252E%2e", "%252e%252e%253bx=1", "a%252f%252e", "a%255c%252e"]


@pytest.mark.parametrize("segment", [*DOTS, *DOTS_ENCODED_TWICE])
def test_a_path_that_a_server_may_take_for_another_one_gets_no_central_key(segment: str) -> None:
    """A server, or a proxy in front of it, may decode a path once more before it resolves the dots in it."""
    assert not proxied("api.anthropic.com", "GET", f"/v1/models/{segment}").known
    assert not proxied(BEDROCK_HOST, "POST", f"/model/{segment}/invoke").known


@pytest.mark.parametrize("segment", ["claude-1", "claude-1.5", "a..b", "...", "%2e%2e%2e", "claude%252e1", "%2525"])
def test_a_path_with_other_dots_may_get_a_central_key(segment: str) -> None:
    assert proxied("api.anthropic.com", "GET", f"/v1/models/{segment}").known
    assert proxied(BEDROCK_HOST, "POST", f"/model/{segment}/invoke").known


@given(host=st.text(max_size=40), method=st.text(max_size=8), target=st.text(max_size=80))
def test_no_request_line_makes_routing_fail(host: str, method: str, target: str) -> None:
    for name in (host, *(h for p in DEFAULT_PROVIDERS for h in p.hosts)):
        DEFAULTS.proxied(name, method, target)
    for prefix in ("", "/", "/openai", "/anthropic/", "/api/v2/aibridge/"):
        DEFAULTS.gateway(method, prefix + target)


@given(rest=st.text("abc/?.%*{}", max_size=40))
def test_a_proxied_target_that_is_not_rewritten_passes_as_it_is(rest: str) -> None:
    target = "/" + rest
    assert proxied("api.anthropic.com", "POST", target).target == target
    assert proxied("api.openai.com", "POST", "/v1" + target).target == "/v1" + target


@given(rest=st.text("abc/?.%*{}\0é\n", max_size=60))
def test_templates_are_bounded(rest: str) -> None:
    known = {OTHER}
    for kind in TYPES.values():
        for routes in (kind.bridged, kind.passthrough, kind.results):
            known |= {route.template for route in routes}
    for provider in DEFAULT_PROVIDERS:
        for host in provider.hosts:
            name = host.replace("*", "x")
            assert proxied(name, "POST", "/v1/" + rest).template in known
            assert proxied(name, "POST", "/openai/deployments/" + rest + "/chat/completions").template in known


# --- bills ------------------------------------------------------------------------------------------------------------

# host, method, path; a passthrough whose cost no row shows
BILLABLE = (
    ("api.openai.com", "POST", "/v1/fine_tuning/jobs"),
    ("api.openai.com", "POST", "/v1/videos"),
    ("api.openai.com", "POST", "/v1/videos/video_1/remix"),
    ("api.openai.com", "POST", "/v1/threads/thread_1/runs"),
    ("api.openai.com", "POST", "/v1/vector_stores"),
    ("api.openai.com", "POST", "/v1/containers"),
    ("api.openai.com", "POST", "/v1/batches"),
    ("api.openai.com", "POST", "/v1/realtime/calls"),
    ("api.openai.com", WEBSOCKET, "/v1/realtime"),
    ("api.openai.com", "POST", "/v1/made/up"),
    ("api.openai.com", "PUT", "/v1/made/up"),
    ("api.openai.com", "BREW", "/v1/made/up"),
    ("api.openai.com", WEBSOCKET, "/v1/chat/completions"),
    ("api.openai.com", "POST", "/outside"),
    ("api.anthropic.com", "POST", "/v1/complete"),
    ("api.anthropic.com", "POST", "/v1/messages/batches"),
    ("api.githubcopilot.com", "POST", "/agents/swe/jobs"),
    ("bedrock-runtime.us-east-1.amazonaws.com", "POST", "/async-invoke"),
    (AZURE_HOST, "POST", "/openai/deployments/a/extensions/chat/completions"),
)

# host, method, path; free, or recorded
NOT_BILLABLE = (
    ("api.openai.com", "GET", "/v1/fine_tuning/jobs"),
    ("api.openai.com", "DELETE", "/v1/containers/c"),
    ("api.openai.com", "HEAD", "/v1/made/up"),
    ("api.openai.com", "OPTIONS", "/v1/chat/completions"),
    ("api.openai.com", "POST", "/v1/files"),
    ("api.openai.com", "POST", "/v1/batches/batch_1/cancel"),
    ("api.openai.com", "POST", "/v1/responses/input_tokens"),
    ("api.openai.com", "POST", "/v1/responses/resp_1/cancel"),
    ("api.openai.com", "POST", "/v1/conversations"),
    ("api.openai.com", "POST", "/v1/responses"),
    ("api.openai.com", WEBSOCKET, "/v1/responses"),
    ("api.openai.com", "POST", "/v1/embeddings"),
    ("api.anthropic.com", "POST", "/v1/messages/count_tokens"),
    ("api.anthropic.com", "POST", "/v1/messages/batches/msgbatch_1/cancel"),
    ("api.anthropic.com", "POST", "/api/event_logging/batch"),
    ("api.githubcopilot.com", "POST", "/models/session"),
    (AZURE_HOST, "POST", "/anthropic/v1/messages/count_tokens"),
    ("bedrock-runtime.us-east-1.amazonaws.com", "POST", "/model/m/count-tokens"),
)


@pytest.mark.parametrize(("host", "method", "path"), BILLABLE)
def test_a_request_that_may_cost_money_and_is_not_read_is_billable(host: str, method: str, path: str) -> None:
    route = proxied(host, method, path)
    assert (route.dialect, route.billable) == (None, True)


@pytest.mark.parametrize(("host", "method", "path"), NOT_BILLABLE)
def test_a_request_that_is_free_or_recorded_is_not_billable(host: str, method: str, path: str) -> None:
    assert not proxied(host, method, path).billable


@pytest.mark.parametrize(
    ("host", "method", "path", "result_of", "result_id"),
    [
        ("api.openai.com", "GET", "/v1/responses/resp_1?stream=true", "background", "resp_1"),
        ("api.openai.com", "POST", "/v1/responses/resp_1/cancel", "background", "resp_1"),
        ("api.openai.com", "POST", "/v1/responses/resp_1", None, ""),
        ("api.openai.com", "DELETE", "/v1/responses/resp_1", "stored", "resp_1"),
        ("api.openai.com", "GET", "/v1/files/file-1/content", "batch", "file-1"),
        ("api.openai.com", "GET", "/v1/files/file-1", None, ""),
        ("api.anthropic.com", "GET", "/v1/messages/batches/msgbatch_1/results", "batch", "msgbatch_1"),
        ("api.anthropic.com", "GET", "/v1/messages/batches/msgbatch_1", None, ""),
        (AZURE_HOST, "GET", "/openai/v1/responses/resp_1", "background", "resp_1"),
        (AZURE_HOST, "GET", "/openai/files/file-1/content?api-version=2024-10-21", "batch", "file-1"),
        ("bedrock-mantle.eu-west-1.api.aws", "GET", "/openai/v1/responses/resp_1", "background", "resp_1"),
        ("api.githubcopilot.com", "GET", "/responses/resp_1", "background", "resp_1"),
    ],
)
def test_a_route_may_bring_the_result_of_earlier_work(
    host: str, method: str, path: str, result_of: str | None, result_id: str
) -> None:
    route = proxied(host, method, path)
    assert (route.dialect, route.result_of, route.result_id) == (None, result_of, result_id)


@pytest.mark.parametrize(
    "path", ["/v1/embeddings", "/v1/images/generations", "/v1/files/file-1/content", "/v1/batches", "/v1/videos"]
)
def test_a_central_key_is_not_used_on_routes_that_the_original_does_not_have(path: str) -> None:
    for method in ("GET", "POST"):
        assert not proxied("api.openai.com", method, path).known


# --- WebSockets -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("host", "target"),
    [
        ("api.openai.com", "/v1/responses"),
        ("api.openai.com", "/v1/responses?x=1"),
        ("chatgpt.com", "/backend-api/codex/responses"),
        ("api.githubcopilot.com", "/responses"),
        ("mine.openai.azure.com", "/openai/v1/responses"),
        ("mine.openai.azure.com", "/openai/responses?api-version=preview"),
    ],
)
def test_an_upgrade_on_a_route_of_the_responses_api_is_passthrough_that_opens_a_bridged_socket(
    host: str, target: str
) -> None:
    route = DEFAULTS.proxied(host, WEBSOCKET, target)
    assert route is not None
    assert (route.dialect, route.websocket, route.errors, route.known) == (None, RESPONSES, RESPONSES, True)


@pytest.mark.parametrize(
    ("host", "method", "target"),
    [
        ("api.openai.com", WEBSOCKET, "/v1/realtime"),
        ("api.openai.com", WEBSOCKET, "/v1/responses/resp_1"),
        ("api.openai.com", WEBSOCKET, "/v1/chat/completions"),
        ("api.openai.com", "GET", "/v1/responses"),
        ("api.openai.com", "POST", "/v1/responses"),
        ("api.anthropic.com", WEBSOCKET, "/v1/messages"),
    ],
)
def test_no_other_request_opens_one(host: str, method: str, target: str) -> None:
    route = DEFAULTS.proxied(host, method, target)
    assert route is not None and route.websocket is None


@pytest.mark.parametrize(
    ("name", "path", "upstream"),
    [
        ("openrouter", "/v1/chat/completions", "https://openrouter.ai/api/v1/chat/completions"),
        ("xai", "/v1/responses", "https://api.x.ai/v1/responses"),
        ("mistral", "/v1/chat/completions", "https://api.mistral.ai/v1/chat/completions"),
        ("deepseek", "/v1/chat/completions", "https://api.deepseek.com/chat/completions"),
        ("groq", "/v1/chat/completions", "https://api.groq.com/openai/v1/chat/completions"),
        (
            "gemini",
            "/v1/chat/completions",
            "https://generativelanguage.googleapis.com/v1beta/openai/chat/completions",
        ),
    ],
)
def test_gateway_paths_are_alike_for_all_vendors(name: str, path: str, upstream: str) -> None:
    route = DEFAULTS.gateway("POST", f"/{name}{path}")
    assert route is not None and route.base is not None and route.dialect is not None
    assert route.base.origin + route.target == upstream


@pytest.mark.parametrize("host", ["eu.api.openai.com", "aws-external-anthropic.eu-west-1.api.aws", "us.api.x.ai"])
def test_a_regional_host_is_reached_where_the_client_asks(host: str) -> None:
    route = DEFAULTS.proxied(host, "POST", "/v1/messages")
    assert route is not None and route.base is None and route.target == "/v1/messages"


def test_a_base_url_of_the_operators_own_takes_the_place_of_regional_hosts() -> None:
    provider = Provider.model_validate({"name": "openai", "type": "openai", "base_url": "http://gateway:1/v1"})
    route = Router([provider]).proxied("eu.api.openai.com", "POST", "/v1/responses")
    assert route is not None and route.base == parse_base_url("http://gateway:1/v1")


def test_a_central_key_goes_to_regional_hosts_that_are_named() -> None:
    [openai] = [provider for provider in DEFAULT_PROVIDERS if provider.name == "openai"]
    assert openai.owns("https", "eu.api.openai.com", 443)
    assert not openai.owns("http", "eu.api.openai.com", 443)
    assert not openai.owns("https", "evil.api.openai.com", 443)
    [anthropic] = [provider for provider in DEFAULT_PROVIDERS if provider.name == "anthropic"]
    assert not anthropic.owns("https", "aws-external-anthropic.evil.api.aws", 443)


COMPATIBLE = Router(
    [Provider.model_validate({"name": "a", "type": "openai", "openai_compatible": True, "hosts": ["a.b"]})]
)


@pytest.mark.parametrize(
    ("path", "dialect"),
    [
        ("/v1/chat/completions", CHAT_COMPLETIONS),
        ("/chat/completions", CHAT_COMPLETIONS),
        ("/api/v1/chat/completions?x=/1", CHAT_COMPLETIONS),
        ("/serve/llm-1/v1/responses", RESPONSES),
        ("/a" * 50 + "/chat/completions", None),
        ("/health", None),
        ("/v1/xchat/completion", None),
    ],
)
def test_an_openai_compatible_server_has_its_api_below_any_path(path: str, dialect: Dialect | None) -> None:
    route = COMPATIBLE.proxied("a.b", "POST", path)
    assert route is not None
    assert (route.dialect, route.base, route.target) == (dialect, None, path)
    assert (route.template == OTHER) is (dialect is None)


def test_a_gateway_provider_without_a_base_url_keeps_its_types_prefix() -> None:
    route = COMPATIBLE.gateway("POST", "/a/v1/chat/completions")
    assert route is not None and route.target == "/v1/chat/completions"


def test_a_deployments_name_is_read_from_the_path() -> None:
    route = DEFAULTS.proxied(AZURE_HOST, "POST", "/openai/deployments/our%20gpt/chat/completions")
    assert route is not None and (route.deployment, route.model) == ("our gpt", "")


def test_a_base_url_that_repeats_the_version_leads_to_the_same_route() -> None:
    route = DEFAULTS.gateway("POST", "/anthropic/v1/v1/messages?beta=true")
    assert route is not None and route.dialect is MESSAGES and route.target == "/v1/messages?beta=true"


def test_the_gateways_providers_are_described_with_what_they_bridge() -> None:
    described = DEFAULTS.described()
    assert "/anthropic: /v1/messages" in described and "/openai: /v1/chat/completions" in described
    assert "azure" not in described, "without a base URL, it is no gateway"
