"""X.509 name constraints: what they permit, compared with OpenSSL where that is possible."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from cryptography import x509
from hypothesis import given
from hypothesis import strategies as st

from aibridge_addon.credentials.name_constraints import (
    Limits,
    by_region,
    general_name,
    limits_of,
    name_constraints,
)
from tests.support.constrained import make_constrained_ca
from tests.support.stolen_key import issue

HOSTS = ("api.anthropic.com", "openai.azure.com")


def limits(*hosts: str) -> Limits:
    return Limits((name_constraints(hosts),))


@pytest.mark.parametrize(
    ("host", "permitted"),
    [
        ("api.anthropic.com", True),
        ("API.Anthropic.com", True),
        ("api.anthropic.com.", True),
        ("x.api.anthropic.com", True),
        ("*.openai.azure.com", True),
        ("anthropic.com", False),
        ("xapi.anthropic.com", False),
        ("*.anthropic.com", False),
        ("api.anthropic.com.example", False),
        ("localhost", False),
        ("192.0.2.1", False),
        ("::1", False),
        ("é.example", False),
    ],
)
def test_a_host_and_the_names_below_it_are_permitted(host: str, permitted: bool) -> None:
    assert limits(*HOSTS).permits_host(host) == permitted


@given(st.lists(st.sampled_from(["api", "anthropic", "com", "openai", "azure", "x"]), min_size=1, max_size=5))
def test_only_names_that_end_in_a_permitted_one_are_permitted(labels: list[str]) -> None:
    ends = {tuple(labels[index:]) for index in range(len(labels))}
    expected = any(tuple(host.split(".")) in ends for host in HOSTS)
    assert limits(*HOSTS).permits_host(".".join(labels)) == expected


def test_other_kinds_of_names_are_never_permitted() -> None:
    assert not limits(*HOSTS).permits(x509.RFC822Name("a@api.anthropic.com"))
    assert not limits(*HOSTS).permits(x509.UniformResourceIdentifier("https://api.anthropic.com"))


@pytest.mark.parametrize(
    ("name", "verdict"),
    [("10.1.2.3", True), ("10.1.2.4", False), ("::1", False), ("api.anthropic.com", False), ("a.invalid", True)],
)
def test_an_address_of_a_provider_is_permitted_and_no_other(name: str, verdict: bool, tmp_path: Path) -> None:
    assert limits("10.1.2.3").permits_host(name) == verdict
    folder = make_constrained_ca(tmp_path / "ca", ["10.1.2.3"])
    leaf = tmp_path / "leaf.pem"
    leaf.write_bytes(issue(folder / "mitmproxy-ca.pem", [name]))
    command = ["openssl", "verify", "-CAfile", str(folder / "mitmproxy-ca-cert.pem"), str(leaf)]
    assert (subprocess.run(command, capture_output=True, timeout=60).returncode == 0) == verdict


@pytest.mark.parametrize("hosts", [HOSTS, ("10.1.2.3",), ("2001:db8::1",), ("a.example", "10.1.2.3", "2001:db8::1")])
def test_constraints_survive_a_certificate(hosts: tuple[str, ...], tmp_path: Path) -> None:
    pem = (make_constrained_ca(tmp_path / "ca", hosts) / "mitmproxy-ca-cert.pem").read_bytes()
    certificate = x509.load_pem_x509_certificate(pem)
    extension = certificate.extensions.get_extension_for_class(x509.NameConstraints)
    assert extension.critical and extension.value == name_constraints(hosts)
    found = limits_of([certificate])
    assert found is not None and set(hosts) <= set(found.permitted)
    assert all(found.permits_host(host) for host in hosts)


def test_all_constraints_of_a_chain_hold() -> None:
    both = Limits((name_constraints(["com"]), name_constraints(["a.com", "b.org"])))
    assert both.permits_host("a.com") and not both.permits_host("b.org") and not both.permits_host("c.com")


def test_constraints_of_others_are_understood() -> None:
    """A base with a dot in front means only the names below it, and an empty one every name."""
    others = x509.NameConstraints([x509.DNSName(".corp.example")], [x509.DNSName("secret.corp.example")])
    assert Limits((others,)).permits(general_name("a.corp.example")) and Limits((others,)).permits_host("192.0.2.1")
    assert not Limits((others,)).permits_host("corp.example") and not Limits((others,)).permits_host(
        "secret.corp.example"
    )
    none = x509.NameConstraints(None, [x509.DNSName("")])
    assert not Limits((none,)).permits_host("a.example") and Limits((none,)).permitted == ()


def test_names_that_differ_in_the_region_are_one() -> None:
    names = ["x.eu-west-1.api.aws", "x.us-gov-east-1.api.aws", "x.cn-north-1.amazonaws.com.cn", "a.b-c.example"]
    assert by_region(names) == {
        "x.<region>.api.aws": 2,
        "x.<region>.amazonaws.com.cn": 1,
        "a.b-c.example": 1,
    }
