"""What we rely on in mitmproxy beyond its documented interface. A release that changes it fails here, and says where.

`aibridge_addon/proxy/stream/` overrides states of its HTTP layer; `scope.py`, `drain.py` and `addon.py` look into
its addons. How these behave together is shown by `test_layer.py`; here stands what must exist, and how it is called.
"""

from __future__ import annotations

import ast
import asyncio
import dataclasses
import hashlib
import importlib.metadata
import inspect
import textwrap
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from h11 import Data, EndOfMessage
from h11._readers import ChunkedReader, ContentLengthReader, Http10Reader
from h11._receivebuffer import ReceiveBuffer
from hyperframe.frame import GoAwayFrame
from mitmproxy import addonmanager, flow, hooks, http, tls
from mitmproxy.addonmanager import AddonManager, traverse
from mitmproxy.addons import default_addons, next_layer, proxyauth, script
from mitmproxy.addons.proxyserver import Proxyserver
from mitmproxy.connection import Client, Server
from mitmproxy.coretypes.multidict import MultiDict
from mitmproxy.net.http.http1.read import read_request_head, read_response_head
from mitmproxy.net.http.validate import validate_headers
from mitmproxy.options import Options
from mitmproxy.proxy import commands, context, events, layer, layers
from mitmproxy.proxy.layers import http as http_layer
from mitmproxy.proxy.layers.http import (
    DropStream,
    GetHttpConnection,
    HttpLayer,
    HTTPMode,
    HttpStream,
    SendHttp,
    _http1,
    _http2,
)
from mitmproxy.proxy.layers.http import _events as http_events
from mitmproxy.proxy.layers.http import _hooks as http_hooks
from mitmproxy.proxy.layers.http._http1 import Http1Client, Http1Server, make_body_reader
from mitmproxy.proxy.layers.modes import HttpProxy, HttpUpstreamProxy
from mitmproxy.proxy.mode_servers import ServerInstance
from mitmproxy.proxy.server import ConnectionHandler, ConnectionIO, TimeoutWatchdog
from mitmproxy.test import taddons, tflow
from packaging.requirements import Requirement

from aibridge_addon.addon import AIBridge
from aibridge_addon.proxy.gate import Decisions, Gate
from aibridge_addon.proxy.stream.hooks import (
    AibridgeAttemptHook,
    AibridgeCommitHook,
    AibridgeDispatchHook,
    AibridgeTurnHook,
)
from aibridge_addon.proxy.stream.layer import BridgeHttpLayer, forked
from aibridge_addon.proxy.stream.stream import BridgeHttpStream

VERSION = importlib.metadata.version("mitmproxy")
PYPROJECT = Path(__file__).parents[3] / "pyproject.toml"

