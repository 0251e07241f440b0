"""Headers that a program prints: read in every form, kept until they expire, renewed when they are refused."""

from __future__ import annotations

import asyncio
import base64
import json
import sys
from pathlib import Path
from typing import Any

import httpx2
import pytest

from aibridge_addon.tools.header_command import (
    LIFETIME,
    MAX_OUTPUT,
    PAUSE,
    HeaderCommand,
    HeaderCommandError,
    parse,
)
from tests.support.mcp_servers import HttpMcp
from tests.tools.conftest import Log, StartServers

NOW = 1_800_000_000.0
TOKEN = {"Authorization": "Bearer t0ken-of-the-program"}


def jwt(**claims: Any) -> str:
    parts = (base64.urlsafe_b64encode(json.dumps(each).encode()).decode().rstrip("=") for each in ({}, claims))
    return ".".join([*parts, "signature"])


@pytest.mark.parametrize(
    ("output", "headers", "lifetime"),
    [
        (json.dumps(TOKEN), TOKEN, LIFETIME),
        (json.dumps({"headers": TOKEN}), TOKEN, LIFETIME),
        (json.dumps({"headers": TOKEN, "expires_in": 900}), TOKEN, 900),
        (json.dumps({"headers": TOKEN, "expires_at": NOW + 60}), TOKEN, 60),
        (json.dumps({"headers": TOKEN, "expires_at": "2027-01-15T08:01:00Z"}), TOKEN, 60),
        (json.dumps({"headers": TOKEN, "expires_at": "2027-01-15T08:01:00"}), TOKEN, 60),
        (json.dumps({"headers": TOKEN, "expires_at": "2027-01-15T09:01:00+01:00"}), TOKEN, 60),
        ("Authorization: Bearer t0ken-of-the-program\n", TOKEN, LIFETIME),
        ("Authorization:Bearer t0ken-of-the-program\r\n\r\nX-A:  b \r\n", TOKEN | {"X-A": "b"}, LIFETIME),
        (f"Authorization: Bearer {jwt(exp=NOW + 120)}", {"Authorization": f"Bearer {jwt(exp=NOW + 120)}"}, 120),
        (f"Authorization: Bearer {jwt(sub='x')}", {"Authorization": f"Bearer {jwt(sub='x')}"}, LIFETIME),
        ("X: a.b.c", {"X": "a.b.c"}, LIFETIME),
    ],
)
def test_headers_are_read(output: str, headers: dict[str, str], lifetime: float) -> None:
    printed = parse(output.encode(), NOW)
    assert (printed.headers, printed.lifetime) == (headers, lifetime)


@pytest.mark.parametrize(
    "output",
    [
        *("", "null", "[]", "{}", '"text"', "a token", '{"headers": {}}', '{"headers": 1}', '{"a": 1}', '{"a b": "c"}'),
        *('{"a": "b\\nc"}', "Authorization Bearer x", '{"": "x"}', "[" * 50_000, "\xff\xfe", '{"a": "b"'),
        json.dumps({"headers": TOKEN, "expires_at": "soon"}),
        json.dumps({"headers": TOKEN, "expires_at": NOW - 1}),
        json.dumps({"headers": TOKEN, "expires_in": 0}),
        f"Authorization: Bearer {jwt(exp=NOW - 1)}",
        json.dumps({f"h{n}": "x" for n in range(100)}),
    ],
)
def test_what_is_no_header_is_an_error_without_a_word_of_the_output(output: str) -> None:
    with pytest.raises(HeaderCommandError) as error:
        parse(output.encode("latin-1"), NOW)
    assert "Bearer" not in str(error.value)


def counting(folder: Path, rest: str = "") -> list[str]:
    """A program that prints another token at each run, for 100 seconds."""
    code = (
        "import json, os, pathlib, sys\n"
        f"runs = pathlib.Path({str(folder / 'runs')!r})\n"
        "number = len(runs.read_text()) + 1 if runs.exists() else 1\n"
        "runs.write_text('x' * number)\n"
        f"{rest}\n"
        "print(json.dumps({'headers': {'Authorization': f'Bearer token-{number}'}, 'expires_in': 100}))\n"
    )
    return [sys.executable, "-c", code]


