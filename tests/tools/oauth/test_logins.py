"""People log in at an MCP server: the first use shows a link, later uses go on with that person's token."""

from __future__ import annotations

import asyncio
import logging
from datetime import timedelta

import pytest
from pydantic import SecretStr

from aibridge_addon.config.oauth import OAuth
from aibridge_addon.tools import CallError
from tests.support.databases import Database
from tests.support.oauth_server import KEY, OAuthMcp
from tests.tools.oauth.conftest import BASE, LINK, Process, Start

OTHER_KEY = "another-key-for-tests-that-is-long-enough-01234"


async def test_the_first_use_shows_a_link_and_later_ones_go_on_with_the_token(process: Start, server: OAuthMcp) -> None:
    ours = process()
    assert await ours.prepared("ada") == {"bmcp_ours_login"}
    page = await ours.log_in("ada")
    assert (page.status, b"ada can use its tools now" in page.body) == (200, True)
    assert await ours.call("login", "ada") == (
        "The user has logged in at ours. Its tools are offered with the user's next request."
    )
    assert await ours.prepared("ada") == {"bmcp_ours_echo", "bmcp_ours_whoami"}
    assert await ours.call("whoami", "ada") == "ada-there"
    assert await ours.call("echo", "ada", {"text": "hi"}) == "hi"


async def test_the_request_for_authorization_is_as_the_specification_wants_it(process: Start, server: OAuthMcp) -> None:
    ours = process()
    await ours.log_in("ada")
    [asked] = server.asked("/authorize")
    [exchanged] = server.asked("/token")
    [registered] = server.asked("/register")
    assert asked.query["code_challenge_method"] == "S256"
    assert len(exchanged.form["code_verifier"]) >= 43
    assert asked.query["resource"] == exchanged.form["resource"] == server.url
    assert asked.query["redirect_uri"] == exchanged.form["redirect_uri"] == f"{BASE}/mcp/login/ours/callback"
    assert len(asked.query["state"]) >= 32
    assert registered.method == "POST"


async def test_two_actors_do_not_share_a_token(process: Start, server: OAuthMcp) -> None:
    ours = process()
    await ours.log_in("ada")
    await ours.prepared("ada")
    with pytest.raises(CallError, match="has to log in"):
        await ours.call("whoami", "bob")
    server.provider.user = "bob-there"
    await ours.log_in("bob")
    assert [await ours.call("whoami", actor) for actor in ("ada", "bob", "ada")] == [
        "ada-there",
        "bob-there",
        "ada-there",
    ]
    assert len(server.asked("/register")) == 1


async def test_a_login_outlives_the_process(process: Start) -> None:
    await process().log_in("ada")
    second = process()
    assert await second.prepared("ada") == {"bmcp_ours_echo", "bmcp_ours_whoami"}
    assert await second.call("whoami", "ada") == "ada-there"


async def test_another_process_can_finish_what_one_has_begun(process: Start) -> None:
    first, second = process(), process()
    person = first.person()
    person.ends_at = f"{BASE}/mcp/login/ours/callback"
    back = (await person.open(await first.link("ada"))).body.decode()
    other = second.person()
    other.cookies = person.cookies
    assert (await other.open(back)).status == 200
    await second.prepared("ada")
    assert await second.call("whoami", "ada") == "ada-there"


# --- links -----------------------------------------------------------------------------------------------------------


async def test_a_link_counts_once(process: Start, server: OAuthMcp) -> None:
    ours = process()
    link = await ours.link("ada")
    assert (await ours.person().open(link)).status == 200
    again = await ours.person().open(link)
    assert (again.status, b"was used already" in again.body) == (400, True)
    assert len(server.asked("/authorize")) == 1


async def test_a_link_expires(process: Start) -> None:
    ours = process()
    link = await ours.link("ada")
    ours.clock.ahead += timedelta(minutes=11)
    assert (await ours.person().open(link)).status == 400


@pytest.mark.parametrize("edit", ["actor=bob", "ticket", "none", "twice", "server"])
async def test_an_edited_link_logs_no_one_in(process: Start, server: OAuthMcp, edit: str) -> None:
    ours = process()
    link = await ours.link("ada")
    edited = {
        "actor=bob": f"{link}&actor=bob",
        "ticket": link[:-1] + ("A" if link[-1] != "A" else "B"),
        "none": link.partition("?")[0],
        "twice": f"{link}&ticket=other",
        "server": link.replace("/ours?", "/other?"),
    }[edit]
    answer = await ours.person().open(edited)
    if edit == "actor=bob":
        assert b"ada can use" in answer.body
    else:
        assert answer.status == (404 if edit == "server" else 400)
        assert not server.asked("/authorize")


