"""No secret is stored or shown, whatever it is and wherever a client, a provider or an MCP server places it."""

from __future__ import annotations

import base64
import json
import random
import sqlite3
import string
from collections.abc import Iterator, Mapping
from contextlib import closing
from typing import Any
from urllib.parse import quote

import httpx
import pytest

from tests.conftest import StartProxy
from tests.integration.exchanges import ANTHROPIC, Client, wait_for_ended
from tests.integration.turns import CONNECTED, DIALECTS, Turns, call, configuration, text
from tests.support.mcp_servers import HttpMcp
from tests.support.polling import poll_until
from tests.support.running import RunningProxy
from tests.support.upstream import Answer, ScriptedUpstream, unused_port


def core(name: str) -> str:
    """Return the part of a secret that must not be found anywhere, another one for each name."""
    chance = random.Random(name)
    return "aZ0" + "".join(chance.choices(string.ascii_letters + string.digits, k=37))


FORMATS: Mapping[str, str] = {
    "a key of Anthropic": "sk-ant-api03-{}",
    "a key behind letters": "keysk-ant-api03-{}",
    "a key behind a digit": "7sk-proj-{}",
    "a key behind an underscore": "KEY_sk-or-v1-{}",
    "a key of Groq": "gsk_{}",
    "a key of Hugging Face": "xhf_{}",
    "a key of GitHub": "_ghp_{}",
    "a key of Google": "AIzaSy{:.33}",
    "a key of Bedrock": "ABSKQmVkcm9ja0FQSUtleS{}",
    "a key of AWS": "AKIAIOSFODNN7EXAMPLE:{}",
    "a session of AWS": "IQoJb3JpZ2lu{0}{0}",
    "a key of Azure": "{0}abcdefghijklJQQJ99{0}",
    "a private key": "-----BEGIN PRIVATE KEY-----\n{0}{0:.24}\n{0}\n-----END PRIVATE KEY-----",
    "a private key of SSH": "-----BEGIN OPENSSH PRIVATE KEY-----\n{0}\n{0}\n{0}=\n-----END OPENSSH PRIVATE KEY-----",
    "a JSON web token": "eyJ{0}.eyJ{0}.{0}",
    "a bearer token": "Authorization: Bearer {}",
    "the password of a URL": "postgresql://bridge:{}@db/x",
    "a token of the bridge": "aib_{}0123456789",
    "what the operator names": "patient-{}",
}
BASIC = "basic credentials"
KINDS = {name: form.format(core(name)) for name, form in FORMATS.items()} | {
    BASIC: "Basic " + base64.b64encode(f"user:{core(BASIC)}".encode()).decode()
}
SERVERS = "in the URL of an MCP server"
OWN = "patient-[A-Za-z0-9]+"


def forms(name: str) -> Iterator[bytes]:
    """Yield what must not be found of a secret: its own part, and the base64 of it."""
    yield core(name)[:33].encode()
    if name == BASIC:
        yield KINDS[BASIC].removeprefix("Basic ").encode()[:40]


def one_line(secret: str) -> str:
    """Return a secret for a place that takes one line, such as a header."""
    return secret.replace("\n", "\\n")


@pytest.fixture
def port() -> int:
    """Of the metrics."""
    return unused_port()


@pytest.fixture
def proxy(start_proxy: StartProxy, upstream: ScriptedUpstream, ours: HttpMcp, port: int) -> RunningProxy:
    more = (
        f"dump_dir: dumps\nmetrics: {{listen: '127.0.0.1:{port}'}}\n"
        f"recording: {{redact: ['{OWN}'], spool: {{path: spool}}}}"
    )
    mcp = f"servers: {{ours: {{type: http, url: '{ours.url}?key=sk-ant-api03-{core(SERVERS)}'}}}}"
    found = start_proxy(config=configuration(upstream.url, mcp, more))
    found.wait_for_log(CONNECTED)
    return found


