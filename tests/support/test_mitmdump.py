"""The runner and the clients, with a bare mitmdump: no addon."""

import sqlite3
from contextlib import closing
from pathlib import Path

import httpx
import pytest

from tests.conftest import MakeUpstream, RunToExit, StartMitmdump
from tests.support.client import RawHttp1, async_proxy_client, gateway_client, proxy_client
from tests.support.client_h2 import RawHttp2
from tests.support.database import query, read_table
from tests.support.mitmdump import Mitmdump
from tests.support.polling import poll_until
from tests.support.running import StartFailedError
from tests.support.upstream import Answer, Gate, Pause, ScriptedUpstream, unused_port

STREAM_ALL = "stream_large_bodies=1"


@pytest.fixture
def proxy(mitmdump: StartMitmdump) -> Mitmdump:
    return mitmdump(script=None, options=[STREAM_ALL])


@pytest.mark.parametrize("http2", [True, False])
def test_requests_go_through_the_proxy(proxy: Mitmdump, upstream: ScriptedUpstream, http2: bool) -> None:
    upstream.answer(Answer.json({"ok": True}))
    with proxy_client(proxy, http2=http2) as client:
        response = client.post(f"{upstream.url}/v1/messages", json={})
    assert response.json() == {"ok": True}
    assert response.http_version == upstream.requests[0].alpn.replace("h2", "HTTP/2").upper()  # type: ignore[union-attr]
    assert upstream.requests[0].sni == "localhost"
    assert not proxy.has_traceback


async def test_requests_go_through_the_proxy_without_blocking(proxy: Mitmdump, upstream: ScriptedUpstream) -> None:
    upstream.answer(Answer(body=b"hi"))
    async with async_proxy_client(proxy) as client:
        assert (await client.get(upstream.url)).content == b"hi"


def test_raw_http1_shows_each_chunk_as_it_comes(proxy: Mitmdump, upstream: ScriptedUpstream) -> None:
    gate = Gate()
    upstream.answer(Answer.event_stream(b"data: 1\n\n", Pause(gate), b"data: 2\n\n"))
    with RawHttp1.through_proxy(proxy, "localhost", upstream.port) as client:
        client.request("POST", "/", {"x-a": "b"}, body=b"{}")
        assert client.read_head().header("content-type") == "text/event-stream; charset=utf-8"
        assert client.read_body_until(b"1\n\n") == b"data: 1\n\n"
        assert upstream.bodies_sent == [b"data: 1\n\n"]
        gate.open()
        assert client.read_body() == b"data: 2\n\n"
    assert upstream.requests[0].header("x-a") == "b"


def test_raw_http2_shows_each_frame_as_it_comes(proxy: Mitmdump, upstream: ScriptedUpstream) -> None:
    gate = Gate()
    upstream.answer(Answer.event_stream(b"data: 1\n\n", Pause(gate), b"data: 2\n\n"))
    with RawHttp2.through_proxy(proxy, "localhost", upstream.port) as client:
        stream = client.request("POST", "/", [(b"x-a", b"b")], b"{}")
        status, headers = client.read_head(stream)
        assert (status, headers[0][0]) == (200, b"content-type")
        assert client.read_data(stream) == b"data: 1\n\n"
        gate.open()
        assert client.read_body(stream) == b"data: 2\n\n"


def test_a_client_that_leaves_takes_the_upstream_with_it(proxy: Mitmdump, upstream: ScriptedUpstream) -> None:
    gate = Gate()
    upstream.answer(Answer.event_stream(b"data: 1\n\n", Pause(gate)))
    with RawHttp2.through_proxy(proxy, "localhost", upstream.port) as client:
        stream = client.request("GET", "/")
        client.read_head(stream)
        client.reset(stream)
        upstream.wait_for_disconnects()


def test_other_modes_are_found_in_the_log(mitmdump: StartMitmdump, make_upstream: MakeUpstream) -> None:
    upstream = make_upstream(handler=lambda _: Answer(body=b"hi"))
    process = mitmdump(script=None, mode=[f"reverse:{upstream.url}", f"regular@{unused_port()}"])
    assert len(process.ports) == 2
    assert process.port == process.ports[0]
    answered = []
    for port in process.ports:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", trust_env=False) as client:
            answered.append(client.get("/").content == b"hi")
    assert sorted(answered) == [False, True]


def test_it_answers_as_a_gateway(mitmdump: StartMitmdump, upstream: ScriptedUpstream) -> None:
    process = mitmdump(script=None, mode=[f"reverse:{upstream.url}"])
    upstream.answer(Answer(body=b"hi"))
    with gateway_client(process, "/anthropic") as client:
        assert client.post("/v1/messages").content == b"hi"
    assert upstream.requests[0].target == "/anthropic/v1/messages"