async def test_calls_show_the_same_link_until_it_is_used(process: Start) -> None:
    first, second = process(), process()
    link = await first.link("ada")
    assert [await first.link("ada"), await second.link("ada")] == [link, link]
    first.clock.ahead += timedelta(minutes=6)
    later = await first.link("ada")
    assert later != link
    assert await first.link("bob") != later


async def test_the_way_back_counts_only_in_the_browser_that_has_begun(process: Start) -> None:
    ours = process()
    person = ours.person()
    person.ends_at = f"{BASE}/mcp/login/ours/callback"
    back = (await person.open(await ours.link("ada"))).body.decode()
    other = await ours.person().open(back)
    assert (other.status, b"not begun in this browser" in other.body) == (400, True)
    with pytest.raises(CallError, match="has to log in"):
        await ours.call("login", "ada")


async def test_another_state_or_issuer_ends_a_login(process: Start) -> None:
    ours = process()
    for edit in ("state", "iss"):
        person = ours.person()
        person.ends_at = f"{BASE}/mcp/login/ours/callback"
        back = (await person.open(await ours.link("ada"))).body.decode()
        person.ends_at = ""
        edited = back.replace("state=", "state=x") if edit == "state" else f"{back}&iss=https://evil.example"
        assert (await person.open(edited)).status == 400
    assert (await ours.person().open(f"{BASE}/mcp/login/ours/callback")).status == 400


async def test_a_link_on_another_host_shows_first_for_whom_the_login_is(process: Start) -> None:
    ours = process(base="https://gateway.example/tools")
    with pytest.raises(CallError) as caught:
        await ours.call("login", "ada<b>")
    link = str(caught.value).split()[-1]
    assert link.startswith("https://gateway.example/tools/mcp/login/ours?ticket=")
    person = ours.person()
    shown = await person._login_page(link.replace("/tools", ""))
    assert shown.status == 200
    assert b"I am ada&lt;b&gt;: log in" in shown.body
    assert b"<b>" not in shown.body
    begun = await person._login_page(link.replace("/tools", "") + "&confirmed=1")
    assert begun.status == 303
    assert "Path=/tools/mcp/login/ours" in begun.headers["Set-Cookie"]
    assert begun.headers["Set-Cookie"].endswith("HttpOnly; SameSite=Lax; Secure")


async def test_pages_have_no_scripts_and_pass_nothing_on(process: Start) -> None:
    page = await process().log_in("ada")
    assert "default-src 'none'" in page.headers["Content-Security-Policy"]
    assert "script-src" not in page.headers["Content-Security-Policy"]
    assert b"<script" not in page.body
    assert (page.headers["Referrer-Policy"], page.headers["X-Frame-Options"]) == ("no-referrer", "DENY")


async def test_anonymous_actors_cannot_log_in(process: Start, server: OAuthMcp) -> None:
    ours = process()
    with pytest.raises(CallError, match="only actors that authenticate"):
        await ours.call("login", "ada", anonymous=True)
    await ours.log_in("ada")
    await ours.prepared("ada")
    with pytest.raises(CallError, match="only actors that authenticate"):
        await ours.call("whoami", "ada", anonymous=True)


# --- renewal ---------------------------------------------------------------------------------------------------------


async def test_an_expired_token_is_renewed(process: Start, server: OAuthMcp) -> None:
    ours = process()
    await ours.log_in("ada")
    await ours.prepared("ada")
    server.expire("ada-there")
    ours.clock.ahead += timedelta(hours=2)
    assert await ours.call("whoami", "ada") == "ada-there"
    grants = [each.form["grant_type"] for each in server.asked("/token")]
    assert grants == ["authorization_code", "refresh_token"]
    assert server.asked("/token")[1].form["resource"] == server.url


async def test_a_token_that_the_server_refuses_early_is_renewed(process: Start, server: OAuthMcp) -> None:
    ours = process()
    await ours.log_in("ada")
    await ours.prepared("ada")
    server.expire("ada-there")
    assert await ours.call("whoami", "ada") == "ada-there"
    assert len(server.asked("/token")) == 2


async def test_many_calls_in_two_processes_renew_a_token_once(process: Start, server: OAuthMcp) -> None:
    first, second = process(), process()
    await first.log_in("ada")
    for each in (first, second):
        await each.prepared("ada")
    for each in (first, second):
        each.clock.ahead += timedelta(hours=2)
    server.expire("ada-there")
    calls = [each.call("whoami", "ada") for each in (first, second) for _ in range(4)]
    assert await asyncio.gather(*calls) == ["ada-there"] * 8
    assert [each.form["grant_type"] for each in server.asked("/token")].count("refresh_token") == 1


