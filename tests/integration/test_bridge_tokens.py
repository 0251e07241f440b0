"""Tokens of the bridge through real proxies: every way to give one, every dialect, both databases, and no leak."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable, Iterator
from datetime import timedelta
from typing import Any

import anthropic
import httpx
import openai
import pytest
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from aibridge_addon.recording import tokens as recording_tokens
from aibridge_addon.records import utc_now
from tests.conftest import MakeUpstream, StartProxy
from tests.integration.sockets import Provider, served
from tests.support import fixtures, frames
from tests.support.client import RawHttp1, gateway_client, trust
from tests.support.databases import Database, PostgresDatabase, SqliteDatabase
from tests.support.in_process import InProcessProxy
from tests.support.polling import poll_until
from tests.support.script import Request
from tests.support.tokens import Made, made_in, revoke, unknown_token
from tests.support.upstream import Answer, ScriptedUpstream

CENTRAL = "sk-central-0123456789abcdef"
OWN = "sk-own-0123456789abcdef"
QUESTION = {"model": "m", "max_tokens": 9, "messages": [{"role": "user", "content": "Hello?"}]}
INPUT = {"model": "m", "input": "Hello?"}
ANSWER = {"id": "msg_1", "type": "message", "model": "m", "content": [], "usage": {"input_tokens": 1}}
ROUTES = {
    "messages": ("/anthropic/v1/messages", QUESTION),
    "chat_completions": ("/openai/v1/chat/completions", QUESTION),
    "responses": ("/openai/v1/responses", INPUT),
    "azure": ("/azure/openai/v1/chat/completions", QUESTION),
    "azure messages": ("/azure/anthropic/v1/messages", QUESTION),
    "bedrock": ("/bedrock/model/m/converse", {"messages": []}),
    "passthrough": ("/anthropic/v1/messages/count_tokens", QUESTION),
}
"""A path of the gateway and a body for each dialect."""
KEY_HEADERS = {"x-api-key": "{}", "authorization": "Bearer {}", "api-key": "{}"}


@pytest.fixture(autouse=True)
def no_proxy(no_proxy_of_our_own: None) -> None:
    """Clients go where the test says."""


@pytest.fixture
def upstream(make_upstream: MakeUpstream) -> ScriptedUpstream:
    upstream = make_upstream()
    upstream.handler = lambda _: Answer.json(ANSWER)
    return upstream


def config(upstream: ScriptedUpstream, database: Database, more: str = "", *, key: str | None = CENTRAL) -> str:
    central = "" if key is None else f", api_key: {key}"
    names = {"anthropic": "", "openai": "/v1", "azure": "", "bedrock": ""}
    providers = [
        f"  - {{name: {name}, type: {name}, base_url: '{upstream.url}{path}'{central}}}\n"
        for name, path in names.items()
    ]
    return f"database: {database.url}\n{more}\nproviders:\n{''.join(providers)}"


def basic(user: str, password: str) -> str:
    return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()


def forms(token: str) -> list[str]:
    """Return the forms that a token may have in what is written or sent."""
    encoded = [base64.b64encode(text.encode()).decode()[:40] for text in (f"{token}:", f"alice:{token}")]
    return [token, *encoded]


def texts_of(requests: Iterable[Request]) -> str:
    return "\n".join(repr((request.target, request.headers, request.body)) for request in requests)


def everything_in(database: Database) -> str:
    if isinstance(database, PostgresDatabase):
        tables = database.query("select table_name as name from information_schema.tables where table_schema='public'")
    else:
        tables = database.query("select name from sqlite_master where type = 'table'")
    return repr([database.query(f"select * from {table['name']}") for table in tables])


def assert_not_leaked(made: Made, process: InProcessProxy, upstream: ScriptedUpstream, database: Database) -> None:
    """Nothing that is stored, logged, dumped or sent upstream has the token."""
    dumped = [path.read_text("latin-1") for path in process.folder.rglob("dumps/**/*") if path.is_file()]
    flows = [path.read_bytes().decode("latin-1") for path in process.folder.rglob("*.flows")]
    places = {
        "upstream": texts_of(upstream.requests),
        "log": process.log,
        "database": everything_in(database),
        "dumps": "".join(dumped),
        "flows": "".join(flows),
    }
    leaks = [place for place, text in places.items() for form in forms(made.token) if form in text]
    assert leaks == []


def initiators(database: Database) -> list[str]:
    return [row["initiator_id"] for row in database.rows("aibridge_interceptions")]


def keys_of(request: Request) -> set[str]:
    """Return all credentials that a request has."""
    names = ("authorization", "x-api-key", "api-key", "proxy-authorization")
    return {value.removeprefix("Bearer ") for name in names if (value := request.header(name)) is not None}


def ask(process: InProcessProxy, headers: dict[str, str], route: str = "messages") -> httpx.Response:
    path, body = ROUTES[route]
    with gateway_client(process) as client:
        return client.post(path, json=body, headers=headers)


def proxied(
    process: InProcessProxy, *, user: tuple[str, str] | None = None, headers: dict[str, str] | None = None
) -> httpx.Response:
    proxy = httpx.Proxy(process.proxy_url, auth=user)
    with httpx.Client(proxy=proxy, verify=trust(process), trust_env=False, timeout=20) as client:
        return client.post("https://api.anthropic.com/v1/messages", json=QUESTION, headers=headers)


def message_of(answer: httpx.Response, route: str) -> str:
    """Return the message of an error, which has the shape of the route's provider."""
    body = answer.json()
    if route == "bedrock":
        message = body["message"]
    elif "messages" in route or route == "passthrough":
        assert body["type"] == "error"
        message = body["error"]["message"]
    else:
        assert body["error"].keys() == {"message", "type", "param", "code"}
        message = body["error"]["message"]
    assert isinstance(message, str)
    return message


