"""Messages of MCP servers, mended so that the library can read them. Pure.

The library judges every message with strict models: one odd member of one tool costs the whole list, and an odd
envelope costs the answer, so that the caller waits until its time is over. Here each message is read once, before the
library gets it:

    bytes ─▶ decode ─▶ messages ─ mend ─▶ bytes that the library's models take
                                   │
             tools/list, tools/call ─▶ the whole result in `_meta` ─▶ `result_of`
                                        as an opaque text; if it is large, as a key (see `HeldResults`)

- **Envelopes** are mended where the meaning is plain: no `jsonrpc`, an id `3.0` or `"3"`, a list of messages, a byte
  order mark, a number that is out of range, a result beside `error: null`, an error that is a text or has no code.
- **Handshakes** keep what is read: the protocol version, and whether there are tools.
- **Lists of tools and results of calls** pass the library unread. `listing` and `results` read them.
- **Large messages** have their values counted before anything is built of them. Lists of tools and results of calls
  with too many are read in parts.
- **Codes of errors are the peer's.** The library has codes of its own for what it has seen itself (the connection has
  ended, the time is over), and we have ours. An error of a server with such a code gets another one, so that these
  codes always say what was seen here, and never what a server claims.

An answer whose id is missing or is no number belongs to the only request under way, unless an earlier request was
given up without an answer: the late answer could be its own.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from types import MappingProxyType
from typing import Any, NamedTuple

import mcp_types as types
from mcp import MCPError
from mcp_types.version import HANDSHAKE_PROTOCOL_VERSIONS, LATEST_HANDSHAKE_VERSION

from aibridge_addon.tools.fair_share import LARGE
from aibridge_addon.tools.held import HeldResults, Id, ServerRequests
from aibridge_addon.tools.message_json import MAX_LISTED, MORE, decoded, tolerant
from aibridge_addon.wire.json_object import NotJSON, Unreadable

RESULT = "aibridge/result"
"""Member of `_meta` with a whole result: its JSON text, or a key of `HeldResults`."""

UNREACHABLE = -99_001
"""The server could not be reached, or the connection broke before the answer."""
SESSION_EXPIRED = -99_002
"""HTTP 404 to a request with a session's id: the server has dropped the session, and has not run the request."""
SESSION_DOUBTFUL = -99_003
"""HTTP 400 to a request with a session's id. Many servers say so that they do not know the session any more."""
REFUSED = -99_004
"""Another HTTP error."""
UNREADABLE = -99_005
"""The server has answered, but its answer cannot be read."""

OWN_CODES = frozenset(
    (
        UNREACHABLE,
        SESSION_EXPIRED,
        SESSION_DOUBTFUL,
        REFUSED,
        UNREADABLE,
        types.CONNECTION_CLOSED,
        types.REQUEST_TIMEOUT,
    )
)
"""Codes of what was seen here."""
NOTICES = frozenset(
    (
        "notifications/cancelled",
        "notifications/progress",
        "notifications/subscriptions/acknowledged",
        "notifications/tools/list_changed",
    )
)
"""Notifications that are used."""
MAX_ERROR_TEXT = 64 << 10
"""Characters of an error's text."""
MAX_REFUSAL = 250
"""Characters of an HTTP error's text."""
OLDEST_VERSION = HANDSHAKE_PROTOCOL_VERSIONS[0]

Keep = Callable[[Any], Any]
"""Returns what stands for a result in a message that passes the library."""


class Asked(NamedTuple):
    """A request under way."""

    id: Id
    method: str