# class, method, its parameters
METHODS: list[tuple[type, str, list[str]]] = [
    (HttpStream, "__init__", ["self", "context", "stream_id"]),
    (HttpStream, "state_wait_for_request_headers", ["self", "event"]),
    (HttpStream, "check_body_size", ["self", "request"]),
    (HttpStream, "check_invalid", ["self", "request"]),
    (HttpStream, "check_killed", ["self", "emit_error_hook"]),
    (HttpStream, "start_request_stream", ["self"]),
    (HttpStream, "start_response_stream", ["self"]),
    (HttpStream, "send_response", ["self", "already_streamed"]),
    (HttpStream, "flow_done", ["self"]),
    (HttpStream, "handle_protocol_error", ["self", "event"]),
    (HttpStream, "make_server_connection", ["self"]),
    (HttpStream, "handle_connect_regular", ["self"]),
    (HttpLayer, "__init__", ["self", "context", "mode"]),
    (HttpLayer, "make_stream", ["self", "stream_id"]),
    (HttpLayer, "get_connection", ["self", "event", "reuse"]),
    (HttpLayer, "register_connection", ["self", "command"]),
    (Http1Client, "read_body", ["self", "event"]),
    (Http1Server, "read_body", ["self", "event"]),
    (Http1Client, "mark_done", ["self", "request", "response"]),
    (addonmanager.AddonManager, "register", ["self", "addon"]),
    (GetHttpConnection, "connection_spec_matches", ["self", "connection"]),
    (HttpLayer, "event_to_child", ["self", "child", "event"]),
    (_http1.Http1Server, "read_headers", ["self", "event"]),
    (_http1.Http1Client, "read_headers", ["self", "event"]),
    (_http1.Http1Server, "wait", ["self", "event"]),
    (_http2.Http2Server, "handle_h2_event", ["self", "event"]),
    (_http2.Http2Client, "handle_h2_event", ["self", "event"]),
    (_http2.Http2Client, "close_connection", ["self", "msg"]),
    (HttpLayer, "register_connection", ["self", "command"]),
    (ConnectionHandler, "on_timeout", ["self"]),
    (ConnectionHandler, "drain_writers", ["self"]),
    (TimeoutWatchdog, "register_activity", ["self"]),
    (asyncio.StreamReader, "feed_data", ["self", "data"]),
    (layer.Layer, "handle_event", ["self", "event"]),
    (layers.TCPLayer, "__init__", ["self", "context", "ignore"]),
    (next_layer.NextLayer, "next_layer", ["self", "nextlayer"]),
    (proxyauth.ProxyAuth, "requestheaders", ["self", "f"]),
    (proxyauth.ProxyAuth, "http_connect", ["self", "f"]),
    (context.Context, "fork", ["self"]),
]
STATES = [
    "state_consume_request_body",
    "state_wait_for_response_headers",
    "state_stream_response_body",
    "state_consume_response_body",
    "state_done",
    "state_errored",
]
# dataclass, the fields that we give or read, in order
FIELDS: list[tuple[Any, list[str]]] = [
    (http_events.RequestHeaders, ["stream_id", "request", "end_stream", "replay_flow"]),
    (http_events.RequestData, ["stream_id", "data"]),
    (http_events.RequestEndOfMessage, ["stream_id"]),
    (http_events.RequestProtocolError, ["stream_id", "message", "code"]),
    (http_events.ResponseHeaders, ["stream_id", "response", "end_stream"]),
    (http_events.ResponseData, ["stream_id", "data"]),
    (http_events.ResponseTrailers, ["stream_id", "trailers"]),
    (http_events.ResponseEndOfMessage, ["stream_id"]),
    (http_events.ResponseProtocolError, ["stream_id", "message", "code"]),
    (SendHttp, ["event", "connection"]),
    (DropStream, ["stream_id"]),
    (tls.ClientHelloData, ["context", "client_hello", "ignore_connection"]),
]
HOOKS = {
    http_hooks.HttpRequestHeadersHook: "requestheaders",
    http_hooks.HttpRequestHook: "request",
    http_hooks.HttpResponseHeadersHook: "responseheaders",
    http_hooks.HttpResponseHook: "response",
    http_hooks.HttpErrorHook: "error",
    http_hooks.HttpConnectHook: "http_connect",
    layer.NextLayerHook: "next_layer",
    AibridgeCommitHook: "aibridge_commit",
    AibridgeTurnHook: "aibridge_turn",
    AibridgeDispatchHook: "aibridge_dispatch",
    AibridgeAttemptHook: "aibridge_attempt",
}


ADDED = [
    *("state", "turns", "client", "attempts", "incoming", "answer", "answer_begun", "read", "held", "awake"),
    *("start_turn", "watch", "keep_client_waiting", "cancel_upstream", "is_repeatable"),
]


def parameters(function: Any) -> list[str]:
    return list(inspect.signature(function).parameters)


def test_the_release_is_one_that_the_project_allows() -> None:
    project = tomllib.loads(PYPROJECT.read_text())["project"]
    (pin,) = (r for r in map(Requirement, project["dependencies"]) if r.name == "mitmproxy")
    assert VERSION in pin.specifier
    assert "13" not in pin.specifier, "a major release of mitmproxy needs a look before it is allowed"


@pytest.mark.parametrize(
    ("owner", "name", "expected"), METHODS, ids=lambda value: getattr(value, "__name__", str(value))
)
def test_a_method_takes_what_we_give_it(owner: type, name: str, expected: list[str]) -> None:
    found = parameters(getattr(owner, name))
    assert found == expected, f"mitmproxy {VERSION} has changed {owner.__name__}.{name}"


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [(BridgeHttpStream, HttpStream), (BridgeHttpLayer, HttpLayer)],
)
def test_everything_that_we_override_exists_and_is_called_in_the_same_way(ours: type, theirs: type) -> None:
    own = {name: member for name, member in vars(ours).items() if inspect.isfunction(member) and name != "__init__"}
    overridden = {name for name in own if hasattr(theirs, name)}
    assert overridden, f"mitmproxy {VERSION}: nothing of {theirs.__name__} is overridden any more"
    for name in overridden:
        assert parameters(own[name]) == parameters(getattr(theirs, name)), f"mitmproxy {VERSION}: {name}"
    known = {name for owner, name, _ in METHODS if owner in theirs.__mro__} | set(STATES) | {"_handle_event"}
    assert overridden <= known, f"not in METHODS: {overridden - known}"


