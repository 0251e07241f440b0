"""Requests of browsers at the metrics listener, and their answers. What answers them is not the listener's own."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class PageRequest:
    method: str
    """GET or HEAD."""
    path: str
    query: str
    cookie: str = ""
    """The header `Cookie`."""
    purpose: str = ""
    """The headers `Sec-Purpose` and `Purpose`, in lower case."""


@dataclass(frozen=True, slots=True)
class PageAnswer:
    status: int
    headers: Mapping[str, str]
    body: bytes


AnswerPage = Callable[[PageRequest], Awaitable[PageAnswer]]
