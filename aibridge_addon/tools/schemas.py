"""Mend the input schemas of tools, so that every provider takes them. Pure.

One schema that a provider refuses costs the whole request, with all other tools. What each refuses is in no document;
it is known from the messages of their errors, which are quoted here:

- Anthropic: "input_schema does not support oneOf, allOf, or anyOf at the top level", "Property keys should match
  pattern '^[a-zA-Z0-9_.-]{1,64}$'", "JSON schema is invalid. It must match JSON Schema draft 2020-12".
- OpenAI: "schema must have type 'object' and not have 'oneOf'/'anyOf'/'allOf'/'enum'/'not' at the top level", "array
  schema missing items", "'any' is not valid under any of the given schemas", "'^[\\p{L}]+$' is not a 'regex'",
  "reference to component '#/$defs/x' which was not found in the schema".

Each provider compiles patterns with an engine of its own (Python's `re`, Rust's, RE2). They are hints for the model, so
only patterns that mean the same in all of them are kept.

A schema without such faults stays as it is, but for the order of its members: servers build them from maps in any
order, and the same tools must have the same bytes, or else prompt caches are lost.
"""

from __future__ import annotations

import hashlib
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any
from urllib.parse import unquote

from aibridge_addon.tools.patterns import is_portable

MAX_DEPTH = 40
"""Levels of a schema. What is nested more deeply accepts anything."""
MAX_DATA_DEPTH = 20
"""Levels of a value that is no schema, such as a default. What is nested more deeply is left out."""
MAX_REFERENCES = 32
"""References in a row that are followed at the root."""
KEY = re.compile(r"[a-zA-Z0-9_.-]{1,64}")
"""Property keys that every provider takes."""
TYPES = frozenset(("object", "array", "string", "number", "integer", "boolean", "null"))
OTHER_NAMES: Mapping[str, str] = MappingProxyType(
    {
        "int": "integer",
        "long": "integer",
        "float": "number",
        "double": "number",
        "decimal": "number",
        "str": "string",
        "text": "string",
        "date": "string",
        "datetime": "string",
        "bool": "boolean",
        "dict": "object",
        "map": "object",
        "list": "array",
        "tuple": "array",
        "set": "array",
        "none": "null",
        "undefined": "null",
    }
)
"""Types as programming languages call them."""

_INVALID = re.compile(r"[^a-zA-Z0-9_.-]")
_SCHEMAS = ("items", "contains", "additionalProperties", "propertyNames", "not", "if", "then", "else")
_MORE_SCHEMAS = ("unevaluatedItems", "unevaluatedProperties", "additionalItems", "contentSchema")
_LISTS = ("anyOf", "oneOf", "allOf", "prefixItems")
_MAPS = ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas")
_TEXTS = ("title", "description", "format", "pattern", "$comment", "contentEncoding", "contentMediaType")
_FLAGS = ("uniqueItems", "deprecated", "readOnly", "writeOnly")
_COUNTS = (
    "minLength",
    "maxLength",
    "minItems",
    "maxItems",
    "minProperties",
    "maxProperties",
    "minContains",
    "maxContains",
)
_NUMBERS = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf")
_REFERENCES = ("$ref", "$id", "$schema", "$anchor", "$dynamicRef", "$dynamicAnchor")
_AT_ROOT = ("anyOf", "oneOf", "allOf", "enum", "not", "const", "if", "then", "else", "$ref")
"""Members that providers refuse at the root."""


@dataclass(frozen=True, slots=True)
class Mended:
    schema: dict[str, Any]
    """An object's schema. Its members are in one order, whatever the server's."""
    original_keys: Mapping[str, str] = field(default_factory=dict)
    """Property keys that were renamed, each with the server's own."""


