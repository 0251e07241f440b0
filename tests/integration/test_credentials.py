"""Whose credential goes upstream, and who is said to ask: real clients, a real proxy, a real upstream."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from typing import Any

import anthropic
import openai
import pytest

from tests.conftest import MakeUpstream, RunToExit, StartProxy
from tests.integration.exchanges import ANTHROPIC, OPENAI, Client, wait_for_ended
from tests.support import fixtures
from tests.support.client import RawHttp1, connect_through, gateway_client, proxy_client
from tests.support.client_h2 import RawHttp2
from tests.support.in_process import InProcessProxy
from tests.support.upstream import HTTP1, HTTP2, Answer, Request, ScriptedUpstream, unused_port

KEY = "sk-central-0000000000000001"
HINT = "sk-c...0001"
OWN = "sk-client-00000000000000009"
MESSAGES = fixtures.case("messages/simple/blocking")
CHAT = fixtures.case("chat_completions/simple/blocking")
VERSIONS = pytest.mark.parametrize("http2", [False, True], ids=["h1", "h2"])

Start = Callable[..., InProcessProxy]


def answer(request: Request) -> Answer:
    """The fixture's answer on bridged routes, a list of nothing elsewhere."""
    for case, path in ((MESSAGES, "/v1/messages"), (CHAT, "/v1/chat/completions")):
        if request.path == path and request.method == "POST":
            return Answer.json(json.loads(case.body))
    return Answer.json({"data": []})


@pytest.fixture
def upstream(make_upstream: MakeUpstream, request: pytest.FixtureRequest) -> ScriptedUpstream:
    """One that speaks HTTP/1, unless the test says `http2`."""
    params = getattr(request.node, "callspec", None)
    return make_upstream(handler=answer, alpn=[HTTP2 if params and params.params.get("http2") else HTTP1])


@pytest.fixture
def start(start_proxy: StartProxy, upstream: ScriptedUpstream) -> Start:
    def start(more: str = f"api_key: {KEY}", config: str = "", arguments: Sequence[str] = ()) -> InProcessProxy:
        return start_proxy(
            arguments=arguments,
            config=f"{config}\nproviders:\n"
            f"  - {{name: anthropic, type: anthropic, base_url: '{upstream.url}', {more}}}\n"
            f"  - {{name: openai, type: openai, base_url: '{upstream.url}/v1', {more}}}\n",
        )

    return start


# --- central keys -------------------------------------------------------------------------------------------------


@VERSIONS
@pytest.mark.parametrize(
    ("host", "path", "body", "header", "value"),
    [
        (ANTHROPIC, "/v1/messages", MESSAGES.request, "x-api-key", KEY),
        (OPENAI, "/v1/chat/completions", CHAT.request, "authorization", f"Bearer {KEY}"),
        (ANTHROPIC, "/v1/models", None, "x-api-key", KEY),
        (OPENAI, "/v1/models/gpt-5", None, "authorization", f"Bearer {KEY}"),
    ],
)
def test_a_client_without_a_credential_is_given_the_central_one(
    start: Start,
    upstream: ScriptedUpstream,
    http2: bool,
    host: str,
    path: str,
    body: bytes | None,
    header: str,
    value: str,
) -> None:
    with Client(start(), host, http2=http2) as client:
        assert client.ask("POST" if body else "GET", path, body=body).status == 200
    assert upstream.requests[0].header(header) == value


@VERSIONS
@pytest.mark.parametrize(
    ("host", "path", "body", "header", "value"),
    [
        (ANTHROPIC, "/v1/messages", MESSAGES.request, "x-api-key", OWN),
        (ANTHROPIC, "/v1/messages", MESSAGES.request, "authorization", f"Bearer {OWN}"),
        (OPENAI, "/v1/chat/completions", CHAT.request, "authorization", f"Bearer {OWN}"),
        (OPENAI, "/v1/models", None, "authorization", f"Bearer {OWN}"),
    ],
)
def test_a_clients_own_credential_always_wins(
    start: Start,
    upstream: ScriptedUpstream,
    http2: bool,
    host: str,
    path: str,
    body: bytes | None,
    header: str,
    value: str,
) -> None:
    proxy = start()
    with Client(proxy, host, http2=http2) as client:
        assert client.ask("POST" if body else "GET", path, [(header, value)], body).status == 200
    [request] = upstream.requests
    assert request.header(header) == value
    assert not any(KEY.encode() in content for _, content in request.headers)
    if body:
        [row] = wait_for_ended(proxy, 1)
        assert (row["credential_kind"], row["credential_hint"]) == ("byok", "sk-c...0009")