# --- every way to give a token


def test_a_token_in_place_of_a_key_names_its_owner_in_every_dialect(
    start_proxy: StartProxy, upstream: ScriptedUpstream, database: Database
) -> None:
    made = made_in(database, "alice")
    more = "dump_dir: dumps\nactor: {required: true}"
    process = start_proxy(config=config(upstream, database, more), options=["save_stream_file=all.flows"])
    asked = 0
    for route in ROUTES:
        for header, form in KEY_HEADERS.items():
            answer = ask(process, {header: form.format(made.token)}, route)
            assert answer.status_code == 200, (route, header, answer.text)
            asked += 1
    userinfo = process.proxy_url.replace("http://", f"http://{made.token}@")
    for base in (userinfo, userinfo.replace("@", ":@"), userinfo.replace(made.token, f"any:{made.token}")):
        assert httpx.post(f"{base}/anthropic/v1/messages", json=QUESTION).status_code == 200
        asked += 1
    assert [keys_of(request) for request in upstream.requests] == [{CENTRAL}] * asked
    rows = database.rows("aibridge_interceptions")
    assert {(row["initiator_id"], row["credential_kind"]) for row in rows} == {("alice", "centralized")}
    assert len(rows) == asked - len(KEY_HEADERS)
    process.close()
    assert_not_leaked(made, process, upstream, database)


@pytest.mark.parametrize("proxyauth", [None, "any", "ada:opensesame"])
def test_a_token_is_the_password_of_a_proxy(
    start_proxy: StartProxy, upstream: ScriptedUpstream, database: Database, proxyauth: str | None
) -> None:
    made = made_in(database, "alice")
    options = ["save_stream_file=all.flows", *([f"proxyauth={proxyauth}"] if proxyauth else [])]
    process = start_proxy(config=config(upstream, database, "actor: {required: true}"), options=options)
    assert proxied(process, user=("any", made.token)).status_code == 200
    assert proxied(process, user=(made.token, "")).status_code == 200
    assert ask(process, {"proxy-authorization": basic("any", made.token)}).status_code == 200
    own = proxied(process, user=("any", made.token), headers={"x-api-key": OWN})
    assert own.status_code == 200
    assert [keys_of(request) for request in upstream.requests] == [{CENTRAL}] * 3 + [{OWN}]
    assert initiators(database) == ["alice"] * 4
    if proxyauth:
        assert ask(process, {"x-api-key": made.token}).status_code == 200
        assert proxied(process, user=("ada", "opensesame"), headers={"x-api-key": made.token}).status_code == 200
        assert initiators(database) == ["alice"] * 6
    process.close()
    assert_not_leaked(made, process, upstream, database)


