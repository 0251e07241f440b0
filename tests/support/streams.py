"""Answers that no provider has given yet: generated turns, as streams in every dialect, and as bodies.

A `Conversation` says what the model does in each turn; `tests.support.stream_forms` writes it down as a provider of
that dialect would, in one of many styles; `play` feeds the streams to a splice as the tap and the loop do.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from hypothesis import strategies as st

from aibridge_addon.config.schema import Limits
from aibridge_addon.dialects.base import Dialect
from aibridge_addon.dialects.turns import Result, Splice, Text, TurnEnd
from aibridge_addon.interception.tap import Tap

INJECTED = ("bmcp_a_x", "bmcp_a_xy", "bmcp_time_now")
CLIENTS = ("Read", "b", "bmcp", "exec_command")
"""Some are the beginning of an injected tool's name."""
ARGUMENTS = (
    "",
    "{}",
    '{"path": "a/b.txt"}',
    '{"big": 123456789012345678901234567890, "small": 1.5e-07, "text": "\\u00e9\\"\\n"}',
    '{"index": 9, "output_index": 3, "sequence_number": 1, "type": "content_block_stop"}',
)
LOOKALIKES = (
    "",
    " ",
    "\n\n",
    "Hello, world!",
    'data: {"type":"content_block_stop","index":7}\n\n',
    '"output_index":5,"sequence_number":9',
    '"tool_calls":[{"index":0}],"finish_reason":"stop"',
    "data: [DONE]\n\n",
    "\u2028\u0085\r\n\t\u0000",
    "🦊 日本語 é",
)


@dataclass(frozen=True)
class Block:
    kind: str
    """`text`, `thinking`, `redacted`, `server`, `unknown`, `custom`, `client` or `injected`."""
    text: str = ""
    """What it says; a call's arguments."""
    name: str = ""


@dataclass(frozen=True)
class Turn:
    blocks: tuple[Block, ...]
    input_tokens: int = 10
    cached_tokens: int = 0
    output_tokens: int = 5
    written_tokens: int = 3
    """Input tokens that went into a cache (Messages)."""
    reasoning_tokens: int = 2
    """Output tokens of thoughts (OpenAI's)."""

    def has(self, *kinds: str) -> bool:
        return any(block.kind in kinds for block in self.blocks)


@dataclass(frozen=True)
class Style:
    """How a provider writes its answers."""

    seed: int = 0
    newline: str = "\n"
    spaced: bool = False
    order: str = "as is"
    """Of an object's members: `as is`, `reversed` or `shuffled`."""
    lines: bool = False
    """Data over several lines."""
    noise: float = 0.0
    """How often a ping or a comment stands between two events."""
    usage: str = "plain"
    first_index: int = 0
    interleaved: bool = False
    named: bool = True
    """Whether events have an `event:` line (Responses)."""
    numbered: bool = True
    """Whether events have a sequence number (Responses)."""
    whole_output: bool = True
    """Whether the terminal event repeats the items (Responses)."""
    done: bool = True
    """Whether `[DONE]` ends the stream."""
    pieces: int = 3


@dataclass(frozen=True)
class Conversation:
    turns: tuple[Turn, ...]
    style: Style


@dataclass
class Written:
    """One turn as a provider gives it."""

    stream: bytes
    body: dict[str, Any]
    said: list[dict[str, Any]] = field(default_factory=list)
    """The blocks, message or items, as a history repeats them."""


class Writer:
    """Server-sent events in a style."""

    def __init__(self, style: Style, turn: int, pings: Sequence[bytes]) -> None:
        self.style = style
        self._random = random.Random(f"{style.seed}/{turn}")
        self._pings = pings
        self._out: list[bytes] = []

    def event(self, name: str, data: dict[str, Any] | str) -> None:
        self.maybe_noise()
        lines = [f"event: {name}"] if name else []
        text = data if isinstance(data, str) else self._json(data)
        self._put([*lines, *(f"data: {line}" for line in text.split("\n"))])

    def maybe_noise(self) -> None:
        if self._random.random() < self.style.noise:
            ping = self._random.choice(self._pings)
            self._put(ping.decode().split("\n"))

    def pieces(self, text: str) -> list[str]:
        """The text in a few pieces, some of them empty."""
        cuts = sorted(self._random.randrange(len(text) + 1) for _ in range(self._random.randrange(self.style.pieces)))
        return [text[a:b] for a, b in pairwise([0, *cuts, len(text)])]

    def shuffled[T](self, groups: Sequence[Sequence[T]]) -> list[T]:
        """The elements of several sequences, each in its order; they begin one after the other, but may overlap."""
        left = [list(group) for group in groups if group]
        begun = 0
        out: list[T] = []
        while any(left):
            open_ones = [group for group in left[: begun + 1] if group]
            group = self._random.choice(open_ones) if self.style.interleaved else open_ones[0]
            begun += group is left[begun] if begun < len(left) else 0
            out.append(group.pop(0))
        return out

    def written(self) -> bytes:
        self.maybe_noise()
        return b"".join(self._out)

    def _put(self, lines: Iterable[str]) -> None:
        self._out.append("".join(f"{line}{self.style.newline}" for line in (*lines, "")).encode())

    def _json(self, data: dict[str, Any]) -> str:
        separators = (", ", ": ") if self.style.spaced else (",", ":")
        ordered = self._ordered(data)
        if self.style.lines:
            return json.dumps(ordered, indent=1, ensure_ascii=True)
        return json.dumps(ordered, separators=separators, ensure_ascii=self.style.spaced)

    def _ordered(self, value: Any) -> Any:
        if isinstance(value, list):
            return [self._ordered(element) for element in value]
        if not isinstance(value, dict) or self.style.order == "as is":
            return value
        names = list(value)
        if self.style.order == "reversed":
            names.reverse()
        else:
            self._random.shuffle(names)
        return {name: self._ordered(value[name]) for name in names}


