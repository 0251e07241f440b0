"""Starting with and without configuration, reloading, and ending without cutting anybody off."""

from __future__ import annotations

import fcntl
import os
import pwd
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import psutil  # type: ignore[import-untyped]
import pytest

from tests.conftest import RunToExit, StartMitmdump
from tests.integration.exchanges import ANTHROPIC, Client, wait_for_ended
from tests.support.client import RawHttp1
from tests.support.fixtures import case
from tests.support.mitmdump import Mitmdump, MitmdumpOptions
from tests.support.polling import poll_until
from tests.support.reloading import copy_package, reload
from tests.support.upstream import Answer, Gate, Pause, ScriptedUpstream, unused_port

PATH = "/v1/messages"
SIMPLE = case("messages/simple/streaming")
REQUEST = SIMPLE.request
EVENTS = [event + b"\n\n" for event in SIMPLE.body.split(b"\n\n") if event]
BEGUN = b"".join(EVENTS[:5])
RELOADS = 5


def config(port: int, more: str = "") -> str:
    return f"{more}\nproviders: [{{name: anthropic, type: anthropic, base_url: 'https://localhost:{port}'}}]\n"


def whole() -> Answer:
    return Answer.event_stream(SIMPLE.body)


def held(gate: Gate) -> Answer:
    return Answer.event_stream(*EVENTS[:5], Pause(gate), *EVENTS[5:])


def begin(client: RawHttp1) -> None:
    """Ask, and read an answer up to its gate."""
    client.request("POST", PATH, body=REQUEST)
    assert client.read_head().status == 200
    assert client.read_body_until(EVENTS[4]) == BEGUN


def ask(proxy: Mitmdump) -> None:
    with Client(proxy, ANTHROPIC) as client:
        assert client.post(PATH, REQUEST).body == SIMPLE.body


def is_refused(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), 1).close()
    except ConnectionRefusedError:
        return True
    return False


# --- where the configuration comes from


