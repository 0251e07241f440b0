"""Equivalent forms of a path are the same route, and no form gets a central key without a row."""

from __future__ import annotations

from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aibridge_addon.config.providers import DEFAULT_PROVIDERS
from aibridge_addon.dialects import COMPACT, MESSAGES, RESPONSES
from aibridge_addon.interception.paths import normalised, read_most_freely
from aibridge_addon.interception.routing import WEBSOCKET, Router

ROUTER = Router(DEFAULT_PROVIDERS)

EQUIVALENT = (
    "//v1/messages",
    "/v1//messages",
    "/v1/messages/",
    "/v1/messages//",
    "/v1/%6dessages",
    "/v1/%6Dessages",
    "/%76%31/messages",
    "/v1/./messages",
    "/./v1/messages/.",
    "/v1/x/../messages",
    "/v1/%2e/messages",
    "/v1/x/%2E%2e/messages",
)


@pytest.mark.parametrize("path", EQUIVALENT)
def test_an_equivalent_path_is_bridged_and_sent_as_it_came(path: str) -> None:
    route = ROUTER.proxied("api.anthropic.com", "POST", path + "?beta=true")
    assert route is not None
    assert (route.dialect, route.template, route.target) == (MESSAGES, "/v1/messages", path + "?beta=true")


@pytest.mark.parametrize("path", EQUIVALENT)
def test_an_equivalent_path_of_the_gateway_is_bridged_and_sent_to_the_same_place(path: str) -> None:
    for prefix in (
        "/anthropic",
        "//anthropic",
        "/%61nthropic",
        "/api/v2/aibridge/anthropic",
        "/api//v2/aibridge/./anthropic",
    ):
        route = ROUTER.gateway("POST", prefix + path + "?beta=true")
        assert route is not None
        assert route.dialect is MESSAGES and route.known
        assert route.target in ("/v1/messages?beta=true", path + "?beta=true")
        assert route.target == "/v1/messages?beta=true" or not ({".", "%2e"} & set(path.lower().split("/")))


@pytest.mark.parametrize("host", ["API.ANTHROPIC.COM", "api.anthropic.com.", "Api.Anthropic.Com."])
def test_an_equivalent_host_is_the_same_provider(host: str) -> None:
    route = ROUTER.proxied(host, "POST", "/v1/messages")
    assert route is not None and route.dialect is MESSAGES


@pytest.mark.parametrize(
    ("path", "wanted"),
    [
        ("/model/a%2Fb/invoke", "/model/a%2Fb/invoke"),
        ("/model/arn%3Aaws/invoke/", "/model/arn%3Aaws/invoke"),
        ("/a%20b", "/a%20b"),
        ("/a%zz%4", "/a%zz%4"),
        ("/", "/"),
        ("", ""),
        ("/a/", "/a"),
        ("/a/..", "/"),
    ],
)
def test_only_what_is_equivalent_for_every_server_is_changed(path: str, wanted: str) -> None:
    assert normalised(path) == wanted


@given(st.text(st.sampled_from("/.%;a2eE\\"), max_size=40))
def test_a_usual_form_is_its_own(path: str) -> None:
    assert normalised(normalised(path)) == normalised(normalised(normalised(path)))
    free = read_most_freely(path)
    assert "//" not in free and "\\" not in free


TRICKS = (
    "/v1/responses/%20",
    "/v1/responses/;a=b",
    "/v1/responses/%252e",
    "/v1/responses/%3f",
    "/v1/responses/%23",
    "/v1/responses/%5c",
    "/v1/responses/%2f",
    "/v1/responses/a%2f..",
    "/v1/responses/..%2fresponses",
    "/v1/responses/\\",
    "/v1/responses/%00",
    "/v1/responses/COMPACT",
    "/v1/responses/compact%09",
    "/v1/conversations/..%2fresponses",
    "/v1/models/%2e%2e%2fresponses",
)


@pytest.mark.parametrize("path", TRICKS)
@pytest.mark.parametrize("method", ["POST", WEBSOCKET])
def test_a_path_that_only_some_servers_take_for_a_bridged_one_gets_no_central_key(path: str, method: str) -> None:
    if method == WEBSOCKET and "compact" in path.lower():
        return  # it is no WebSocket anywhere
    for route in (ROUTER.proxied("api.openai.com", method, path), ROUTER.gateway(method, "/openai" + path)):
        assert route is None or route.is_interception or not route.known, path


@given(
    st.lists(st.sampled_from(["/", "//", "/.", "/%2e", "/..", "/x/..", ";", "%20", "\\", "%5c", "%2f"]), max_size=4),
    st.integers(0, 13),
    st.integers(1, 3),
)
def test_no_form_of_a_bridged_path_gets_a_central_key_without_a_row(added: list[str], place: int, encoded: int) -> None:
    path = "/v1/responses"
    path = path[:place] + "".join(added) + path[place:]
    for _ in range(encoded - 1):
        path = quote(path, safe="/")
    read = read_most_freely(path)
    for route in (ROUTER.proxied("api.openai.com", "POST", path), ROUTER.gateway("POST", "/openai" + path)):
        if route is not None and read in ("/v1/responses", "/v1/responses/compact"):
            assert route.is_interception or not route.known


def test_ordinary_paths_below_a_bridged_one_keep_the_central_key() -> None:
    route = ROUTER.proxied("api.openai.com", "POST", "/v1/responses/input_tokens")
    assert route is not None and route.known and route.dialect is None
    for path, dialect in (("/v1/responses", RESPONSES), ("/v1/responses/compact/", COMPACT)):
        route = ROUTER.proxied("api.openai.com", "POST", path)
        assert route is not None and route.known and route.dialect is dialect
