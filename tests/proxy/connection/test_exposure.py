"""Which clients could use a central key, by mitmproxy's listeners and its authentication."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from mitmproxy.addons import proxyauth
from mitmproxy.addons.proxyserver import Proxyserver
from mitmproxy.exceptions import OptionsError
from mitmproxy.options import Options
from mitmproxy.test import taddons

from aibridge_addon.addon import AIBridge
from aibridge_addon.config.errors import ConfigError
from aibridge_addon.config.schema import Settings
from aibridge_addon.proxy.connection.exposure import check_exposure
from aibridge_addon.proxy.life import Life

KEY = {"name": "anthropic", "type": "anthropic", "api_key": "sk-central-0001"}
BEDROCK = {"name": "aws", "type": "anthropic", "hosts": [], "bedrock": {"region": "eu-central-1", "model": "m"}}
BEDROCK |= {"base_url": "https://api.anthropic.com"}
LOOPBACK = {"listen_host": "127.0.0.1"}


def options(**given: Any) -> Options:
    with taddons.context(proxyauth.ProxyAuth()) as context:
        context.options.update(**given)
        made: Options = context.options
        return made


def settings(*providers: dict[str, Any], **sections: Any) -> Settings:
    return Settings.model_validate({"providers": providers, **sections})


@pytest.mark.parametrize(
    ("given", "sections"),
    [
        # As mitmproxy starts without options, it listens on all addresses
        ({}, {}),
        ({"listen_host": ""}, {}),
        ({"listen_host": "0.0.0.0"}, {}),
        ({"listen_host": "192.0.2.1"}, {}),
        ({"listen_host": "127.0.0.1", "mode": ["regular", "reverse:https://x@0.0.0.0:8081"]}, {}),
        # Every client is accepted
        ({"proxyauth": "any"}, {}),
        ({}, {"actor": {"required": True, "default": "somebody"}}),
    ],
)
def test_a_central_key_that_unauthenticated_clients_could_use_is_an_error(
    given: dict[str, Any], sections: dict[str, Any]
) -> None:
    with pytest.raises(ConfigError, match=r"^aibridge.yaml: providers\[1\].api_key: found a central credential"):
        check_exposure(settings({"name": "o", "type": "openai"}, KEY, **sections), options(**given), "aibridge.yaml")


@pytest.mark.parametrize(
    ("given", "sections", "provider"),
    [
        (LOOPBACK, {}, KEY),
        ({"listen_host": "::1"}, {}, KEY),
        ({"proxyauth": "alice:secret"}, {}, KEY),
        ({}, {"actor": {"required": True}}, KEY),
        ({}, {}, KEY | {"allow_anonymous": True}),
        ({}, {}, {"name": "anthropic", "type": "anthropic"}),
        (LOOPBACK, {}, BEDROCK),
    ],
)
def test_it_is_none_where_no_stranger_comes_or_that_is_allowed(
    given: dict[str, Any], sections: dict[str, Any], provider: dict[str, Any]
) -> None:
    check_exposure(settings(provider, **sections), options(**given), "aibridge.yaml")


def test_each_provider_is_named_and_awss_credentials_are_central_too() -> None:
    with pytest.raises(ConfigError) as error:
        check_exposure(settings(KEY, BEDROCK), options(), "aibridge.yaml")
    assert [problem.path for problem in error.value.problems] == ["providers[0].api_key", "providers[1].bedrock"]
    assert "sk-central" not in str(error.value)


def test_credentials_of_mcp_servers_are_central_too() -> None:
    found = settings(
        mcp={
            "servers": {
                "http": {"url": "https://mcp.test/mcp", "headers": {"Authorization": "Bearer mcp-secret"}},
                "query": {"url": "https://mcp.test/mcp?key=mcp-secret"},
                "program": {"command": "x", "env": {"TOKEN": "mcp-secret"}},
                "login": {"url": "https://mcp.test/mcp", "oauth": {}},
            },
            "token_key": "k" * 44,
        }
    )
    with pytest.raises(ConfigError, match="allow_anonymous: true at this server") as error:
        check_exposure(found, options(), "aibridge.yaml")
    paths = ["mcp.servers.http.headers", "mcp.servers.query.url", "mcp.servers.program.env"]
    paths.append("mcp.servers.login.oauth")
    assert [problem.path for problem in error.value.problems] == paths
    assert "mcp-secret" not in str(error.value)
    check_exposure(found, options(**LOOPBACK), "aibridge.yaml")
    check_exposure(found, options(proxyauth="alice:secret"), "aibridge.yaml")


@pytest.mark.parametrize(
    "args",
    [
        ["-y", "mcp-remote", "https://mcp.test/mcp", "--header", "Authorization: Bearer 0123456789abcdef"],
        ["--header", "X-Api-Key:abc"],
        ["--api-key", "abc"],
        ["--API_KEY=abc"],
        ["--github-token", "abc"],
        ["sk-ant-api03-0123456789abcdefghijklmnop"],
        ["postgresql://app:secret-of-the-database@db.test/app"],
        ["https://mcp.test/mcp?api_key=0123456789abcdef"],
    ],
)
def test_a_credential_in_a_programs_arguments_is_central_too(args: list[str]) -> None:
    found = settings(mcp={"servers": {"s": {"command": "x", "args": args}}})
    with pytest.raises(ConfigError) as error:
        check_exposure(found, options(), "aibridge.yaml")
    assert [problem.path for problem in error.value.problems] == ["mcp.servers.s.args"]
    check_exposure(found, options(**LOOPBACK), "aibridge.yaml")


@pytest.mark.parametrize(
    "server",
    [
        {"url": "https://mcp.test/mcp"},
        {"url": "https://mcp.test/mcp", "headers": {}},
        {"url": "https://mcp.test/mcp", "headers": {"Authorization": ""}},
        {"url": "https://mcp.test/mcp?key=k", "headers": {"Authorization": "Bearer t"}, "allow_anonymous": True},
        {
            "command": "x",
            "args": ["--utc", "--keyboard", "us", "--token", "--verbose", "path:to", "https://[mcp.test/key?a=b"],
        },
        {"command": "x", "env": {"TOKEN": "t"}, "allow_anonymous": True},
    ],
)
def test_an_mcp_server_without_credentials_or_open_on_purpose_may_be_reached(server: dict[str, Any]) -> None:
    check_exposure(settings(mcp={"servers": {"s": server}}), options(), "aibridge.yaml")


async def test_options_that_would_expose_a_central_key_are_refused_while_it_runs(tmp_path: Path) -> None:
    file = tmp_path / "aibridge.yaml"
    file.write_text(
        f"database: sqlite:///{tmp_path / 'aibridge.db'}\nmetrics: {{listen: null}}\n"
        "providers: [{name: anthropic, type: anthropic, api_key: sk-central-0001}]\n"
    )
    addon = AIBridge()
    with taddons.context(Proxyserver(), proxyauth.ProxyAuth(), addon) as context:
        context.configure(addon, aibridge_config=str(file), listen_host="127.0.0.1")
        with pytest.raises(OptionsError, match=r"providers\[0\].api_key"):
            context.configure(addon, listen_host="0.0.0.0")
        context.configure(addon, listen_host="::1")
        Life.of_master().done()
