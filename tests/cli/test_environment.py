"""The variables that make programs use the proxy."""

from __future__ import annotations

from pathlib import Path

import pytest

from aibridge_addon.cli.environment import (
    GATEWAY_NAMES,
    LOOPBACK,
    VARIABLES,
    Route,
    bundle_files,
    gateway_variables,
    java_proxy,
    past_the_proxy,
    variables,
)
from aibridge_addon.config.providers import DEFAULT_PROVIDERS

ROUTE = Route("http://127.0.0.1:8080", Path("/x/bundle.pem"))
CONTRACT = (
    "NODE_EXTRA_CA_CERTS",
    "SSL_CERT_FILE",
    "REQUESTS_CA_BUNDLE",
    "CURL_CA_BUNDLE",
    "AWS_CA_BUNDLE",
    "CODEX_CA_CERTIFICATE",
)


def test_every_variable_is_there_once_and_says_who_uses_it() -> None:
    names = [variable.name for variable in VARIABLES]
    assert len(set(names)) == len(names)
    assert all(variable.used_by for variable in VARIABLES)


def test_programs_get_the_proxy_and_the_bundle() -> None:
    found = variables(ROUTE, {})
    assert {found[name] for name in ("HTTPS_PROXY", "https_proxy")} == {"http://127.0.0.1:8080"}
    assert {found[name] for name in CONTRACT} == {"/x/bundle.pem"}


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("", "localhost,127.0.0.1,::1"),
        ("corp.example, ::1", "corp.example,::1,localhost,127.0.0.1"),
        (",".join(LOOPBACK), ",".join(LOOPBACK)),
    ],
)
def test_loopback_is_added_to_what_goes_past_proxies_already(before: str, after: str) -> None:
    assert variables(ROUTE, {"NO_PROXY": before})["NO_PROXY"] == after


@pytest.mark.parametrize(
    ("before", "bundle", "after"),
    [
        ("", "/x/b.pem", "-Djavax.net.ssl.trustStore=/x/b.p12"),
        ("-Xmx1g", "/x/b.pem", "-Djavax.net.ssl.trustStore=/x/b.p12"),
        ("", "/a dir/b.pem", '"-Djavax.net.ssl.trustStore=/a dir/b.p12"'),
        ("", "/it's/b.pem", '"-Djavax.net.ssl.trustStore=/it\'s/b.p12"'),
    ],
)
def test_java_gets_options_after_those_that_are_there(before: str, bundle: str, after: str) -> None:
    found = variables(Route("http://127.0.0.1:8080", Path(bundle)), {"JAVA_TOOL_OPTIONS": before})["JAVA_TOOL_OPTIONS"]
    proxy = "-Dhttps.proxyHost=127.0.0.1 -Dhttps.proxyPort=8080"
    assert found == f"{before} {proxy} {after} -Djavax.net.ssl.trustStoreType=PKCS12".strip()
    assert java_proxy("http://127.0.0.1:8080", before) == f"{before} {proxy}".strip()


def test_files_that_the_environment_trusts_already_are_found_once() -> None:
    environ = {"SSL_CERT_FILE": "/a.pem", "GIT_SSL_CAINFO": "/a.pem", "PIP_CERT": "/b.pem", "CURL_CA_BUNDLE": ""}
    assert bundle_files(environ) == [Path("/a.pem"), Path("/b.pem")]


@pytest.mark.parametrize(
    "entry",
    [
        "*",
        "api.anthropic.com",
        ".anthropic.com",
        "ANTHROPIC.com",
        "*.anthropic.com",
        "api.anthropic.com:443",
        "res.openai.azure.com",
        "bedrock-runtime.eu-central-1.amazonaws.com",
        "amazonaws.com",
    ],
)
def test_an_entry_that_covers_a_provider_is_found(entry: str) -> None:
    assert past_the_proxy(f"localhost,{entry}", DEFAULT_PROVIDERS) == [entry.lower()]


@pytest.mark.parametrize(
    "entry", ["localhost", "127.0.0.1", "thropic.com", "example.com", "x.api.anthropic.com", ".", ""]
)
def test_other_entries_are_not_found(entry: str) -> None:
    assert past_the_proxy(entry, DEFAULT_PROVIDERS) == []


def test_a_gateway_has_base_urls_of_the_first_provider_of_each_type() -> None:
    found = gateway_variables("http://127.0.0.1:8080/", DEFAULT_PROVIDERS)
    assert found == {
        "ANTHROPIC_BASE_URL": "http://127.0.0.1:8080/anthropic",
        "OPENAI_BASE_URL": "http://127.0.0.1:8080/openai/v1",
        "OPENAI_API_BASE": "http://127.0.0.1:8080/openai/v1",
    }
    assert tuple(found) == GATEWAY_NAMES
