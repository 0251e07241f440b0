"""What passes through mitmdump is the same on both sides, byte for byte, and is recorded all the same."""

from __future__ import annotations

import hashlib
import itertools
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.integration.stage import (
    CASE,
    ROUTES,
    Route,
    Seen,
    Stage,
    end_to_end,
    interceptions,
    open_stage,
)
from tests.support import fixtures
from tests.support.authority import Authority
from tests.support.codings import CODINGS, Coding, encode, split
from tests.support.fixtures import Case
from tests.support.mitmdump import Mitmdump
from tests.support.script import Answer, Framing, Header, Request

SEED = 20260102
TARGETS = {
    "messages": "/v1/messages?beta=true",
    "chat_completions": "/v1/chat/completions",
    "responses": "/v1/responses",
    "invoke": f"/model/{fixtures.BEDROCK_MODEL}/invoke",
    "invoke stream": f"/model/{fixtures.BEDROCK_MODEL.replace(':', '%3A')}/invoke-with-response-stream",
    "converse": f"/model/{fixtures.BEDROCK_MODEL.replace(':', '%3A')}/converse",
    "converse stream": f"/model/{fixtures.BEDROCK_MODEL}/converse-stream",
}
TYPES = {"messages": "anthropic", "invoke": "bedrock", "converse": "bedrock"}
"""Of providers; `openai` for all other dialects."""
INVOKED = ("simple", "thinking", "parallel_tools", "cut_in_event", "error_before_500")
FRAMINGS: tuple[Framing, ...] = ("chunked", "length")


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory, ca: Authority, mitmproxy_ca: Path) -> Iterator[Stage]:
    with open_stage(tmp_path_factory.mktemp("stage"), ca, mitmproxy_ca, Mitmdump) as opened:
        yield opened


@dataclass(frozen=True)
class Exchange:
    """A fixture in one content coding, cut up at random."""

    number: int
    case: Case
    coding: Coding
    route: Route
    framing: Framing
    most: int  # bytes of a piece

    @property
    def key(self) -> str:
        return f"{self.case}/{self.coding}"

    @property
    def type(self) -> str:
        return TYPES.get(self.case.dialect, "openai")

    @property
    def target(self) -> str:
        by_path = self.case.streaming and self.type == "bedrock"
        return TARGETS[f"{self.case.dialect} stream" if by_path else self.case.dialect]

    @property
    def hint(self) -> str:
        return f"{self.number:04}...{self.number:04}"

    @property
    def request_headers(self) -> list[Header]:
        credential = b"%04d-not-a-credential-%04d" % (self.number, self.number)
        return [
            *self.case.request_headers,
            (b"X-API-Key", credential) if self.type == "anthropic" else (b"Authorization", b"Bearer " + credential),
            (CASE, self.key.encode()),
            (b"Content-Type", b"application/json"),
            (b"Accept-Encoding", b"gzip, deflate, br, zstd"),
            (b"X-MiXeD-CaSe", b"Value"),
            (b"x-twice", b"1"),
            (b"x-between", b""),
            (b"x-twice", b"2, 3"),
            (b"Content-Length", b"%d" % len(self.case.request)),
        ]

    def answer(self) -> Answer:
        coded = [] if self.coding == "identity" else [("Content-Encoding", self.coding)]
        return Answer(
            self.case.status,
            [
                ("Content-Type", self.case.content_type),
                *coded,
                *((name, value) for name, value in self.case.answer_headers.items() if name.startswith("x-amzn-")),
                ("request-id", f"req_{self.number}"),
                ("Set-Cookie", "a=1; Path=/"),
                ("X-RateLimit-Remaining", "7"),
                ("Set-Cookie", "b=2"),
            ],
            split(self.body, seed=self.number, most=self.most),
            self.framing,
        )

    @property
    def body(self) -> bytes:
        return encode(self.case.body, self.coding)


def exchanges() -> list[Exchange]:
    """Each fixture in each coding once, over routes and in pieces that are drawn, always the same."""
    dice = random.Random(SEED)
    invoked = [case for case in fixtures.invoke_cases() if case.name in INVOKED]
    return [
        Exchange(number, case, coding, dice.choice(ROUTES), dice.choice(FRAMINGS), dice.choice((40, 300, 2000)))
        for number, (case, coding) in enumerate(itertools.product([*fixtures.cases(), *invoked], CODINGS))
    ]


EXCHANGES = exchanges()


@pytest.mark.parametrize("type_", ["anthropic", "openai", "bedrock"])
@pytest.mark.parametrize("route", ROUTES, ids=str)
def test_every_fixture_in_every_coding_is_the_same_on_both_sides(stage: Stage, route: Route, type_: str) -> None:
    chosen = [exchange for exchange in EXCHANGES if exchange.route == route and exchange.type == type_]
    differences: dict[str, object] = {}
    with route.connect(stage, type_) as client:
        for exchange in chosen:
            stage.answer(exchange.key, exchange.answer())
            request = exchange.case.request
            pieces = split(request, seed=exchange.number, most=400)
            seen = client.exchange("POST", exchange.target, exchange.request_headers, request, pieces)
            difference = _difference(exchange, stage.received[exchange.key], seen)
            if difference:
                differences[exchange.key] = difference
    assert not differences
    # The end of each answer was held until its rows were committed, so they are there by now.
    recorded = {row["credential_hint"]: row for row in interceptions(stage.proxy)}
    assert not {e.key: wrong for e in chosen if (wrong := _wrongly_recorded(e, recorded[e.hint]))}


def _difference(exchange: Exchange, received: Request, seen: Seen) -> dict[str, Any]:
    keep_case = exchange.route.keeps_case
    answer = exchange.answer()
    pairs: dict[str, tuple[object, object]] = {
        "version": (exchange.route.version, received.http_version),
        "target": (exchange.target, received.target),
        "request headers": (
            end_to_end(exchange.request_headers, keep_case=keep_case),
            end_to_end(received.headers, keep_case=keep_case),
        ),
        "request": (sha256(exchange.case.request), sha256(received.body)),
        "status": (answer.status, seen.status),
        "headers": (
            end_to_end(answer.raw_headers, keep_case=keep_case),
            end_to_end(seen.headers, keep_case=keep_case),
        ),
        "answer": (sha256(exchange.body), sha256(seen.body)),
    }
    return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}


def _wrongly_recorded(exchange: Exchange, recorded: dict[str, Any]) -> dict[str, Any]:
    expected = {"prompt": None, "tokens": [], "tools": [], "thoughts": [], **exchange.case.expected}
    response_id = expected.pop("response_id", None)
    wrong = {name: (value, recorded[name]) for name, value in expected.items() if recorded[name] != value}
    if exchange.case.cost and recorded["cost_usd"] != fixtures.cost_usd(exchange.case):
        wrong["cost_usd"] = (exchange.case.cost, recorded["cost_usd"])
    if response_id is not None and recorded["response_ids"] - {response_id}:
        wrong["response_id"] = (response_id, recorded["response_ids"])
    if bool(recorded["streaming"]) != exchange.case.streaming:
        wrong["streaming"] = recorded["streaming"]
    return wrong


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
