"""Azure OpenAI and Foundry, asked by their vendors' own SDKs: paths, `api-version`, keys and tokens, real models."""

from __future__ import annotations

import json
from typing import Any

import anthropic
import openai
import pytest
from openai.lib.streaming.chat import ChatCompletionStreamState

from tests.conftest import StartProxy
from tests.integration.exchanges import Client
from tests.integration.sdks import answer_of, check_answer, expected, last_recorded
from tests.integration.turns import CONNECTED, MODES, Turns, call, recorded, results, text, tool_names
from tests.support import fixtures
from tests.support.client import trust
from tests.support.fixtures import Case
from tests.support.mcp_servers import HttpMcp
from tests.support.running import RunningProxy
from tests.support.script import Request
from tests.support.upstream import ScriptedUpstream

# Fixtures name models that their vendor has since deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:The model:DeprecationWarning")

KEY = "0123456789abcdef0123456789abcdef"
ENTRA = "eyJ0eXAiOiJKV1QifQ.eyJhdWQiOiJjb2duaXRpdmUifQ.c2lnbmF0dXJl"
CREDENTIALS = {"api-key": ({"api_key": KEY}, "0123...cdef"), "bearer": ({"azure_ad_token": ENTRA}, "eyJ0...dXJl")}
BY_CREDENTIAL = pytest.mark.parametrize("credential", CREDENTIALS)
WAYS = pytest.mark.parametrize("way", ["proxy", "gateway"])
VERSION = "2025-04-01-preview"
OPENAI_HOST = "ours.openai.azure.com"
FOUNDRY_HOST = "ours.services.ai.azure.com"
REAL_MODEL = "gpt-4.1-2025-04-14"


PRICED = "azure_scope: global"


def config(upstream: ScriptedUpstream, key: str = "", more: str = "") -> str:
    hosts = f"[{OPENAI_HOST}, {FOUNDRY_HOST}]"
    azure = f"{{name: azure, type: azure, base_url: '{upstream.url}', hosts: {hosts}, api_key: '{key}', {PRICED}}}"
    return f"providers: [{azure}]\n{more}"


@pytest.fixture
def process(start_proxy: StartProxy, upstream: ScriptedUpstream) -> RunningProxy:
    return start_proxy(config=config(upstream))


def way_in(process: RunningProxy, way: str, host: str) -> tuple[str, dict[str, Any]]:
    """The resource's URL as its client knows it, and what its HTTP client needs."""
    if way == "gateway":
        return f"{process.proxy_url}/azure", {"timeout": 10.0, "trust_env": False}
    return f"https://{host}", {"timeout": 10.0, "proxy": process.proxy_url, "verify": trust(process)}


def azure(process: RunningProxy, way: str, credential: str, **options: Any) -> openai.AzureOpenAI:
    endpoint, http = way_in(process, way, OPENAI_HOST)
    options |= {} if "base_url" in options else {"azure_endpoint": endpoint}
    options |= CREDENTIALS[credential][0] | {"http_client": openai.DefaultHttpxClient(**http)}
    client: openai.AzureOpenAI = openai.AzureOpenAI(api_version=VERSION, max_retries=0, **options)
    return client


def chat(client: openai.OpenAI, case: Case, **more: Any) -> dict[str, Any]:
    body = {**json.loads(case.request), **more}
    answer: Any = client.chat.completions.create(**body)
    if case.streaming:
        state: ChatCompletionStreamState[None] = ChatCompletionStreamState()
        for chunk in answer:
            state.handle_chunk(chunk)
        answer = state.get_final_completion()
    told: dict[str, Any] = answer.to_dict()
    return told


def responses(client: openai.OpenAI, case: Case) -> dict[str, Any]:
    answer: Any = client.responses.create(**json.loads(case.request))
    if case.streaming:
        [*_, last] = answer
        answer = last.response
    told: dict[str, Any] = answer.to_dict()
    return told


def check_credential(process: RunningProxy, request: Request, credential: str) -> None:
    """It has gone upstream as it came, and is recorded as the client's own."""
    sent = [request.values("api-key"), request.values("authorization")]
    assert sent == ([[KEY], []] if credential == "api-key" else [[], [f"Bearer {ENTRA}"]])
    row = process.rows("aibridge_interceptions")[-1]
    assert (row["provider"], row["provider_name"], row["credential_kind"]) == ("azure", "azure", "byok")
    assert row["credential_hint"] == CREDENTIALS[credential][1]