def test_nothing_of_ours_hides_something_new_of_theirs() -> None:
    """Names that we added must not turn up in mitmproxy's classes with another meaning."""
    stream = http_layer.HttpStream(context.Context(tflow.tclient_conn(), Options()), 1)
    for name in ADDED:
        assert not hasattr(stream, name), f"mitmproxy {VERSION} has a HttpStream.{name} of its own"
    assert not hasattr(HttpLayer, "turn_ids"), f"mitmproxy {VERSION} has a HttpLayer.turn_ids of its own"


@pytest.mark.parametrize("name", STATES)
def test_a_state_is_a_method_that_takes_an_event(name: str) -> None:
    assert len(parameters(getattr(HttpStream, name))) == 2, f"mitmproxy {VERSION} has changed HttpStream.{name}"


@pytest.mark.parametrize(
    ("method", "digest"),
    [
        (HttpStream.start_response_stream, "c6684b66e63d08c1"),  # done in `BridgeHttpStream.start_response_stream`
        (Http1Client.read_headers, "d0b29e56f05f652d"),  # done in `BridgeHttp1Client.read_headers`
        (read_request_head, "8db59402d6647629"),  # done in `parsed_heads.request_of`
        (read_response_head, "ef8bfc40f9a55a30"),  # done in `parsed_heads.response_of`
        (http.Headers.get_all, "bd06ae1515d3e07e"),  # done in `headers.Headers`
        (MultiDict.get_all, "6b8de94778dce9c6"),  # done in `headers.Headers`
        (MultiDict.__getitem__, "6fdf50ae23fefd13"),  # done in `headers.Headers.get`
        (http.Headers._kconv, "8875ac8a0a45bc50"),  # done in `headers.Headers`
        (AddonManager._iter_hooks, "adceddc136bb858d"),  # done in `addon_manager.invoke_addon`
        (AddonManager.handle_lifecycle, "56246b387f582c8b"),  # done in `SparingAddonManager.handle_lifecycle`
        (AddonManager.trigger_event, "acc86e8d489c1018"),  # done in `SparingAddonManager._call`
        (AddonManager.invoke_addon, "5f2f1dae9397964e"),  # done in `addon_manager.invoke_addon`
        (traverse, "8c9180dcea5c2d3f"),  # done in `addon_manager.invoke_addon`
    ],
)
def test_what_we_do_in_mitmproxys_place_has_not_changed_there(method: Callable[..., Any], digest: str) -> None:
    code = ast.unparse(ast.parse(textwrap.dedent(inspect.getsource(method))))
    assert hashlib.sha256(code.encode()).hexdigest()[:16] == digest, code


def test_a_stream_has_the_attributes_that_we_read() -> None:
    stream = HttpStream(context.Context(tflow.tclient_conn(), Options()), 7)
    stream.request_body_buf += b"a"
    assert (len(stream.request_body_buf), bytes(stream.request_body_buf)) == (1, b"a")
    stream.response_body_buf.clear()
    assert stream.stream_id == 7
    assert stream.client_state == stream.server_state == stream.state_uninitialized
    assert stream._paused_event_queue is not None and stream._paused is None


def test_a_reader_of_chunks_has_the_attributes_that_we_read() -> None:
    reader, received = make_body_reader(None), ReceiveBuffer()
    assert type(reader) is ChunkedReader
    places = []
    for byte in b"1\r\na\r\n0\r\n":
        received += bytes([byte])
        reader(received)
        places.append(bool(received or reader._bytes_in_chunk or reader._bytes_to_discard or reader._reading_trailer))
    # Between two chunks, after the last byte of the first; and before the trailer.
    assert places == [True] * 5 + [False] + [True] * 3


def test_the_other_readers_of_bodies_have_the_attributes_that_we_read() -> None:
    reader, received = make_body_reader(3), ReceiveBuffer()
    assert type(reader) is ContentLengthReader and reader._remaining == 3
    received += b"a"
    reader(received)
    assert reader._remaining == 2
    reader._remaining -= 1
    received += b"bc"
    assert reader(received) == Data(data=b"b") and reader(received) == EndOfMessage()
    until_the_end = make_body_reader(-1)
    assert type(until_the_end) is Http10Reader and vars(until_the_end) == {}


