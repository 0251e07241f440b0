"""Who asks: the authenticated user, else a front proxy's word, else the default; a spoofed word is none."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aibridge_addon.config.schema import Actor as ActorSettings
from aibridge_addon.interception.actors import MAX_ID_LENGTH, Actor, ActorResolver


def resolver(**settings: Any) -> ActorResolver:
    return ActorResolver(ActorSettings.model_validate(settings), system_user="root")


@pytest.mark.parametrize(
    ("proxy_user", "trusted", "default", "actor"),
    [
        ("ada", "bob", "eve", "ada"),
        (None, "bob", "eve", "bob"),
        ("", "bob", "eve", "bob"),
        (None, None, "eve", "eve"),
    ],
)
def test_the_first_who_is_known_counts(
    proxy_user: str | None, trusted: str | None, default: str | None, actor: str
) -> None:
    assert resolver(default=default).resolve(proxy_user, trusted) == Actor(actor, {})


def test_an_actor_says_what_names_it() -> None:
    sources = {"user": ("ada", "bob"), "header": (None, "bob"), "default": (None, None)}
    for source, (proxy_user, trusted) in sources.items():
        actor = resolver(default="eve").resolve(proxy_user, trusted)
        assert actor is not None
        assert actor.source == source


def test_without_a_default_the_operating_systems_user_asks() -> None:
    assert resolver().resolve(None, None) == Actor("root", {})


def test_where_an_actor_is_required_nobody_stands_in_for_one() -> None:
    assert resolver(required=True).resolve(None, None) is None
    assert resolver(required=True).resolve("ada", None) == Actor("ada", {})
    assert resolver(required=True).resolve(None, "bob") == Actor("bob", {})


def test_an_actor_carries_the_configured_metadata() -> None:
    actor = resolver(default="ada", metadata={"org_id": "org-456"}).resolve(None, None)
    assert actor is not None and dict(actor.metadata) == {"org_id": "org-456"}


def test_a_name_that_is_too_long_is_cut() -> None:
    actor = resolver().resolve("a" * 10_000, None)
    assert actor is not None and actor.id == "a" * MAX_ID_LENGTH


@pytest.mark.parametrize(
    ("sources", "peer", "trusted"),
    [
        (["127.0.0.1/32"], "127.0.0.1", True),
        (["127.0.0.1/32"], "127.0.0.2", False),
        (["127.0.0.1/32"], "::ffff:127.0.0.1", True),
        (["127.0.0.1/32"], "::1", False),
        (["10.0.0.0/8", "::1/128"], "::1", True),
        (["10.0.0.0/8", "::1/128"], "10.200.3.4", True),
        (["10.0.0.0/8"], "11.0.0.1", False),
        (["fe80::/10"], "fe80::1%eth0", True),
        (["127.0.0.1/32"], "", False),
        (["127.0.0.1/32"], "not an address", False),
        ([], "127.0.0.1", False),
    ],
)
def test_the_header_is_believed_from_trusted_sources_only(sources: list[str], peer: str, trusted: bool) -> None:
    who = resolver(header="X-Forwarded-User", trusted_sources=sources)
    assert who.trusted_name({b"x-forwarded-user": b"ada"}, peer) == ("ada" if trusted else None)


@pytest.mark.parametrize(
    ("value", "name"),
    [(b"ada", "ada"), (b"  ada ", "ada"), (b"", None), (b" ", None), ("Ådä".encode(), "Ådä"), (b"\xff", "\ufffd")],
)
def test_the_headers_value_is_the_name(value: bytes, name: str | None) -> None:
    assert resolver(header="X-User").trusted_name({b"x-user": value}, "127.0.0.1") == name


def test_without_a_configured_header_none_is_believed() -> None:
    who = resolver()
    assert who.headers == ()
    assert who.trusted_name({b"x-forwarded-user": b"ada", b"": b"ada"}, "127.0.0.1") is None


def test_the_headers_name_is_compared_in_lower_case() -> None:
    assert resolver(header="X-Forwarded-User").headers == (b"x-forwarded-user",)


@given(value=st.binary(max_size=30), peer=st.text(max_size=30))
def test_no_header_and_no_peer_make_it_fail(value: bytes, peer: str) -> None:
    who = resolver(header="x-user", trusted_sources=["0.0.0.0/0", "::/0"])
    who.resolve(None, who.trusted_name({b"x-user": value}, peer))


def test_groups_are_those_whose_patterns_match_and_those_that_a_trusted_header_names() -> None:
    who = ActorResolver(
        ActorSettings.model_validate({"groups": {"red": ["a*"], "blue": ["bob"], "header": "X-Groups"}}),
        system_user="root",
    )
    headers = {b"x-groups": b" green, red,,green "}
    assert who.headers == (b"x-groups",)
    assert who.trusted_groups(headers, "127.0.0.1") == ("green", "red")
    assert who.trusted_groups(headers, "10.0.0.1") == ()
    assert who.trusted_groups({}, "127.0.0.1") == ()
    assert who.trusted_groups({b"x-groups": b"x," * 10_000}, "127.0.0.1") == ("x",)
    actor = who.resolve("ada", None, ("green", "red"))
    assert actor is not None
    assert (actor.groups, actor.named_groups) == (("red", "green"), ("green", "red"))
