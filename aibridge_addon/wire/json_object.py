"""JSON objects whose members are decoded on access.

A request of a coding agent has 50 to 500 KB, of which a few members and the last message are recorded. Members stay raw
bytes until they are accessed. Splitting an object into members costs a tenth of decoding it.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

import msgspec

from aibridge_addon.wire.json_structure import is_deeper


class NotJSON(ValueError):
    """The bytes are not one JSON value."""


class Unreadable(ValueError):
    """The bytes may be JSON, but cannot be decoded here: nested too deeply, or numbers too long."""


MAX_DEPTH = 200
"""Levels. What is nested deeper is not decoded. Functions that walk through values may nest 1000 calls in Python."""
MAX_SPLIT = 10_000
"""Elements. Longer arrays are split anew each time, because their elements need more memory than the array."""

encode = msgspec.json.encode
"""Encode a value as compact JSON; `msgspec.Raw` passes verbatim."""
_members = msgspec.json.Decoder(dict[str, msgspec.Raw])
_elements = msgspec.json.Decoder(list[msgspec.Raw])
_with_element = re.compile(rb"[\[{]\s*[^\s\]}]").match
"""Match the beginning of an array or object that is not empty."""


def decode(data: bytes | msgspec.Raw) -> Any:
    """Decode one JSON value.

    Lone surrogates (`"\\ud83d"`, which JavaScript clients send) are replaced, because they cannot be stored.

    Raises:
        NotJSON: the data is not JSON.
        Unreadable: the data is nested too deeply, or exceeds the limits of the decoder.
    """
    if len(data) >= 2 * MAX_DEPTH and is_deeper(bytes(data), MAX_DEPTH):
        raise Unreadable("nested too deeply")
    try:
        return msgspec.json.decode(data)
    except msgspec.DecodeError:
        return _decode_leniently(bytes(data))
    except UnicodeDecodeError as e:
        raise NotJSON("not UTF-8") from e
    except RecursionError as e:
        raise Unreadable("nested too deeply") from e


MAX_TOLERATED = 16 * 1024 * 1024
"""Bytes. Longer data that is not JSON is not decoded a second time, because that blocks the event loop."""


def decode_tolerantly(data: bytes) -> Any:
    """Decode one JSON value of a provider that breaks the rules. Raises as `decode` does.

    `NaN`, `Infinity` and numbers out of range become texts. A byte order mark is skipped, and bytes that are not UTF-8
    are replaced.
    """
    try:
        return decode(data)
    except (NotJSON, Unreadable):
        if len(data) > MAX_TOLERATED:
            raise
    text = data.decode("utf-8", "replace").removeprefix("\ufeff")
    return _decode_leniently(text, constant=str, number=_float_or_text)


def _float_or_text(digits: str) -> float | str:
    value = float(digits)
    return value if math.isfinite(value) else digits


def _decode_leniently(
    data: bytes | str,
    *,
    constant: Callable[[str], Any] | None = None,
    number: Callable[[str], Any] | None = None,
) -> Any:
    """`constant` converts `NaN` and `Infinity`, `number` converts numbers that are not integers."""
    try:
        value = json.loads(data, parse_constant=constant or _not_json, parse_float=number)
        text = json.dumps(value, ensure_ascii=False)
    except (json.JSONDecodeError, UnicodeDecodeError, NotJSON) as e:
        raise NotJSON(str(e)) from e
    except (RecursionError, ValueError) as e:
        raise Unreadable(str(e)) from e
    try:
        return msgspec.json.decode(text.encode("utf-8", "replace"))
    except msgspec.DecodeError as e:
        raise Unreadable("a number is out of range") from e


def _not_json(name: str) -> Any:
    """Refuse NaN and Infinity. Python accepts them, but they are not JSON."""
    raise NotJSON(name)


def _raw(value: Any) -> bytes:
    return bytes(value) if isinstance(value, msgspec.Raw) else encode(value)


def array(elements: Iterable[bytes]) -> bytes:
    """Return a JSON array of encoded elements."""
    return b"[" + b",".join(elements) + b"]"


class JSONObject:
    """A JSON object; `get` decodes one member."""

    __slots__ = ("_members", "_split", "size")

    def __init__(self, data: bytes) -> None:
        """Split `data` into members.

        Raises:
            NotJSON: the data is not JSON.
            Unreadable: the data is JSON but not an object, or exceeds the limits of the decoder.
        """
        self.size = len(data)
        self._members: dict[str, Any]
        self._split: dict[str, list[msgspec.Raw]] = {}
        """Arrays that were split into their elements."""
        try:
            self._members = _members.decode(data)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            value = decode(data)
            if not isinstance(value, dict):
                raise Unreadable("not a JSON object") from None
            self._members = value

    def __contains__(self, name: str) -> bool:
        return name in self._members

    @property
    def names(self) -> Collection[str]:
        """The names of all members."""
        return self._members.keys()

    def has_elements(self, name: str) -> bool:
        """Return whether a member is an array or object with elements, without decoding them."""
        value = self._members.get(name)
        if isinstance(value, msgspec.Raw):
            return _with_element(memoryview(value)) is not None
        return isinstance(value, list | dict) and bool(value)

    def get(self, name: str) -> Any:
        """Return the member's decoded value, or None if it is absent, null or unreadable."""
        return _value(self._members.get(name))

    @property
    def verbatim(self) -> bool:
        """Whether all members are available as raw bytes. False if the object was decoded leniently."""
        return all(isinstance(member, msgspec.Raw) for member in self._members.values())

    def replaced(self, changes: Mapping[str, bytes]) -> bytes:
        """Return the object with these members replaced or added. All others stay verbatim and in order."""
        members = {name: _raw(member) for name, member in self._members.items()} | dict(changes)
        return b"{" + b",".join(encode(name) + b":" + raw for name, raw in members.items()) + b"}"

    def without(self, names: Collection[str]) -> JSONObject:
        """Return the object without these members."""
        kept = JSONObject(b"{}")
        kept._members = {name: member for name, member in self._members.items() if name not in names}
        return kept

    def extended(self, name: str, after: Sequence[bytes], *, before: Sequence[bytes] = ()) -> bytes:
        """Return the JSON of an array member with additional elements. Other values count as an empty array."""
        value = self._members.get(name)
        inner = b""
        if value is not None:
            raw = _raw(value).strip()
            inner = raw[1:-1].strip() if raw.startswith(b"[") else b""
        return array((*before, *([inner] if inner else ()), *after))

    def elements(self, name: str, limit: int | None = None) -> list[bytes]:
        """Return the elements of an array member, verbatim, up to a limit. Empty if it is not an array."""
        value = self._members.get(name)
        try:
            elements = self._elements(name, value if isinstance(value, msgspec.Raw) else msgspec.Raw(encode(value)))
        except msgspec.DecodeError:
            return []
        return [bytes(element) for element in islice(elements, limit)]

    def raw_elements(self, name: str) -> list[msgspec.Raw]:
        """Return the elements of an array member without copying them. Empty if it is not an array."""
        value = self._members.get(name)
        try:
            return self._elements(name, value) if isinstance(value, msgspec.Raw) else []
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return []

    def _elements(self, name: str, value: msgspec.Raw) -> list[msgspec.Raw]:
        """Split an array. A history is read several times, and splitting it takes most of the time."""
        split = self._split.get(name)
        if split is None:
            split = _elements.decode(value)
            if len(split) <= MAX_SPLIT:
                self._split[name] = split
        return split

    def raw(self, name: str) -> bytes:
        """Return the member's JSON, verbatim, or `null` if it is absent."""
        return _raw(self._members.get(name))

    def length(self, name: str) -> int:
        """Return the bytes of a member that is a text, an array or an object, as it stands. 0: it is none, or empty."""
        value = self._members.get(name)
        view = memoryview(value) if isinstance(value, msgspec.Raw) else memoryview(b"")
        return len(view) if len(view) > len("[]") and bytes(view[:1]) in (b'"', b"[", b"{") else 0

    def text(self, name: str) -> str | None:
        """Return the member's value if it is a string, or else None."""
        member = self._members.get(name)
        if isinstance(member, msgspec.Raw) and bytes(memoryview(member)[:1]) != b'"':
            return None  # a history is not decoded for it
        value = _value(member)
        return value if isinstance(value, str) else None

    def beginning(self, name: str, count: int) -> list[Any]:
        """Return the first `count` elements of an array member, decoded. Empty if it is not an array."""
        value = self._members.get(name)
        if isinstance(value, msgspec.Raw):
            try:
                value = self._elements(name, value)
            except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
                value = _value(value)
        return [_value(element) for element in value[:count]] if isinstance(value, list) else []

    def elements_backwards(self, name: str) -> Iterator[Any]:
        """Yield the elements of an array member, last first, and decode each on demand. Empty if it is not an array."""
        value = self._members.get(name)
        if isinstance(value, msgspec.Raw):
            try:
                value = self._elements(name, value)
            except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
                value = _value(value)
        if isinstance(value, list):
            yield from map(_value, reversed(value))


def _value(value: Any) -> Any:
    if not isinstance(value, msgspec.Raw):
        return value
    try:
        return decode(value)
    except (NotJSON, Unreadable):
        return None
