"""What the database, the provider and the client's output must say after a case."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from tests.clients import cases
from tests.clients.cases import CaseName, Tokens, expected_tokens
from tests.clients.entry import Client
from tests.clients.stage import Ran
from tests.support.database import Row
from tests.support.polling import poll_until
from tests.support.running import RunningProxy
from tests.support.upstream import ScriptedUpstream

ENDED_WITHIN = 15.0
DETAILS = ("aibridge_token_usages", "aibridge_user_prompts", "aibridge_tool_usages")


class Mismatch(Exception):
    """A client's case is not recorded, or not answered, as it should be; the message says what is wrong."""


@dataclass(frozen=True)
class Recorded:
    """The rows of one case."""

    main: list[Row]
    """Interceptions that are not a client's calls for itself, in their order."""
    details: Mapping[str, list[Row]]
    upstream: list[bytes] = field(default_factory=list)
    """The bodies that reached the provider."""

    @property
    def tokens(self) -> list[Row]:
        return self._of_main("aibridge_token_usages")

    @property
    def prompts(self) -> list[Row]:
        return self._of_main("aibridge_user_prompts")

    @property
    def tools(self) -> list[Row]:
        return self._of_main("aibridge_tool_usages")

    def _of_main(self, table: str) -> list[Row]:
        ids = [row["id"] for row in self.main]
        return [row for row in self.details[table] if row["interception_id"] in ids]


class Watch:
    """Sees what is recorded from now on."""

    def __init__(self, proxy: RunningProxy) -> None:
        self._proxy = proxy
        self._known = {row["id"] for row in proxy.rows("aibridge_interceptions")}

    def recorded(self, turns: int, upstream: list[bytes]) -> Recorded:
        """Return the new rows, once so many turns are recorded and every new interception has ended."""

        def rows() -> list[Row] | None:
            new = self._new()
            ended = all(row["ended_at"] is not None for row in new)
            return new if new and ended and sum(row["turns"] or 0 for row in new) >= turns else None

        try:
            new = poll_until(rows, ENDED_WITHIN, what="every turn's row")
        except TimeoutError as error:
            found = [(row["request_class"], row["status"], row["turns"]) for row in self._new()]
            raise Mismatch(f"of {turns} turns these were recorded: {found}" if turns else "no request came") from error
        main = [row for row in new if row["request_class"] != "auxiliary"]
        details = {table: self._proxy.rows(table) for table in DETAILS}  # type: ignore[arg-type]
        return Recorded(main, details, upstream)

    def _new(self) -> list[Row]:
        return [row for row in self._proxy.rows("aibridge_interceptions") if row["id"] not in self._known]


def equal(what: str, found: Any, wanted: Any) -> None:
    if found != wanted:
        raise Mismatch(f"{what}: {found!r} instead of {wanted!r}"[:300])


def check(client: Client, case: CaseName, ran: Ran, recorded: Recorded) -> None:
    """Raise `Mismatch` unless the case was recorded and answered as it should be."""
    for row in recorded.main:
        equal("client", row["client"], client.recorded_as)
    CHECKS[case](client, ran, recorded)


def _hello(client: Client, ran: Ran, recorded: Recorded) -> None:
    _completed(ran, recorded, interceptions=1)
    _prompted(recorded)
    _counted(client, recorded, [cases.ANSWERED])
    equal("tool uses", len(recorded.tools), 0)


def _tool(client: Client, ran: Ran, recorded: Recorded) -> None:
    assert client.tool is not None
    _completed(ran, recorded, interceptions=2)
    _prompted(recorded)
    _counted(client, recorded, [cases.CALLED, cases.ANSWERED])
    equal("tool uses", [(row["tool"], row["injected"]) for row in recorded.tools], [(client.tool.name, 0)])
    [use] = recorded.tools
    equal("the second request's call", recorded.main[1]["correlating_tool_call_id"], use["provider_tool_call_id"])
    if cases.TOOL_OUTPUT not in str(use["result"]):
        raise Mismatch(f"the tool's result: {use['result']!r}"[:300])


def _injected(client: Client, ran: Ran, recorded: Recorded) -> None:
    if client.signed:
        _hello(client, ran, recorded)
        if any(b"bmcp_" in body for body in recorded.upstream):
            raise Mismatch("a tool was injected into a signed request")
        return
    _completed(ran, recorded, interceptions=1)
    _prompted(recorded)
    _counted(client, recorded, [cases.CALLED, cases.ANSWERED])
    equal("turns", [row["turns"] for row in recorded.main], [2])
    used = [(row["tool"], row["server_name"], row["injected"], row["result"]) for row in recorded.tools]
    equal("tool uses", used, [(cases.INJECTED_TOOL, cases.SERVER, 1, cases.INJECTED_OUTPUT)])
    if "bmcp_" in ran.output:
        raise Mismatch("the client shows the injected call")


def _cancelled(client: Client, ran: Ran, recorded: Recorded) -> None:
    if not recorded.main:
        raise Mismatch("nothing but the client's calls for itself was recorded")
    ends = {(row["status"], row["error_type"]) for row in recorded.main}
    equal("ends", ends, {("failed", "client_disconnected")})
    equal("complete token rows", [row for row in recorded.tokens if row["completeness"] == "complete"], [])


def cut(upstream: ScriptedUpstream, left: int) -> None:
    """The provider, too, has lost its connection, after `left` others before this case."""
    try:
        upstream.wait_for_disconnects(left + 1)
    except TimeoutError as error:
        raise Mismatch("the provider's answer was not cut") from error


CHECKS: Mapping[CaseName, Callable[[Client, Ran, Recorded], None]] = {
    "hello": _hello,
    "tool": _tool,
    "injected": _injected,
    "cancelled": _cancelled,
}


def _completed(ran: Ran, recorded: Recorded, interceptions: int) -> None:
    if ran.exit_code is None:
        raise Mismatch("the client did not end within its time limit")
    if ran.exit_code:
        last = [line for line in (ran.errors + ran.output).splitlines() if line.strip()][-1:]
        raise Mismatch(f"the client ended with {ran.exit_code}: {''.join(last)[:200]}")
    if cases.ANSWER not in ran.output:
        raise Mismatch("the client does not show the answer")
    ends = [(row["status"], row["http_status"]) for row in recorded.main]
    equal("interceptions", ends, [("completed", 200)] * interceptions)


def _prompted(recorded: Recorded) -> None:
    if len(recorded.prompts) != 1 or cases.PROMPT not in recorded.prompts[0]["prompt"]:
        raise Mismatch(f"prompts: {[row['prompt'][:80] for row in recorded.prompts]}"[:300])


def _counted(client: Client, recorded: Recorded, tokens: list[Tokens]) -> None:
    wanted = [expected_tokens(each, client.dialect) for each in tokens]
    found = [{name: row[name] for name in wanted[0]} for row in recorded.tokens]
    equal("tokens", found, wanted)
    equal("completeness", {row["completeness"] for row in recorded.tokens}, {"complete"})