def shown(proxy: RunningProxy, port: int) -> dict[str, bytes]:
    """Return all that is stored or shown, by place: rows, files, the log and metrics."""
    with closing(sqlite3.connect(proxy.database)) as connection:
        found = {"rows": "\n".join(connection.iterdump()).encode()}
    found["log"] = proxy.log.encode()
    found["metrics"] = httpx.get(f"http://127.0.0.1:{port}/metrics", trust_env=False).content
    for place in ("dumps", "spool"):
        for path in (proxy.folder / place).rglob("*"):
            name = str(path.relative_to(proxy.folder))
            found[f"the name {name}"] = name.encode()
            if path.is_file():
                found[name] = path.read_bytes()
    return found


def check(proxy: RunningProxy, port: int, dumps: int) -> None:
    def written() -> list[bytes]:
        files = list((proxy.folder / "dumps").rglob("*.resp.txt"))
        return [path.read_bytes() for path in files] if len(files) >= dumps else []

    poll_until(lambda: written() or None, 10, what="the dumps")
    places = shown(proxy, port)
    leaks = [
        (name, place)
        for name in (*KINDS, SERVERS)
        for place, data in places.items()
        for form in forms(name)
        if form in data
    ]
    assert not leaks


def request(turns: Turns, secret: str, *, streaming: bool) -> bytes:
    """Place the secret in every text of a request."""
    members: dict[str, Any] = {"model": f"m {one_line(secret)}", "metadata": {"user_id": secret, one_line(secret): "a"}}
    body = json.loads(turns.request(streaming=streaming, **members))
    tool = body["tools"][0]
    tool["description"] = secret
    (tool.get("function") or tool)["description"] = secret
    messages = body["input" if turns.dialect == "responses" else "messages"]
    messages[-1]["content"] = f"why {secret}\n{secret}"
    return json.dumps(body).encode()


def headers(secret: str) -> list[tuple[str, str]]:
    line = one_line(secret)
    return [
        ("content-type", "application/json"),
        ("user-agent", f"claude-cli/2.0 {line}"),
        ("x-request-id", line),
        ("x-claude-code-session-id", line),
        ("session_id", line),
        ("x-stainless-lang", line),
        ("x-custom", line),
    ]


@pytest.mark.parametrize("dialect", DIALECTS)
def test_no_secret_in_any_text_of_an_exchange_is_stored_or_shown(
    proxy: RunningProxy, upstream: ScriptedUpstream, port: int, dialect: str
) -> None:
    """In prompts, tools, arguments, results, answers, models, ids, headers and the query."""
    for number, secret in enumerate(KINDS.values(), 1):
        streaming = number % 2 == 0
        turns = Turns(dialect, [text(f"a {secret} b"), call("echo", text=secret)], [text(f"Done: {secret}")])
        upstream.answer(*turns.answers(streaming=streaming))
        with Client(proxy, turns.host) as client:
            path = f"{turns.path}?beta={quote(one_line(secret))}"
            assert client.post(path, request(turns, secret, streaming=streaming), headers(secret)).status == 200
    wait_for_ended(proxy, len(KINDS))
    check(proxy, port, 2 * len(KINDS))


def test_no_secret_in_an_error_is_stored_or_shown(proxy: RunningProxy, upstream: ScriptedUpstream, port: int) -> None:
    """In a provider's error and its headers, in a result and an error of the client's tool, and in a passthrough."""
    for secret in KINDS.values():
        line = one_line(secret)
        error = {"type": "error", "error": {"type": f"e {line}", "message": f"no {secret}"}}
        called = {"type": "tool_use", "id": f"call {line}", "name": f"T {line}", "input": {secret: secret}}
        result = {"type": "tool_result", "tool_use_id": called["id"], "content": secret, "is_error": True}
        said = [("user", "why"), ("assistant", [called]), ("user", [result])]
        messages = [{"role": role, "content": content} for role, content in said]
        body = {"model": "m", "max_tokens": 9, "system": secret, "messages": messages}
        upstream.answer(
            Answer.json(error, 400, headers=[("request-id", line), ("x-other", line)]),
            Answer.json({"models": [secret]}),
        )
        with Client(proxy, ANTHROPIC) as client:
            assert client.post("/v1/messages", json.dumps(body).encode(), headers(secret)).status == 400
            client.ask("GET", f"/v1/models/{quote(line, safe='')}?q={quote(line)}", headers(secret))
    wait_for_ended(proxy, len(KINDS))
    check(proxy, port, 2 * len(KINDS))
