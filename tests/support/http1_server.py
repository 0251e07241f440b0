"""Serve scripted answers over HTTP/1.x.

Requests are read with h11. Answers are written by hand, since they may be what h11 rightly refuses to send.
"""

import asyncio
from collections.abc import Callable, Iterable
from http import HTTPStatus
from typing import Any

import h11

from tests.support.journal import Journal
from tests.support.peer import Peer
from tests.support.script import Abort, Answer, AnyAnswer, Close, GoAway, Header, Pause, RawAnswer, Request, Step

MAX_HEAD_SIZE = 1024 * 1024

_BODILESS = frozenset({HTTPStatus.NO_CONTENT, HTTPStatus.NOT_MODIFIED})


class _ConnectionEnded(Exception):
    """The script ended the connection."""


class Http1Session:
    def __init__(
        self,
        peer: Peer,
        journal: Journal,
        choose: Callable[[Request], AnyAnswer],
        *,
        send_continue: bool = True,
    ) -> None:
        self._peer = peer
        self._journal = journal
        self._choose = choose
        self._send_continue = send_continue

    async def run(self) -> None:
        unread = b""
        while True:
            # One parser per request: its own side of the conversation never advances, since we write by hand.
            parser = h11.Connection(h11.SERVER, max_incomplete_event_size=MAX_HEAD_SIZE)
            if unread:
                parser.receive_data(unread)
            try:
                request = await self._read_request(parser)
            except h11.RemoteProtocolError as error:
                if not self._peer.gone.done():
                    self._journal.failed(f"malformed request: {error}")
                    await self._peer.write(b"HTTP/1.1 400 Bad Request\r\nconnection: close\r\n\r\n")
                return
            if request is None or not await self._answer(self._journal.received(request)):
                return
            if parser.their_state is not h11.DONE:
                return
            unread, _ = parser.trailing_data

    async def _read_request(self, parser: h11.Connection) -> Request | None:
        head: h11.Request | None = None
        body = bytearray()
        expects_continue = False
        while True:
            event = parser.next_event()
            match event:
                case h11.Request():
                    head = event
                    expects_continue = parser.they_are_waiting_for_100_continue
                    if expects_continue and self._send_continue:
                        await self._peer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
                case h11.Data():
                    body += event.data
                case h11.EndOfMessage() if head is not None:
                    return self._request(head, bytes(body), expects_continue)
                case h11.NEED_DATA:
                    parser.receive_data(await self._peer.read())
                case _:
                    return None

    def _request(self, head: h11.Request, body: bytes, expects_continue: bool) -> Request:
        hosts = [value for name, value in head.headers if name == b"host"]
        return Request(
            sequence=-1,
            connection=self._peer.number,
            http_version=head.http_version.decode(),
            method=head.method.decode(),
            target=head.target.decode("latin-1"),
            authority=hosts[0].decode("latin-1") if hosts else "",
            headers=tuple((bytes(name), bytes(value)) for name, value in head.headers.raw_items()),
            body=body,
            sni=self._peer.sni,
            alpn=self._peer.alpn,
            expected_continue=expects_continue,
        )

    async def _answer(self, request: Request) -> bool:
        """Write the answer unless the client leaves first; say whether another request may follow."""
        writing = asyncio.create_task(self._write(request, self._choose(request)))
        ends: tuple[asyncio.Future[Any], ...] = (writing, self._peer.gone)
        try:
            await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
            if not writing.done():
                self._journal.disconnected(request, self._peer.gone.result())
                return False
            return writing.result()
        except _ConnectionEnded:
            return False
        except OSError:
            self._journal.disconnected(request, "reset")
            return False
        finally:
            writing.cancel()
            await asyncio.gather(writing, return_exceptions=True)

    async def _write(self, request: Request, answer: AnyAnswer) -> bool:
        if isinstance(answer, RawAnswer):
            await self._write_steps(request, answer.steps)
            return not answer.close
        await self._write_steps(request, answer.before)
        await self._peer.write(_head(answer))
        if request.method == "HEAD" or answer.status in _BODILESS:
            return True
        chunked = answer.framing == "chunked"
        await self._write_steps(request, answer.steps, chunked=chunked)
        if chunked:
            await self._peer.write(b"0\r\n" + _header_lines(answer.raw_trailers) + b"\r\n")
        return answer.framing != "eof"

    async def _write_steps(self, request: Request, steps: Iterable[Step], *, chunked: bool = False) -> None:
        for step in steps:
            match step:
                case Pause(gate):
                    await gate.passed()
                case Abort():
                    self._peer.abort()
                    raise _ConnectionEnded
                case Close():
                    self._peer.close()
                    raise _ConnectionEnded
                case GoAway():
                    raise TypeError("GOAWAY is HTTP/2's")
                case b"":
                    pass  # an empty chunk would end the body
                case bytes():
                    self._journal.sent(request, step)
                    await self._peer.write(b"%x\r\n%b\r\n" % (len(step), step) if chunked else step)


def _head(answer: Answer) -> bytes:
    headers = answer.raw_headers
    named = {name.lower() for name, _ in headers}
    if answer.framing == "chunked" and answer.status not in _BODILESS and b"transfer-encoding" not in named:
        headers.append((b"transfer-encoding", b"chunked"))
    reason = answer.reason or _reason(answer.status)
    return b"HTTP/1.1 %d %b\r\n%b\r\n" % (answer.status, reason, _header_lines(headers))


def _header_lines(headers: Iterable[Header]) -> bytes:
    return b"".join(b"%b: %b\r\n" % header for header in headers)


def _reason(status: int) -> bytes:
    try:
        return HTTPStatus(status).phrase.encode()
    except ValueError:
        return b"Unknown"  # such as 529
