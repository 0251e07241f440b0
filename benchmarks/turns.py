"""An answer of two turns: the model calls a tool of a real MCP server, and then says what came of it."""

from __future__ import annotations

import json
from dataclasses import dataclass, field

from benchmarks.traffic import ANTHROPIC_HEADERS, OPENAI_HEADERS, Answer, Scenario
from tests.integration.turns import Turns, call, text

TOOL = "echo"
ARGUMENTS = {"text": "hi"}
_CALLING = [text("Let me see. "), call(TOOL, **ARGUMENTS)]
_ANSWERING = [text("Done. " * 20)]


@dataclass(frozen=True)
class TurnsScenario(Scenario):
    """The upstream answers each request at once, its events all in one packet."""

    turns: Turns = field(kw_only=True)

    def answer_to(self, body: bytes) -> Answer:
        """The next turn's answer: a call's result is in the request once the call has been answered."""
        calls = self.turns.call_ids(0)
        said = len(self.turns) > 1 and calls[0].encode() in body
        return _answer(self.turns, int(said), streaming=self.answer.streaming)

    def is_right(self, body: bytes) -> bool:
        """Whether the client got what it is to get: one answer with all that is visible of the turns, and no call."""
        try:
            self.turns.check_usage(self.turns.check(body, streaming=self.answer.streaming))
        except (AssertionError, LookupError, TypeError, ValueError):
            return False
        return True


def two_turns(dialect: str, *, streaming: bool) -> TurnsScenario:
    """A call of the tool, and what follows it."""
    return _scenario(Turns(dialect, _CALLING, _ANSWERING), "two turns", streaming=streaming)


def one_turn(dialect: str, *, streaming: bool) -> TurnsScenario:
    """The same request, answered without a call: what two turns are compared with."""
    return _scenario(Turns(dialect, _ANSWERING), "one turn", streaming=streaming)


def _scenario(turns: Turns, name: str, *, streaming: bool) -> TurnsScenario:
    anthropic = turns.dialect == "messages"
    return TurnsScenario(
        f"{turns.dialect}, {name}",
        f"/{'anthropic' if anthropic else 'openai'}{turns.path}",
        json.loads(turns.request(streaming=streaming)),
        _answer(turns, 0, streaming=streaming),
        headers=ANTHROPIC_HEADERS if anthropic else OPENAI_HEADERS,
        turns=turns,
    )


def _answer(turns: Turns, number: int, *, streaming: bool) -> Answer:
    written = turns.written[number]
    if streaming:
        return Answer("text/event-stream", (written.stream,))
    return Answer("application/json", (json.dumps(written.body).encode(),))
