"""A process that is killed right after a client saw the end of its answer: the rows are in the database already."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

import pytest

from tests.conftest import StartMitmdump
from tests.integration.answers import PATH
from tests.integration.exchanges import ANTHROPIC
from tests.integration.sockets import SIMPLE, Provider, read, served, text, through
from tests.processes.load import OUTAGE
from tests.support import frames
from tests.support.client import RawHttp1
from tests.support.databases import Database, PostgresDatabase
from tests.support.fixtures import Case, case
from tests.support.mitmdump import Mitmdump
from tests.support.upstream import Answer, ScriptedUpstream

STREAMED = case("messages/simple/streaming")
BLOCKING = case("messages/simple/blocking")


def kill(proxy: Mitmdump) -> None:
    proxy.kill()
    assert proxy.wait() == -9


def streamed(proxy: Mitmdump, provider: Provider, upstream: ScriptedUpstream) -> Case:
    upstream.answer(Answer.event_stream(STREAMED.body))
    with RawHttp1.through_proxy(proxy, ANTHROPIC, 443) as client:
        client.request("POST", PATH, body=STREAMED.request)
        client.read_head()
        client.read_body_until(STREAMED.body[-40:])
        kill(proxy)
    return STREAMED


def blocking(proxy: Mitmdump, provider: Provider, upstream: ScriptedUpstream) -> Case:
    upstream.answer(Answer(200, [("content-type", "application/json")], [BLOCKING.body]))
    with RawHttp1.through_proxy(proxy, ANTHROPIC, 443) as client:
        client.request("POST", PATH, body=BLOCKING.request)
        client.read_head()
        assert client.read_body() == BLOCKING.body
        kill(proxy)
    return BLOCKING


def websocket(proxy: Mitmdump, provider: Provider, upstream: ScriptedUpstream) -> Case:
    events = text(*frames.events(SIMPLE))
    provider.answer(*events)
    with through(proxy) as client:
        client.send(frames.create(SIMPLE).decode())
        read(client, len(events))
        kill(proxy)
    return SIMPLE


Way = Callable[[Mitmdump, Provider, ScriptedUpstream], Case]
WAYS: Mapping[str, Way] = MappingProxyType({"streamed": streamed, "blocking": blocking, "WebSocket": websocket})


@pytest.mark.parametrize("way", WAYS)
def test_the_rows_of_an_answer_are_there_when_its_end_is(
    mitmdump: StartMitmdump, upstream: ScriptedUpstream, database: Database, way: str
) -> None:
    if way != "streamed" and isinstance(database, PostgresDatabase) and not OUTAGE:
        pytest.skip("takes long: `make soak` runs it")
    provider = Provider()
    with served(provider.serve) as port:
        proxy = mitmdump(
            config=f"database: '{database.url}'\nproviders:\n"
            f"  - {{name: anthropic, type: anthropic, base_url: 'https://localhost:{upstream.port}'}}\n"
            f"  - {{name: openai, type: openai, base_url: 'http://localhost:{port}/v1'}}\n"
        )
        expected = WAYS[way](proxy, provider, upstream).expected
    [row] = database.query("select * from aibridge_interceptions")
    assert (row["status"], row["error_type"]) == ("completed", None)
    tokens = database.query("select input_tokens, output_tokens from aibridge_token_usages order by turn")
    assert [list(row.values()) for row in tokens] == [
        [usage["input_tokens"], usage["output_tokens"]] for usage in expected["tokens"]
    ]
    for table in ("aibridge_user_prompts", "aibridge_answers"):
        assert len(database.query(f"select * from {table}")) == 1
