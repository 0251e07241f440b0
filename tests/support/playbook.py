"""Play mitmproxy's server to one of its layers: events in, commands out, no sockets.

After mitmproxy's own `Playbook`, which its wheel does not bring along: a test gives an event, then takes the commands
that the layer yields one after the other. A blocking command is answered when the test says so, which may be after
further events: so the moments in which a hook is awaited can be looked into.
"""

from __future__ import annotations

from collections import deque

from mitmproxy.addons.proxyauth import ProxyAuth
from mitmproxy.addons.proxyserver import Proxyserver
from mitmproxy.connection import Client, Connection, ConnectionState, Server
from mitmproxy.options import Options
from mitmproxy.proxy import commands, events
from mitmproxy.proxy.context import Context
from mitmproxy.proxy.layer import Layer
from mitmproxy.proxy.mode_specs import ProxyMode


def make_context(**options: object) -> Context:
    """What a connection of a client to a proxy's port begins with."""
    opts = Options()
    Proxyserver().load(opts)
    ProxyAuth().load(opts)
    opts.update_defer(connection_strategy="lazy", **options)
    client = Client(
        peername=("127.0.0.1", 50_000),
        sockname=("127.0.0.1", 8_080),
        timestamp_start=1.0,
        state=ConnectionState.OPEN,
        proxy_mode=ProxyMode.parse("regular"),
    )
    return Context(client, opts)


class Playbook:
    def __init__(self, layer: Layer) -> None:
        self.client: Client = layer.context.client
        self._layer = layer
        self._yielded: deque[commands.Command] = deque()
        self._give(events.Start())

    # --- events -----------------------------------------------------------------------------------------------

    def receive(self, connection: Connection, data: bytes) -> None:
        """The peer sends these bytes."""
        self._give(events.DataReceived(connection, data))

    def close(self, connection: Connection) -> None:
        """The peer closes the connection."""
        connection.state = ConnectionState.CLOSED
        self._give(events.ConnectionClosed(connection))

    def done(self, hook: commands.StartHook) -> None:
        """The addons have done with a hook."""
        self._give(events.HookCompleted(hook))

    def wake(self, timer: commands.RequestWakeup) -> None:
        """The time of a timer is over."""
        self._give(events.Wakeup(timer))

    def connect(self, error: str | None = None) -> Server:
        """Open the upstream connection that the layer asks for, or fail to."""
        command = self.expect(commands.OpenConnection)
        self.opened(command, error)
        return command.connection

    def opened(self, command: commands.OpenConnection, error: str | None = None) -> None:
        """An upstream connection was opened, or could not be."""
        command.connection.state = ConnectionState.CLOSED if error else ConnectionState.OPEN
        self._give(events.OpenConnectionCompleted(command, error))

    # --- commands ---------------------------------------------------------------------------------------------

    def expect[C: commands.Command](self, kind: type[C]) -> C:
        """Take the next command, which is to be of this kind."""
        assert self._yielded, f"no {kind.__name__}: the layer waits"
        command = self._yielded.popleft()
        assert isinstance(command, kind), f"{command} in place of {kind.__name__}, then {list(self._yielded)}"
        return command

    def next_is(self, kind: type[commands.Command]) -> bool:
        return bool(self._yielded) and isinstance(self._yielded[0], kind)

    def sent(self, connection: Connection) -> bytes:
        """Take the bytes that are sent to this peer next, empty if the next command is another."""
        data = bytearray()
        while self._yielded:
            command = self._yielded[0]
            if not (isinstance(command, commands.SendData) and command.connection is connection):
                break
            data += command.data
            self._yielded.popleft()
        return bytes(data)

    def expect_close(self, connection: Connection) -> None:
        command = self.expect(commands.CloseConnection)
        assert command.connection is connection, f"closes {command.connection}"

    def expect_nothing(self) -> None:
        assert not self._yielded, f"unexpected: {list(self._yielded)}"

    def _give(self, event: events.Event) -> None:
        for command in self._layer.handle_event(event):
            if isinstance(command, commands.CloseConnection) and not is_half(command):
                command.connection.state = (
                    ConnectionState.CLOSED
                )  # before the layer goes on, as mitmproxy's server does
            if not isinstance(command, commands.Log):
                self._yielded.append(command)


def is_half(close: commands.CloseConnection) -> bool:
    return isinstance(close, commands.CloseTcpConnection) and close.half_close