class Requests:
    """The requests under way on one connection whose answers come in any order."""

    def __init__(self, held: HeldResults | None = None) -> None:
        """`held`: takes large results. None: they pass the library."""
        self._methods: dict[Id, str] = {}
        self._given_up = False
        self._held = held
        self.of_server = ServerRequests()

    def sent(self, message: Any) -> None:
        """Note a message of ours: a request, that one is given up, or an answer to the server."""
        if isinstance(message, types.JSONRPCRequest):
            self._methods[message.id] = message.method
        elif isinstance(message, types.JSONRPCNotification) and message.method == "notifications/cancelled":
            given_up = (message.params or {}).get("requestId")
            if isinstance(given_up, int | str) and self._methods.pop(given_up, None) is not None:
                self._given_up = True
        elif isinstance(message, types.JSONRPCResponse | types.JSONRPCError):
            self.of_server.ended(message.id)

    def note(self, data: bytes) -> None:
        """Note a message of ours, as it is sent."""
        self.sent(types.jsonrpc_message_adapter.validate_json(data, by_name=False))

    def read(self, data: bytes, waiting: Sequence[Asked] | None = None) -> list[bytes]:
        """Return the messages in what the server has sent, mended. Raises as `mend` does. May run in a thread.

        `waiting`: the requests that it may answer. None: all under way.
        """
        waiting = self.under_way_now() if waiting is None else waiting
        mended = mend(data, waiting, guess=not self._given_up, held=self._held, of_server=self.of_server)
        for _, answered in mended:
            if answered is not None:
                self._methods.pop(answered, None)
        return [message for message, _ in mended]

    def under_way_now(self) -> list[Asked]:
        """Return all requests under way."""
        return [Asked(id, method) for id, method in list(self._methods.items())]

    def under_way(self, id: Id | None) -> Asked | None:
        """Return the request under way with this id; with None the only one, if no other can be meant."""
        if id is None and len(self._methods) == 1 and not self._given_up:
            id = next(iter(self._methods))
        method = self._methods.get(id) if id is not None else None
        return Asked(id, method) if id is not None and method is not None else None

    def answered(self, asked: Asked) -> None:
        """Note that an answer was made here."""
        self._methods.pop(asked.id, None)


def mend(
    data: bytes,
    waiting: Sequence[Asked],
    *,
    guess: bool = True,
    whole: bool = False,
    held: HeldResults | None = None,
    of_server: ServerRequests | None = None,
) -> list[tuple[bytes, Id | None]]:
    """Return the messages in `data`, each with the id of the request that it answers.

    Args:
        guess: an answer with an unusable id belongs to the only request that waits.
        whole: `data` is the whole answer to that request. So it may be a result without an envelope.
        held: takes the result of a large message. None: it passes the library.
        of_server: decides which requests of the server pass. None: all.

    Raises:
        NotJSON, Unreadable: there is no message in the data.
    """
    messages, large = decoded(data), len(data) > LARGE
    keep: Keep = json.dumps if held is None or not large else partial(held.hold, size=len(data))
    only = waiting[0] if guess and len(waiting) == 1 else None
    mended: list[tuple[bytes, Id | None]] = []
    for message in messages:
        if not isinstance(message, dict):
            continue
        if isinstance(message.get("method"), str) and "result" not in message and "error" not in message:
            notice = _notice(message, large=large)
            if notice is not None and _passes(notice, of_server):
                mended.append((_encoded(notice), None))
        elif (asked := _asked(message, waiting, only, whole)) is not None:
            mended.append((_encoded(_answer(message, asked, keep, large=large)), asked.id))
    if not mended and not any(isinstance(message, dict) for message in messages):
        raise Unreadable("no message")
    return mended


def error(id: Id, code: int, text: str) -> bytes:
    """Return an error answer to a request, for something that was seen here."""
    return _encoded({"jsonrpc": "2.0", "id": id, "error": {"code": code, "message": text}})


def unreadable(asked: Asked, why: str) -> bytes:
    """Return the answer in place of one that cannot be read. A call has run, so this is a result and no error."""
    if asked.method != "tools/call":
        return error(asked.id, UNREADABLE, f"its answer cannot be read: {why}")
    text = f"[The tool has run, but its answer cannot be read: {why}]"
    result = _carried({"content": [{"type": "text", "text": text}]}, {"content": []}, json.dumps)
    return _encoded({"jsonrpc": "2.0", "id": asked.id, "result": result})


def refusal(asked: Asked, body: bytes, status: int, code: int | None) -> bytes:
    """Return the answer in place of an HTTP error.

    `code` is what its status says. None: it says nothing, and the code of an error in the body counts.
    """
    found: dict[str, Any] = next(_errors(body), {"code": REFUSED, "message": "it refuses the request"})
    if code is not None:
        found["code"] = code
    found["message"] = f"{str(found['message'])[:MAX_REFUSAL]} (HTTP {status})"
    return _encoded({"jsonrpc": "2.0", "id": asked.id, "error": found})