def test_the_row_says_whose_credential_it_was_and_nothing_tells_the_key(start: Start) -> None:
    proxy = start()
    with Client(proxy, ANTHROPIC) as client:
        seen = client.post("/v1/messages", MESSAGES.request)
    [row] = wait_for_ended(proxy, 1)
    assert (row["credential_kind"], row["credential_hint"]) == ("centralized", HINT)
    stored = proxy.database.read_bytes() + proxy.database.with_name("aibridge.db-wal").read_bytes()
    assert KEY.encode() not in stored
    assert KEY not in proxy.log and KEY not in str(seen)


def test_sdks_that_are_told_to_leave_their_key_out_are_given_the_central_one(
    start: Start, upstream: ScriptedUpstream
) -> None:
    proxy = start()
    messages = json.loads(MESSAGES.request)["messages"]
    without: dict[str, Any] = {"X-Api-Key": anthropic.Omit(), "Authorization": anthropic.Omit()}
    url = f"{proxy.proxy_url}/anthropic"
    with anthropic.Anthropic(api_key="-", auth_token=None, base_url=url, default_headers=without) as client:
        client.messages.create(model="claude-sonnet-4-5", max_tokens=9, messages=messages)
    without = {"Authorization": openai.Omit()}
    with openai.OpenAI(api_key="-", base_url=f"{proxy.proxy_url}/openai/v1") as client_:
        client_.models.list(extra_headers=without)
    assert [request.values("x-api-key") for request in upstream.requests] == [[KEY], []]
    assert [request.values("authorization") for request in upstream.requests] == [[], [f"Bearer {KEY}"]]


@pytest.mark.parametrize(("method", "path"), [("POST", "/v1/messages"), ("GET", "/v1/models")])
@pytest.mark.parametrize("answers", [True, False], ids=["answered", "unreachable"])
def test_mitmproxys_own_log_and_files_do_not_have_the_key(
    start_proxy: StartProxy, upstream: ScriptedUpstream, answers: bool, method: str, path: str
) -> None:
    url = upstream.url if answers else f"https://localhost:{unused_port()}"
    proxy = start_proxy(
        config=f"providers: [{{name: anthropic, type: anthropic, base_url: '{url}', api_key: {KEY}}}]\n",
        arguments=["--flow-detail", "4", "-w", "flows"],
    )
    with Client(proxy, ANTHROPIC) as client:
        assert client.ask(method, path, body=MESSAGES.request if method == "POST" else None).status in (200, 502)
    proxy.wait_for_log(re.escape(HINT))
    proxy.close()
    assert KEY not in proxy.log
    assert KEY.encode() not in (proxy.folder / "flows").read_bytes()
    assert [request.header("x-api-key") for request in upstream.requests] == [KEY] * answers


def test_with_a_central_key_nothing_else_that_could_be_a_credential_goes_upstream(
    start: Start, upstream: ScriptedUpstream
) -> None:
    headers = [("x-api-key", ""), ("authorization", "Basic dXNlcjpwYXNz"), ("api-key", "other")]
    with Client(start(), ANTHROPIC) as client:
        client.post("/v1/messages", MESSAGES.request, headers)
    [request] = upstream.requests
    assert [request.values(name) for name in ("x-api-key", "authorization", "api-key")] == [[KEY], [], []]


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/v1/organization/users"),
        ("GET", "/v1/chat/completions"),
        ("GET", "/v1/models/../organization/users"),
        ("GET", "/v1/models/%2e%2e/organization/users"),
        ("GET", "/v1/models/%252e%252e%252forganization"),
    ],
)
def test_a_proxied_route_that_is_not_known_is_passed_on_without_the_central_key(
    start: Start, upstream: ScriptedUpstream, method: str, path: str
) -> None:
    with Client(start(), OPENAI) as client:
        client.ask(method, path)
    [request] = upstream.requests
    assert (request.target, request.values("authorization")) == (path, [])


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/openai/v1/models", 200),
        ("POST", "/openai/v1/chat/completions", 200),
        ("GET", "/openai/v1/chat/completions", 404),
        ("GET", "/openai/v1/organization/users", 404),
        ("POST", "/openai/v1/files", 404),
        ("GET", "/openai/v1/models/..%2forganization", 404),
    ],
)
def test_a_gateway_with_a_central_key_serves_the_known_routes_only(
    start: Start, upstream: ScriptedUpstream, method: str, path: str, status: int
) -> None:
    proxy = start()
    with gateway_client(proxy) as client:
        answered = client.request(method, path, content=CHAT.request if method == "POST" else None)
    assert answered.status_code == status
    assert len(upstream.requests) == (1 if status == 200 else 0)
    if status == 404:
        assert answered.json()["error"]["message"].startswith("no provider has this route")


