"""The cases that every client goes through, and what is said in them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from tests.support.streams import Block, Turn

CaseName = Literal["hello", "tool", "injected", "cancelled"]
CASES: tuple[CaseName, ...] = ("hello", "tool", "injected", "cancelled")
TITLES = {
    "hello": "Hello",
    "tool": "Client's tool",
    "injected": "Injected tool",
    "cancelled": "Cancelled",
}

Way = Literal["proxy", "gateway"]
WAYS: tuple[Way, ...] = ("proxy", "gateway")

PROMPT = "Please run the matrix case"
ANSWER = "Answer of the matrix."
TOOL_OUTPUT = "output-of-the-clients-tool"
"""What a client's tool returns; an agent's shell prints it."""
SERVER = "ours"
INJECTED_TOOL = "echo"
INJECTED_NAME = f"bmcp_{SERVER}_{INJECTED_TOOL}"
INJECTED_OUTPUT = "output-of-the-injected-tool"


@dataclass(frozen=True)
class Tokens:
    """Numbers of one turn, as a provider of Messages counts them: input without what is cached."""

    input: int
    output: int
    cache_read: int
    cache_write: int


ANSWERED = Tokens(input=211, output=17, cache_read=128, cache_write=5)
CALLED = Tokens(input=307, output=29, cache_read=64, cache_write=7)


def answer() -> Turn:
    return turn(Block("text", ANSWER), tokens=ANSWERED)


def call(name: str, arguments: str, kind: str = "client") -> Turn:
    return turn(Block(kind, arguments, name), tokens=CALLED)


def turn(block: Block, tokens: Tokens) -> Turn:
    return Turn((block,), tokens.input, tokens.cache_read, tokens.output, tokens.cache_write, reasoning_tokens=0)


def expected_tokens(tokens: Tokens, dialect: str) -> dict[str, int]:
    """Return the columns of a token row. OpenAI's input includes cached tokens, and it names none that are written."""
    ours = dialect in ("messages", "converse")
    return {
        "input_tokens": tokens.input if ours else tokens.input - tokens.cache_read,
        "output_tokens": tokens.output,
        "cache_read_input_tokens": tokens.cache_read,
        "cache_write_input_tokens": tokens.cache_write if ours else 0,
    }