@pytest.mark.parametrize("form", KEY_HEADERS.items(), ids=lambda form: form[0])
def test_a_token_in_place_of_a_key_is_enough_inside_a_tunnel(
    start_proxy: StartProxy, upstream: ScriptedUpstream, database: Database, form: tuple[str, str]
) -> None:
    made = made_in(database, "alice")
    process = start_proxy(config=config(upstream, database, "actor: {required: true}"))
    name, value = form
    assert proxied(process, headers={name: value.format(made.token)}).status_code == 200
    assert [keys_of(request) for request in upstream.requests] == [{CENTRAL}]
    assert initiators(database) == ["alice"]
    process.close()
    assert_not_leaked(made, process, upstream, database)


@pytest.mark.parametrize(
    "headers",
    [{}, {"x-api-key": OWN}, {"x-api-key": unknown_token()}, {"x-other": "{}"}, {"x-user": "root"}],
    ids=["nothing", "a key of its own", "an unknown token", "a token in another header", "a trusted header"],
)
def test_a_tunnel_that_was_opened_for_a_token_gives_access_to_nothing_without_one(
    start_proxy: StartProxy, upstream: ScriptedUpstream, database: Database, headers: dict[str, str]
) -> None:
    made = made_in(database, "alice")
    process = start_proxy(config=config(upstream, database, "actor: {required: true, header: X-User}"))
    given = {name: value.format(made.token) for name, value in headers.items()}
    refused = proxied(process, headers=given)
    assert refused.status_code == 401
    assert refused.json()["error"]["type"] == "authentication_error"
    assert "token" in refused.json()["error"]["message"]
    assert upstream.requests == []
    assert initiators(database) == []


@pytest.mark.parametrize(("proxyauth", "key"), [("ada:opensesame", CENTRAL), (None, None)])
def test_a_tunnel_is_refused_where_no_token_inside_could_help(
    start_proxy: StartProxy, upstream: ScriptedUpstream, database: Database, proxyauth: str | None, key: str | None
) -> None:
    made = made_in(database, "alice")
    options = [f"proxyauth={proxyauth}"] if proxyauth else []
    process = start_proxy(config=config(upstream, database, "actor: {required: true}", key=key), options=options)
    with pytest.raises(httpx.ProxyError, match="407"):
        proxied(process, headers={"x-api-key": made.token})
    assert upstream.requests == []


def test_a_token_counts_before_every_other_name(
    start_proxy: StartProxy, upstream: ScriptedUpstream, database: Database
) -> None:
    made, other = made_in(database, "alice"), made_in(database, "bob")
    actor = "actor: {header: X-User, default: team}"
    process = start_proxy(config=config(upstream, database, actor), options=["proxyauth=any"])
    headers = {"x-api-key": made.token, "x-user": "eve", "proxy-authorization": basic("ada", "x")}
    assert ask(process, headers).status_code == 200
    assert proxied(process, user=("any", other.token), headers={"x-api-key": made.token}).status_code == 200
    assert ask(process, {"x-user": "eve", "proxy-authorization": basic("ada", "x")}).status_code == 200
    assert initiators(database) == ["alice", "alice", "ada"]


def test_a_token_in_another_header_is_removed(
    start_proxy: StartProxy, upstream: ScriptedUpstream, database: Database
) -> None:
    made = made_in(database)
    process = start_proxy(config=config(upstream, database, "actor: {default: team}"))
    others = {"cookie": f"k={made.token}", "x-custom": made.token, "user-agent": f"c/{made.token}", "x-kept": "1"}
    assert ask(process, {"x-api-key": OWN, **others}).status_code == 200
    [request] = upstream.requests
    assert (keys_of(request), request.header("x-kept")) == ({OWN}, "1")
    assert initiators(database) == ["team"]
    process.close()
    assert_not_leaked(made, process, upstream, database)


@pytest.mark.parametrize("where", ["/v1/messages?key={}", "/v1/models/{}", "/v1/messages?a=%61ib_{}"])
def test_a_token_in_a_url_is_refused(
    start_proxy: StartProxy, upstream: ScriptedUpstream, tmp_path_factory: pytest.TempPathFactory, where: str
) -> None:
    database = SqliteDatabase(tmp_path_factory.mktemp("rows") / "rows.db")
    made = made_in(database)
    process = start_proxy(config=config(upstream, database), options=["save_stream_file=all.flows"])
    path = "/anthropic" + where.format(made.token.removeprefix("aib_") if "%61" in where else made.token)
    with gateway_client(process) as client:
        answer = client.post(path, json=QUESTION, headers={"x-api-key": made.token})
    assert answer.status_code == 400 and "URL" in message_of(answer, "messages")
    assert upstream.requests == []
    process.close()
    assert_not_leaked(made, process, upstream, database)
    assert made.token[4:] not in process.log