def _errors(body: bytes) -> Iterator[dict[str, Any]]:
    try:
        messages = decoded(body)
    except (NotJSON, Unreadable):
        return
    for message in messages:
        if isinstance(message, dict) and isinstance(message.get("error"), dict):
            yield _error(message["error"])


def result_of(result: types.Result, held: HeldResults | None = None) -> Any:
    """Return a result as the server has sent it.

    Raises:
        MCPError: it was dropped from `held`.
    """
    text = (result.meta or {}).get(RESULT)
    if isinstance(text, int) and held is not None:
        try:
            return held.take(text)
        except KeyError:
            raise MCPError(UNREADABLE, "its answer was dropped, because many others came at once") from None
    if not isinstance(text, str):
        return result.model_dump(by_alias=True, mode="json", exclude_none=True)
    return tolerant(text.encode())


# --- envelopes -----------------------------------------------------------------------------------------------------


def _encoded(message: Mapping[str, Any]) -> bytes:
    return json.dumps(message, ensure_ascii=False).encode("utf-8", "replace")


def _passes(notice: Mapping[str, Any], of_server: ServerRequests | None) -> bool:
    """Return whether a request or a notification of the server is to be read by the library."""
    if of_server is None:
        return True
    if notice["method"] == "notifications/cancelled":
        of_server.ended(notice.get("params", {}).get("requestId"))
    return "id" not in notice or of_server.admits(notice["id"])


def _notice(message: Mapping[str, Any], *, large: bool) -> dict[str, Any] | None:
    """Mend a request or a notification of the server.

    None: it is a notification that is not used, or a request whose id cannot be repeated. A large one is ignored, too.
    """
    if large:
        return None
    if message.get("id") is None and message["method"] not in NOTICES:
        return None
    kept: dict[str, Any] = {"jsonrpc": "2.0", "method": message["method"]}
    if message.get("id") is not None:
        id = _id(message["id"])
        if id is None:
            return None
        kept["id"] = id if not isinstance(message["id"], str) else message["id"]
    if isinstance(message.get("params"), dict):
        kept["params"] = message["params"]
    return kept


def _asked(message: Mapping[str, Any], waiting: Sequence[Asked], only: Asked | None, whole: bool) -> Asked | None:
    """Return the request that a message answers. What servers write into their output for people answers none."""
    id = message.get("id")
    known = _id(id)
    has_envelope = "jsonrpc" in message or ("id" in message and ("result" in message or "error" in message))
    if has_envelope or whole:
        for asked in waiting:
            if asked.id == known or asked.id == id:
                return asked
        # A number that does not wait is a late answer to a request that was given up.
        return only if known is None or isinstance(known, str) else None
    return None


def _id(id: Any) -> Id | None:
    """Return an id of ours, in whatever way it was written; None if it is no id."""
    if isinstance(id, bool):
        return None
    if isinstance(id, float):
        return int(id) if id.is_integer() else None
    if isinstance(id, str):
        digits = id.strip().removesuffix(".0")
        return int(digits) if digits.isascii() and digits.isdigit() and len(digits) < 18 else id
    return id if isinstance(id, int) else None


def _answer(message: Mapping[str, Any], asked: Asked, keep: Keep, *, large: bool) -> dict[str, Any]:
    answer: dict[str, Any] = {"jsonrpc": "2.0", "id": asked.id}
    failed = message.get("error") is not None and message.get("result") is None
    if failed:
        return answer | {"error": _error(message["error"], large=large)}
    if "result" in message or "error" in message:
        result = message.get("result")
    else:  # a result without an envelope
        result = {name: value for name, value in message.items() if name not in ("jsonrpc", "id")}
    if asked.method == "tools/list":
        return answer | {"result": _listed(result, keep)}
    if asked.method == "tools/call":
        return answer | {"result": _called(result, keep)}
    if large and asked.method not in _HANDSHAKES:
        result = {}
    return answer | {"result": _HANDSHAKES.get(asked.method, _plain)(result)}


def _error(value: Any, *, large: bool = False) -> dict[str, Any]:
    if not isinstance(value, dict):
        words = value if isinstance(value, str) else json.dumps(value)
        return {"code": types.INTERNAL_ERROR, "message": words[:MAX_ERROR_TEXT]}
    code, text, data = value.get("code"), value.get("message"), value.get("data")
    if isinstance(code, float) and code.is_integer():
        code = int(code)
    if not isinstance(code, int) or isinstance(code, bool) or code in OWN_CODES:
        code = types.INTERNAL_ERROR
    if not isinstance(text, str) or not text:
        text = data if isinstance(data, str) and data else f"an error without a message (code {code})"
    found: dict[str, Any] = {"code": code, "message": text[:MAX_ERROR_TEXT]}
    return found | {"data": data} if isinstance(data, dict) and not large else found


