"""A start of mitmdump itself: with no configuration at all, and with one that cannot work."""

from __future__ import annotations

import fcntl
import os
import pwd
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from tests.conftest import RunToExit, StartMitmdump
from tests.integration.answers import ask, is_refused, whole
from tests.integration.exchanges import ANTHROPIC, wait_for_ended
from tests.support.upstream import ScriptedUpstream, unused_port


@contextmanager
def default_metrics_port() -> Iterator[None]:
    """One process at a time may listen where a configuration says nothing."""
    with (Path(tempfile.gettempdir()) / "aibridge-tests-metrics-port.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def test_it_works_with_no_configuration_at_all(mitmdump: StartMitmdump, upstream: ScriptedUpstream) -> None:
    upstream.answer(whole())
    with default_metrics_port():
        # No request may leave this machine, so an option of mitmproxy redirects them.
        proxy = mitmdump(config=None, options=[f"map_remote=|https://{ANTHROPIC}/|{upstream.url}/"])
        ask(proxy)
        assert httpx.get("http://127.0.0.1:9464/healthz", trust_env=False).status_code == 200
        [row] = wait_for_ended(proxy, 1)
        proxy.terminate()
        assert proxy.wait() == 0
    assert proxy.database == proxy.folder / "aibridge.db" and proxy.database.is_file()
    assert (row["status"], row["provider_name"]) == ("completed", "anthropic")
    assert row["initiator_id"] == pwd.getpwuid(os.getuid()).pw_name


def test_a_wrong_configuration_ends_the_process_with_an_error(run_mitmdump_to_exit: RunToExit) -> None:
    port = unused_port()
    ended = run_mitmdump_to_exit(config="mcp: {max_turn: 3}", arguments=["--listen-port", str(port)])
    assert ended.code == 1
    assert "aibridge.yaml: mcp.max_turn" in ended.output and "Traceback" not in ended.output
    assert is_refused(port)


def test_without_botocore_the_start_says_what_to_install(
    run_mitmdump_to_exit: RunToExit, tmp_path_factory: pytest.TempPathFactory
) -> None:
    blocker = tmp_path_factory.mktemp("blocker")
    (blocker / "botocore.py").write_text("raise ImportError('not installed')\n")
    bedrock = "{region: us-east-1, model: m, small_fast_model: m}"
    config = f"providers: [{{name: anthropic, type: anthropic, bedrock: {bedrock}}}]"
    ended = run_mitmdump_to_exit(config=config, env={"PYTHONPATH": str(blocker)})
    assert ended.code == 1 and "providers[0].bedrock" in ended.output
    assert "pip install 'aibridge-mitmproxy[bedrock]'" in ended.output