def mend(schema: Any) -> Mended:
    """Return a schema that every provider takes.

    What has a plain meaning is written as it should be: `properties: []`, a missing `type`, `required` beside the
    properties or as a flag in them, types with the names of programming languages. Alternatives at the root become one
    object with the properties of all. What has no meaning is left out, and accepts anything.
    """
    mending = _Mending()
    root = mending.schema(_root(schema), 0)
    root["type"] = "object"
    for name in _AT_ROOT:
        root.pop(name, None)
    root.setdefault("properties", {})
    return Mended(_without_dangling(_ordered(root)), {new: old for old, new in mending.renamed.items()})


def original(arguments: Any, original_keys: Mapping[str, str]) -> Any:
    """Return a model's arguments with the server's own keys."""
    if not original_keys:
        return arguments
    if isinstance(arguments, dict):
        return {original_keys.get(key, key): original(value, original_keys) for key, value in arguments.items()}
    return [original(each, original_keys) for each in arguments] if isinstance(arguments, list) else arguments


class _Mending:
    def __init__(self) -> None:
        self.renamed: dict[str, str] = {}
        """By the server's own key. The same key gets the same new one everywhere."""

    def schema(self, value: Any, depth: int) -> dict[str, Any]:
        """Mend a schema at any place. One that is none accepts anything."""
        if value is False:
            return {"not": {}}
        if isinstance(value, str):
            value = {"type": value}
        if not isinstance(value, dict) or depth > MAX_DEPTH:
            return {}
        mended: dict[str, Any] = {}
        for name, member in value.items():
            if isinstance(name, str) and (kept := self._member(name, member, depth)) is not _DROPPED:
                mended[name] = kept
        self._complete(mended, value, depth)
        return mended

    def _member(self, name: str, value: Any, depth: int) -> Any:
        if name in _SCHEMAS or name in _MORE_SCHEMAS:
            return self._sub_schema(name, value, depth)
        if name in _LISTS:
            return [self.schema(each, depth + 1) for each in value] if isinstance(value, list) and value else _DROPPED
        if name in _MAPS:
            return self._schemas(name, value, depth)
        if name == "type":
            return _type(value)
        if name == "dependentRequired" and isinstance(value, dict):
            return {self._key(key): [*map(self._key, _texts(keys))] for key, keys in value.items()}
        if name == "required":
            return _DROPPED  # `_complete` collects it from all places
        return value if _is_json(value) and _is_valid(name, value) else _DROPPED

    def _sub_schema(self, name: str, value: Any, depth: int) -> Any:
        if isinstance(value, bool):
            return value if name != "items" else {} if value else {"not": {}}
        if name == "items" and isinstance(value, list):
            return _DROPPED  # a tuple; see `_complete`
        return self.schema(value, depth + 1) if isinstance(value, dict) or _known_type(value) else _DROPPED

    def _schemas(self, name: str, value: Any, depth: int) -> Any:
        found = dict(_properties(value)) if name == "properties" else value
        if not isinstance(found, dict):
            return _DROPPED
        key = self._key if name in ("properties", "dependentSchemas") else str
        return {
            key(each): self.schema(schema, depth + 1)
            for each, schema in found.items()
            if isinstance(each, str)
            and not (name == "properties" and _is_required_list(each, schema))
            and not (name == "patternProperties" and not is_portable(each))
        }

    def _key(self, key: str) -> str:
        if KEY.fullmatch(key):
            return key
        if key not in self.renamed:
            # With a hash of the whole key, no other key of the schema is hit, and none that the model invents.
            digest = hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest()[:8]
            self.renamed[key] = f"{_INVALID.sub('_', key)[:55]}_{digest}"
        return self.renamed[key]

    def _complete(self, mended: dict[str, Any], value: Mapping[str, Any], depth: int) -> None:
        """Add what providers require, and what stood at another place."""
        required = [self._key(key) for key in _required(value)]
        if required:
            mended["required"] = sorted(set(required))
        if isinstance(value.get("items"), list):  # draft 2019-09 and before
            mended["prefixItems"] = [self.schema(each, depth + 1) for each in value["items"]] or [{}]
        for exclusive, bound in (("exclusiveMinimum", "minimum"), ("exclusiveMaximum", "maximum")):
            if value.get(exclusive) is True and bound in mended:  # draft 4
                mended[exclusive] = mended.pop(bound)
        if "type" not in mended and "properties" in mended:
            mended["type"] = "object"
        types = mended.get("type")
        if types == "array" or (isinstance(types, list) and "array" in types):
            mended.setdefault("items", {})


