"""Tools of a shell with `aibridge env` go on working: their hosts are tunnelled, and keep their own certificates."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import MakeUpstream, StartMitmdump
from tests.support.authority import Authority
from tests.support.script import Answer, Request
from tests.support.upstream import ScriptedUpstream

RESOLVER = Path(__file__).parents[1] / "support" / "resolver.py"
HOST = "tools.test"
COMMIT = "1" * 40
PACKUMENT = {
    "name": "thing",
    "dist-tags": {"latest": "1.2.3"},
    "versions": {"1.2.3": {"name": "thing", "version": "1.2.3", "dist": {"tarball": f"https://{HOST}/t.tgz"}}},
}
ANSWERS = {
    "/repo/info/refs": ("text/plain", f"{COMMIT}\trefs/heads/main\n"),
    "/simple/thing/": ("text/html", '<a href="/f/thing-1.2.3-py3-none-any.whl">thing-1.2.3-py3-none-any.whl</a>'),
    "/thing": ("application/json", json.dumps(PACKUMENT)),
    "/": ("text/plain", "hello"),
}
TOOLS = {
    "curl": ("curl -sS {url}/", "hello"),
    "git": ("git ls-remote {url}/repo", f"{COMMIT}\trefs/heads/main"),
    "pip": ("{python} -m pip index versions thing --index-url {url}/simple/", "thing (1.2.3)"),
    "npm": ("npm view thing version --registry {url}/", "1.2.3"),
}


def answer(request: Request) -> Answer:
    path = request.path.partition("?")[0]
    kind, text = ANSWERS.get(path, ("text/plain", ""))
    return Answer(200 if path in ANSWERS else 404, [("content-type", kind)], text.encode())


@pytest.fixture
def server(make_upstream: MakeUpstream) -> ScriptedUpstream:
    return make_upstream(handler=answer, names=[HOST])


@pytest.mark.parametrize("tool", TOOLS)
def test_a_tool_works_through_the_proxy(
    tool: str, mitmdump: StartMitmdump, server: ScriptedUpstream, ca: Authority, tmp_path: Path
) -> None:
    if shutil.which(tool) is None:
        pytest.skip(f"{tool} is not installed")
    names = {"SCRIPTED_NAMES": json.dumps({HOST: [["127.0.0.1"]]})}
    proxy = mitmdump(arguments=["-s", str(RESOLVER)], env=names)
    command, printed = TOOLS[tool]
    aibridge = Path(sys.executable).with_name("aibridge")
    script = f"""
        eval "$({aibridge} env --shell sh --confdir {proxy.confdir} --proxy {proxy.proxy_url})"
        exec {command.format(url=f"https://{HOST}:{server.port}", python=sys.executable)}
    """
    environ = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "SSL_CERT_FILE": str(ca.pem)}
    done = subprocess.run(["sh", "-c", script], env=environ, cwd=tmp_path, capture_output=True, text=True, timeout=90)
    assert done.returncode == 0, done.stderr
    assert printed in done.stdout.splitlines()
    assert len(server.requests) >= 1