@pytest.mark.parametrize("end", ["terminate", "interrupt"])
def test_it_ends_in_good_order_on_a_signal(proxy: Mitmdump, end: str) -> None:
    getattr(proxy, end)()
    assert proxy.wait() == 0
    assert not proxy.running
    proxy.close()


def test_it_can_be_killed(proxy: Mitmdump) -> None:
    proxy.kill()
    assert proxy.wait() == -9


def test_a_folder_can_be_used_again(mitmdump: StartMitmdump, proxy: Mitmdump) -> None:
    ca = proxy.ca_file.read_bytes()
    proxy.close()
    again = mitmdump(folder=proxy.folder, script=None)
    assert again.ca_file.read_bytes() == ca
    assert again.wait_for_log(r"proxy listening at 127\.0\.0\.1:(\d+)")[1] == str(again.port)


def test_children_do_not_outlive_it(mitmdump: StartMitmdump, tmp_path: Path) -> None:
    script = tmp_path / "starts_a_child.py"
    script.write_text(
        "import subprocess, sys\n"
        "def running():\n"
        "    subprocess.Popen([sys.executable, '-c', 'import signal; signal.pause()'], start_new_session=True)\n"
    )
    process = mitmdump(script=script)
    [child] = process.children()
    process.kill()
    process.wait()
    process.close()
    child.wait(10)
    assert not child.is_running()


def test_the_environment_is_clean(mitmdump: StartMitmdump, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:1")
    script = tmp_path / "shows_environment.py"
    script.write_text("import os\ndef running():\n    print(sorted(os.environ), os.environ['HOME'], os.getcwd())\n")
    process = mitmdump(script=script, env={"EXTRA": "1"})
    line = process.wait_for_log(r"^\['.*")[0]
    assert "'EXTRA'" in line
    assert "HTTPS_PROXY" not in line
    assert line.endswith(f"{process.folder} {process.folder}")


@pytest.mark.parametrize(
    ("given", "written"),
    [
        ("", "metrics: {listen: null}\n"),
        ("mcp: {}", "mcp: {}\nmetrics: {listen: null}\n"),
        ("metrics: {listen: 127.0.0.1:0}\n", "metrics: {listen: 127.0.0.1:0}\n"),
    ],
)
def test_metrics_are_off_unless_asked_for(mitmdump: StartMitmdump, tmp_path: Path, given: str, written: str) -> None:
    script = tmp_path / "has_the_option.py"
    script.write_text("def load(loader):\n    loader.add_option('aibridge_config', str, '', 'A path.')\n")
    process = mitmdump(script=script, config=given)
    assert (process.folder / "aibridge.yaml").read_text() == written


def test_a_start_that_fails_says_why(mitmdump: StartMitmdump) -> None:
    with pytest.raises(StartFailedError, match="nonsense") as caught:
        mitmdump(script=None, options=["listen_port=nonsense"])
    assert caught.value.exit.code == 1


def test_an_expected_failure_is_run_to_its_end(run_to_exit: RunToExit) -> None:
    code, output = run_to_exit(script=None, arguments=["--mode", "nonsense"])
    assert code == 1
    assert "nonsense" in output


def test_rows_are_read_from_outside(tmp_path: Path) -> None:
    file = tmp_path / "aibridge.db"
    assert read_table(file, "aibridge_tool_usages") == []
    with closing(sqlite3.connect(file, autocommit=True)) as connection:
        connection.execute("PRAGMA journal_mode=WAL")
        assert read_table(file, "aibridge_tool_usages") == []
        connection.execute("CREATE TABLE aibridge_tool_usages (id TEXT PRIMARY KEY, input TEXT, metadata TEXT)")
        values = [("b", '{"x": [1]}', "{}"), ("a", None, "{}")]
        connection.executemany("INSERT INTO aibridge_tool_usages VALUES (?, ?, ?)", values)
        expected = [{"id": "b", "input": {"x": [1]}, "metadata": {}}, {"id": "a", "input": None, "metadata": {}}]
        assert read_table(file, "aibridge_tool_usages") == expected
    assert read_table(file, "aibridge_tool_usages") == expected
    assert query(file, "SELECT count(*) AS n FROM aibridge_tool_usages WHERE id = ?", "a") == [{"n": 1}]


def test_waiting_for_rows_is_bounded(tmp_path: Path) -> None:
    process = Mitmdump(tmp_path)
    with pytest.raises(TimeoutError, match="1 rows in aibridge_interceptions"):
        process.wait_for_rows("aibridge_interceptions", 1, timeout=0.05)
    assert poll_until(iter([0, None, 3]).__next__) == 3
