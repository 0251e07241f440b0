"""Headers that a program prints: `mcp.servers.<name>.headers_command`. They are kept until they expire.

    {"Authorization": "Bearer …"}                                  a JSON object of headers
    {"headers": {"Authorization": "Bearer …"}, "expires_in": 900}  the same, with seconds, or `expires_at`
    Authorization: Bearer …                                        or lines

`expires_at` is a time in ISO 8601, or a number of seconds since 1970. Without either, the `exp` of a JSON web token in
a header counts (RFC 7519, section 4.1.4), else headers are kept for `LIFETIME`.
"""

from __future__ import annotations

import asyncio
import base64
import json
import logging
import math
import os
import re
import signal
import time
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import httpx2
from mcp.client.stdio import get_default_environment

logger = logging.getLogger(__name__)

TIMEOUT = 10.0
"""Seconds. A program that runs longer is killed with all that it has started."""
MAX_OUTPUT = 64 * 1024
"""Bytes. A larger output is not used."""
MAX_HEADERS = 32
"""Maximum number of headers."""
LIFETIME = 300.0
"""Seconds that headers are kept if they do not say when they expire."""
EARLY = 0.1
"""The part of their lifetime by which headers are renewed before its end, at most `MAX_EARLY` seconds."""
MAX_EARLY = 30.0
PAUSE = 5.0
"""Seconds after a failed run, or one because of a refusal, in which the program does not run for the same reason. Calls
that wait for a run share its failure."""
ACTOR_VARIABLE = "AIBRIDGE_ACTOR"
"""Environment variable of the program: the actor's name, if each actor has a connection of its own."""

_NAME = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]{1,256}")
_LINE = re.compile(r"([^:\s]+):(.*)")
EXPECTED = "headers as a JSON object or as lines"


class HeaderCommandError(httpx2.TransportError):
    """The program has printed no headers. The message has nothing of its output."""


@dataclass(frozen=True, slots=True)
class Printed:
    """The headers that a program has printed."""

    headers: Mapping[str, str]
    lifetime: float
    """Seconds from now."""


class HeaderCommand(httpx2.Auth):
    """Adds the printed headers to each request. If the server refuses them, the program runs once more."""

    requires_response_body = False

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        *,
        actor: str | None = None,
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], float] = time.time,
    ) -> None:
        """`name` is the server's, for the log. `now` returns seconds since 1970."""
        self._name = name
        self._command = tuple(command)
        self._actor = actor
        self._clock = clock
        self._now = now
        self._headers: Mapping[str, str] = {}
        self._until = 0.0
        self._failure = ""
        self._again_at = self._renewed_at = -math.inf
        self._lock = asyncio.Lock()

    @property
    def auth(self) -> httpx2.Auth:
        return self

    @property
    def secrets(self) -> list[str]:
        """Texts that must not appear in logs or results."""
        return [word for value in self._headers.values() for word in value.split()]

    async def async_auth_flow(self, request: httpx2.Request) -> AsyncGenerator[httpx2.Request, httpx2.Response]:
        sent = await self._current()
        _set(request, sent)
        response = yield request
        if response.status_code == httpx2.codes.UNAUTHORIZED and (fresh := await self._current(sent)) is not sent:
            _set(request, fresh)
            yield request

    async def _current(self, refused: Mapping[str, str] | None = None) -> Mapping[str, str]:
        """Return headers that have not expired; others than those that were refused, unless that was just tried."""
        async with self._lock:
            renews = self._headers is refused and self._clock() >= self._renewed_at + PAUSE
            if not renews and self._clock() < self._until:
                return self._headers
            if self._failure and self._clock() < self._again_at:
                raise HeaderCommandError(self._failure)
            try:
                printed = parse(await self._output(), self._now())
            except HeaderCommandError as e:
                self._failure, self._again_at = str(e), self._clock() + PAUSE
                raise
            self._failure = ""
            self._headers = dict(printed.headers)
            self._until = self._clock() + printed.lifetime - min(MAX_EARLY, EARLY * printed.lifetime)
            if renews:
                self._renewed_at = self._clock()
            return self._headers

    async def _output(self) -> bytes:
        actor = {ACTOR_VARIABLE: self._actor} if self._actor is not None else {}
        try:
            process = await asyncio.create_subprocess_exec(
                *self._command,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.DEVNULL,  # it may contain secrets
                env={**os.environ, **get_default_environment(), **actor},
                start_new_session=True,
            )
        except OSError as e:
            raise self._failed(f"cannot be run: {e.strerror}") from None
        assert process.stdout is not None
        try:
            async with asyncio.timeout(TIMEOUT):
                output = await _read(process.stdout)
                code = await process.wait() if len(output) <= MAX_OUTPUT else 0
        except TimeoutError:
            raise self._failed(f"has not ended within {TIMEOUT:g} s") from None
        finally:
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)
            with suppress(TimeoutError):
                async with asyncio.timeout(1):
                    await process.communicate()  # else its pipe stays open
        if code:
            raise self._failed(f"has ended with code {code}")
        if len(output) > MAX_OUTPUT:
            raise self._failed(f"has printed more than {MAX_OUTPUT} bytes")
        return output

    def _failed(self, why: str) -> HeaderCommandError:
        logger.warning("MCP server %s: its headers_command %s", self._name, why)
        return HeaderCommandError(f"its headers_command {why}")


