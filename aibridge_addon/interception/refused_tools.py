"""Remember the tools that a provider has refused, and the models that accept no tools. Sans-io, bounded.

A tool is known by its definition: it is offered again as soon as its server describes it otherwise. Whether a model
accepts tools may depend on the request (streaming, reasoning, an output format, the client's choice of hosts). So that
is known for requests of the same form only, and for an hour.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence

from aibridge_addon.dialects.turns import InjectedTool, Injection
from aibridge_addon.wire.json_object import JSONObject

MODEL_FOR = 3600.0
"""Seconds for which it is remembered that a model accepts no tools."""
NOT_OF_THE_CLIENT = frozenset({"tools", "tool_choice", "toolConfig", "stream_options"})
"""Members that the bridge adds or changes."""
STREAM = "stream"


class RefusedTools:
    def __init__(self, clock: Callable[[], float], limit: int = 4096) -> None:
        """`clock` returns seconds.

        `limit`: tools and models that are kept. The oldest are forgotten, because clients choose the names of models.
        """
        self._tools: dict[tuple[str, str, str], bytes] = {}
        """Digests of definitions by provider, form and name."""
        self._models: dict[tuple[str, str, bytes], float] = {}
        """The time until which they are kept, by provider, model and circumstances."""
        self._clock = clock
        self._limit = limit

    def accepted(self, provider: str, injection: Injection, tools: Sequence[InjectedTool]) -> Sequence[InjectedTool]:
        """Return the tools that this provider has not refused."""
        if not self._tools:
            return tools
        return [tool for tool in tools if not self._is_refused(provider, injection, tool)]

    def _is_refused(self, provider: str, injection: Injection, tool: InjectedTool) -> bool:
        refused = self._tools.get((provider, injection.form, tool.name))
        return refused is not None and refused == _digest(injection, tool)

    def add(self, provider: str, injection: Injection, tool: InjectedTool) -> None:
        _put(self._tools, (provider, injection.form, tool.name), _digest(injection, tool), self._limit)

    @property
    def knows_models(self) -> bool:
        """Whether there is any model that accepts no tools. If not, no circumstances have to be computed."""
        return bool(self._models)

    def takes_none(self, provider: str, model: str, circumstances: bytes) -> bool:
        """Return whether a model accepts no tools in such a request."""
        return self._models.get((provider, model, circumstances), -math.inf) > self._clock()

    def add_model(self, provider: str, model: str, circumstances: bytes) -> None:
        """Remember that a model accepts no tools in such a request."""
        _put(self._models, (provider, model, circumstances), self._clock() + MODEL_FOR, self._limit)

    def names(self, provider: str) -> tuple[str, ...]:
        """Return the names of the tools that this provider has refused."""
        return tuple(dict.fromkeys(name for of, _, name in self._tools if of == provider))


def circumstances(template: str, body: JSONObject) -> bytes:
    """Return a digest of what decides, beside the model, whether a request may have tools.

    That is its route, whether it streams, and which members it has.
    """
    members = sorted(set(body.names) - NOT_OF_THE_CLIENT)
    return hashlib.sha256(repr((template, body.get(STREAM) is True, members)).encode()).digest()


def _put[K, V](known: dict[K, V], key: K, value: V, limit: int) -> None:
    known.pop(key, None)
    known[key] = value
    while len(known) > limit:
        del known[next(iter(known))]


def _digest(injection: Injection, tool: InjectedTool) -> bytes:
    return hashlib.sha256(injection.definition(tool)).digest()
