"""mitmproxy's hooks. They contain no logic of their own: each calls the function that does the work."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import threading
import time
from collections.abc import Awaitable, Sequence
from dataclasses import dataclass
from pathlib import Path

from mitmproxy import command, contentviews, ctx, http, tls
from mitmproxy.addonmanager import Loader
from mitmproxy.connection import Client
from mitmproxy.exceptions import OptionsError
from mitmproxy.proxy import layer
from mitmproxy.proxy.server import ConnectionHandler
from mitmproxy.proxy.server_hooks import ServerConnectionHookData

from aibridge_addon.bridge import Bridge
from aibridge_addon.config.errors import ConfigError
from aibridge_addon.config.load import load, log_format
from aibridge_addon.config.schema import Settings
from aibridge_addon.proxy import terminal
from aibridge_addon.proxy.addon_manager import use_sparing_manager
from aibridge_addon.proxy.conflicts import conflicts
from aibridge_addon.proxy.connection import exposure, handler, leaf_names
from aibridge_addon.proxy.connection.acceptor import Acceptor
from aibridge_addon.proxy.connection.authentication import replace_authentication
from aibridge_addon.proxy.connection.clients import OPEN_FILES, ClientConnections
from aibridge_addon.proxy.connection.egress import EgressGuard, configured_names, guard_for
from aibridge_addon.proxy.connection.greetings import FailedGreetings
from aibridge_addon.proxy.connection.listeners import Listeners
from aibridge_addon.proxy.connection.names import Names
from aibridge_addon.proxy.connection.scope import destination, is_for_proxy, tunnel_plain
from aibridge_addon.proxy.connection.unpriced_hosts import unpriced_hosts
from aibridge_addon.proxy.flow import answer, count_tokens, dispatch, request, results, tool_turn, websocket
from aibridge_addon.proxy.flow.destination import check_destination
from aibridge_addon.proxy.flow.http1 import drop_trailers
from aibridge_addon.proxy.flow.internal_error import guarded
from aibridge_addon.proxy.flow.request_head import RequestClassifier, forget_password, report_refused_head
from aibridge_addon.proxy.flow.state import Bridged, state_of
from aibridge_addon.proxy.gate import Gate
from aibridge_addon.proxy.interactive import status
from aibridge_addon.proxy.interactive.annotation import Annotation
from aibridge_addon.proxy.interactive.content_view import ConversationView
from aibridge_addon.proxy.interactive.kept_bodies import KeptBodies
from aibridge_addon.proxy.life import Life
from aibridge_addon.proxy.options import CONFIG_VARIABLE, OPTIONS, add_options, check_names
from aibridge_addon.proxy.stream.activity import is_busy
from aibridge_addon.proxy.stream.arrivals import forget_arrivals, forward_on_arrival
from aibridge_addon.proxy.stream.dumping import DumpingHttpLayer
from aibridge_addon.proxy.stream.hooks import ClosedClient
from aibridge_addon.proxy.stream.keeping import KeepingAndDumpingHttpLayer, KeepingHttpLayer
from aibridge_addon.proxy.stream.layer import DEFAULT_LIMITS, BridgeHttpLayer, bridge_http
from aibridge_addon.records import ConnectionRefused, DatabaseUnavailable, Tunnelled

logger = logging.getLogger(__name__)

CONTENT_VIEW = ConversationView()


@dataclass(frozen=True, slots=True)
class Source:
    """What a configuration is made from: mitmproxy's options and, at the time of the call, a file."""

    path: str
    database: str
    metrics: str
    metrics_by_default: bool

    @classmethod
    def of_options(cls, *, metrics_by_default: bool) -> Source:
        options = ctx.options
        path = options.aibridge_config or os.environ.get(CONFIG_VARIABLE, "")
        return cls(path, options.aibridge_database, options.aibridge_metrics, metrics_by_default)

    def settings(self) -> Settings:
        """Load the configuration. Raises ConfigError."""
        path, database, metrics = Path(self.path) if self.path else None, self.database or None, self.metrics or None
        settings = load(path, environ=os.environ, database=database, metrics=metrics)
        if self.metrics_by_default or "listen" in settings.metrics.model_fields_set:
            return settings
        return settings.model_copy(update={"metrics": settings.metrics.model_copy(update={"listen": None})})

    def make(self) -> Bridge:
        return Bridge(self.settings())

    def check(self, settings: Settings) -> None:
        exposure.check_exposure(settings, ctx.options, self.path)