def parse(output: bytes, now: float) -> Printed:
    """Read what a program has printed. `now`: seconds since 1970.

    Raises:
        HeaderCommandError: these are no headers, or they have expired.
    """
    text = output.decode("utf-8", "replace").strip()
    value: Any = None
    with suppress(ValueError, RecursionError):
        value = json.loads(text)
    if not isinstance(value, dict):
        lines = [_LINE.fullmatch(line.strip()) for line in text.splitlines() if line.strip()]
        value = {match[1]: match[2].strip() for match in lines if match is not None} if all(lines) else {}
    headers = value.get("headers", value)
    is_bounded = isinstance(headers, dict) and 0 < len(headers) <= MAX_HEADERS
    if not is_bounded or not all(map(_is_header, headers.items())):
        raise HeaderCommandError(f"its headers_command has not printed {EXPECTED}")
    lifetime = _lifetime(value if headers is not value else {}, headers, now)
    if lifetime <= 0:
        raise HeaderCommandError("its headers_command has printed headers that have expired")
    return Printed(headers, lifetime)


def _is_header(header: tuple[Any, Any]) -> bool:
    name, value = header
    return bool(_NAME.fullmatch(name)) and isinstance(value, str) and not any(each in value for each in "\r\n\0")


def _lifetime(members: Mapping[str, Any], headers: Mapping[str, str], now: float) -> float:
    seconds, end = _number(members.get("expires_in")), members.get("expires_at")
    if seconds is not None:
        return seconds
    if (moment := _number(end)) is not None:
        return moment - now
    if isinstance(end, str):
        with suppress(ValueError, OverflowError):
            at = datetime.fromisoformat(end)
            return (at if at.tzinfo is not None else at.replace(tzinfo=UTC)).timestamp() - now
        raise HeaderCommandError("its headers_command has printed an expires_at that is no time")
    ends = [found for value in headers.values() if (found := _token_end(value)) is not None]
    return min(ends) - now if ends else LIFETIME


def _token_end(value: str) -> float | None:
    """Return the `exp` of a JSON web token in a header's value."""
    for parts in (word.split(".") for word in value.split()):
        if len(parts) != 3:
            continue
        with suppress(ValueError, RecursionError):
            claims = json.loads(base64.urlsafe_b64decode(parts[1] + "=" * (-len(parts[1]) % 4)))
            if isinstance(claims, dict) and (end := _number(claims.get("exp"))) is not None:
                return end
    return None


def _number(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    with suppress(OverflowError):
        number = float(value)
        return number if abs(number) < 1e12 else None
    return None


async def _read(stream: asyncio.StreamReader) -> bytes:
    """Read up to the limit, and a little more if there is more."""
    output = b""
    while len(output) <= MAX_OUTPUT and (chunk := await stream.read(MAX_OUTPUT)):
        output += chunk
    return output


def _set(request: httpx2.Request, headers: Mapping[str, str]) -> None:
    request.headers.update({name.encode(): value.encode() for name, value in headers.items()})
