"""A tool server that storms, bombs, is silent or lies, beside another client that uses a good one.

The other client is served in lockstep: the provider sends each piece of its stream only after the client has the one
before. So it gets all of them, and its tool's result, while the odd server is still at it.
"""

from __future__ import annotations

import asyncio
import gzip
import json
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import repeat
from typing import Any

import pytest

from tests.conftest import MakeUpstream, StartProxy
from tests.integration.exchanges import ANTHROPIC, Client
from tests.integration.turns import CONNECTED, USAGE, Asked, Turns, call, configuration, results, text
from tests.support.mcp_servers import HttpMcp
from tests.support.odd_mcp import ADD, OddMcp, Reply, Request, Script, beside, event, result
from tests.support.running import RunningProxy
from tests.support.script import Answer, AnyAnswer, Gate, Pause
from tests.support.script import Request as Received
from tests.support.streams import Block, Style
from tests.support.upstream import HTTP1

PIECES = 20
DELTA = b'"text_delta"'
WORDS = " ".join(f"word{number}" for number in range(PIECES))
MiB = 1 << 20
MANY = 5_000
"""Messages that are made at once, to save the server's time."""


@dataclass(frozen=True)
class Case:
    scripts: Mapping[str, Script] = field(default_factory=dict)
    is_called: bool = True
    """The odd server has a tool, which is called."""
    ends: bool = True
    """The call ends by itself."""


# --- what odd servers do ---------------------------------------------------------------------------------------------


def notice(method: str, **params: Any) -> bytes:
    return event({"jsonrpc": "2.0", "method": method, "params": params})


def answer(request: Request, result: bytes) -> Reply:
    return Reply.json(b'{"jsonrpc": "2.0", "id": %d, "result": %s}' % (request["id"], result))


def without_end(data: bytes, kind: str = "text/event-stream") -> Callable[[Request], Reply]:
    return lambda request: Reply(repeat(data), kind=kind)


def never(request: Request) -> Reply:
    return Reply.silence()


def storm(data: bytes) -> Case:
    """On the stream of notifications, while a call runs."""
    return Case({"GET": without_end(data), "tools/call": never}, ends=False)


def storm_of_progress(request: Request) -> Reply:
    token = request["params"]["_meta"]["progressToken"]
    progress = notice("notifications/progress", progressToken=token, progress=1)
    return Reply.events(progress * MANY, event(message(request)))


LOG = notice("notifications/message", level="info", data="x")
STORMS = {
    "changes": storm(notice("notifications/tools/list_changed") * MANY),
    "log": storm(LOG * MANY),
    "pings": storm(event({"jsonrpc": "2.0", "id": 7, "method": "ping"}) * MANY),
    "requests": storm(
        b"".join(event({"jsonrpc": "2.0", "id": n, "method": "sampling/createMessage"}) for n in range(MANY))
    ),
    "comments": storm(b":\n\n" * MANY),
    "lines of nothing": storm(b"\n" * MANY),
    "log in the answer": Case({"tools/call": without_end(LOG * MANY)}),
    "progress": Case({"tools/call": storm_of_progress}),
}


def schema(properties: int) -> dict[str, Any]:
    return {"type": "object", "properties": {f"p{n}": {"type": "string"} for n in range(properties)}}


def gzipped(size: int) -> Script:
    body = gzip.compress(bytes(size), 1)
    return lambda request: Reply((body,), headers={"content-encoding": "gzip"})


def listed(request: Request, *tools: dict[str, Any]) -> Reply:
    return result(request, {"tools": [ADD, *tools]})


