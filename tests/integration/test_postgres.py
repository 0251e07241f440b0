"""Proxies with a PostgreSQL database: rows, a client's next request to another proxy, and a server that is stopped."""

from __future__ import annotations

import re

import httpx
import pytest

from tests.conftest import RunToExit, StartProxy
from tests.integration.exchanges import ANTHROPIC, Client
from tests.integration.turns import CLIENTS_RESULT, CONNECTED, Turns, call, configuration, own, results, text
from tests.support.client_view import CLIENTS
from tests.support.databases import PostgresDatabase
from tests.support.fixtures import case
from tests.support.mcp_servers import HttpMcp
from tests.support.outages import OUTAGES, Outage
from tests.support.polling import poll_until
from tests.support.postgres import PASSWORD
from tests.support.running import RunningProxy
from tests.support.upstream import Answer, ScriptedUpstream, unused_port

PATH = "/v1/messages"
SIMPLE = case("messages/simple/streaming")
LONG = 60.0


def ask(proxy: RunningProxy, n: int = 1) -> None:
    """Have requests answered, whole and unchanged."""
    with Client(proxy, ANTHROPIC) as client:
        for _ in range(n):
            seen = client.post(PATH, SIMPLE.request)
            assert (seen.status, seen.body) == (200, SIMPLE.body)


def config(upstream: ScriptedUpstream, postgres: PostgresDatabase, options: str = "") -> str:
    provider = f"{{name: anthropic, type: anthropic, base_url: 'https://localhost:{upstream.port}'}}"
    return f"database: {postgres.url}{options}\nproviders: [{provider}]\n"


def wait_for_completed(postgres: PostgresDatabase, n: int) -> None:
    sql = "select count(*) as n from aibridge_interceptions where status = 'completed'"
    poll_until(lambda: postgres.query(sql) == [{"n": n}], LONG, what=f"{n} completed interceptions")


def test_a_request_is_recorded(start_proxy: StartProxy, upstream: ScriptedUpstream, postgres: PostgresDatabase) -> None:
    proxy = start_proxy(config=config(upstream, postgres))
    upstream.answer(Answer.event_stream(SIMPLE.body))
    ask(proxy)
    wait_for_completed(postgres, 1)
    [row] = postgres.query(
        "select u.username, i.streaming, t.input_tokens, t.metadata->'cache_read_input' as read,"
        " p.prompt is null as none from aibridge_interceptions i join users u on u.id = i.initiator_id"
        " join aibridge_token_usages t on t.interception_id = i.id"
        " join aibridge_user_prompts p on p.interception_id = i.id"
    )
    assert row["username"] and row["streaming"] is True and row["none"] is False
    assert row["input_tokens"] > 0 and row["read"] >= 0
    assert not proxy.database.exists()


def test_another_proxy_knows_the_results_of_a_mixed_turn(
    start_proxy: StartProxy, upstream: ScriptedUpstream, ours: HttpMcp, postgres: PostgresDatabase
) -> None:
    turns = Turns("messages", [text("Both. "), call("echo", text="hi"), own(path="a")])
    done = Turns("messages", [text("Done.")])
    upstream.answer(*turns.answers(streaming=True), *done.answers(streaming=True))
    servers = configuration(upstream.url, f"servers: {{ours: {{type: http, url: '{ours.url}'}}}}")
    body = turns.request(streaming=True)
    for number in range(2):
        proxy = start_proxy(config=f"database: {postgres.url}\n{servers}")
        proxy.wait_for_log(CONNECTED)
        with Client(proxy, turns.host) as client:
            answer = client.post(turns.path, body).body
        if number == 0:
            body = turns.next_request(answer, streaming=True)
        proxy.close()
    done.check(answer, streaming=True)
    request = upstream.requests[1]
    CLIENTS["messages"].check_history(request.json(), turns.written[0].said, turns.call_ids(0))
    assert results(request) == ["hi", CLIENTS_RESULT]
    parents = postgres.query("select thread_parent_id from aibridge_interceptions order by started_at")
    assert parents[0]["thread_parent_id"] is None and parents[1]["thread_parent_id"] is not None


@pytest.mark.parametrize("outage", OUTAGES.values(), ids=OUTAGES)
def test_traffic_goes_on_during_an_outage_and_nothing_is_lost_or_doubled(
    start_proxy: StartProxy, upstream: ScriptedUpstream, postgres: PostgresDatabase, outage: Outage
) -> None:
    proxy = start_proxy(config=config(upstream, postgres))
    upstream.answer(*[Answer.event_stream(SIMPLE.body)] * 12)
    ask(proxy)
    wait_for_completed(postgres, 1)
    with outage(postgres):
        ask(proxy, 10)
        proxy.wait_for_log("cannot be written to")
    wait_for_completed(postgres, 11)
    proxy.wait_for_log("can be written to again")
    ask(proxy)
    wait_for_completed(postgres, 12)
    for table in ("aibridge_token_usages", "aibridge_user_prompts"):
        assert postgres.query(f"select count(*) as n, count(distinct interception_id) as of from {table}") == [
            {"n": 12, "of": 12}
        ]
    assert "records lost" not in proxy.log


def readiness(address: str) -> tuple[int, object]:
    answer = httpx.get(f"http://{address}/readyz", trust_env=False)
    return answer.status_code, answer.json()["degraded"]


@pytest.mark.parametrize("budgets", ["[]", "[{name: b, per: all, period: month, requests: 100}]"])
def test_a_start_without_the_server_records_to_the_spool(
    start_proxy: StartProxy, upstream: ScriptedUpstream, postgres: PostgresDatabase, budgets: str
) -> None:
    upstream.answer(*[Answer.event_stream(SIMPLE.body)] * 3)
    address = f"127.0.0.1:{unused_port()}"
    with OUTAGES["stopped"](postgres):
        more = f"metrics: {{listen: '{address}'}}\nbudgets: {budgets}\n"
        proxy = start_proxy(config=config(upstream, postgres) + more)
        assert readiness(address) == (200, ["database"])
        ask(proxy, 3)
    proxy.wait_for_log("can be written to again")
    wait_for_completed(postgres, 3)
    assert readiness(address) == (200, [])


def test_a_start_without_the_server_is_ready_when_it_is_there_if_records_are_required(
    start_proxy: StartProxy, upstream: ScriptedUpstream, postgres: PostgresDatabase
) -> None:
    upstream.answer(Answer.event_stream(SIMPLE.body))
    address = f"127.0.0.1:{unused_port()}"
    more = f"metrics: {{listen: '{address}'}}\nrecording: {{on_failure: closed}}\n"
    with OUTAGES["stopped"](postgres):
        proxy = start_proxy(config=config(upstream, postgres) + more)
        assert readiness(address) == (503, ["database"])
        with Client(proxy, ANTHROPIC) as client:
            assert client.post(PATH, SIMPLE.request).status == 503
    poll_until(lambda: readiness(address) == (200, []), LONG, what="readiness")
    ask(proxy)
    wait_for_completed(postgres, 1)


def test_a_url_that_libpq_does_not_accept_stops_the_start(
    run_to_exit: RunToExit, upstream: ScriptedUpstream, postgres: PostgresDatabase
) -> None:
    ended = run_to_exit(config=config(upstream, postgres, "?unknown_parameter=1"))
    assert ended.code == 1
    assert re.search(r"database: found .*; allowed: a URL that libpq accepts", ended.output), ended.output
    assert PASSWORD not in ended.output