async def test_a_refused_renewal_means_to_log_in_again(process: Start, server: OAuthMcp) -> None:
    ours = process()
    await ours.log_in("ada")
    await ours.prepared("ada")
    server.expire("ada-there")
    server.provider.refresh.clear()
    ours.clock.ahead += timedelta(hours=2)
    page = await ours.person().open(await ours.link("ada"))
    assert page.status == 200
    assert await ours.call("whoami", "ada") == "ada-there"
    assert "bmcp_ours_whoami" in ours.stage.catalog.names


async def test_a_token_that_is_revoked_at_the_server_means_to_log_in_again(process: Start, server: OAuthMcp) -> None:
    ours = process()
    await ours.log_in("ada")
    await ours.prepared("ada")
    server.expire("ada-there")
    server.provider.refresh.clear()
    assert (await ours.link("ada")).startswith(LINK)


async def test_an_authorization_server_that_is_away_does_not_end_a_login(process: Start, server: OAuthMcp) -> None:
    ours = process()
    await ours.log_in("ada")
    await ours.prepared("ada")
    server.expire("ada-there")
    ours.clock.ahead += timedelta(hours=2)
    server.override = lambda seen: (503, {}, b"") if seen.path == "/token" else None
    with pytest.raises(CallError, match="gives no token: HTTP 503"):
        await ours.call("whoami", "ada")
    server.override = None
    assert await ours.call("whoami", "ada") == "ada-there"


async def test_a_call_that_is_cancelled_does_not_lose_the_renewed_token(process: Start, server: OAuthMcp) -> None:
    ours = process()
    await ours.log_in("ada")
    await ours.prepared("ada")
    server.expire("ada-there")
    ours.clock.ahead += timedelta(hours=2)
    call = asyncio.create_task(ours.call("whoami", "ada"))
    while not (renewing := list(ours.logins.tokens._renewing.values())):  # noqa: ASYNC110 (there is no event)
        await asyncio.sleep(0)
    call.cancel()
    await asyncio.gather(call, return_exceptions=True)
    await asyncio.gather(*renewing)
    assert await ours.call("whoami", "ada") == "ada-there"
    assert [each.form["grant_type"] for each in server.asked("/token")].count("refresh_token") == 1


async def test_a_server_whose_refresh_tokens_stay_is_asked_with_the_same_again(
    process: Start, server: OAuthMcp
) -> None:
    server.provider.rotates = False
    ours = process()
    await ours.log_in("ada")
    await ours.prepared("ada")
    for _ in range(2):
        server.expire("ada-there")
        ours.clock.ahead += timedelta(hours=2)
        assert await ours.call("whoami", "ada") == "ada-there"
    assert len({each.form.get("refresh_token") for each in server.asked("/token")[1:]}) == 1


# --- the end ---------------------------------------------------------------------------------------------------------


async def test_a_logout_revokes_the_tokens_and_counts_in_all_processes(process: Start, server: OAuthMcp) -> None:
    first, second = process(), process()
    await first.log_in("ada")
    for each in (first, second):
        await each.prepared("ada")
        assert await each.call("whoami", "ada") == "ada-there"
    assert await second.logins.tokens.drop("ours", "ada") is True
    assert not server.provider.access
    assert not server.provider.refresh
    assert await second.logins.tokens.drop("ours", "ada") is None
    first.clock.ahead += timedelta(seconds=4)
    for each in (first, second):
        assert (await each.link("ada")).startswith(LINK)


async def test_a_logout_without_a_place_to_revoke_deletes_the_tokens(process: Start, database: Database) -> None:
    with OAuthMcp(revokes=False) as other:
        ours = process(other.settings())
        await ours.log_in("ada")
        assert await ours.logins.tokens.drop("ours", "ada") is False
        assert await ours.logins.tokens.actors("ours") == []


# --- clients ---------------------------------------------------------------------------------------------------------


async def test_a_configured_client_is_not_registered(process: Start, server: OAuthMcp) -> None:
    from mcp.shared.auth import OAuthClientInformationFull

    server.provider.clients["mine"] = OAuthClientInformationFull(
        client_id="mine",
        client_secret="a:b+c",
        redirect_uris=[f"{BASE}/mcp/login/ours/callback"],  # type: ignore[list-item]
        token_endpoint_auth_method="client_secret_post",
        scope="read write",
    )
    mine = OAuth(client_id="mine", client_secret=SecretStr("a:b+c"), scopes=("read", "write"))
    ours = process(server.settings(oauth=mine))
    assert (await ours.log_in("ada")).status == 200
    assert not server.asked("/register")
    [asked] = server.asked("/authorize")
    assert (asked.query["client_id"], asked.query["scope"]) == ("mine", "read write")
    assert server.asked("/token")[0].form["client_secret"] == "a:b+c"