# --- what happens -----------------------------------------------------------------------------------------------


def conversations(
    visible: Sequence[str], usages: Sequence[str], *, custom: bool = False
) -> st.SearchStrategy[Conversation]:
    """Up to five turns. All but the last call injected tools only; the last one does whatever a turn can do."""
    words = st.one_of(st.sampled_from(LOOKALIKES), st.text(max_size=12)).filter(lambda text: "bmcp_" not in text)
    says = st.builds(Block, st.sampled_from(visible), words)
    calls = st.builds(Block, st.just("injected"), st.sampled_from(ARGUMENTS), st.sampled_from(INJECTED))
    own = st.builds(Block, st.just("client"), st.sampled_from(ARGUMENTS), st.sampled_from(CLIENTS))
    if custom:
        own = st.one_of(own, st.builds(Block, st.just("custom"), words))
    counts = st.integers(1, 5000)

    def turn(blocks: st.SearchStrategy[list[Block]]) -> st.SearchStrategy[Turn]:
        few = st.integers(0, 999)
        return st.builds(Turn, blocks.map(tuple), counts, few, counts, few, few)

    going_on = turn(st.lists(st.one_of(says, calls), max_size=5).filter(lambda bs: any(b.name for b in bs)))
    last = turn(st.lists(st.one_of(says, says, calls, own), max_size=6))
    turns = st.tuples(st.lists(going_on, max_size=4), last).map(lambda parts: (*parts[0], parts[1]))
    return st.builds(Conversation, turns, styles(usages))


def styles(usages: Sequence[str]) -> st.SearchStrategy[Style]:
    rarely = st.sampled_from((False, False, False, True))
    mostly = st.sampled_from((True, True, True, False))
    return st.builds(
        Style,
        seed=st.integers(0, 2**32),
        newline=st.sampled_from(("\n", "\n", "\r\n", "\r")),
        spaced=st.booleans(),
        order=st.sampled_from(("as is", "as is", "reversed", "shuffled")),
        lines=rarely,
        noise=st.sampled_from((0.0, 0.2, 0.6)),
        usage=st.sampled_from(usages),
        first_index=st.sampled_from((0, 0, 1)),
        interleaved=st.booleans(),
        named=mostly,
        numbered=mostly,
        whole_output=mostly,
        done=mostly,
        pieces=st.integers(1, 4),
    )


# --- how it is fed ----------------------------------------------------------------------------------------------


@dataclass
class Played:
    client: bytes
    ends: list[TurnEnd]


def chunks(data: bytes, seed: int, most: int = 12) -> list[bytes]:
    """The data, cut at random places; now and then everywhere."""
    generator = random.Random(seed)
    if generator.randrange(most) == 0:
        return [data[a : a + 1] for a in range(len(data))]
    cuts = sorted(generator.randrange(len(data) + 1) for _ in range(generator.randrange(most)))
    return [data[a:b] for a, b in pairwise([0, *cuts, len(data)])]


def play(dialect: Dialect, splice: Splice, streams: Iterable[Iterable[bytes]]) -> Played:
    """Feed the streams of the turns, each in chunks, through taps, as an exchange does; give what the client gets."""
    out: list[bytes] = []
    ends: list[TurnEnd] = []
    left = list(streams)
    while left:
        chunks = iter(left.pop(0))
        splice.begin_turn()
        tap = _tap(dialect, splice, out)
        _feed(tap, chunks)
        ends.append(splice.end_turn())
        going_on = bool(ends[-1].calls) and not ends[-1].client_calls
        if going_on and left:
            continue
        out.append(splice.finish())
        _feed(tap, chunks)
        break
    return Played(b"".join(out), ends)


def _tap(dialect: Dialect, splice: Splice, out: list[bytes]) -> Tap:
    return Tap(
        dialect.answer_reader(),
        status=200,
        content_type="",
        content_encoding="",
        limits=Limits(),
        streaming=True,
        on_event=lambda raw, name, event: out.append(splice.event(raw, name, event)),
    )


def _feed(tap: Tap, chunks: Iterator[bytes]) -> None:
    """Feed chunks up to the one with the turn's terminal event, or all that there are."""
    for chunk in chunks:
        if tap.feed(chunk) is not None:
            return
    tap.finish()


def results_for(end: TurnEnd) -> list[Result]:
    return [Result(call, (Text(f"result of {call.id}"),)) for call in end.calls]