def test_without_a_central_key_a_gateway_serves_every_route_of_the_api(
    start: Start, upstream: ScriptedUpstream
) -> None:
    with gateway_client(start("api_key: []")) as client:
        assert client.get("/openai/v1/files", headers={"authorization": f"Bearer {OWN}"}).status_code == 200
    assert upstream.requests[0].header("authorization") == f"Bearer {OWN}"


def test_a_central_key_is_for_hosts_that_the_file_names_not_for_those_that_a_wildcard_matches(
    start_proxy: StartProxy, make_upstream: MakeUpstream
) -> None:
    """Anyone can register a host below such a domain."""
    upstream = make_upstream(handler=answer, names=["evil.openai.azure.com"])
    proxy = start_proxy(
        config=f"providers:\n- {{name: a, type: azure, api_key: {KEY}, hosts: ['*.openai.azure.com', ours.test]}}\n",
        mode=[f"reverse:{upstream.url}"],
        options=["keep_host_header=true", "ssl_insecure=true"],
    )
    with gateway_client(proxy) as client:
        client.get("/openai/models", headers={"host": "evil.openai.azure.com"})
    [request] = upstream.requests
    assert request.values("api-key") == request.values("authorization") == []


@VERSIONS
def test_a_central_key_is_not_passed_on_to_a_host_that_the_client_names_at_the_providers_address(
    start_proxy: StartProxy, upstream: ScriptedUpstream, http2: bool
) -> None:
    """What stands before many hosts goes by the request's `Host`, not by the address that was dialled."""
    proxy = start_proxy(
        config="providers:\n- {name: anthropic, type: anthropic, hosts: [localhost], "
        f"base_url: '{upstream.url}', api_key: {KEY}}}\n"
    )
    tunnel = connect_through(proxy, "localhost", upstream.port, alpn=["h2" if http2 else "http/1.1"])
    if http2:
        with RawHttp2(tunnel, "evil.test") as client:
            assert client.read_head(client.request("GET", "/v1/models", [(b"host", b"evil.test")]))[0] == 200
    else:
        with RawHttp1(tunnel, "evil.test") as client_:
            client_.request("GET", "/v1/models")
            assert client_.read_head().status == 200
    [request] = upstream.requests
    assert (request.header("x-api-key"), request.authority) == (KEY, f"localhost:{upstream.port}")
    assert not any(b"evil" in value for _, value in request.headers)


@VERSIONS
def test_nor_to_one_that_its_greeting_names(start_proxy: StartProxy, make_upstream: MakeUpstream, http2: bool) -> None:
    upstream = make_upstream(handler=answer, names=["localhost", "evil.test"])
    proxy = start_proxy(
        config="providers:\n- {name: anthropic, type: anthropic, hosts: [localhost, evil.test], "
        f"base_url: '{upstream.url}', api_key: {KEY}}}\n"
    )
    alpn = ["h2" if http2 else "http/1.1"]
    tunnel = connect_through(proxy, "localhost", upstream.port, alpn=alpn, server_name="evil.test")
    if http2:
        with RawHttp2(tunnel, "localhost") as client:
            client.read_head(client.request("GET", "/v1/models"))
    else:
        with RawHttp1(tunnel, "localhost") as client_:
            client_.request("GET", "/v1/models")
            client_.read_head()
    [request] = upstream.requests
    assert (request.header("x-api-key"), request.sni) == (KEY, "localhost")


