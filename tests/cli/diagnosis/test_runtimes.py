"""What is measured of the runtimes of this machine."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from aibridge_addon.cli import roots
from aibridge_addon.cli.diagnosis import runtimes
from aibridge_addon.cli.environment import JAVA_OPTIONS, Route, variables
from aibridge_addon.credentials.name_constraints import Limits, name_constraints
from tests.support.stolen_key import ForgingProxy

SCRIPT = """#!/bin/sh
[ -n "$NEEDED" ] || { echo "certificate \\033[31mrefused" >&2; exit 1; }
exec curl -sS --noproxy '*' -o /dev/null "$TARGET/$(echo "$1" | cut -d/ -f4-)"
"""


@pytest.mark.parametrize(
    ("before", "ours", "step"),
    [
        ({"NEEDED": "1"}, {}, ""),
        ({}, {"NEEDED": "1"}, "NEEDED is missing"),
        ({"NO_PROXY": "*"}, {}, "look at NO_PROXY"),
    ],
)
def test_a_runtime_is_measured(
    before: dict[str, str], ours: dict[str, str], step: str, tmp_path: Path, make_ready: Callable[[str], Path]
) -> None:
    program = make_ready(SCRIPT)
    runtime = runtimes.Runtime("fake", "fake", ("{url}",), "NEEDED")
    with runtimes.Target() as target:
        environ = {"PATH": os.environ["PATH"], "TARGET": target.url, **before}
        added = {"HTTPS_PROXY": "http://proxy", "https_proxy": "http://proxy", "NEEDED": "", **ours}
        [check] = runtimes.check_all(target, environ, added, [runtime], lambda _: str(program))
    assert check.ok == (not step) and step in check.next_step and "\x1b" not in check.found


@pytest.mark.parametrize("before", ["", "-Xmx1g"])
def test_an_option_of_java_is_named_within_its_variable(
    before: str, tmp_path: Path, make_ready: Callable[[str], Path]
) -> None:
    script = SCRIPT.replace('[ -n "$NEEDED" ]', 'echo "$JAVA_TOOL_OPTIONS" | grep -q "https.proxyHost.*trustStore"')
    [java] = [each for each in runtimes.RUNTIMES if each.name == "java"]
    with runtimes.Target() as target:
        environ = {"PATH": os.environ["PATH"], "TARGET": target.url, JAVA_OPTIONS: before}
        ours = variables(Route("http://127.0.0.1:8080", tmp_path / "bundle.pem"), environ)
        fake = replace(java, arguments=("{url}",))
        [check] = runtimes.check_all(target, environ, ours, [fake], lambda _: str(make_ready(script)))
    assert check.name == "java" and "-Djavax.net.ssl.trustStore in JAVA_TOOL_OPTIONS is missing" in check.next_step


@pytest.mark.parametrize("runtime", runtimes.RUNTIMES, ids=[each.name for each in runtimes.RUNTIMES])
def test_a_real_runtime_lacks_its_variable_alone(runtime: runtimes.Runtime, mitmproxy_ca: Path, tmp_path: Path) -> None:
    if shutil.which(runtime.program) is None:
        pytest.skip(f"{runtime.program} is not installed")
    environ = {"PATH": os.environ["PATH"], "HOME": str(tmp_path)}
    with ForgingProxy(mitmproxy_ca / "mitmproxy-ca.pem", [runtimes.HOST], tmp_path) as proxy:
        route = Route(proxy.url, tmp_path / "bundle.pem")
        roots.write_trusted(route.bundle, route.trust_store, roots.bundle(mitmproxy_ca / "mitmproxy-ca-cert.pem"))
        ours = variables(route, environ)
        [missing] = runtimes.check_all(proxy, environ, ours, [runtime])
        [there] = runtimes.check_all(proxy, environ | ours, ours, [runtime])
    assert not missing.ok and f"{runtime.variable} is missing" in missing.next_step
    assert there.ok, there
    assert not (tmp_path / "go").exists() and not (tmp_path / ".config").exists()


def test_the_host_of_the_measurement_is_one_for_which_the_authority_may_sign() -> None:
    assert runtimes.host(None) == runtimes.HOST
    found = Limits((name_constraints(["192.0.2.1", "api.anthropic.com"]),))
    assert runtimes.host(found) == "aibridge-doctor.api.anthropic.com" and found.permits_host(runtimes.host(found))


@pytest.fixture
def make_ready(tmp_path: Path) -> Callable[[str], Path]:
    def make(text: str) -> Path:
        file = tmp_path / "program"
        file.write_text(text)
        file.chmod(0o755)
        return file

    return make


def test_runtimes_that_are_not_there_are_left_out() -> None:
    with runtimes.Target() as target:
        assert runtimes.check_all(target, {}, {}, which=lambda _: None) == []