async def sent(command: HeaderCommand, *refused: str) -> list[str]:
    """The tokens that one request was sent with, if the server refuses some."""
    tokens = []

    def handle(request: httpx2.Request) -> httpx2.Response:
        tokens.append(request.headers["authorization"])
        return httpx2.Response(401 if tokens[-1] in refused else 200)

    async with httpx2.AsyncClient(auth=command, transport=httpx2.MockTransport(handle)) as client:
        await client.get("http://mcp.test/")
    return tokens


async def test_headers_are_kept_until_they_expire(tmp_path: Path) -> None:
    seconds = [1000.0]
    command = HeaderCommand("s", counting(tmp_path), clock=lambda: seconds[0])
    for second, token in ((0, 1), (50, 1), (89, 1), (91, 2), (180, 2), (400, 3)):
        seconds[0] = 1000.0 + second
        assert await sent(command) == [f"Bearer token-{token}"]
        assert command.secrets == ["Bearer", f"token-{token}"]


async def test_headers_that_the_server_refuses_are_renewed_once(tmp_path: Path) -> None:
    seconds = [1000.0]
    command = HeaderCommand("s", counting(tmp_path), clock=lambda: seconds[0])
    assert await sent(command) == ["Bearer token-1"]
    assert await sent(command, "Bearer token-1") == ["Bearer token-1", "Bearer token-2"]
    assert await sent(command, "Bearer token-2") == ["Bearer token-2"], "the program ran a moment ago"
    seconds[0] += PAUSE
    assert await sent(command, "Bearer token-2", "Bearer token-3") == ["Bearer token-2", "Bearer token-3"]


async def test_calls_that_wait_for_the_program_share_its_failure(tmp_path: Path) -> None:
    seconds = [1000.0]
    command = HeaderCommand("s", counting(tmp_path, "sys.exit(3) if number == 1 else 0"), clock=lambda: seconds[0])
    found = await asyncio.gather(*(sent(command) for _ in range(20)), return_exceptions=True)
    assert {(type(each), str(each)) for each in found} == {
        (HeaderCommandError, "its headers_command has ended with code 3")
    }
    assert (tmp_path / "runs").read_text() == "x"
    seconds[0] += PAUSE
    assert await sent(command) == ["Bearer token-2"]


@pytest.mark.parametrize(
    ("program", "why"),
    [
        (["/no/such/program"], "cannot be run: No such file"),
        ([sys.executable, "-c", "print('Authorization: Bearer secret'); raise SystemExit(3)"], "has ended with code 3"),
        ([sys.executable, "-c", f"print('Authorization: Bearer ' + 'x' * {2 * MAX_OUTPUT})"], "more than 65536 bytes"),
    ],
)
async def test_a_program_that_fails_is_logged_without_its_output(log: Log, program: list[str], why: str) -> None:
    with pytest.raises(HeaderCommandError, match=why):
        await sent(HeaderCommand("s", program))
    [line] = log.said("headers_command")
    assert line.startswith("MCP server s: its headers_command ") and "secret" not in line


async def test_a_server_is_used_with_the_printed_headers(start: StartServers, ours: HttpMcp, tmp_path: Path) -> None:
    stage = start({"ours": ours.settings(headers_command=counting(tmp_path), headers={"X-Own": "1"})})
    for _ in range(2):
        # A result of the server's does not reveal them: the text of its tool is the server's own.
        found = json.loads(await stage.call("bmcp_ours_headers"))
        assert (found["authorization"], found["x-own"]) == ("Bearer token-1", "1")


async def test_without_headers_the_server_is_away_and_says_why(start: StartServers, ours: HttpMcp, log: Log) -> None:
    start({"ours": ours.settings(headers_command="echo broken; exit 1")})
    await log.line("MCP server ours: away: its headers_command has yielded no headers")
