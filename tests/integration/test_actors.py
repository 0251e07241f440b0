"""Who asks: users of `--proxyauth`, a front proxy's header, the default; and that none of it reaches the provider."""

from __future__ import annotations

import base64
import getpass
import hashlib
import json
import socket
import ssl
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.conftest import StartProxy
from tests.support.client import RawHttp1, gateway_client, trust
from tests.support.running import RunningProxy
from tests.support.script import Request
from tests.support.upstream import Answer, ScriptedUpstream

HOST = "api.anthropic.com"
URL = f"https://{HOST}/v1/messages"
GATEWAY = "/anthropic/v1/messages"
CHAT = "/openai/v1/chat/completions"
HEADER = "X-Forwarded-User"
QUESTION = {"model": "m", "max_tokens": 9, "messages": [{"role": "user", "content": "Hello?"}]}
ANSWER = {"id": "msg_1", "type": "message", "model": "m", "content": [], "usage": {"input_tokens": 1}}
CENTRAL_KEY = "type: anthropic, api_key: sk-central-0000000000000001,"
USER, PASSWORD = "ada", "opensesame"


def config(upstream: ScriptedUpstream, actor: str = "{}") -> str:
    return (
        f"actor: {actor}\n"
        "providers:\n"
        f"  - {{name: anthropic, type: anthropic, base_url: '{upstream.url}'}}\n"
        f"  - {{name: openai, type: openai, base_url: '{upstream.url}/v1'}}\n"
    )


def basic(user: str = USER, password: str = PASSWORD) -> str:
    return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()


def proxied(
    process: RunningProxy,
    *,
    user: tuple[str, str] | None = None,
    connect: dict[str, str] | None = None,
    inside: dict[str, str] | None = None,
    http2: bool = False,
) -> httpx.Response:
    """Ask through a tunnel: `connect` goes with the CONNECT request, `inside` with the request in it."""
    proxy = httpx.Proxy(process.proxy_url, auth=user, headers=connect)
    with httpx.Client(proxy=proxy, verify=trust(process), http2=http2, trust_env=False, timeout=10) as client:
        return client.post(URL, json=QUESTION, headers=inside)


def asked(process: RunningProxy, headers: dict[str, str] | None = None, path: str = GATEWAY) -> httpx.Response:
    with gateway_client(process) as client:
        return client.post(path, json=QUESTION, headers=headers)


def connect_refused(process: RunningProxy, headers: dict[str, str] | None = None) -> tuple[dict[str, str], Any]:
    """The head and the JSON body with which a CONNECT is refused."""
    with RawHttp1.connect("127.0.0.1", process.port) as client:
        lines = [f"CONNECT {HOST}:443 HTTP/1.1", f"host: {HOST}:443"]
        lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
        client.send("\r\n".join([*lines, "", ""]).encode())
        head = client.read_head()
        assert head.status == 407, head.raw
        fields = {name.decode().lower(): value.decode() for name, value in head.headers}
        return fields, json.loads(client.read_body())


def initiators(process: RunningProxy) -> list[str]:
    return [row["initiator_id"] for row in process.rows("aibridge_interceptions")]


def assert_nothing_leaked(requests: list[Request], *secrets: str) -> None:
    assert requests
    for request in requests:
        names = {name.decode().lower() for name, _ in request.headers}
        assert not names & {"proxy-authorization", "proxy-connection", HEADER.lower()}
        head = b"\n".join(value for _, value in request.headers).decode("latin-1") + request.target
        assert not [secret for secret in secrets if secret in head]


def assert_asks_for_credentials(refused: httpx.Response, *, anthropic: bool = True) -> None:
    """401, an offer of Basic, and the error in the provider's shape."""
    assert refused.status_code == 401
    assert refused.headers["www-authenticate"].startswith("Basic realm=")
    assert "proxy-authenticate" not in refused.headers
    assert refused.headers["content-type"] == "application/json"
    body = refused.json()
    if anthropic:
        assert body["type"] == "error" and body["error"]["type"] == "authentication_error"
    else:
        assert body["error"].keys() == {"message", "type", "param", "code"}
    assert "<" not in body["error"]["message"]


@pytest.fixture
def answering(upstream: ScriptedUpstream) -> ScriptedUpstream:
    """An upstream that answers every request."""
    upstream.handler = lambda _: Answer.json(ANSWER)
    return upstream