_DROPPED: Any = object()


# --- the root --------------------------------------------------------------------------------------------------------


def _root(schema: Any) -> dict[str, Any]:
    """Return the root as one object: references are followed, alternatives and parts become its properties."""
    if not isinstance(schema, dict):
        return {}
    root = _followed(schema, schema)
    parts = [(name, _followed(part, schema)) for name in ("allOf", "anyOf", "oneOf") for part in _dicts(root.get(name))]
    if not parts:
        return root
    # A part may have alternatives of its own: one level of them is enough for what servers write.
    merged: dict[str, Any] = {name: value for name, value in root.items() if name not in _AT_ROOT}
    merged["properties"] = properties = dict(_properties(root.get("properties")))
    required = list(_required(root))
    for _, part in parts:
        for key, value in _properties(part.get("properties")):
            known = properties.get(key)
            properties[key] = value if known is None or known == value else {"anyOf": [*_alternatives(known), value]}
    for name in ("allOf", "anyOf", "oneOf"):
        of_parts = [list(_required(part)) for of, part in parts if of == name]
        if name == "allOf":
            required += [key for keys in of_parts for key in keys]
        elif of_parts:
            required += [key for key in of_parts[0] if all(key in keys for keys in of_parts)]
    merged["required"] = required
    return merged


def _followed(schema: dict[str, Any], document: Mapping[str, Any]) -> dict[str, Any]:
    """Replace a reference at the root of a schema by what it refers to. Members beside it count, too."""
    for _ in range(MAX_REFERENCES):
        reference = schema.get("$ref")
        if not isinstance(reference, str):
            return schema
        beside = {name: value for name, value in schema.items() if name != "$ref"}
        schema = _target(reference, document) | beside
    return {name: value for name, value in schema.items() if name != "$ref"}


def _target(reference: str, document: Mapping[str, Any]) -> dict[str, Any]:
    """Return the schema at a JSON pointer within the document (RFC 6901); empty if there is none."""
    found: Any = document
    for step in reference.removeprefix("#").split("/")[1:] if reference.startswith("#/") else ("",):
        found = found.get(step.replace("~1", "/").replace("~0", "~")) if isinstance(found, dict) else None
    return found if isinstance(found, dict) else {}


def _alternatives(schema: Any) -> list[Any]:
    is_merged = isinstance(schema, dict) and schema.keys() == {"anyOf"} and isinstance(schema["anyOf"], list)
    return schema["anyOf"] if is_merged else [schema]


# --- members ---------------------------------------------------------------------------------------------------------


def _properties(value: Any) -> Iterator[tuple[str, Any]]:
    """Yield properties, also those of a list in which each has its name."""
    if isinstance(value, dict):
        yield from ((key, schema) for key, schema in value.items() if isinstance(key, str))
    elif isinstance(value, list):
        for each in _dicts(value):
            if isinstance(name := each.get("name"), str):
                yield name, {member: inner for member, inner in each.items() if member != "name"}


def _required(value: Mapping[str, Any]) -> Iterator[str]:
    """Yield the required keys: from the list, from a list among the properties, and from flags in properties."""
    yield from _texts(value.get("required"))
    for key, schema in _properties(value.get("properties")):
        if _is_required_list(key, schema):
            yield from _texts(schema)
        elif isinstance(schema, dict) and schema.get("required") is True:  # draft 3
            yield key