DEEP = b'{"content": [], "x": ' + b"[" * (4 * MiB) + b"]" * (4 * MiB) + b"}"
BOMBS = {
    "gzip": Case({"tools/call": gzipped(100 * MiB)}),
    "gzip of the list": Case({"tools/list": gzipped(100 * MiB)}, is_called=False),
    "gzip of the handshake": Case({"initialize": gzipped(100 * MiB)}, is_called=False),
    "gzip of an error": Case(
        {
            "tools/call": lambda r: Reply(
                (gzip.compress(bytes(100 * MiB), 1),), 500, headers={"content-encoding": "gzip"}
            )
        }
    ),
    "depth": Case({"tools/call": lambda r: answer(r, DEEP)}),
    "a line without an end": Case({"tools/call": without_end(bytes(MiB), "application/json")}),
    "an event without an end": Case({"tools/call": without_end(b"data: " + b"x" * MiB)}),
    "many objects": Case({"tools/call": lambda r: answer(r, b'{"content": [' + b"{}," * (4 * MiB) + b"1]}")}),
    "many numbers": Case(
        {"tools/call": lambda r: answer(r, b'{"structuredContent": [' + b"1," * (7 * MiB) + b'1], "content": []}')}
    ),
    "many parts": Case({"tools/call": lambda r: result(r, {"content": [{"type": "text", "text": "x"}] * 100_000})}),
    "a huge text": Case({"tools/call": lambda r: result(r, {"content": ["x" * (15 * MiB)]})}),
    "a huge image": Case(
        {"tools/call": lambda r: result(r, {"content": [{"type": "image", "data": "iVBORw0KGgoA" * MiB}]})}
    ),
    "a huge error": Case(
        {"tools/call": lambda r: answer(r, b'{}, "error": {"message": "' + b"x" * (15 * MiB) + b'"}')}
    ),
    "many tools": Case({"tools/list": lambda r: listed(r, *({"name": f"t{n}"} for n in range(100_000)))}),
    "a giant schema": Case({"tools/list": lambda r: listed(r, {"name": "giant", "inputSchema": schema(200_000)})}),
    "large schemas": Case(
        {"tools/list": lambda r: listed(r, *({"name": f"t{n}", "inputSchema": schema(5_000)} for n in range(20)))}
    ),
    "a huge name": Case({"tools/list": lambda r: listed(r, {"name": "x" * (8 * MiB)})}),
    "pages without end": Case(
        {"tools/list": lambda r: result(r, {"tools": [ADD, 7] * 500, "nextCursor": f"c{r['id']}"})}
    ),
}


SILENCES = {
    "connect": Case(dict.fromkeys(("initialize", "server/discover"), never), is_called=False),
    "list": Case({"tools/list": never}, is_called=False),
    "call": Case({"tools/call": never}, ends=False),
    "call, after its head": Case({"tools/call": lambda r: Reply((asyncio.Event(),))}, ends=False),
    "call, in its body": Case({"tools/call": lambda r: Reply((b'{"jsonrpc"', asyncio.Event()))}, ends=False),
    "call, in an event": Case({"tools/call": lambda r: Reply.events(b"data: {", asyncio.Event())}, ends=False),
    "notifications": Case({"notifications/initialized": never}, is_called=False),
    "answers to its pings": Case(
        {
            "GET": lambda r: Reply.events(event({"jsonrpc": "2.0", "id": 1, "method": "ping"}), asyncio.Event()),
            "": never,
        }
    ),
    "end of the session": Case({"DELETE": never}),
}


def message(request: Request, id: Any = None, words: str = "a lie") -> dict[str, Any]:
    id = request["id"] if id is None else id
    return {"jsonrpc": "2.0", "id": id, "result": {"content": [{"type": "text", "text": words}]}}


def sized(size: int) -> Script:
    """An answer that claims another size."""

    def script(request: Request) -> Reply:
        head = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
        return Reply((head % size, json.dumps(message(request)).encode()), raw=True)

    return script


def changing(request: Request) -> Reply:
    return listed(request, *({"name": f"t{request['id']}-{n}"} for n in range(200)))


def contrary(request: Request) -> Reply:
    return Reply.events(event(message(request, words="yes")), event(message(request, words="no")))