# --- Azure OpenAI -------------------------------------------------------------------------------------------------


@WAYS
@BY_CREDENTIAL
@pytest.mark.parametrize("mode", ["streaming", "blocking"])
def test_the_tokens_of_a_deployment_are_of_the_model_that_answers(
    process: RunningProxy, upstream: ScriptedUpstream, way: str, credential: str, mode: str
) -> None:
    """What the SDK calls a model is the deployment: it is in the path, and in the body too."""
    case = fixtures.case(f"chat_completions/azure_deployment/{mode}")
    upstream.answer(answer_of(case))
    with azure(process, way, credential) as client:
        [choice] = chat(client, case, model="our-gpt")["choices"]
    assert choice["message"]["content"] == "Hello there!"
    [request] = upstream.requests
    assert request.target == f"/openai/deployments/our-gpt/chat/completions?api-version={VERSION}"
    assert request.json() == json.loads(case.request) | {"model": "our-gpt"}
    assert last_recorded(process) == expected(case) | {"model": "our-gpt"}
    [tokens] = process.rows("aibridge_token_usages")
    assert tokens["model"] == REAL_MODEL
    assert tokens["cost_usd"] > 0
    [row] = process.rows("aibridge_interceptions")
    assert row["route"] == "/openai/deployments/{id}/chat/completions"
    check_credential(process, request, credential)


@pytest.mark.parametrize("mode", ["streaming", "blocking"])
def test_where_the_body_names_no_model_the_interception_has_the_answers(
    process: RunningProxy, upstream: ScriptedUpstream, mode: str
) -> None:
    """As LangChain asks: only the path says which deployment."""
    case = fixtures.case(f"chat_completions/azure_deployment/{mode}")
    upstream.answer(answer_of(case))
    target = f"/openai/deployments/our-gpt/chat/completions?api-version={VERSION}"
    with Client(process, OPENAI_HOST) as client:
        seen = client.post(target, case.request, [("api-key", KEY)])
    assert seen.body == case.body
    assert (upstream.requests[0].target, upstream.requests[0].body) == (target, case.request)
    assert last_recorded(process) == expected(case)
    assert expected(case)["model"] == REAL_MODEL


@WAYS
@BY_CREDENTIAL
@pytest.mark.parametrize(
    ("base_path", "target"),
    [("", f"/openai/responses?api-version={VERSION}"), ("/openai/v1", f"/openai/v1/responses?api-version={VERSION}")],
)
def test_the_responses_api_is_found_at_both_of_its_paths(
    process: RunningProxy, upstream: ScriptedUpstream, way: str, credential: str, base_path: str, target: str
) -> None:
    endpoint, _ = way_in(process, way, OPENAI_HOST)
    options = {"base_url": endpoint + base_path} if base_path else {}
    with azure(process, way, credential, **options) as client:
        for mode in ("streaming", "blocking"):
            case = fixtures.case(f"responses/parallel_tools/{mode}")
            upstream.answer(answer_of(case))
            check_answer(case, responses(client, case))
            assert last_recorded(process) == expected(case)
            assert upstream.requests[-1].target == target
            assert process.rows("aibridge_interceptions")[-1]["route"] == target.partition("?")[0]
            check_credential(process, upstream.requests[-1], credential)


@WAYS
@pytest.mark.parametrize("token", [KEY, ENTRA])
def test_the_v1_api_takes_openais_plain_client(
    process: RunningProxy, upstream: ScriptedUpstream, way: str, token: str
) -> None:
    """It sends a key as a bearer too, and no `api-version`."""
    endpoint, http = way_in(process, way, OPENAI_HOST)
    client = openai.OpenAI(
        api_key=token, base_url=f"{endpoint}/openai/v1", max_retries=0, http_client=openai.DefaultHttpxClient(**http)
    )
    with client:
        for mode in ("streaming", "blocking"):
            case = fixtures.case(f"chat_completions/parallel_tools/{mode}")
            upstream.answer(answer_of(case))
            check_answer(case, chat(client, case))
            assert last_recorded(process) == expected(case)
            assert upstream.requests[-1].target == "/openai/v1/chat/completions"
    assert {request.header("authorization") for request in upstream.requests} == {f"Bearer {token}"}
    hints = {row["credential_hint"] for row in process.rows("aibridge_interceptions")}
    assert hints == {f"{token[:4]}...{token[-4:]}"}