@contextmanager
def default_metrics_port() -> Iterator[None]:
    """One process at a time may listen where a configuration says nothing."""
    with (Path(tempfile.gettempdir()) / "aibridge-tests-metrics-port.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def test_it_works_with_no_configuration_at_all(mitmdump: StartMitmdump, upstream: ScriptedUpstream) -> None:
    upstream.answer(whole())
    with default_metrics_port():
        # Nothing may leave this machine, so mitmproxy is told to go elsewhere.
        proxy = mitmdump(config=None, options=[f"map_remote=|https://{ANTHROPIC}/|{upstream.url}/"])
        ask(proxy)
        assert httpx.get("http://127.0.0.1:9464/healthz", trust_env=False).status_code == 200
        [row] = wait_for_ended(proxy, 1)
        proxy.terminate()
        assert proxy.wait() == 0
    assert proxy.database == proxy.folder / "aibridge.db" and proxy.database.is_file()
    assert (row["status"], row["provider_name"]) == ("completed", "anthropic")
    assert row["initiator_id"] == pwd.getpwuid(os.getuid()).pw_name


def test_the_environment_can_name_the_file(mitmdump: StartMitmdump, tmp_path: Path) -> None:
    file = tmp_path / "from environment.yaml"
    file.write_text("database: sqlite:///other.db\nmetrics: {listen: null}\n")
    proxy = mitmdump(config=None, env={"AIBRIDGE_CONFIG": str(file)})
    assert (proxy.folder / "other.db").is_file()
    assert not proxy.database.exists()


def test_the_option_wins_over_the_environment(mitmdump: StartMitmdump, tmp_path: Path) -> None:
    env = {"AIBRIDGE_CONFIG": str(tmp_path / "absent.yaml")}
    proxy = mitmdump(config="database: sqlite:///mine.db", env=env)
    assert (proxy.folder / "mine.db").is_file()
    proxy.wait_for_log(
        r"aibridge: configuration \S+/aibridge\.yaml, 8 providers, 0 MCP servers, "
        r"rows in sqlite:///mine\.db, metrics on no port"
    )


def test_the_databases_option_wins_over_the_file(mitmdump: StartMitmdump, tmp_path: Path) -> None:
    wanted = tmp_path / "wanted.db"
    proxy = mitmdump(config="database: sqlite:///mine.db", options=[f"aibridge_database=sqlite:///{wanted}"])
    assert wanted.is_file()
    assert not (proxy.folder / "mine.db").exists()


# --- a configuration that is wrong


PROVIDER = "{name: a, type: openai}"
WRONG = {
    "unknown key": ("mcp: {max_turn: 3}", "mcp.max_turn"),
    "wrong type": ("drain_timeout: soon", "drain_timeout"),
    "not allowed": ("recording: {on_failure: never}", "recording.on_failure"),
    "URL": ("providers: [{name: a, type: openai, base_url: 'ftp://x'}]", "providers[0].base_url"),
    "regular expression": ("recording: {redact: ['(']}", "recording.redact[0]"),
    "duplicate name": (f"providers: [{PROVIDER}, {PROVIDER}]", "providers[1].name"),
    "unset variable": ("actor: {default: '${AIBRIDGE_TESTS_ABSENT}'}", "actor.default"),
    "database": ("database: mysql://localhost/x", "database"),
    "another database": ("database: postgresql://ann:hunter2@localhost/x", "database"),
    "address": ("metrics: {listen: nowhere}", "metrics.listen"),
    "syntax": ("actor: {default: 'x", "line 1"),
    "duplicate key": ("actor: {}\nactor: {}\n", "line 2"),
}


def assert_cannot_start(run_to_exit: RunToExit, *parts: str, **options: object) -> None:
    port = unused_port()
    given: MitmdumpOptions = {"arguments": ["--listen-port", str(port)], **options}  # type: ignore[typeddict-item]
    code, output = run_to_exit(**given)
    assert code not in (0, None)
    assert "Traceback" not in output and "hunter2" not in output
    [message] = [line for line in output.splitlines() if "aibridge cannot start: " in line]
    for part in parts:
        assert part in message
    assert is_refused(port)


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_configuration_stops_the_start(run_to_exit: RunToExit, name: str) -> None:
    text, key = WRONG[name]
    assert_cannot_start(run_to_exit, "aibridge.yaml: " if name != "another database" else "", key, config=text)


def test_a_file_that_cannot_be_read_stops_the_start(run_to_exit: RunToExit, tmp_path: Path) -> None:
    missing = str(tmp_path / "missing.yaml")
    assert_cannot_start(run_to_exit, missing, config=None, options=[f"aibridge_config={missing}"])
    assert_cannot_start(run_to_exit, str(tmp_path), config=None, env={"AIBRIDGE_CONFIG": str(tmp_path)})


def test_a_wrong_option_stops_the_start(run_to_exit: RunToExit) -> None:
    text = "metrics: {listen: null}"
    assert_cannot_start(run_to_exit, "aibridge_database", config=text, options=["aibridge_database=nowhere"])


def test_a_port_in_use_for_metrics_stops_the_start(run_to_exit: RunToExit) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        assert_cannot_start(run_to_exit, "metrics.listen", address, config=f"metrics: {{listen: '{address}'}}")


# --- the end


@pytest.mark.parametrize("signal", ["terminate", "interrupt"])
def test_answers_in_flight_are_finished_before_the_end(
    mitmdump: StartMitmdump, upstream: ScriptedUpstream, signal: str
) -> None:
    proxy = mitmdump(config=config(upstream.port))
    gate = Gate()
    upstream.answer(held(gate))
    with RawHttp1.through_proxy(proxy, ANTHROPIC, 443) as client:
        begin(client)
        getattr(proxy, signal)()
        poll_until(lambda: is_refused(proxy.port), what="new connections being refused")
        assert proxy.running
        gate.open()
        assert BEGUN + client.read_body() == SIMPLE.body
    assert proxy.wait() == 0
    [row] = proxy.rows("aibridge_interceptions")
    assert (row["status"], row["error_type"]) == ("completed", None)
    assert len(proxy.rows("aibridge_token_usages")) == 1


def test_an_answer_that_never_ends_is_cut_off(mitmdump: StartMitmdump, upstream: ScriptedUpstream) -> None:
    proxy = mitmdump(config=config(upstream.port, "drain_timeout: 1"))
    upstream.answer(held(Gate()), Answer(before=[Pause(Gate())]))
    with (
        RawHttp1.through_proxy(proxy, ANTHROPIC, 443) as begun,
        RawHttp1.through_proxy(proxy, ANTHROPIC, 443) as waiting,
    ):
        begin(begun)
        waiting.request("POST", PATH, body=REQUEST)
        upstream.wait_for_requests(2)
        proxy.terminate()
        assert proxy.wait() == 0
    rows = proxy.rows("aibridge_interceptions")
    assert [(row["status"], row["error_type"], row["http_status"]) for row in rows] == [
        ("failed", "shutdown", 200),
        ("failed", "shutdown", None),
    ]
    [usage] = proxy.rows("aibridge_token_usages")
    assert usage["completeness"] == "partial"


def test_a_second_signal_ends_at_once(mitmdump: StartMitmdump, upstream: ScriptedUpstream) -> None:
    proxy = mitmdump(config=config(upstream.port, "drain_timeout: 600"))
    upstream.answer(held(Gate()))
    with RawHttp1.through_proxy(proxy, ANTHROPIC, 443) as client:
        begin(client)
        proxy.terminate()
        proxy.wait_for_log("draining")
        assert proxy.running
        proxy.terminate()
        assert proxy.wait() == 0
    [row] = proxy.rows("aibridge_interceptions")
    assert row["status"] != "completed"


def test_nothing_in_flight_ends_at_once(mitmdump: StartMitmdump, upstream: ScriptedUpstream) -> None:
    proxy = mitmdump(config=config(upstream.port, "drain_timeout: 600"))
    upstream.answer(whole())
    with Client(proxy, ANTHROPIC) as client:
        assert client.post(PATH, REQUEST).body == SIMPLE.body
        proxy.terminate()
        assert proxy.wait() == 0, "an idle connection holds nothing up"
    assert [row["status"] for row in proxy.rows("aibridge_interceptions")] == ["completed"]


# --- reloading


@pytest.fixture
def script(tmp_path: Path) -> Path:
    return copy_package(tmp_path / "copy")


def test_a_reload_loses_and_doubles_nothing(mitmdump: StartMitmdump, upstream: ScriptedUpstream, script: Path) -> None:
    metrics = f"http://127.0.0.1:{unused_port()}"
    more = f"metrics: {{listen: '{metrics.removeprefix('http://')}'}}"
    proxy = mitmdump(config=config(upstream.port, more), script=script)
    process = psutil.Process(proxy.pid)
    upstream.answer(whole())
    ask(proxy)
    threads = 0
    for times in range(1, RELOADS + 1):
        gate = Gate()
        upstream.answer(held(gate), whole(), whole())
        with RawHttp1.through_proxy(proxy, ANTHROPIC, 443) as client:
            begin(client)
            reload(proxy, script, times)
            ask(proxy)
            gate.open()
            assert BEGUN + client.read_body() == SIMPLE.body
            client.request("POST", PATH, body=REQUEST)
            client.read_head()
            assert client.read_body() == SIMPLE.body, "a connection outlives the reload"
        assert len(wait_for_ended(proxy, 1 + 3 * times)) == 1 + 3 * times
        assert httpx.get(f"{metrics}/healthz", trust_env=False).status_code == 200
        threads = threads or process.num_threads()
    poll_until(lambda: process.num_threads() <= threads, what="no thread more than after the first reload")
    rows = proxy.rows("aibridge_interceptions")
    assert [row["status"] for row in rows] == ["completed"] * (1 + 3 * RELOADS)
    usages = proxy.rows("aibridge_token_usages")
    assert sorted(usage["interception_id"] for usage in usages) == sorted(row["id"] for row in rows)
    proxy.terminate()
    assert proxy.wait() == 0


def test_an_answer_in_flight_at_a_reload_is_waited_for_at_the_end(
    mitmdump: StartMitmdump, upstream: ScriptedUpstream, script: Path
) -> None:
    proxy = mitmdump(config=config(upstream.port), script=script)
    gate = Gate()
    upstream.answer(held(gate))
    with RawHttp1.through_proxy(proxy, ANTHROPIC, 443) as client:
        begin(client)
        reload(proxy, script, 1)
        proxy.terminate()
        poll_until(lambda: is_refused(proxy.port), what="new connections being refused")
        assert proxy.running
        gate.open()
        assert BEGUN + client.read_body() == SIMPLE.body
    assert proxy.wait() == 0
    [row] = proxy.rows("aibridge_interceptions")
    assert row["status"] == "completed"


def test_a_reload_with_a_configuration_that_has_become_wrong_ends(
    mitmdump: StartMitmdump, upstream: ScriptedUpstream, script: Path
) -> None:
    proxy = mitmdump(config=config(upstream.port), script=script)
    (proxy.folder / "aibridge.yaml").write_text("nonsense: 1\n")
    reload(proxy, script, 1)
    proxy.wait()
    assert "aibridge.yaml: nonsense" in proxy.log
    assert is_refused(proxy.port)
