"""The proxy in the test's own process: as real as mitmdump, and gone when it is closed."""

from __future__ import annotations

import logging
import os
import sys
import threading
from pathlib import Path

import httpx
import psutil  # type: ignore[import-untyped]
import pytest

from tests.conftest import RunToExit, StartProxy
from tests.integration.turns import CONNECTED, program
from tests.support.client import proxy_client
from tests.support.in_process import InProcessProxy
from tests.support.polling import poll_until
from tests.support.running import StartFailedError
from tests.support.upstream import Answer, ScriptedUpstream, unused_port


def test_requests_go_through_it(start_proxy: StartProxy, upstream: ScriptedUpstream) -> None:
    proxy = start_proxy(script=None)
    upstream.answer(Answer(body=b"hi"))
    with proxy_client(proxy) as client:
        assert client.get(f"{upstream.url}/path").content == b"hi"
    proxy.wait_for_log("GET https://localhost:.*/path")


def test_a_closed_one_leaves_nothing_behind(start_proxy: StartProxy) -> None:
    threads, handlers, path = set(threading.enumerate()), list(logging.getLogger().handlers), list(sys.path)
    others = set(psutil.Process().children(recursive=True))
    environment, folder = dict(os.environ), Path.cwd()
    metrics = unused_port()
    proxy = start_proxy(
        config=f"metrics: {{listen: '127.0.0.1:{metrics}'}}\nmcp: {{{program()}}}\n", env={"ADDED": "1"}
    )
    proxy.wait_for_log(CONNECTED)
    children = set(psutil.Process().children(recursive=True)) - others
    assert children and "ADDED" in os.environ and Path.cwd() == proxy.folder
    assert httpx.get(f"http://127.0.0.1:{metrics}/healthz", trust_env=False).status_code == 200
    proxy.close()
    proxy.close()
    for port in (proxy.port, metrics):
        with pytest.raises(httpx.ConnectError):
            httpx.get(f"http://127.0.0.1:{port}/", trust_env=False)
    assert (dict(os.environ), Path.cwd()) == (environment, folder)
    assert (logging.getLogger().handlers, sys.path) == (handlers, path)
    poll_until(lambda: not any(child.is_running() for child in children), what="the end of the MCP server")
    poll_until(lambda: set(threading.enumerate()) <= threads, what="the end of its threads")


def test_there_is_one_at_a_time(start_proxy: StartProxy) -> None:
    first = start_proxy()
    with pytest.raises(RuntimeError, match="another proxy"):
        start_proxy()
    first.close()
    assert start_proxy(folder=first.folder).port


def test_a_start_that_fails_says_why_and_leaves_nothing_behind(
    run_to_exit: RunToExit, start_proxy: StartProxy, tmp_path: Path
) -> None:
    handlers = list(logging.getLogger().handlers)
    with pytest.raises(StartFailedError, match=r"mcp\.max_turn"):
        start_proxy(config="mcp: {max_turn: 3}")
    assert run_to_exit(options=["listen_port=nonsense"]).code == 1
    assert logging.getLogger().handlers == handlers
    assert start_proxy().port


def test_an_error_of_a_hook_is_in_the_log(start_proxy: StartProxy, tmp_path: Path, upstream: ScriptedUpstream) -> None:
    script = tmp_path / "raises.py"
    script.write_text("def request(flow):\n    raise ValueError('of a hook')\n")
    upstream.answer(Answer(body=b"hi"))
    proxy = start_proxy(script=script, allow_traceback=True, config=None)
    with proxy_client(proxy) as client:
        client.get(upstream.url)
    assert "ValueError: of a hook" in proxy.log and proxy.has_traceback


def test_what_the_test_logs_is_not_the_proxys(start_proxy: StartProxy) -> None:
    proxy = start_proxy()
    logging.getLogger("elsewhere").error("of the test")
    assert "of the test" not in proxy.log


def test_waiting_for_a_line_is_bounded(start_proxy: StartProxy) -> None:
    with pytest.raises(TimeoutError, match="never"):
        start_proxy().wait_for_log("never", timeout=0.01)


def test_it_cannot_be_started_twice(tmp_path: Path, mitmproxy_ca: Path) -> None:
    with InProcessProxy(tmp_path, mitmproxy_ca=mitmproxy_ca) as proxy, pytest.raises(RuntimeError, match="already"):
        proxy.start()