def test_a_token_does_not_reach_a_host_of_no_provider(
    start_proxy: StartProxy, make_upstream: MakeUpstream, upstream: ScriptedUpstream, database: Database
) -> None:
    made = made_in(database)
    plain = make_upstream(authority=None)
    plain.handler = lambda _: Answer.json({})
    url = plain.url.replace("localhost", "127.0.0.1")  # `localhost` is the providers' host
    process = start_proxy(config=config(upstream, database, "egress: {guard: off}"))
    for user in (None, ("any", made.token)):
        proxy = httpx.Proxy(process.proxy_url, auth=user)
        with httpx.Client(proxy=proxy, trust_env=False) as client:
            answer = client.get(url, headers={"authorization": f"Bearer {made.token}"})
            assert answer.status_code == 200
    refused = httpx.get(url, proxy=httpx.Proxy(process.proxy_url, auth=("any", unknown_token())))
    assert (refused.status_code, refused.json().keys()) == (407, {"error"})
    assert len(plain.requests) == 2
    assert_not_leaked(made, process, plain, database)


@pytest.mark.parametrize("token", ["aib_nonsense", unknown_token()])
def test_a_token_that_is_not_checked_opens_nothing(
    start_proxy: StartProxy, make_upstream: MakeUpstream, token: str
) -> None:
    plain = make_upstream(authority=None)
    process = start_proxy(config="egress: {guard: off}", options=["proxyauth=ada:opensesame"])
    headers = {"x-api-key": token, "authorization": f"Bearer {token}"}
    assert httpx.get(plain.url, proxy=process.proxy_url, headers=headers).status_code == 407
    assert httpx.get(f"{plain.url}/?k={unknown_token()}", proxy=process.proxy_url).status_code == 400
    assert plain.requests == []


# --- tokens that do not count


@pytest.mark.parametrize("kind", ["unknown", "malformed", "expired", "revoked"])
def test_a_token_that_does_not_count_is_refused_in_the_providers_shape(
    start_proxy: StartProxy, upstream: ScriptedUpstream, database: Database, kind: str
) -> None:
    made = made_in(database, expires_at=utc_now() - timedelta(seconds=1) if kind == "expired" else None)
    if kind == "revoked":
        revoke(database, made)
    token = {"unknown": unknown_token(), "malformed": "aib_nonsense"}.get(kind, made.token)
    process = start_proxy(config=config(upstream, database))
    for route in ROUTES:
        for header, form in KEY_HEADERS.items():
            answer = ask(process, {header: form.format(token)}, route)
            assert answer.status_code == 401, (route, header)
            assert answer.headers["www-authenticate"].startswith("Basic realm=")
            expected = "unknown" if kind == "malformed" else kind
            assert expected in message_of(answer, route)
    with pytest.raises(httpx.ProxyError, match="407"):
        proxied(process, user=("any", token))
    assert proxied(process, headers={"x-api-key": token}).status_code == 401
    assert ask(process, {"proxy-authorization": basic("any", token)}).status_code == 401
    assert upstream.requests == [] and initiators(database) == []
    process.close()
    assert_not_leaked(Made(token, ""), process, upstream, database)


def test_a_token_for_a_provider_without_a_central_key_is_refused(
    start_proxy: StartProxy, upstream: ScriptedUpstream, database: Database
) -> None:
    made = made_in(database)
    process = start_proxy(config=config(upstream, database, key=None))
    for route in ROUTES:
        answer = ask(process, {"authorization": f"Bearer {made.token}"}, route)
        assert answer.status_code == 403, route
        assert "no central key" in message_of(answer, route)
    assert proxied(process, user=("any", made.token)).status_code == 403
    assert proxied(process, headers={"x-api-key": made.token}).status_code == 403
    assert upstream.requests == []
    # As a proxy's password, it leaves the client's own key alone, and requests that need none.
    assert proxied(process, user=("any", made.token), headers={"x-api-key": OWN}).status_code == 200
    assert keys_of(upstream.requests[0]) == {OWN}


