"""A start with and without configuration, and with a wrong one."""

from __future__ import annotations

import socket
from pathlib import Path

import httpx
import pytest

from tests.conftest import RunToExit, StartProxy
from tests.integration.answers import is_refused
from tests.support.running import ProxyOptions
from tests.support.upstream import unused_port

# --- where the configuration comes from


def test_the_environment_can_name_the_file(start_proxy: StartProxy, tmp_path: Path) -> None:
    file = tmp_path / "from environment.yaml"
    file.write_text("database: sqlite:///other.db\nmetrics: {listen: null}\n")
    proxy = start_proxy(config=None, env={"AIBRIDGE_CONFIG": str(file)})
    assert (proxy.folder / "other.db").is_file()
    assert not proxy.database.exists()


def test_the_option_wins_over_the_environment(start_proxy: StartProxy, tmp_path: Path) -> None:
    env = {"AIBRIDGE_CONFIG": str(tmp_path / "absent.yaml")}
    proxy = start_proxy(config="database: sqlite:///mine.db", env=env)
    assert (proxy.folder / "mine.db").is_file()
    proxy.wait_for_log(
        r"aibridge: configuration \S+/aibridge\.yaml, 14 providers, 0 MCP servers, "
        r"rows in sqlite:////\S+/mine\.db, metrics on no port"
    )


def test_the_databases_option_wins_over_the_file(start_proxy: StartProxy, tmp_path: Path) -> None:
    wanted = tmp_path / "wanted.db"
    proxy = start_proxy(config="database: sqlite:///mine.db", options=[f"aibridge_database=sqlite:///{wanted}"])
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
    "another database": ("database: postgresql://ann:hunter2@localhost/x?unknown=1", "database"),
    "address": ("metrics: {listen: nowhere}", "metrics.listen"),
    "syntax": ("actor: {default: 'x", "line 1"),
    "duplicate key": ("actor: {}\nactor: {}\n", "line 2"),
}


def assert_cannot_start(run_to_exit: RunToExit, *parts: str, **options: object) -> None:
    port = unused_port()
    given: ProxyOptions = {"arguments": ["--listen-port", str(port)], **options}  # type: ignore[typeddict-item]
    code, output = run_to_exit(**given)
    assert code not in (0, None)
    assert "Traceback" not in output and "hunter2" not in output
    [message] = [line for line in output.splitlines() if "aibridge cannot start: " in line]
    for part in parts:
        assert part in message
    assert is_refused(port)
    assert "listening at" not in output


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


# --- options of mitmproxy


@pytest.mark.parametrize("name", ["aibridge_conf", "aibridgeconfig", "aibridge_x", "aibrige_config"])
def test_a_misspelt_option_stops_the_start(run_to_exit: RunToExit, name: str) -> None:
    parts = (f"mitmproxy's options: {name}: found an unknown option", "one of aibridge_config, aibridge_database")
    assert_cannot_start(run_to_exit, *parts, config="metrics: {listen: null}", options=[f"{name}=a"])


def test_unknown_options_of_others_are_left_alone(start_proxy: StartProxy) -> None:
    assert start_proxy(config="", options=["other_option=1"]).running


def test_the_metrics_option_wins_over_the_file_and_the_log_has_the_real_port(start_proxy: StartProxy) -> None:
    proxy = start_proxy(config="metrics: {listen: '127.0.0.1:1'}", options=["aibridge_metrics=127.0.0.1:0"])
    port = int(proxy.wait_for_log(r"metrics on 127\.0\.0\.1:(\d+)$")[1])
    assert port and httpx.get(f"http://127.0.0.1:{port}/healthz", trust_env=False).status_code == 200


def test_the_metrics_option_can_turn_them_off(start_proxy: StartProxy) -> None:
    proxy = start_proxy(config="metrics: {listen: '127.0.0.1:1'}", options=["aibridge_metrics=off"])
    proxy.wait_for_log("metrics on no port")


def test_a_wrong_metrics_option_stops_the_start(run_to_exit: RunToExit) -> None:
    assert_cannot_start(run_to_exit, "aibridge_metrics: found text", "or off", options=["aibridge_metrics=nowhere"])


def test_a_port_in_use_names_the_key_and_the_option(run_to_exit: RunToExit) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        option = f"aibridge_metrics=127.0.0.1:{taken.getsockname()[1]}"
        assert_cannot_start(run_to_exit, "metrics.listen", "aibridge_metrics=HOST:PORT", options=[option])


# --- ports of mitmproxy


@pytest.mark.parametrize("mode", ["", "@"])
def test_a_taken_port_says_how_to_choose_another(run_to_exit: RunToExit, mode: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        chosen = ["--mode", f"regular@127.0.0.1:{port}"] if mode else ["--listen-port", str(port)]
        ended = run_to_exit(config="", arguments=["--listen-host", "127.0.0.1", *chosen])
    [line] = [line for line in ended.output.splitlines() if "aibridge cannot listen: " in line]
    example = "--mode regular@127.0.0.1:" if mode else "--listen-port "
    assert f"127.0.0.1:{port} is in use by another program" in line and f"for example {example}{port + 1}" in line
    make = f'make run MITMDUMP_ARGS="-p {port + 1} --set aibridge_metrics=off"'
    assert "add --set aibridge_metrics=off" in line and (make in line) == (example == "--listen-port ")
    assert ended.code == 1
    assert "aibridge: configuration" not in ended.output and "listening at" not in ended.output


def test_an_address_of_another_machine_says_how_to_choose_one(run_to_exit: RunToExit) -> None:
    ended = run_to_exit(config="", arguments=["--listen-host", "192.0.2.1", "--listen-port", str(unused_port())])
    assert ended.code == 1
    assert "aibridge cannot listen: 192.0.2.1:" in ended.output and "--listen-host 127.0.0.1" in ended.output


OPEN = "other machines can use this proxy without authentication"


@pytest.mark.parametrize(
    ("config", "options", "warned"),
    [
        ("", [], True),
        ("", ["proxyauth=any"], True),
        ("", ["proxyauth=ada:secret"], False),
        ("actor: {required: true}", [], False),
        ("actor: {required: true, default: team}", [], True),
    ],
)
def test_an_open_listener_is_warned_about_with_what_to_do(
    start_proxy: StartProxy, config: str, options: list[str], warned: bool
) -> None:
    proxy = start_proxy(config=config, options=options, arguments=["--listen-host", "0.0.0.0"])
    lines = [line for line in proxy.log.splitlines() if OPEN in line]
    assert bool(lines) == warned
    for line in lines:
        assert "--listen-host 127.0.0.1" in line and "--proxyauth" in line and "actor.required" in line


def test_a_listener_on_loopback_needs_no_warning(start_proxy: StartProxy) -> None:
    assert OPEN not in start_proxy(config="").log


# --- a database that cannot be opened


def test_a_missing_folder_is_named(run_to_exit: RunToExit, tmp_path: Path) -> None:
    config = f"metrics: {{listen: null}}\ndatabase: sqlite:///{tmp_path}/missing/a.db"
    reason = f"{tmp_path}/missing/a.db: unable to open database file: the folder {tmp_path}/missing does not exist"
    assert_cannot_start(run_to_exit, reason, config=config)