async def test_a_server_that_registers_no_clients_says_what_to_do(process: Start) -> None:
    with OAuthMcp(registers=False) as other:
        ours = process(other.settings())
        page = await ours.log_in("ada")
    assert page.status == 400
    assert b"set client_id in the server&#x27;s oauth" in page.body


async def test_a_client_that_the_server_has_forgotten_is_registered_again_with_the_next_link(
    process: Start, server: OAuthMcp
) -> None:
    ours = process()
    await ours.log_in("ada")
    server.provider.clients.clear()
    await ours.logins.tokens.drop("ours", "ada")
    assert (await ours.log_in("ada")).status == 400  # the authorization server's own page
    assert b"You are logged in" in (await ours.log_in("ada")).body


# --- what is stored --------------------------------------------------------------------------------------------------


async def test_neither_rows_nor_logs_have_a_token(
    process: Start, server: OAuthMcp, database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    ours = process()
    link = await ours.link("ada")
    begun = ours.person()
    begun.ends_at = f"{BASE}/mcp/login/ours/callback"
    back = (await begun.open(link)).body.decode()
    in_flight = _rows(database)
    begun.ends_at = ""
    await begun.open(back)
    await ours.prepared("ada")
    server.expire("ada-there")
    await ours.call("whoami", "ada")
    await ours.link("bob")
    secrets = [*server.provider.all_tokens, link.rpartition("=")[2], *begun.cookies.values()]
    secrets += [client.client_secret or "none" for client in server.provider.clients.values()]
    lines = "\n".join(record.getMessage() for record in caplog.records if record.name.startswith("aibridge"))
    for text in (in_flight, _rows(database), lines):
        assert not [secret for secret in secrets if secret and secret in text]


def _rows(database: Database) -> str:
    return str([database.query(f"select * from aibridge_mcp_{name}") for name in ("tokens", "logins", "clients")])


async def test_keys_can_be_rotated(process: Start) -> None:
    await process(keys=(KEY,)).log_in("ada")
    both = process(keys=(OTHER_KEY, KEY))
    await both.prepared("ada")
    assert await both.call("whoami", "ada") == "ada-there"
    both.clock.ahead += timedelta(hours=2)
    assert await both.call("whoami", "ada") == "ada-there"  # renewed, with the new key
    new = process(keys=(OTHER_KEY,))
    await new.prepared("ada")
    assert await new.call("whoami", "ada") == "ada-there"


async def test_another_key_means_to_log_in_again(process: Start, caplog: pytest.LogCaptureFixture) -> None:
    first = process()
    await first.log_in("ada")
    old_link = await first.link("bob")
    ours = process(keys=(OTHER_KEY,))
    assert await ours.prepared("ada") == {"bmcp_ours_login"}
    assert await ours.link("bob") != old_link
    assert (await ours.person().open(old_link)).status == 400
    assert (await ours.log_in("ada")).status == 200
    await ours.prepared("ada")
    assert await ours.call("whoami", "ada") == "ada-there"
    assert len([line for line in caplog.messages if "tokens cannot be decrypted with mcp.token_key" in line]) == 1


async def test_a_row_that_was_copied_to_another_actor_does_not_count(process: Start, database: Database) -> None:
    ours = process()
    await ours.log_in("ada")
    database.execute(
        "insert into aibridge_mcp_tokens (server_name, actor, token, version, created_at, updated_at)"
        " select server_name, 'eve', token, version, created_at, updated_at from aibridge_mcp_tokens"
    )
    await ours.prepared("ada")
    assert (await ours.link("eve")).startswith(LINK)


async def test_a_token_is_not_sent_to_another_url(process: Start) -> None:
    await process().log_in("ada")
    with OAuthMcp() as other:
        moved: Process = process(other.settings())
        assert await moved.prepared("ada") == {"bmcp_ours_login"}
        assert (await moved.link("ada")).startswith(LINK)
        assert not [each for each in other.seen if "authorization" in each.headers]


@pytest.mark.parametrize("actor", ["a\0b", "a\nb", "\ud800"])
async def test_an_actor_whose_name_cannot_be_printed_has_no_login(process: Start, actor: str) -> None:
    ours = process()
    assert await ours.prepared(actor) == {"bmcp_ours_login"}
    with pytest.raises(CallError, match="cannot be printed"):
        await ours.call("login", actor)