def test_a_revoked_token_is_refused_within_seconds_also_in_a_tunnel(
    start_proxy: StartProxy, upstream: ScriptedUpstream, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recording_tokens, "FRESH", 0.2)
    made = made_in(database)
    process = start_proxy(config=config(upstream, database))
    proxy = httpx.Proxy(process.proxy_url, auth=("any", made.token))
    with httpx.Client(proxy=proxy, verify=trust(process), trust_env=False, timeout=20) as tunnel:

        def status() -> int:
            return tunnel.post("https://api.anthropic.com/v1/messages", json=QUESTION).status_code

        assert status() == 200
        revoke(database, made)
        poll_until(lambda: status() == 407, what="the refusal in the tunnel")
    poll_until(lambda: ask(process, {"x-api-key": made.token}).status_code == 401, what="the refusal of the key")


def test_while_the_database_is_away_known_tokens_count_and_others_do_not(
    start_proxy: StartProxy, upstream: ScriptedUpstream, postgres: PostgresDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recording_tokens, "FRESH", 0.0)
    made, unused = made_in(postgres), made_in(postgres)
    process = start_proxy(config=config(upstream, postgres))
    assert ask(process, {"x-api-key": made.token}).status_code == 200
    postgres.server.stop()
    try:
        assert ask(process, {"x-api-key": made.token}).status_code == 200
        refused = ask(process, {"x-api-key": unused.token})
        assert (refused.status_code, refused.headers["retry-after"]) == (503, "5")
        assert "cannot be checked" in message_of(refused, "messages")
    finally:
        postgres.server.start()
    assert len(upstream.requests) == 2


def test_a_token_is_no_central_key_for_unknown_routes(
    start_proxy: StartProxy, upstream: ScriptedUpstream, database: Database
) -> None:
    made = made_in(database)
    process = start_proxy(config=config(upstream, database))
    with gateway_client(process) as client:
        headers = {"x-api-key": made.token}
        assert client.get("/anthropic/v1/organizations", headers=headers).status_code == 404
    proxy = httpx.Proxy(process.proxy_url)
    with httpx.Client(proxy=proxy, verify=trust(process), trust_env=False) as client:
        assert client.get("https://api.anthropic.com/v1/organizations", headers=headers).status_code == 403
    assert upstream.requests == []


def test_a_repeated_header_leaves_no_token_behind(
    start_proxy: StartProxy, upstream: ScriptedUpstream, database: Database
) -> None:
    made = made_in(database)
    process = start_proxy(config=config(upstream, database))
    body = json.dumps(QUESTION).encode()
    with RawHttp1.connect("127.0.0.1", process.port) as client:
        headers = [("x-api-key", made.token), ("X-API-Key", made.token), ("authorization", f"bearer {made.token}")]
        client.request("POST", "/anthropic/v1/messages", headers, body)
        assert client.read_head().status == 200
        client.read_body()
    assert [keys_of(request) for request in upstream.requests] == [{CENTRAL}]
    assert_not_leaked(made, process, upstream, database)


def test_a_token_that_a_person_pastes_into_a_prompt_is_not_stored(
    start_proxy: StartProxy, upstream: ScriptedUpstream, database: Database
) -> None:
    made = made_in(database)
    process = start_proxy(config=config(upstream, database, "dump_dir: dumps"))
    body = QUESTION | {"messages": [{"role": "user", "content": f"Is {made.token} right?"}]}
    with gateway_client(process) as client:
        assert client.post("/anthropic/v1/messages", json=body, headers={"x-api-key": made.token}).status_code == 200
    process.close()
    assert made.token not in everything_in(database) + process.log
    assert not [
        path for path in process.folder.rglob("dumps/**/*") if path.is_file() and made.token in path.read_text()
    ]


def test_its_groups_and_its_last_use_are_known(
    start_proxy: StartProxy, upstream: ScriptedUpstream, database: Database
) -> None:
    made = made_in(database, groups=["team"])
    process = start_proxy(config=config(upstream, database))
    assert ask(process, {"x-api-key": made.token}).status_code == 200
    poll_until(
        lambda: database.query("select last_used_at from aibridge_tokens")[0]["last_used_at"] is not None,
        what="the last use",
    )


def test_budgets_of_its_groups_count_what_was_spent_before_a_restart(
    start_proxy: StartProxy, upstream: ScriptedUpstream, database: Database
) -> None:
    made = made_in(database, groups=["team"])
    budget = "budgets: [{name: team, per: group, period: month, requests: 1}]"
    for expected in (200, 403):
        process = start_proxy(config=config(upstream, database, budget))
        assert ask(process, {"x-api-key": made.token}).status_code == expected
        assert ask(process, {"x-api-key": made.token}).status_code == 403
        process.close()


