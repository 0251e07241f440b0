"""Host patterns as subtrees of names."""

from __future__ import annotations

import botocore.session
import pytest

from aibridge_addon.config.providers import DEFAULT_PROVIDERS, Provider
from aibridge_addon.config.subtrees import not_permitted, subtrees, widened
from aibridge_addon.credentials.name_constraints import Limits, name_constraints
from aibridge_addon.interception.routing import Router
from aibridge_addon.providers.aws import REGIONS


@pytest.mark.parametrize(
    ("pattern", "names", "wider"),
    [
        ("api.openai.com", ("api.openai.com",), None),
        ("*.openai.azure.com", ("openai.azure.com",), None),
        ("*.*.example", ("example",), None),
        ("api.*.corp.example", ("corp.example",), "corp.example"),
        ("*.a.*.b.example", ("b.example",), "b.example"),
        ("*.*.*.amazonaws.com", ("amazonaws.com",), None),
        ("10.0.0.1", ("10.0.0.1",), None),
    ],
)
def test_a_pattern_is_a_subtree(pattern: str, names: tuple[str, ...], wider: str | None) -> None:
    assert subtrees([pattern]) == names and widened(pattern) == wider


def test_a_wildcard_in_a_host_of_aws_is_each_region() -> None:
    found = subtrees(["bedrock-runtime.*.amazonaws.com", "bedrock-runtime.*.amazonaws.com"])
    assert len(found) == len(REGIONS["amazonaws.com"]) and "bedrock-runtime.eu-central-1.amazonaws.com" in found
    assert not any(name.endswith(".cn") for name in found)
    assert "x.cn-north-1.amazonaws.com.cn" in subtrees(["x.*.amazonaws.com.cn"])
    assert "bedrock-runtime.us-east-1.vpce.amazonaws.com" in subtrees(["*.bedrock-runtime.*.vpce.amazonaws.com"])


def test_the_regions_are_those_of_botocore() -> None:
    session = botocore.session.get_session()
    regions = {name: set(session.get_available_regions("ec2", name)) for name in ("aws", "aws-us-gov", "aws-cn")}
    assert regions["aws"] | regions["aws-us-gov"] <= set(REGIONS["amazonaws.com"])
    assert regions["aws-cn"] <= set(REGIONS["amazonaws.com.cn"])


@pytest.mark.parametrize("host", [host for provider in DEFAULT_PROVIDERS for host in provider.hosts])
def test_the_hosts_of_a_default_provider_are_in_its_subtrees(host: str) -> None:
    """And a name that is in no provider is in none of them, but below a host."""
    sample = host.replace("*", "eu-west-1" if "cn" not in host else "cn-north-1")
    limits = Limits((name_constraints(subtrees([host])),))
    assert Router(DEFAULT_PROVIDERS).provider_for_host(sample) is not None
    assert limits.permits_host(sample) and not_permitted(DEFAULT_PROVIDERS, limits.permits_host) != []


@pytest.mark.parametrize("host", ["s3.eu-west-1.amazonaws.com", "amazonaws.com", "azure.com", "anthropic.com", "a.aws"])
def test_other_hosts_are_in_no_subtree_of_the_default_providers(host: str) -> None:
    patterns = [pattern for provider in DEFAULT_PROVIDERS for pattern in provider.hosts]
    assert all(widened(pattern) is None for pattern in patterns)
    assert not Limits((name_constraints(subtrees(patterns)),)).permits_host(host)


@pytest.mark.parametrize(
    ("pattern", "permitted", "missing"),
    [
        ("api.openai.com", ["api.openai.com"], False),
        ("api.openai.com", ["openai.com"], False),
        ("api.openai.com", ["eu.api.openai.com"], True),
        ("*.openai.azure.com", ["openai.azure.com"], False),
        ("*.openai.azure.com", ["team.openai.azure.com"], True),
        ("bedrock-runtime.*.amazonaws.com", ["bedrock-runtime.eu-west-1.amazonaws.com"], False),
        ("bedrock-runtime.*.amazonaws.com", ["amazonaws.com"], False),
        ("bedrock-runtime.*.amazonaws.com", ["api.aws"], True),
        ("api.*.corp.example", ["corp.example"], False),
        ("10.0.0.1", ["10.0.0.1"], False),
        ("10.0.0.1", ["10.0.0.2", "a.example"], True),
    ],
)
def test_a_pattern_is_permitted_if_hosts_of_it_are(pattern: str, permitted: list[str], missing: bool) -> None:
    provider = Provider(name="a", type="anthropic", hosts=(pattern,))
    found = not_permitted([provider], Limits((name_constraints(permitted),)).permits_host)
    assert found == ([pattern] if missing else [])