# --- results ---------------------------------------------------------------------------------------------------------


def _carried(result: Any, shown: Mapping[str, Any], keep: Keep) -> dict[str, Any]:
    """Return what the library is to read, with the whole result beside it."""
    hints = {"resultType": "complete", "ttlMs": 0, "cacheScope": "private"}
    return {**hints, **shown, "_meta": {RESULT: keep(result)}}


def _plain(result: Any) -> dict[str, Any]:
    return result if isinstance(result, dict) else {}


def _called(result: Any, keep: Keep) -> dict[str, Any]:
    if isinstance(result, dict) and result.get("resultType") == "input_required":
        return result  # the library asks in its own way, or says that it cannot
    return _carried(result, {"content": []}, keep)


def _listed(result: Any, keep: Keep) -> dict[str, Any]:
    """Show the library the names, and the schemas from which it makes headers (`x-mcp-header`)."""
    tools = result.get("tools") if isinstance(result, dict) else result
    tools = tools if isinstance(tools, list) else []
    more = result[MORE] if isinstance(result, dict) and isinstance(result.get(MORE), int) else 0
    more, tools = more + max(0, len(tools) - MAX_LISTED), tools[:MAX_LISTED]
    cursor = result.get("nextCursor") if isinstance(result, dict) else None
    shown: dict[str, Any] = {"tools": list(_shown_tools(tools))}
    if isinstance(cursor, str | int) and not isinstance(cursor, bool) and cursor != "":
        shown["nextCursor"] = str(cursor)
    return _carried({"tools": tools, MORE: more}, shown, keep)


def _shown_tools(tools: Iterable[Any]) -> Iterable[dict[str, Any]]:
    for tool in tools:
        if isinstance(tool, dict) and isinstance(tool.get("name"), str):
            schema = tool.get("inputSchema")
            shown: dict[str, Any] = {"type": "object"}
            if isinstance(schema, dict) and "x-mcp-header" in json.dumps(schema):
                # Whether its headers are valid is the library's to judge.
                shown |= {name: value for name, value in schema.items() if name not in ("type", "$schema", "required")}
                properties = schema.get("properties")
                valid = properties.items() if isinstance(properties, dict) else ()
                shown["properties"] = {name: value for name, value in valid if isinstance(value, dict | bool)}
            yield {"name": tool["name"], "inputSchema": shown}


def _capabilities(value: Any) -> dict[str, Any]:
    """Keep whether there are tools. A server whose capabilities are no object is asked for them."""
    if isinstance(value, dict):
        tools = value.get("tools")
        if tools is None or tools is False:
            return {}
        changes = tools.get("listChanged") if isinstance(tools, dict) else None
        return {"tools": {"listChanged": True} if changes is True else {}}
    return {"tools": {}}


def _initialized(result: Any) -> dict[str, Any]:
    result = result if isinstance(result, dict) else {}
    version = result.get("protocolVersion")
    if version is None:
        version = LATEST_HANDSHAKE_VERSION
    elif version not in HANDSHAKE_PROTOCOL_VERSIONS:
        version = OLDEST_VERSION  # what all of them have in common
    return {
        "protocolVersion": version,
        "capabilities": _capabilities(result.get("capabilities")),
        "serverInfo": {"name": "server", "version": "0"},
    }


def _discovered(result: Any) -> dict[str, Any]:
    versions = result.get("supportedVersions") if isinstance(result, dict) else None
    if not isinstance(versions, list):
        return {}  # no sign of the newer protocol: the library goes on with `initialize`
    return {
        "supportedVersions": [version for version in versions if isinstance(version, str)],
        "capabilities": _capabilities(result.get("capabilities")),
        "resultType": "complete",
        "ttlMs": 0,
        "cacheScope": "private",
    }


_HANDSHAKES: Mapping[str, Callable[[Any], dict[str, Any]]] = MappingProxyType(
    {"initialize": _initialized, "server/discover": _discovered}
)