def test_with_tokens_a_central_key_may_be_on_a_listener_for_other_machines(
    start_proxy: StartProxy, upstream: ScriptedUpstream, database: Database
) -> None:
    made = made_in(database)
    required = config(upstream, database, "actor: {required: true}")
    process = start_proxy(config=required, options=["listen_host=0.0.0.0"])
    assert ask(process, {"x-api-key": made.token}).status_code == 200
    assert ask(process, {}).status_code == 401


# --- the SDKs, with nothing but a token and a base URL


async def test_the_sdks_need_only_a_token_and_a_base_url(
    start_proxy: StartProxy, upstream: ScriptedUpstream, database: Database
) -> None:
    made = made_in(database)
    process = start_proxy(config=config(upstream, database, "actor: {required: true}"))
    first, second = f"{process.proxy_url}/anthropic", f"{process.proxy_url}/openai/v1"
    messages: Any = QUESTION
    for client in (
        anthropic.Anthropic(api_key=made.token, base_url=first),
        anthropic.Anthropic(auth_token=made.token, base_url=first),
    ):
        upstream.answer(_answer("messages"))
        assert client.messages.create(**messages).id
        upstream.answer(_answer("messages"))
        async with anthropic.AsyncAnthropic(api_key=made.token, base_url=first) as waiting:
            assert (await waiting.messages.create(**messages)).id
    with openai.OpenAI(api_key=made.token, base_url=second) as sdk:
        upstream.answer(_answer("chat_completions"), _answer("responses"))
        assert sdk.chat.completions.create(model="m", messages=messages["messages"]).id
        assert sdk.responses.create(model="m", input="Hello?").id
    assert [keys_of(request) for request in upstream.requests] == [{CENTRAL}] * 6
    assert initiators(database) == ["alice"] * 6
    with pytest.raises(anthropic.AuthenticationError, match="unknown"):
        anthropic.Anthropic(api_key=unknown_token(), base_url=first, max_retries=0).messages.create(**messages)
    with pytest.raises(openai.AuthenticationError, match="unknown"):
        openai.OpenAI(api_key=unknown_token(), base_url=second, max_retries=0).responses.create(model="m", input="x")
    assert_not_leaked(made, process, upstream, database)


def _answer(dialect: str) -> Answer:
    return Answer.json(json.loads(fixtures.case(f"{dialect}/simple/blocking").body))


# --- WebSockets


@pytest.fixture
def provider() -> Iterator[Provider]:
    found = Provider()
    with served(found.serve) as found.port:
        yield found


def test_a_socket_is_opened_with_a_token_and_its_requests_are_refused_once_that_is_revoked(
    start_proxy: StartProxy, provider: Provider, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recording_tokens, "FRESH", 0.0)
    made = made_in(database)
    case = fixtures.case("responses/simple/streaming")
    providers = f"[{{name: openai, type: openai, base_url: 'http://localhost:{provider.port}/v1', api_key: {CENTRAL}}}]"
    process = start_proxy(config=f"database: {database.url}\nactor: {{required: true}}\nproviders: {providers}\n")
    url = f"ws://127.0.0.1:{process.port}/openai/v1/responses"
    provider.answer(*[event.decode() for event in frames.events(case)])
    with connect(url, proxy=None, additional_headers={"authorization": f"Bearer {made.token}"}) as client:
        client.send(frames.create(case).decode())
        for _ in frames.events(case):
            client.recv(20)
        revoke(database, made)
        client.send(frames.create(case).decode())
        refused = json.loads(client.recv(20))
    assert refused["type"] == "error" and "revoked" in json.dumps(refused)
    assert len(provider.received) == 1
    assert provider.upgrades[0]["authorization"] == f"Bearer {CENTRAL}"
    assert made.token not in repr([*provider.upgrades[0].raw_items()])

    def recorded() -> set[tuple[str, str | None]]:
        return {(row["initiator_id"], row["error_type"]) for row in database.rows("aibridge_interceptions")}

    poll_until(lambda: recorded() == {("alice", None), ("alice", "token_refused")}, what="both rows")
    with pytest.raises(InvalidStatus) as raised:
        connect(url, proxy=None, additional_headers={"authorization": f"Bearer {made.token}"})
    assert raised.value.response.status_code == 401