@pytest.fixture(params=["any", "user and password", "htpasswd"])
def proxyauth(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Each form of mitmproxy's option that takes no further server."""
    if request.param == "any":
        return "any"
    if request.param == "user and password":
        return f"{USER}:{PASSWORD}"
    file = tmp_path / "htpasswd"
    digest = base64.b64encode(hashlib.sha1(PASSWORD.encode()).digest()).decode()
    file.write_text(f"grace:{{SHA}}AAAA\n{USER}:{{SHA}}{digest}\n")
    return f"@{file}"


# --- mitmproxy's proxyauth


def test_a_user_is_let_in_by_every_way_and_recorded(
    start_proxy: StartProxy, answering: ScriptedUpstream, proxyauth: str
) -> None:
    process = start_proxy(config=config(answering), options=[f"proxyauth={proxyauth}"])
    both = {"Proxy-Authorization": basic(), "Authorization": "Bearer sk-provider"}
    answers = [
        proxied(process, user=(USER, PASSWORD)),
        proxied(process, user=(USER, PASSWORD), http2=True),
        asked(process, {"Authorization": basic(), "x-api-key": "sk-provider"}),
        asked(process, both),
        asked(process, both, path=CHAT),
        asked(process, {"Authorization": basic()}, path="/api/v2/aibridge" + GATEWAY),
    ]
    assert [answer.status_code for answer in answers] == [200] * 6
    assert initiators(process) == [USER] * 6
    assert_nothing_leaked(answering.requests, basic(), PASSWORD)
    keys = [(request.header("x-api-key"), request.header("authorization")) for request in answering.requests]
    bearer = (None, "Bearer sk-provider")
    assert keys == [(None, None), (None, None), ("sk-provider", None), bearer, bearer, (None, None)]


def test_nobody_is_let_in_without_credentials(
    start_proxy: StartProxy, upstream: ScriptedUpstream, proxyauth: str
) -> None:
    process = start_proxy(config=config(upstream), options=[f"proxyauth={proxyauth}"])
    wrong = [] if proxyauth == "any" else [basic(password="wrong"), basic("grace"), basic("", "")]
    for credential in [None, "Bearer sk-provider", "Basic nonsense", *wrong]:
        head, body = connect_refused(process, {"Proxy-Authorization": credential} if credential else {})
        assert head["proxy-authenticate"].startswith("Basic realm=")
        assert head["content-type"] == "application/json"
        assert body["error"]["message"]
        for name in ("Authorization", "Proxy-Authorization"):
            headers = {name: credential} if credential else {}
            assert_asks_for_credentials(asked(process, headers))
            assert_asks_for_credentials(asked(process, headers, path=CHAT), anthropic=False)
            nowhere = asked(process, headers, path="/nobody/v1/messages")
            assert (nowhere.status_code, nowhere.json().keys()) == (401, {"error"})
    assert upstream.requests == []
    assert process.rows("aibridge_interceptions") == []


def test_an_sdk_that_is_refused_by_the_proxy_can_tell_why(start_proxy: StartProxy, upstream: ScriptedUpstream) -> None:
    process = start_proxy(config=config(upstream), options=["proxyauth=any"])
    with pytest.raises(httpx.ProxyError, match="407"):
        proxied(process)


def test_credentials_inside_the_tunnel_are_neither_needed_nor_passed_on(
    start_proxy: StartProxy, answering: ScriptedUpstream
) -> None:
    process = start_proxy(config=config(answering), options=["proxyauth=any"])
    inside = {"Proxy-Authorization": basic("eve"), "Proxy-Connection": "keep-alive", "x-api-key": "sk-provider"}
    assert proxied(process, user=(USER, PASSWORD), inside=inside).status_code == 200
    assert initiators(process) == [USER]
    assert_nothing_leaked(answering.requests, basic("eve"), basic())
    assert answering.requests[0].header("x-api-key") == "sk-provider"


def test_without_proxyauth_a_basic_credential_is_the_providers(
    start_proxy: StartProxy, answering: ScriptedUpstream
) -> None:
    process = start_proxy(config=config(answering, "{default: team}"))
    assert asked(process, {"Authorization": basic()}).status_code == 200
    assert answering.requests[0].header("authorization") == basic()
    assert initiators(process) == ["team"]


def test_in_reverse_mode_users_authenticate_as_to_a_server(
    start_proxy: StartProxy, answering: ScriptedUpstream
) -> None:
    providers = f"providers: [{{name: anthropic, type: anthropic, hosts: [localhost], base_url: '{answering.url}'}}]\n"
    process = start_proxy(config=providers, mode=[f"reverse:{answering.url}"], options=[f"proxyauth={USER}:{PASSWORD}"])
    assert_asks_for_credentials(asked(process, {"x-api-key": "sk-provider"}, path="/v1/messages"))
    headers = {"Authorization": basic(), "x-api-key": "sk-provider"}
    assert asked(process, headers, path="/v1/messages").status_code == 200
    assert initiators(process) == [USER]
    assert_nothing_leaked(answering.requests, basic())
    assert answering.requests[0].header("x-api-key") == "sk-provider"


def test_a_reverse_proxied_stranger_is_asked_for_as_by_a_server_too(
    start_proxy: StartProxy, answering: ScriptedUpstream
) -> None:
    process = start_proxy(config="", mode=[f"reverse:{answering.url}"], options=["proxyauth=any"])
    refused = asked(process, path="/")
    assert (refused.status_code, refused.json().keys()) == (401, {"error"})
    assert refused.headers["www-authenticate"].startswith("Basic realm=")
    assert asked(process, {"Authorization": basic()}, path="/").status_code == 200


# --- the header of a front proxy


@pytest.mark.parametrize(("source", "trusted"), [("127.0.0.1/32", True), ("10.0.0.0/8", False)])
def test_the_header_is_believed_from_trusted_sources_only(
    start_proxy: StartProxy, answering: ScriptedUpstream, source: str, trusted: bool
) -> None:
    actor = f"{{header: {HEADER}, trusted_sources: [{source}], default: team}}"
    process = start_proxy(config=config(answering, actor))
    told = {HEADER: USER}
    assert asked(process, told).status_code == 200
    assert asked(process, {HEADER.upper(): USER}).status_code == 200
    assert proxied(process, connect=told).status_code == 200
    assert proxied(process, connect=told, http2=True).status_code == 200
    assert initiators(process) == [USER if trusted else "team"] * 4
    assert_nothing_leaked(answering.requests, USER)


@pytest.mark.parametrize("http2", [False, True])
def test_a_header_inside_the_tunnel_is_not_believed(
    start_proxy: StartProxy, answering: ScriptedUpstream, http2: bool
) -> None:
    process = start_proxy(config=config(answering, f"{{header: {HEADER}, default: team}}"))
    assert proxied(process, inside={HEADER: "eve"}, http2=http2).status_code == 200
    assert proxied(process, connect={HEADER: USER}, inside={HEADER: "eve"}, http2=http2).status_code == 200
    assert initiators(process) == ["team", USER]
    assert_nothing_leaked(answering.requests, "eve", USER)


def test_passthrough_requests_carry_no_actor_upstream_either(
    start_proxy: StartProxy, answering: ScriptedUpstream
) -> None:
    process = start_proxy(config=config(answering, f"{{header: {HEADER}}}"), options=["proxyauth=any"])
    with gateway_client(process, "/anthropic") as client:
        told = {HEADER: "eve", "Proxy-Authorization": basic(), "x-api-key": "sk-provider"}
        assert client.get("/v1/models", headers=told).status_code == 200
    assert_nothing_leaked(answering.requests, "eve", basic())
    assert answering.requests[0].header("x-api-key") == "sk-provider"


def test_a_user_who_authenticated_wins_over_the_header(start_proxy: StartProxy, answering: ScriptedUpstream) -> None:
    process = start_proxy(config=config(answering, f"{{header: {HEADER}}}"), options=["proxyauth=any"])
    assert asked(process, {HEADER: "eve", "Authorization": basic()}).status_code == 200
    assert proxied(process, user=(USER, PASSWORD), connect={HEADER: "eve"}).status_code == 200
    assert initiators(process) == [USER, USER]
    assert_nothing_leaked(answering.requests, "eve", basic())


def test_an_empty_header_names_nobody(start_proxy: StartProxy, answering: ScriptedUpstream) -> None:
    process = start_proxy(config=config(answering, f"{{header: {HEADER}, default: team}}"))
    assert asked(process, {HEADER: ""}).status_code == 200
    assert initiators(process) == ["team"]
    assert_nothing_leaked(answering.requests)


# --- an actor is required, or stood in for


def test_a_required_actor_is_asked_for(start_proxy: StartProxy, answering: ScriptedUpstream) -> None:
    process = start_proxy(config=config(answering, f"{{required: true, header: {HEADER}}}"))
    head, body = connect_refused(process)
    assert head["proxy-authenticate"].startswith("Basic realm=")
    assert body["error"]["message"]
    assert_asks_for_credentials(asked(process))
    assert_asks_for_credentials(asked(process, path=CHAT), anthropic=False)
    assert answering.requests == []
    assert asked(process, {HEADER: USER}).status_code == 200
    assert proxied(process, connect={HEADER: USER}).status_code == 200
    assert initiators(process) == [USER, USER]


def test_a_header_from_a_stranger_does_not_fulfil_the_requirement(
    start_proxy: StartProxy, upstream: ScriptedUpstream
) -> None:
    actor = f"{{required: true, header: {HEADER}, trusted_sources: [10.0.0.0/8]}}"
    process = start_proxy(config=config(upstream, actor))
    connect_refused(process, {HEADER: USER})
    assert_asks_for_credentials(asked(process, {HEADER: USER}))
    assert upstream.requests == []
    assert process.rows("aibridge_interceptions") == []


TRUSTED, OTHERS = "[127.0.0.1/32]", "[10.0.0.0/8]"
MISSING = f"the header {HEADER}, which names the actor, is missing"
EMPTY = f"the header {HEADER}, which names the actor, is empty"


@pytest.mark.parametrize(
    ("sources", "given", "reason", "step"),
    [
        (TRUSTED, None, MISSING, "the front proxy has to set it"),
        (TRUSTED, "", EMPTY, "the front proxy has to set it"),
        (OTHERS, None, MISSING, "the front proxy has to set it"),
        (OTHERS, USER, "it comes from 127.0.0.1", "add the front proxy's address to actor.trusted_sources"),
    ],
)
def test_a_front_proxys_header_that_names_no_actor_is_explained(
    start_proxy: StartProxy, upstream: ScriptedUpstream, sources: str, given: str | None, reason: str, step: str
) -> None:
    actor = f"{{required: true, header: {HEADER}, trusted_sources: {sources}}}"
    process = start_proxy(config=config(upstream, actor))
    headers = {} if given is None else {HEADER: given}
    _, body = connect_refused(process, headers)
    message = body["error"]["message"]
    assert "on the CONNECT request" in message
    for text in (message, asked(process, headers).json()["error"]["message"]):
        assert reason in text.replace(" on the CONNECT request", "") and step in text and HEADER in text
        assert "password" not in text


def test_inside_a_tunnel_the_header_of_the_connect_request_is_explained(
    start_proxy: StartProxy, upstream: ScriptedUpstream
) -> None:
    central = config(upstream, f"{{required: true, header: {HEADER}}}").replace("type: anthropic,", CENTRAL_KEY)
    process = start_proxy(config=central)
    refused = proxied(process, inside={HEADER: USER})
    assert refused.status_code == 401
    assert f"{MISSING} on the CONNECT request" in refused.json()["error"]["message"]


def test_without_a_header_and_passwords_only_a_token_is_asked_for(
    start_proxy: StartProxy, upstream: ScriptedUpstream
) -> None:
    process = start_proxy(config=config(upstream, "{required: true}"))
    for text in (connect_refused(process)[1]["error"]["message"], asked(process).json()["error"]["message"]):
        assert "a token is missing" in text and "password" not in text


def test_a_header_from_elsewhere_is_logged_once_a_minute(start_proxy: StartProxy, answering: ScriptedUpstream) -> None:
    actor = f"{{default: team, header: {HEADER}, trusted_sources: {OTHERS}}}"
    process = start_proxy(config=config(answering, actor))
    for _ in range(3):
        assert asked(process, {HEADER: USER}).status_code == 200
    line = f"the header {HEADER} is ignored, because it comes from 127.0.0.1"
    assert process.log.count(line) == 1


PLAIN, TUNNEL = "http", "https"


@pytest.mark.parametrize("scheme", [PLAIN, TUNNEL])
@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_hosts_of_no_provider_need_an_actor_too(
    start_proxy: StartProxy, answering: ScriptedUpstream, scheme: str, host: str
) -> None:
    process = start_proxy(config=config(answering, "{required: true}"))
    with httpx.Client(proxy=process.proxy_url, verify=False, trust_env=False) as client:
        url = f"{scheme}://{host}:{answering.port}/"
        if scheme == TUNNEL:
            with pytest.raises(httpx.ProxyError, match="407"):
                client.get(url)
        else:
            refused = client.get(url)
            assert refused.status_code == 407
            assert "a token is missing" in refused.json()["error"]["message"]
            assert refused.headers["proxy-authenticate"].startswith("Basic")
    assert not answering.requests


@pytest.mark.parametrize("name", [{HEADER: USER}, {}], ids=["named", "unnamed"])
def test_a_front_proxy_names_the_actor_for_hosts_of_no_provider(
    start_proxy: StartProxy, answering: ScriptedUpstream, name: dict[str, str]
) -> None:
    process = start_proxy(config=config(answering, f"{{required: true, header: {HEADER}}}"))
    proxy = httpx.Proxy(process.proxy_url, headers=name)
    # Tunnelled, not decrypted: the client sees the upstream's own certificate.
    with httpx.Client(proxy=proxy, verify=False, trust_env=False) as client:
        if name:
            assert client.get(f"https://localhost:{answering.port}/").status_code == 200
        else:
            with pytest.raises(httpx.ProxyError, match="407"):
                client.get(f"https://localhost:{answering.port}/")


def test_a_tunnel_to_a_provider_with_a_central_key_connects_to_nothing_without_an_actor(
    start_proxy: StartProxy, upstream: ScriptedUpstream
) -> None:
    central = config(upstream, "{required: true}").replace("type: anthropic,", CENTRAL_KEY)
    process = start_proxy(config=central)
    with socket.create_connection(("127.0.0.1", process.port), 10) as connection:
        connection.sendall(f"CONNECT {HOST}:443 HTTP/1.1\r\n\r\n".encode())
        assert b" 200 " in connection.recv(4096)
        connection.sendall(b"\x00SSH-2.0-client\r\n")
        assert HOST.encode() not in connection.recv(4096)
    assert not upstream.requests


@pytest.mark.parametrize(("actor", "is_refused"), [("{required: true}", True), ("{default: team}", False)])
def test_socks_connects_to_nothing_without_an_actor(
    start_proxy: StartProxy, answering: ScriptedUpstream, actor: str, is_refused: bool
) -> None:
    process = start_proxy(config=config(answering, actor), options=["mode=socks5"])
    greeting, connect = b"\x05\x01\x00", b"\x05\x01\x00\x01\x7f\x00\x00\x01" + answering.port.to_bytes(2)
    with socket.create_connection(("127.0.0.1", process.port), 10) as connection:
        connection.sendall(greeting)
        assert connection.recv(2) == b"\x05\x00"
        connection.sendall(connect)
        assert connection.recv(10)[:2] == b"\x05\x00"
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        if is_refused:
            with pytest.raises((ssl.SSLError, OSError)):
                context.wrap_socket(connection)
            process.wait_for_log("actor.required: this client has named no actor")
        else:
            context.wrap_socket(connection).close()


def test_the_default_actor_fulfils_the_requirement(start_proxy: StartProxy, answering: ScriptedUpstream) -> None:
    process = start_proxy(config=config(answering, "{required: true, default: team}"))
    assert asked(process).status_code == 200
    assert proxied(process).status_code == 200
    assert initiators(process) == ["team", "team"]


def test_the_operating_systems_user_stands_in(start_proxy: StartProxy, answering: ScriptedUpstream) -> None:
    named = start_proxy(config=config(answering), env={"LOGNAME": "grace"})
    assert asked(named).status_code == 200
    assert proxied(named).status_code == 200
    assert initiators(named) == ["grace", "grace"]
    named.close()
    unnamed = start_proxy(config=config(answering))
    assert asked(unnamed).status_code == 200
    assert initiators(unnamed) == [pwd_name()]


def pwd_name() -> str:
    """This process's user without the environment's word on it."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("LOGNAME", "USER", "LNAME", "USERNAME"):
            patch.delenv(name, raising=False)
        return getpass.getuser()


def test_a_long_name_is_cut(start_proxy: StartProxy, answering: ScriptedUpstream) -> None:
    process = start_proxy(config=config(answering, f"{{header: {HEADER}}}"))
    assert asked(process, {HEADER: "a" * 1000}).status_code == 200
    assert initiators(process) == ["a" * 256]
