"""Whom a listener is open to, by mitmproxy's options."""

from __future__ import annotations

import pytest
from mitmproxy.options import Options

from aibridge_addon.config.schema import Egress, Settings
from aibridge_addon.proxy.connection.egress import guard_for
from aibridge_addon.proxy.connection.exposure import reachable_from_other_machines

LISTENERS = [
    ("127.0.0.1", ["regular"], False),
    ("localhost", ["regular"], False),
    ("::1", ["regular"], False),
    ("127.0.0.1", ["local"], False),
    ("127.0.0.1", ["reverse:https://example.com"], False),
    ("", ["local"], False),
    ("", ["regular"], True),
    ("0.0.0.0", ["regular"], True),
    ("::", ["regular"], True),
    ("192.168.0.5", ["regular"], True),
    ("127.0.0.1", ["regular", "regular@0.0.0.0:9999"], True),
    ("", ["regular@127.0.0.1:9999"], False),
]


@pytest.mark.parametrize(("host", "modes", "open_to_all"), LISTENERS)
def test_a_listener_beyond_loopback_is_reachable_from_other_machines(
    host: str, modes: list[str], open_to_all: bool
) -> None:
    assert reachable_from_other_machines(Options(listen_host=host, mode=modes)) is open_to_all


@pytest.mark.parametrize(
    ("guard", "host", "guards"),
    [("on", "127.0.0.1", True), ("off", "", False), ("auto", "127.0.0.1", False), ("auto", "", True)],
)
def test_the_guard_is_there_where_it_is_asked_for(guard: str, host: str, guards: bool) -> None:
    options = Options(listen_host=host)
    options.add_option("onboarding", bool, True, "")
    options.add_option("onboarding_host", str, "mitm.it", "")
    settings = Settings(egress=Egress.model_validate({"guard": guard}))
    assert (guard_for(settings, options) is not None) is guards
