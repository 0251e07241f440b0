"""mitmproxy's options of the log, as a process: what each level shows, on standard output and standard error."""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest

from tests.integration.exchanges import ANTHROPIC, Client, wait_for_ended
from tests.support import fixtures
from tests.support.authority import Authority
from tests.support.mitmdump import Mitmdump
from tests.support.polling import poll_until
from tests.support.upstream import Answer, ScriptedUpstream, unused_port

PATH = "/v1/messages"
CASES = {
    "ok": fixtures.case("messages/simple/streaming"),
    "failed": fixtures.case("messages/error_before_429/blocking"),
}
START = "aibridge: configuration"
OK, FAILED = " ok\n", "failed: rate_limit_error (429)\n"
CONNECTIONS, FLOWS = "client connect", "POST https://"
ALL = {START, OK, FAILED, CONNECTIONS, FLOWS}


class Quiet(Mitmdump):
    """Without log lines, only an answer of the bridge shows that it is ready."""

    def start(self) -> None:
        port = unused_port()
        self._options["arguments"] = [*self._options.get("arguments", ()), "--listen-port", str(port)]
        self._spawn(self._options.get("config"))
        self.ports = [port]
        poll_until(self._is_ready, 60, what="an answer of the bridge")

    def _is_ready(self) -> bool:
        try:
            answer = httpx.get(f"http://127.0.0.1:{self.port}/nowhere", trust_env=False)
        except httpx.TransportError:
            return False
        return "no provider has this route" in answer.text


@pytest.mark.parametrize(
    ("arguments", "shown"),
    [
        ([], {START, OK, FAILED}),
        (["-q"], set[str]()),
        (["--set", "termlog_verbosity=error"], set[str]()),
        (["--set", "termlog_verbosity=warn"], {FAILED}),
        (["--set", "termlog_verbosity=debug"], {START, OK, FAILED, CONNECTIONS}),
        (["--flow-detail", "1"], {START, OK, FAILED, FLOWS}),
        (["-v"], ALL),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_each_level_shows_what_it_says(
    tmp_path: Path,
    mitmproxy_ca: Path,
    ca: Authority,
    upstream: ScriptedUpstream,
    arguments: list[str],
    shown: set[str],
) -> None:
    config = (
        f"metrics: {{listen: null}}\nproviders: [{{name: anthropic, type: anthropic, base_url: '{upstream.url}'}}]\n"
    )
    with Quiet(tmp_path, config=config, arguments=arguments, mitmproxy_ca=mitmproxy_ca, upstream_ca=ca.pem) as proxy:
        for case in CASES.values():
            upstream.answer(Answer(case.status, [("content-type", case.content_type)], case.body))
            with Client(proxy, ANTHROPIC) as client:
                client.post(PATH, case.request)
        wait_for_ended(proxy, len(CASES))
        proxy.terminate()
        assert proxy.wait() == 0
    found = {piece for piece in ALL if piece in proxy.log}
    assert found == shown
    if not shown:
        assert proxy.log == ""