LIES = {
    "an id that is not asked for": Case({"tools/call": lambda r: Reply.json(json.dumps(message(r, 99)).encode())}),
    "results of calls that were never made": Case(
        {"tools/call": lambda r: Reply.events(*(event(message(r, n)) for n in range(1000, 9000)))}
    ),
    "results on the stream of notifications": Case(
        {"GET": lambda r: Reply.events(*(event(message(r, n)) for n in range(3000)))}
    ),
    "an answer and the contrary": Case({"tools/call": contrary}),
    "tools that change each time": Case(
        {"tools/list": changing, "GET": without_end(notice("notifications/tools/list_changed"))}
    ),
    "a body that is shorter": Case({"tools/call": sized(1 << 40)}),
    "a body that is longer": Case({"tools/call": sized(3)}),
    "a negative length": Case({"tools/call": sized(-1)}),
    "HTML": Case({"tools/call": lambda r: Reply((b"<html>",), kind="text/html")}),
    "JSON called events": Case(
        {"tools/call": lambda r: Reply((json.dumps(message(r)).encode(),), kind="text/event-stream")}
    ),
    "events called JSON": Case({"tools/call": lambda r: Reply((event(message(r)),))}),
    "compressed, but it is not": Case(
        {"tools/call": lambda r: Reply((json.dumps(message(r)).encode(),), headers={"content-encoding": "gzip"})}
    ),
    "tools that it lacks": Case({"tools/list": lambda r: Reply(status=404)}, is_called=False),
    "no HTTP": Case({"tools/call": lambda r: Reply((b"SSH-2.0-x\r\n",), raw=True)}),
    "a task": Case({"tools/call": lambda r: result(r, {"resultType": "input_required", "inputRequests": {"x": 7}})}),
}
CASES = {
    f"{kind}: {name}": case
    for kind, cases in (("storm", STORMS), ("bomb", BOMBS), ("silence", SILENCES), ("lie", LIES))
    for name, case in cases.items()
}


class Odd(OddMcp):
    """What is named by neither a method nor a verb is an answer of ours."""

    def well_behaved(self, request: Request) -> Reply:
        if request["verb"] == "POST" and "method" not in request and "" in self.scripts:
            return self.scripts[""](request)
        return super().well_behaved(request)


# --- the two clients -------------------------------------------------------------------------------------------------

GOOD = Turns(
    "messages",
    [text(WORDS), call("echo", text="hi")],
    [text("Done.")],
    style=Style(usage=USAGE["messages"], pieces=PIECES),
)
BAD = Turns("messages", [Block("injected", "{}", "bmcp_odd_add")], [text("Done.")])


class Provider:
    """Answers both clients, the good one's first turn in lockstep."""

    def __init__(self) -> None:
        self.gates = [Gate() for _ in range(PIECES)]
        self.results: dict[str, list[str]] = {}

    def answer(self, request: Received) -> AnyAnswer:
        client = request.json()["model"]
        turns = GOOD if client == "good" else BAD
        found = results(request)
        if found:
            self.results[client] = found
            return turns.answers(streaming=True)[1]
        return Answer.event_stream(*self._steps()) if client == "good" else turns.answers(streaming=True)[0]

    def _steps(self) -> Iterator[bytes | Pause]:
        gates = iter(self.gates)
        for each in GOOD.events(0):
            if DELTA in each and (gate := next(gates, None)) is not None:
                yield Pause(gate)
            yield each


def serve_other_client(proxy: RunningProxy, provider: Provider) -> None:
    """Serve the other client, and check its answer."""
    with Client(proxy, ANTHROPIC) as client:
        asked = Asked(client, GOOD.path, GOOD.request(streaming=True, model="good"))
        assert asked.status() == 200
        body, pieces = b"", asked.pieces()
        for number, gate in enumerate(provider.gates, start=1):
            gate.open()
            while body.count(DELTA) < number:
                body += next(pieces)
        GOOD.check(body + b"".join(pieces), streaming=True)
    assert provider.results["good"] == ["hi"]


