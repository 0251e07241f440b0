"""`--proxyauth` with bcrypt: a check takes long, and only its own request waits for it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import bcrypt
import httpx
import pytest

from tests.conftest import StartProxy
from tests.integration.test_actors import ANSWER, asked, basic, config, connect_refused, proxied
from tests.support.client import gateway_client
from tests.support.polling import poll_until
from tests.support.running import RunningProxy
from tests.support.upstream import Answer, ScriptedUpstream, unused_port


class Directory:
    """Counts the checks of bcrypt, and holds those of one password until they are let go."""

    def __init__(self) -> None:
        self.checked: list[bytes] = []
        self.go_on = threading.Event()

    def check(self, password: bytes, hashed: bytes) -> bool:
        self.checked.append(password)
        if password == b"slow":
            self.go_on.wait(30)
        return password == b"pw"


@pytest.fixture
def directory(monkeypatch: pytest.MonkeyPatch) -> Iterator[Directory]:
    made = Directory()
    monkeypatch.setattr(bcrypt, "checkpw", made.check)
    yield made
    made.go_on.set()


@pytest.fixture
def start(start_proxy: StartProxy, upstream: ScriptedUpstream, tmp_path: Path) -> RunningProxy:
    upstream.handler = lambda _: Answer.json(ANSWER)
    (tmp_path / "htpasswd").write_text("ada:$2y$10$x\neve:$2y$10$x\n")
    metrics = f"metrics: {{listen: '127.0.0.1:{unused_port()}'}}"
    return start_proxy(config=f"{config(upstream)}{metrics}\n", options=[f"proxyauth=@{tmp_path / 'htpasswd'}"])


def gateway(process: RunningProxy, user: str, password: str) -> httpx.Response:
    return asked(process, {"proxy-authorization": basic(user, password), "x-api-key": "sk-own"})


def test_a_password_is_checked_once_for_all_requests(start: RunningProxy, directory: Directory) -> None:
    for _ in range(3):
        assert gateway(start, "ada", "pw").status_code == 200
        assert proxied(start, user=("ada", "pw")).status_code == 200
    assert directory.checked == [b"pw"]


def test_a_check_makes_no_other_client_wait(start: RunningProxy, directory: Directory) -> None:
    with ThreadPoolExecutor(1) as clients:
        slow = clients.submit(gateway, start, "eve", "slow")
        poll_until(lambda: directory.checked, what="the check that takes long")
        with gateway_client(start) as client:
            assert client.get("/nothing").status_code == 401
        directory.go_on.set()
        assert slow.result(30).status_code == 401
    assert gateway(start, "ada", "pw").status_code == 200


def test_failures_are_logged_and_counted_apart_from_missing_passwords(
    start: RunningProxy, directory: Directory
) -> None:
    assert gateway(start, "ada", "no").status_code == 401
    connect_refused(start, {"proxy-authorization": basic("ada", "no")})
    connect_refused(start)
    start.wait_for_log(r"aibridge: authentication failed: client=127\.0\.0\.1 failures=2")
    port = start.wait_for_log(r"metrics on 127\.0\.0\.1:(\d+)$")[1]

    def counts() -> bool:
        text = httpx.get(f"http://127.0.0.1:{port}/metrics", trust_env=False).text
        wanted = ('refused_total{reason="wrong_password"} 2.0', 'refused_total{reason="unauthenticated"} 1.0')
        return all(line in text for line in wanted)

    poll_until(counts, 30, what="the counts of refusals")
    log = start.log
    assert "failures=3" not in log and basic("ada", "no") not in log