class AIBridge:
    def __init__(self, *, metrics_by_default: bool = True) -> None:
        """Create the addon.

        `metrics_by_default`: whether metrics are served if the configuration has no `metrics.listen`.
        """
        self._metrics_by_default = metrics_by_default
        self._life: Life | None = None
        self._is_configured = False
        self._bridge: Bridge | None = None
        """The one for new requests. None: it could not start, and connections are refused."""
        self._classifier: RequestClassifier | None = None
        self._names = Names()
        self._guard: EgressGuard | None = None
        self._gate: Gate | None = None
        self._greetings = FailedGreetings(time.monotonic, leaf_names.may_sign)
        self._listeners: Listeners | None = None
        self._clients: ClientConnections | None = None
        self._acceptor: Acceptor | None = None
        self._is_interactive = False
        """Whether a person looks at flows, in `mitmproxy` or `mitmweb`."""
        self._kept: KeptBodies | None = None
        """Keeps bodies for the interactive tools. None in `mitmdump`."""

    # --- life -------------------------------------------------------------------------------------------------

    def load(self, loader: Loader) -> None:
        add_options(loader)
        if CONTENT_VIEW.name.lower() not in contentviews.registry:
            contentviews.add(CONTENT_VIEW)
        # Only a request's head shows where the request goes, so nothing is connected before it.
        ctx.options.update(connection_strategy="lazy")
        handler.set_default_timeout(ctx.options)
        terminal.hide_flows(ctx.options)
        terminal.spare_add_log(ctx.master.addons)
        use_sparing_manager(ctx.master.addons)
        replace_authentication(ctx.master.addons, DEFAULT_LIMITS)
        self._listeners = Listeners(ctx.master.addons.get("proxyserver"), ctx.options)
        self._gate = Gate.of_master()
        self._gate.use(self)
        self._life = Life.of_master()
        before = self._life.addon
        self._life.follow(self, self._use)
        if isinstance(before, AIBridge):  # `main.py` was saved: this addon goes on where that one has stopped
            self._bridge, self._classifier, self._guard = before._bridge, before._classifier, before._guard
            self._names, self._greetings, self._kept = before._names, before._greetings, before._kept
            self._clients, self._acceptor = before._clients, before._acceptor
        if self._clients is None:
            self._bound_connections(self._life)
        self._names.answer(asyncio.get_running_loop())

    def _bound_connections(self, life: Life) -> None:
        def report(reason: str) -> None:
            if life.current is not None:
                life.current.emit(ConnectionRefused(reason))

        server = ctx.master.addons.get("proxyserver")
        clients = self._clients = ClientConnections(lambda: server.connections, is_busy, report, time.monotonic)
        self._acceptor = Acceptor(server, lambda: clients.close_idle(OPEN_FILES))

    def configure(self, updated: set[str]) -> None:
        if not ctx.master.addons.get("proxyserver").is_running and self._listeners and self._listeners.report():
            return  # mitmproxy exits because of the error
        is_first, self._is_configured = not self._is_configured, True
        if is_first or updated & set(OPTIONS):
            self._configure_bridge(reload=is_first)
        elif self._bridge is not None and updated & exposure.OPTIONS:
            try:
                exposure.check_exposure(self._bridge.settings, ctx.options, self._source().path)
            except ConfigError as e:
                raise OptionsError(str(e)) from e
        self._is_interactive = ctx.master.addons.get("view") is not None
        if updated & {"aibridge_keep_bodies"} or self._kept is None:
            limit = ctx.options.aibridge_keep_bodies if self._is_interactive else 0
            self._kept = KeptBodies(limit) if limit > 0 else None
        if self._bridge is not None:
            for line in conflicts(self._bridge.settings, ctx.options, updated):
                logger.warning("aibridge: %s", line)
            self._follow_options(self._bridge)

    def _source(self) -> Source:
        return Source.of_options(metrics_by_default=self._metrics_by_default)

    def _configure_bridge(self, *, reload: bool) -> None:
        """Start the first bridge, or have it replaced because of changed options or, with `reload`, in any case."""
        life, source = self._life, self._source()
        assert life is not None
        if life.current is None:
            terminal.use_format(log_format(Path(source.path) if source.path else None))
            try:
                check_names(ctx.options)
                life.begin(source)
            except (ConfigError, DatabaseUnavailable) as e:
                # During the start, mitmproxy exits with code 1 after an error in the log.
                logger.error("aibridge cannot start: %s", e)
                if not ctx.master.addons.get("proxyserver").is_running:
                    terminal.hide_listening()
        elif reload:
            life.reload(source)
        elif source != life.source:  # equal: mitmproxy takes back a change that was refused
            try:
                source.check(source.settings())
            except ConfigError as e:
                logger.error("aibridge: the options are not changed: %s", e)
                raise OptionsError(str(e)) from e
            life.reload(source)

    def _use(self, bridge: Bridge) -> None:
        """Serve new requests with this bridge, which has started."""
        self._bridge = bridge
        if (life := self._life) is not None:
            bridge.served_at = lambda: life.metrics_at or bridge.address
        self._classifier = RequestClassifier(bridge, self._classifier)
        self._follow_options(bridge)
        terminal.use_format(bridge.settings.log.format)
        logger.info(
            "aibridge: configuration %s, %d providers, %d MCP servers, rows in %s, metrics on %s",
            self._source().path or "(the defaults)",
            len(bridge.settings.providers),
            len(bridge.settings.mcp.servers),
            bridge.settings.database.absolute,
            (self._life.metrics_at if self._life is not None else None) or bridge.address or "no port",
        )
        for line in unpriced_hosts(bridge.settings):
            logger.info("aibridge: %s", line)
        if self._life is not None and self._life.is_serving:
            leaf_names.warn_of_hosts_not_permitted(bridge.settings.providers, ctx.options)

    def _follow_options(self, bridge: Bridge) -> None:
        """Bring up to date what depends on mitmproxy's options, too."""
        bridge.ssl_insecure, bridge.reads_websockets = ctx.options.ssl_insecure, ctx.options.websocket
        bridge.is_exposed = exposure.reachable_from_other_machines(ctx.options)
        bridge.accepts_any_user = ctx.options.proxyauth == "any"
        if self._clients is not None:
            self._clients.limits = bridge.settings.limits
        replace_authentication(ctx.master.addons, bridge.settings.limits)
        self._names.configured, self._names.limits = configured_names(bridge.settings), bridge.settings.limits
        self._guard = guard_for(bridge.settings, ctx.options, self._guard, self._names)

    def running(self) -> None:
        assert self._life is not None
        is_reload = self._life.is_serving
        self._life.serve()
        if self._acceptor is not None:
            self._acceptor.take_over()
        if self._bridge is not None:
            exposure.warn_if_open(self._bridge.settings, ctx.options)
            leaf_names.warn_of_hosts_not_permitted(self._bridge.settings.providers, ctx.options)
        if ctx.options.ssl_insecure:
            logger.warning("ssl_insecure is set: UPSTREAM CERTIFICATES ARE NOT VERIFIED, keys and prompts are exposed")
        if is_reload or threading.current_thread() is not threading.main_thread():
            return  # mitmproxy is embedded in another program, which owns the signals and the garbage collector
        self._life.take_signals()
        # Modules and price lists stay until the end. Frozen, they are not traversed by each full collection. After a
        # reload that would keep what the replaced bridge has left.
        gc.collect()
        gc.freeze()

    def done(self) -> None:
        if self._listeners is not None:
            self._listeners.close()
        if self._gate is not None:
            self._gate.forget(self)
        if self._life is not None:
            self._life.left(self)

    def client_connected(self, client: Client) -> None:
        if self._bridge is None:  # the start has failed: nothing may pass unrecorded until mitmproxy has ended
            client.error = "aibridge has not started"
            return
        if (of_client := _handler_of(client)) is not None:
            handler.adjust(of_client, self._bridge.settings.limits.upstream_connections)
        if self._clients is not None:
            self._clients.connected(client)

    def server_connected(self, connected: ServerConnectionHookData) -> None:
        if (of_client := _handler_of(connected.client)) is not None:
            forward_on_arrival(of_client, connected.server)

    def server_disconnected(self, disconnected: ServerConnectionHookData) -> None:
        forget_arrivals(disconnected.server)

    def client_disconnected(self, client: Client) -> None:
        if self._clients is not None:
            self._clients.disconnected(client)

    def aibridge_connection_closed(self, closed: ClosedClient) -> None:
        if self._clients is not None:
            self._clients.count(closed.reason, closed.client)

    # --- commands of the interactive tools --------------------------------------------------------------------

    @command.command("aibridge.status")  # type: ignore[untyped-decorator]
    def show_status(self) -> Sequence[str]:
        """Show the database, metrics, providers and tools of aibridge."""
        return status.status(self._bridge)

    @command.command("aibridge.tools")  # type: ignore[untyped-decorator]
    def show_tools(self) -> Sequence[str]:
        """Show the tools of MCP servers that aibridge injects."""
        return status.tools(self._bridge)

    # --- connections: called by the gate ----------------------------------------------------------------------

    def choose_layer(self, next_layer: layer.NextLayer) -> None:
        if self._bridge is None:
            return
        if tunnel_plain(next_layer, self._bridge.router):
            self._bridge.emit(Tunnelled())
            return
        if next_layer.layer is None:
            # This hook runs before mitmproxy's own, but ours replaces the layer that mitmproxy chooses.
            ctx.master.addons.get("nextlayer").next_layer(next_layer)
        dumps, kept, limits = self._bridge.dumper is not None, self._kept, self._bridge.settings.limits
        buffers = self._bridge.buffers
        if kept is not None:
            bridge_http(next_layer, KeepingAndDumpingHttpLayer if dumps else KeepingHttpLayer, kept, limits, buffers)
        else:
            bridge_http(next_layer, DumpingHttpLayer if dumps else BridgeHttpLayer, limits=limits, buffers=buffers)

    def choose_decryption(self, data: tls.ClientHelloData) -> None:
        if self._bridge is None:
            return
        if is_for_proxy(data.context):
            data.context.client.alpn = b"http/1.1"  # mitmproxy takes no CONNECT over HTTP/2
            return
        host = destination(data.context, data.client_hello.sni)
        data.ignore_connection = host is None or self._bridge.router.provider_for_host(host) is None
        if data.ignore_connection:
            self._bridge.emit(Tunnelled())
        else:
            leaf_names.use_permitted_names()

    async def check_destination(self, data: ServerConnectionHookData) -> None:
        if self._clients is not None and not self._clients.may_dial(data.client):
            data.server.error = "too many open files"
            return
        if self._classifier is not None and self._bridge is not None:
            self._classifier.named_clients.check(data, self._bridge.actors)
            if data.server.error is not None:
                return
        if self._guard is not None:
            await self._guard.dial(data)
        if not data.server.error:
            await self._names.check(data)  # also with the guard: it does not resolve names of the configuration

    def connection_tried(self, data: ServerConnectionHookData) -> None:
        if self._guard is not None:
            self._guard.dialled(data)

    def tls_failed_client(self, data: tls.TlsData) -> None:
        self._greetings.failed(data)

    @guarded
    def http_connect(self, flow: http.HTTPFlow) -> Awaitable[None] | None:
        if self._clients is not None:
            self._clients.head_expected(flow.client_conn)
        try:
            waiting = None if self._classifier is None else self._classifier.connect(flow)
        finally:
            forget_password(flow)
        return self._wait_and_check(waiting, flow)

    def _wait_and_check(self, waiting: Awaitable[None] | None, flow: http.HTTPFlow) -> Awaitable[None] | None:
        if waiting is None and (self._guard is None or flow.response is not None):
            self._report_refused(flow)
            return None
        return self._await_and_check(waiting, flow)

    async def _await_and_check(self, waiting: Awaitable[None] | None, flow: http.HTTPFlow) -> None:
        if waiting is not None:
            await waiting
        if self._guard is not None and flow.response is None:
            await check_destination(self._guard, flow)
        self._report_refused(flow)

    def _report_refused(self, flow: http.HTTPFlow) -> None:
        if self._bridge is not None:
            report_refused_head(flow, self._bridge)

    # --- requests and answers ---------------------------------------------------------------------------------
    #
    # A flow keeps the bridge with which it began. After a reload, that is not `self._bridge`.

    @guarded
    def requestheaders(self, flow: http.HTTPFlow) -> Awaitable[None] | None:
        if self._clients is not None:
            self._clients.head_complete(flow.client_conn)
        try:
            waiting = None if self._classifier is None else self._classifier.request_head(flow)
        finally:
            forget_password(flow)
        return self._wait_and_check(waiting, flow)

    @guarded
    def request(self, flow: http.HTTPFlow) -> Awaitable[None] | None:
        drop_trailers(flow)
        state = state_of(flow)
        if not isinstance(state, Bridged) or flow.response is not None:
            return None
        began = time.perf_counter()
        route = state.head.route
        waiting: Awaitable[None] | None
        if route.results is not None:
            waiting = results.begin(flow, state)
        elif route.counts is not None:
            waiting = count_tokens.prepare(flow, state)
        else:
            waiting = request.read_request(flow, state)
        if self._is_interactive and state.exchange is not None:
            Annotation(flow).follow(state.exchange, state.head.bridge)
        state.overhead += time.perf_counter() - began
        return waiting

    @guarded
    def responseheaders(self, flow: http.HTTPFlow) -> None:
        limits = self._bridge.settings.limits if self._bridge is not None else DEFAULT_LIMITS
        answer.open_answer(flow, limits.passthrough_body)

    @guarded
    async def aibridge_dispatch(self, flow: http.HTTPFlow) -> None:
        await dispatch.prepare(flow)

    @guarded
    async def aibridge_attempt(self, flow: http.HTTPFlow) -> None:
        await dispatch.pause(flow)

    @guarded
    async def aibridge_commit(self, flow: http.HTTPFlow) -> None:
        state = state_of(flow)
        if isinstance(state, Bridged):
            await answer.commit(flow, state)

    @guarded
    async def aibridge_turn(self, flow: http.HTTPFlow) -> None:
        state = state_of(flow)
        if isinstance(state, Bridged) and state.stored is not None:
            state.stored.turn_ended(flow)
        if not isinstance(state, Bridged) or state.exchange is None:
            return
        if (tools := state.splicing) is not None:
            await tool_turn.turn_ended(flow, state, tools)
        else:
            await answer.first_turn_refused(flow, state, state.exchange)

    @websocket.guarded
    def websocket_start(self, flow: http.HTTPFlow) -> None:
        websocket.opened(flow, Annotation(flow).follow if self._is_interactive else None)

    @websocket.guarded
    def websocket_message(self, flow: http.HTTPFlow) -> Awaitable[None] | None:
        if flow.websocket is not None:
            # mitmproxy would keep every message until the connection ends.
            if self._kept is not None:
                self._kept.trim(flow)
            else:
                del flow.websocket.messages[:-1]
        return websocket.message_came(flow, self._bridge)

    @websocket.guarded
    def websocket_end(self, flow: http.HTTPFlow) -> None:
        websocket.closed(flow)

    @guarded
    def response(self, flow: http.HTTPFlow) -> Awaitable[None] | None:
        return answer.answered(flow)

    @guarded
    def error(self, flow: http.HTTPFlow) -> None:
        answer.failed(flow)


def _handler_of(client: Client) -> ConnectionHandler | None:
    """Return mitmproxy's handler of a client's connection."""
    found: ConnectionHandler | None = ctx.master.addons.get("proxyserver").connections.get(client.id)
    return found