def test_a_redirect_to_another_host_takes_no_central_key_along(
    start: Start, upstream: ScriptedUpstream, make_upstream: MakeUpstream
) -> None:
    elsewhere = make_upstream(handler=answer, authority=None)
    upstream.answer(Answer(307, [("location", f"{elsewhere.url}/v1/models")], framing="length"))
    proxy = start()
    with gateway_client(proxy) as client:
        moved = client.get("/openai/v1/models")
        assert moved.status_code == 307
    with proxy_client(proxy) as client:
        client.get(moved.headers["location"])
    assert upstream.requests[0].header("authorization") == f"Bearer {KEY}"
    assert elsewhere.requests[0].values("authorization") == []


# --- unauthenticated clients --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "exposed", [["--listen-host", "0.0.0.0"], ["--listen-host", ""], ["--mode", "regular@0.0.0.0:0"]]
)
def test_a_central_key_that_unauthenticated_clients_could_use_does_not_start(
    run_to_exit: RunToExit, exposed: list[str]
) -> None:
    config = f"metrics: {{listen: null}}\nproviders: [{{name: anthropic, type: anthropic, api_key: {KEY}}}]\n"
    ended = run_to_exit(config=config, arguments=exposed)
    assert ended.code == 1
    assert "providers[0].api_key: found a central credential that unauthenticated clients could use" in ended.output
    assert KEY not in ended.output and "Traceback" not in ended.output


@pytest.mark.parametrize(
    ("more", "config", "arguments"),
    [
        (", allow_anonymous: true", "", []),
        ("", "actor: {required: true}", []),
        ("", "", ["--proxyauth", "alice:secret"]),
    ],
)
def test_it_starts_where_unauthenticated_clients_are_refused_or_allowed_on_purpose(
    start: Start, more: str, config: str, arguments: list[str]
) -> None:
    proxy = start(f"api_key: {KEY}{more}", config, ["--listen-host", "0.0.0.0", *arguments])
    assert proxy.running


# --- who asks -----------------------------------------------------------------------------------------------------

CLAIMED = [
    ("X-AI-Bridge-Actor-ID", "mallory"),
    ("x-ai-bridge-actor-id", "mallory"),
    ("X-AI-Bridge-Actor-Metadata-Team", "admins"),
    ("x-ai-bridge-actor-metadata-other", "x"),
    ("x-ai-bridge-actor", "x"),
]


@VERSIONS
def test_the_upstream_is_told_who_asks_where_that_is_wanted(
    start: Start, upstream: ScriptedUpstream, http2: bool
) -> None:
    config = "actor: {default: alice, metadata: {Team: core, org_id: org-456}}"
    claimed = [(name.lower() if http2 else name, value) for name, value in CLAIMED]
    with Client(start("send_actor_headers: true", config), ANTHROPIC, http2=http2) as client:
        client.post("/v1/messages", MESSAGES.request, claimed)
        client.ask("GET", "/v1/models", claimed)
    for request in upstream.requests:
        told = sorted(
            (name.lower().decode(), value.decode())
            for name, value in request.headers
            if name.lower().startswith(b"x-ai-bridge")
        )
        assert told == [
            ("x-ai-bridge-actor-id", "alice"),
            ("x-ai-bridge-actor-metadata-org_id", "org-456"),
            ("x-ai-bridge-actor-metadata-team", "core"),
        ]
    assert len(upstream.requests) == 2


@VERSIONS
def test_what_a_client_says_of_an_actor_never_goes_upstream(
    start: Start, upstream: ScriptedUpstream, http2: bool
) -> None:
    claimed = [(name.lower() if http2 else name, value) for name, value in CLAIMED]
    with Client(start("send_actor_headers: false"), ANTHROPIC, http2=http2) as client:
        client.post("/v1/messages", MESSAGES.request, claimed)
        client.ask("GET", "/v1/models", claimed)
    assert len(upstream.requests) == 2
    names = [name.lower() for request in upstream.requests for name, _ in request.headers]
    assert not any(name.startswith(b"x-ai-bridge") for name in names)
