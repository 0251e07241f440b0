"""A start of mitmdump itself: with no configuration at all, and with one that cannot work."""

from __future__ import annotations

import fcntl
import json
import os
import pwd
import socket
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx
import psutil  # type: ignore[import-untyped]
import pytest

from tests.conftest import RunToExit, StartMitmdump
from tests.integration.answers import ask, config, is_refused, whole
from tests.integration.exchanges import ANTHROPIC, wait_for_ended
from tests.support.polling import poll_until
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


STUBBORN = """
import pathlib, signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
pathlib.Path("started").write_text("")
while True:
    time.sleep(1)
"""
FAILING = """
import logging
def running():
    logging.error("another addon cannot start")
"""


def test_a_start_that_fails_after_ours_ends_with_an_error_and_leaves_no_program(
    run_mitmdump_to_exit: RunToExit, tmp_path: Path
) -> None:
    """The last moment at which a start can fail is the `running` of another addon."""
    program, other = tmp_path / "stubborn.py", tmp_path / "other.py"
    program.write_text(STUBBORN)
    other.write_text(FAILING)
    command = json.dumps({"command": sys.executable, "args": [str(program)]})
    with socket.create_server(("127.0.0.1", 0)) as taken:
        for more in (["-s", str(other)], ["--listen-port", str(taken.getsockname()[1])]):
            ended = run_mitmdump_to_exit(config=f"mcp: {{servers: {{ours: {command}}}}}", arguments=more)
            assert ended.code == 1 and "Traceback" not in ended.output
    left = [
        each.info["pid"] for each in psutil.process_iter(["cmdline"]) if str(program) in (each.info["cmdline"] or ())
    ]
    assert left == []


SLOW = """
import pathlib, time
from aibridge_addon.recording.recorder import Recorder
opened = Recorder.open
def open(self):
    pathlib.Path("opening").write_text("")
    while not pathlib.Path("go on").exists():
        time.sleep(0.01)
    opened(self)
Recorder.open = open
"""


def test_nothing_is_answered_before_the_database_is_open(
    mitmdump: StartMitmdump, upstream: ScriptedUpstream, tmp_path: Path
) -> None:
    script, port = tmp_path / "slow.py", unused_port()
    script.write_text(f"{SLOW}\nfrom aibridge_addon.addon import AIBridge\naddons = [AIBridge()]\n")
    folder = tmp_path / "slow"
    folder.mkdir()
    answered: list[bytes] = []

    def ask_early() -> None:
        poll_until((folder / "opening").exists, 30, what="the opening of the database")
        with suppress(OSError), socket.create_connection(("127.0.0.1", port), 1) as client:
            client.sendall(b"GET /nothing HTTP/1.1\r\nhost: x\r\n\r\n")
            with suppress(TimeoutError):
                answered.append(client.recv(1))
        (folder / "go on").write_text("")

    early = threading.Thread(target=ask_early)
    early.start()
    upstream.answer(whole())
    proxy = mitmdump(config=config(upstream.port), script=script, folder=folder, arguments=["--listen-port", str(port)])
    early.join()
    assert answered == []
    ask(proxy)
    assert [row["status"] for row in wait_for_ended(proxy, 1)] == ["completed"]