def _is_required_list(key: str, schema: Any) -> bool:
    return key == "required" and isinstance(schema, list)


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, list):
        yield from (each for each in value if isinstance(each, str))


def _dicts(value: Any) -> list[dict[str, Any]]:
    return [each for each in value if isinstance(each, dict)] if isinstance(value, list) else []


def _type(value: Any) -> Any:
    names = value if isinstance(value, list) else [value]
    known = list(dict.fromkeys(name for each in names if (name := _known_type(each)) is not None))
    if not known or (len(known) < len(names) and "any" in names):
        return _DROPPED
    return known if isinstance(value, list) else known[0]


def _known_type(value: Any) -> str | None:
    if not isinstance(value, str):
        return None
    name = value.lower()
    return name if name in TYPES else OTHER_NAMES.get(name)


def _is_valid(name: str, value: Any) -> bool:
    """Return whether a member has a value that the schema language (draft 2020-12) allows for it."""
    for names, is_valid in _RULES:
        if name in names:
            return is_valid(value)
    return True


def _is_number(value: Any) -> bool:
    """Whether it is a number that other parsers read as a number: JSON may have more digits than a double holds."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


def _is_count(value: Any) -> bool:
    return _is_number(value) and value >= 0 and value == int(value)


_RULES: tuple[tuple[Sequence[str], Callable[[Any], bool]], ...] = (
    (("pattern",), is_portable),
    ((*_TEXTS, *_REFERENCES), lambda value: isinstance(value, str)),
    (_FLAGS, lambda value: isinstance(value, bool)),
    (_COUNTS, _is_count),
    (("multipleOf",), lambda value: _is_number(value) and value > 0),
    (_NUMBERS, _is_number),
    (("examples",), lambda value: isinstance(value, list)),
    (("enum",), lambda value: isinstance(value, list) and bool(value)),
    (("dependentRequired", "$vocabulary"), lambda value: isinstance(value, dict)),
)


def _is_json(value: Any, depth: int = 0) -> bool:
    """Return whether a value that is no schema can be written as JSON, as it was read."""
    if isinstance(value, dict):
        return depth < MAX_DATA_DEPTH and all(
            isinstance(name, str) and _is_json(each, depth + 1) for name, each in value.items()
        )
    if isinstance(value, list):
        return depth < MAX_DATA_DEPTH and all(_is_json(each, depth + 1) for each in value)
    return not isinstance(value, int | float) or abs(value) <= sys.float_info.max


def _ordered(value: Any) -> Any:
    """Sort the members of every object."""
    if isinstance(value, dict):
        return {name: _ordered(value[name]) for name in sorted(value)}
    return [_ordered(each) for each in value] if isinstance(value, list) else value


def _without_dangling(root: dict[str, Any]) -> dict[str, Any]:
    """Return a schema without references that lead nowhere in it. What only had such a reference accepts anything."""

    def mended(value: Any) -> Any:
        if isinstance(value, list):
            return [mended(each) for each in value]
        if not isinstance(value, dict):
            return value
        reference = value.get("$ref")
        dangles = isinstance(reference, str) and not _leads_to_schema(reference, root)
        return {name: mended(each) for name, each in value.items() if not (dangles and name == "$ref")}

    whole = mended(root)
    assert isinstance(whole, dict)
    return whole


def _leads_to_schema(reference: str, root: Mapping[str, Any]) -> bool:
    if reference == "#":
        return True
    if not reference.startswith("#/"):
        return False  # providers load no other document
    found: Any = root
    for step in unquote(reference[2:]).split("/"):
        key = step.replace("~1", "/").replace("~0", "~")
        if isinstance(found, list) and key.isascii() and key.isdigit() and int(key[:9]) < len(found):
            found = found[int(key[:9])]
        elif isinstance(found, dict) and key in found:
            found = found[key]
        else:
            return False
    return isinstance(found, dict | bool)
