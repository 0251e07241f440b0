"""The last piece of an answer goes through the function of another addon, as all pieces before."""

from __future__ import annotations

from mitmproxy import http
from mitmproxy.proxy.layers.http import _events as http_events

from aibridge_addon.interception.buffers import Buffers
from aibridge_addon.proxy.flow.state import FOREIGN
from aibridge_addon.proxy.stream.client_side import ClientSide, Transform
from aibridge_addon.proxy.stream.counted_bodies import CountedBodies
from aibridge_addon.records.memory import Memory
from tests.support.playbook import make_context


def last_of(transform: Transform) -> list[bytes] | None:
    client = ClientSide(make_context().client, 1)
    response = http.Response.make(200)
    response.stream = transform
    client.adopt(response, store=False)
    sent = client.last(b"event")
    if sent is None:
        return None
    return [part.event.data for part in sent if isinstance(part.event, http_events.ResponseData)]


def test_an_error_event_goes_through_the_function_and_what_that_keeps_back_follows() -> None:
    assert last_of(lambda data: data.upper() or b"[end]") == [b"EVENT", b"[end]"]


def test_nothing_is_added_where_the_function_fails() -> None:
    def fails(_data: bytes) -> bytes:
        raise ValueError

    assert last_of(fails) is None


def test_a_stream_that_is_dropped_without_its_end_gives_its_bytes_back() -> None:
    buffers = Buffers(Memory(1000))
    stream = CountedBodies(buffers)
    assert stream.take_request(FOREIGN, 300) and stream.take_answer(FOREIGN, 200) and buffers.used == 500
    assert not stream.take_answer(FOREIGN, 900)
    del stream
    assert buffers.used == 0