def check_served(proxy: RunningProxy, provider: Provider, case: Case) -> None:
    with Client(proxy, ANTHROPIC) as client:
        if not case.is_called:
            serve_other_client(proxy, provider)
            return
        asked = Asked(client, BAD.path, BAD.request(streaming=True, model="bad"))
        assert asked.status() == 200
        serve_other_client(proxy, provider)
        if case.ends:
            BAD.check(asked.rest(), streaming=True)
            assert provider.results["bad"]
        else:
            assert "bad" not in provider.results
            asked.leave()


def connected(proxy: RunningProxy, case: Case) -> None:
    proxy.wait_for_log(CONNECTED, 60)
    if case.is_called:
        proxy.wait_for_log(r"MCP server odd: connected, [1-9]", 60)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_an_odd_server_delays_no_other_client(
    start_proxy: StartProxy, make_upstream: MakeUpstream, ours: HttpMcp, case: Case
) -> None:
    provider = Provider()
    upstream = make_upstream(handler=provider.answer, alpn=[HTTP1])
    with beside(Odd(case.scripts)) as odd:
        servers = f"servers: {{ours: {{type: http, url: '{ours.url}'}}, odd: {{type: http, url: '{odd.url}'}}}}"
        proxy = start_proxy(config=configuration(upstream.url, f"startup_wait: 0.1\ntool_timeout: 30\n{servers}"))
        connected(proxy, case)
        check_served(proxy, provider, case)
        proxy.close()


PROGRAM = """
import json, sys, threading
def storm(write, data):
    while True:
        write(data)
for stream, data in json.loads(sys.argv[1]).items():
    out = getattr(sys, stream).buffer.raw
    threading.Thread(target=storm, args=(out.write, data.encode() * 1000), daemon=True).start()
out = sys.stdout.buffer.raw
for line in sys.stdin:
    request = json.loads(line)
    results = {
        "initialize": {"protocolVersion": "2025-06-18", "capabilities": {"tools": {}}},
        "tools/list": {"tools": [{"name": "add"}]},
    }
    if request.get("method") in results:
        answer = {"jsonrpc": "2.0", "id": request["id"], "result": results[request["method"]]}
        out.write(b"\\n" + json.dumps(answer).encode() + b"\\n")
    elif "id" in request and request.get("method", "tools/call") != "tools/call":
        answer = {"jsonrpc": "2.0", "id": request["id"], "error": {"code": -32601, "message": "no"}}
        out.write(b"\\n" + json.dumps(answer).encode() + b"\\n")
"""


@pytest.mark.parametrize(
    "storms",
    [
        {"stderr": "oh\n"},
        {"stderr": "no line end"},
        {"stdout": "no message\n"},
        {"stdout": "\n"},
        {"stdout": '{"jsonrpc": "2.0", "method": "notifications/message", "params": {}}\n', "stderr": "oh\n"},
        {"stdout": '{"jsonrpc": "2.0", "id": "x", "method": "ping"}\n'},
    ],
    ids=str,
)
def test_a_program_that_writes_without_end_delays_no_other_client(
    start_proxy: StartProxy, make_upstream: MakeUpstream, ours: HttpMcp, storms: dict[str, str]
) -> None:
    provider = Provider()
    upstream = make_upstream(handler=provider.answer, alpn=[HTTP1])
    entry = json.dumps({"command": sys.executable, "args": ["-c", PROGRAM, json.dumps(storms)]})
    servers = f"servers: {{ours: {{type: http, url: '{ours.url}'}}, odd: {entry}}}"
    proxy = start_proxy(config=configuration(upstream.url, f"startup_wait: 0.1\n{servers}"))
    case = Case(ends=False)
    connected(proxy, case)
    check_served(proxy, provider, case)