def test_the_layer_has_the_attributes_that_we_read() -> None:
    made = HttpLayer(context.Context(tflow.tclient_conn(), Options()), HTTPMode.regular)
    assert made.streams == {} and made.mode is HTTPMode.regular
    assert made.context.layers == [made], "a layer no longer puts itself on the context's list"
    assert made.connections == {} and made.waiting_for_establishment == {}
    server = Server(address=("x", 1))
    assert (server.error, server.timestamp_tcp_setup, server.timestamp_end) == (None, None, None)
    assert {mode.name for mode in HTTPMode} >= {"regular", "transparent", "upstream"}


@pytest.mark.parametrize(("kind", "expected"), FIELDS, ids=[kind.__name__ for kind, _ in FIELDS])
def test_an_event_or_command_has_the_fields_that_we_use(kind: Any, expected: list[str]) -> None:
    found = [field.name for field in dataclasses.fields(kind)]
    assert found[: len(expected)] == expected, f"mitmproxy {VERSION} has changed {kind.__name__}"


def test_a_request_brings_no_flow_along_unless_it_is_replayed() -> None:
    headers = http_events.RequestHeaders(1, tflow.tflow().request, True)
    assert headers.replay_flow is None
    headers.replay_flow = tflow.tflow()  # it can be put there


@pytest.mark.parametrize("name", ["KILL", "CANCEL", "RESPONSE_VALIDATION_FAILED", "CONNECT_FAILED"])
def test_an_error_has_the_codes_that_we_use(name: str) -> None:
    assert hasattr(http_events.ErrorCode, name), f"mitmproxy {VERSION} has no ErrorCode.{name}"


@pytest.mark.parametrize(("hook", "name"), HOOKS.items(), ids=HOOKS.values())
def test_a_hook_has_this_name_and_carries_one_datum(hook: Any, name: str) -> None:
    assert hook.name == name
    assert len(dataclasses.fields(hook)) == 1, "the server hands exactly one datum to the addons"
    assert hook.blocking is True


def is_hook(name: str, member: object) -> bool:
    return inspect.isfunction(member) and not name.startswith("_") and not hasattr(member, "command_name")


def test_every_hook_that_the_addon_waits_for_is_one_of_mitmproxys() -> None:
    names = {name for kind in (AIBridge, Gate) for name, member in vars(kind).items() if is_hook(name, member)}
    names -= {name for name in vars(Decisions) if not name.startswith("_")} | {"use", "forget", "release"}
    unknown = names - set(hooks.all_hooks)
    assert not unknown, f"mitmproxy {VERSION} has no such hook: {unknown}"


def test_the_built_in_addons_come_in_the_order_that_we_need() -> None:
    """Authentication before us, and the choice of layers after us."""
    order = [type(addon) for addon in default_addons()]
    assert order.index(proxyauth.ProxyAuth) < order.index(script.ScriptLoader) < order.index(next_layer.NextLayer)
    assert Proxyserver in order


def test_the_chain_of_addons_is_a_list_that_can_be_replaced() -> None:
    with taddons.context() as ctx:
        assert isinstance(ctx.master.addons.chain, list)


def test_the_addons_that_we_ask_for_have_these_names() -> None:
    assert addonmanager._get_name(next_layer.NextLayer()) == "nextlayer"
    assert addonmanager._get_name(Proxyserver()) == "proxyserver"


def test_the_built_in_choice_of_layers_leaves_ours_alone() -> None:
    ctx = context.Context(tflow.tclient_conn(), Options())
    asked = layer.NextLayer(ctx)
    asked.layer = chosen = layers.TCPLayer(ctx, ignore=True)
    next_layer.NextLayer().next_layer(asked)
    assert asked.layer is chosen


async def test_proxy_authentication_says_who_has_been_let_in() -> None:
    addon = proxyauth.ProxyAuth()
    with taddons.context(addon) as ctx:
        ctx.configure(addon, proxyauth="ada:secret")
        right, wrong = tflow.tflow(), tflow.tflow()
        for seen in (right, wrong):
            seen.client_conn.proxy_mode = tflow.tclient_conn().proxy_mode
        right.request.headers["proxy-authorization"] = "Basic YWRhOnNlY3JldA=="
        addon.requestheaders(right)
        addon.requestheaders(wrong)
    assert right.metadata["proxyauth"] == ("ada", "secret") and right.response is None
    assert wrong.response is not None and wrong.response.status_code == 407