# --- Foundry ------------------------------------------------------------------------------------------------------


@WAYS
@BY_CREDENTIAL
def test_foundrys_messages_are_recorded_as_anthropics(
    process: RunningProxy, upstream: ScriptedUpstream, way: str, credential: str
) -> None:
    """The SDK sends a key twice, as x-api-key and as api-key: neither is lost."""
    endpoint, http = way_in(process, way, FOUNDRY_HOST)
    given: dict[str, Any] = {"azure_ad_token_provider": lambda: ENTRA} if credential == "bearer" else {"api_key": KEY}
    client = anthropic.AnthropicFoundry(
        base_url=f"{endpoint}/anthropic/", max_retries=0, http_client=anthropic.DefaultHttpxClient(**http), **given
    )
    with client:
        for mode in ("streaming", "blocking"):
            case = fixtures.case(f"messages/parallel_tools/{mode}")
            upstream.answer(answer_of(case))
            body = json.loads(case.request)
            body.pop("stream", None)
            if case.streaming:
                with client.messages.stream(**body) as stream:
                    answer = stream.get_final_message().to_dict()
            else:
                answer = client.messages.create(**body).to_dict()
            check_answer(case, answer)
            assert last_recorded(process) == expected(case)
            request = upstream.requests[-1]
            assert request.target == "/anthropic/v1/messages"
            assert request.values("x-api-key") == ([KEY] if credential == "api-key" else [])
            check_credential(process, request, credential)


# --- central keys ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "name", "header", "other"),
    [
        ("/openai/deployments/our-gpt/chat/completions", "chat_completions", "api-key", "x-api-key"),
        ("/openai/v1/responses", "responses", "api-key", "x-api-key"),
        ("/anthropic/v1/messages", "messages", "x-api-key", "api-key"),
    ],
)
def test_a_central_key_goes_where_the_api_looks_for_it(
    start_proxy: StartProxy, upstream: ScriptedUpstream, path: str, name: str, header: str, other: str
) -> None:
    proxy = start_proxy(config=config(upstream, key=KEY))
    case = fixtures.case(f"{name}/simple/blocking")
    upstream.answer(answer_of(case))
    with Client(proxy, FOUNDRY_HOST) as client:
        assert client.post(path, case.request).body == case.body
    [request] = upstream.requests
    assert (request.values(header), request.values(other), request.values("authorization")) == ([KEY], [], [])
    [row] = proxy.rows("aibridge_interceptions")
    assert (row["credential_kind"], row["credential_hint"]) == ("centralized", "0123...cdef")


# --- the tool loop ------------------------------------------------------------------------------------------------


PATHS = {
    "messages": "/anthropic/v1/messages",
    "chat_completions": f"/openai/deployments/our-gpt/chat/completions?api-version={VERSION}",
    "responses": f"/openai/responses?api-version={VERSION}",
}


@MODES
@pytest.mark.parametrize("dialect", PATHS)
def test_a_further_turn_goes_where_the_first_went_with_the_same_credential(
    start_proxy: StartProxy, upstream: ScriptedUpstream, ours: HttpMcp, dialect: str, streaming: bool
) -> None:
    proxy = start_proxy(
        config=config(upstream, more=f"mcp: {{servers: {{ours: {{type: http, url: '{ours.url}'}}}}}}\n")
    )
    proxy.wait_for_log(CONNECTED)
    turns = Turns(dialect, [text("Let me see. "), call("echo", text="hi")], [text("Done.")])
    upstream.answer(*turns.answers(streaming=streaming))
    with Client(proxy, FOUNDRY_HOST) as client:
        seen = client.post(PATHS[dialect], turns.request(streaming=streaming), [("api-key", KEY)])
    turns.check_usage(turns.check(seen.body, streaming=streaming))
    assert recorded(proxy).outcome == ("completed", 2, None)
    first, second = upstream.requests
    assert first.target == second.target == PATHS[dialect]
    assert first.values("api-key") == second.values("api-key") == [KEY]
    assert "bmcp_ours_echo" in tool_names(first) and results(second) == ["hi"]