def test_a_killed_flow_is_known_by_its_message() -> None:
    assert flow.Error(flow.Error.KILLED_MESSAGE).msg == flow.Error.KILLED_MESSAGE


@pytest.mark.parametrize(
    ("option", "value"),
    [("connection_strategy", "lazy"), ("tcp_timeout", 3600), ("validate_inbound_headers", True), ("proxyauth", None)],
)
async def test_an_option_that_we_set_or_read_exists(option: str, value: object) -> None:
    proxy, auth = Proxyserver(), proxyauth.ProxyAuth()
    with taddons.context(proxy, auth) as ctx:
        assert option in ctx.options, f"mitmproxy {VERSION} has no option {option}"
        ctx.options.update(**{option: value})


def test_an_http2_connection_has_the_attributes_that_we_replace() -> None:
    options = Options()
    options.add_option("validate_inbound_headers", bool, True, "")
    ctx = context.Context(tflow.tclient_conn(), options)
    ctx.server = tflow.tserver_conn()
    client = _http2.Http2Client(ctx)
    assert GoAwayFrame in client.h2_conn._frame_dispatch_table
    assert (client.streams, dict(client.stream_queue), client.their_stream_id) == ({}, {}, {})
    assert client.h2_conn.config is client.h2_conf


async def test_the_handler_of_a_client_has_the_attributes_that_we_replace() -> None:
    assert {"max_conns", "timeout_watchdog"} <= set(inspect.get_annotations(ConnectionHandler))
    assert "callback" in vars(TimeoutWatchdog(1, lambda: asyncio.sleep(0)))


def test_a_forked_context_is_as_mitmproxys() -> None:
    ctx = context.Context(tflow.tclient_conn(), Options())
    ctx.layers.append(layer.NextLayer(ctx))
    ours, theirs = forked(ctx), ctx.fork()
    assert type(ours) is type(theirs) and vars(ours) == vars(theirs)
    assert ours.layers is not ctx.layers


async def test_a_reader_shows_whether_it_is_awaited() -> None:
    reader = asyncio.StreamReader()
    assert reader._waiter is None  # type: ignore[attr-defined]
    reading = asyncio.ensure_future(reader.read(3))
    await asyncio.sleep(0)
    assert not reader._waiter.done()  # type: ignore[attr-defined]
    reader.feed_data(b"more")
    assert reader._waiter is None  # type: ignore[attr-defined]
    assert await reading == b"mor"


async def test_the_server_can_be_drained() -> None:
    server = Proxyserver()
    with taddons.context(server):
        assert list(server.servers) == [] and dict(server.connections) == {}
        assert server.is_running is False
    assert {"transports", "client"} <= set(inspect.get_annotations(ConnectionHandler))
    assert "writer" in {field.name for field in dataclasses.fields(ConnectionIO)}


def test_flows_and_connections_have_the_attributes_that_we_read() -> None:
    seen = tflow.tflow(resp=True)
    assert isinstance(seen.client_conn, Client)
    assert seen.client_conn.proxy_mode.type_name == "regular"
    assert seen.client_conn.peername and hasattr(seen.client_conn, "sni")
    assert seen.metadata == {} and seen.live is True
    assert isinstance(seen.request, http.Request) and seen.request.stream is False
    assert seen.response is not None and seen.response.stream is False
    assert seen.request.is_http2 is False and seen.request.is_http3 is False
    validate_headers(seen.request)


def test_the_layers_that_scope_looks_for_exist() -> None:
    assert issubclass(HttpProxy, layer.Layer) and issubclass(HttpUpstreamProxy, layer.Layer)
    assert isinstance(commands.OpenConnection(tflow.tserver_conn()), commands.ConnectionCommand)
    assert dataclasses.is_dataclass(events.DataReceived)


def test_a_listener_has_its_addresses_and_a_connection_its_transports() -> None:
    """`proxy/connection/ourselves.py` recognises our own addresses and connections by these."""
    assert Proxyserver().connections == {}
    assert "transports" in inspect.get_annotations(ConnectionHandler)
    assert isinstance(inspect.getattr_static(ServerInstance, "listen_addrs"), property)
    assert {"peername", "sockname"} <= {field.name for field in dataclasses.fields(Client)}
