"""Schemas of odd servers, and what of them goes upstream."""

from __future__ import annotations

import json
import re
from typing import Any

import jsonschema  # type: ignore[import-untyped]
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aibridge_addon.tools.schemas import MAX_DEPTH, mend, original

TEXT = {"type": "string"}
LONG = "settings__" * 8
OPENAI_REFUSES_AT_ROOT = ("anyOf", "oneOf", "allOf", "enum", "not")


def of(**properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties}


@pytest.mark.parametrize(
    ("listed", "sent"),
    [
        # no schema, or none of an object
        ({}, of()),
        ({"type": "object"}, of()),
        (None, of()),
        ([], of()),
        ({"properties": {"a": TEXT}}, of(a=TEXT)),
        ({"type": ["object", "null"]}, of()),
        ({"type": "object", "properties": []}, of()),
        ({"type": "object", "properties": None, "required": None}, of()),
        ({"properties": [{"name": "a", "type": "string"}, "b"]}, of(a=TEXT)),
        # the root
        ({"type": "object", "enum": [{}], "not": {"required": ["a"]}, "const": 1}, of()),
        ({"anyOf": [of(a=TEXT), of(b=TEXT)]}, of(a=TEXT, b=TEXT)),
        (
            {"oneOf": [of(a=TEXT) | {"required": ["a"]}, of(a={"type": "integer"}, b=TEXT) | {"required": ["a", "b"]}]},
            of(a={"anyOf": [TEXT, {"type": "integer"}]}, b=TEXT) | {"required": ["a"]},
        ),
        (
            {"allOf": [of(a=TEXT) | {"required": ["a"]}, of(b=TEXT) | {"required": ["b"]}], "description": "both"},
            of(a=TEXT, b=TEXT) | {"required": ["a", "b"], "description": "both"},
        ),
        ({"anyOf": [{"type": "null"}, of(a=TEXT)], "properties": {"z": TEXT}}, of(a=TEXT, z=TEXT)),
        ({"anyOf": [True, 7]}, of()),
        ({"$ref": "#/$defs/A", "$defs": {"A": of(a=TEXT)}}, of(a=TEXT) | {"$defs": {"A": of(a=TEXT)}}),
        (
            {"allOf": [{"$ref": "#/definitions/A~1b"}], "definitions": {"A/b": of(a=TEXT)}},
            of(a=TEXT) | {"definitions": {"A/b": of(a=TEXT)}},
        ),
        ({"$ref": "#"}, of()),
        ({"$ref": "https://example.com/schema.json"}, of()),
        # arrays
        (of(a={"type": "array"}), of(a={"type": "array", "items": {}})),
        (of(a={"type": ["array", "null"]}), of(a={"type": ["array", "null"], "items": {}})),
        (of(a={"type": "array", "items": None}), of(a={"type": "array", "items": {}})),
        (of(a={"type": "array", "items": True}), of(a={"type": "array", "items": {}})),
        (
            of(a={"type": "array", "items": [TEXT, {"type": "array"}]}),
            of(a={"type": "array", "items": {}, "prefixItems": [TEXT, {"type": "array", "items": {}}]}),
        ),
        # types
        (of(a={"type": "any"}), of(a={})),
        (of(a={"type": "file", "description": "d"}), of(a={"description": "d"})),
        (of(a={"type": ["int", "None"]}), of(a={"type": ["integer", "null"]})),
        (of(a={"type": ["string", "any"]}), of(a={})),
        (of(a={"type": "String"}), of(a=TEXT)),
        (of(a={"type": 7}), of(a={})),
        (of(a="string"), of(a=TEXT)),
        (of(a=None, b=True, c=["x"]), of(a={}, b={}, c={})),
        (of(a={"properties": {"b": TEXT}}), of(a=of(b=TEXT))),
        # required
        (of(a=TEXT, required=["a"]), of(a=TEXT) | {"required": ["a"]}),
        (
            of(a={"type": "string", "required": True}, b={"type": "string", "required": False}),
            of(a=TEXT, b=TEXT) | {"required": ["a"]},
        ),
        (of(required=TEXT), of(required=TEXT)),
        (of(a=TEXT) | {"required": "a"}, of(a=TEXT)),
        (of(a=TEXT) | {"required": True}, of(a=TEXT)),
        (of(a=TEXT) | {"required": ["a", None, "a"]}, of(a=TEXT) | {"required": ["a"]}),
        # values that the schema language does not allow
        (of(a={"enum": []}), of(a={})),
        (of(a={"enum": "x"}), of(a={})),
        (of(a={"description": None, "title": 3, "format": True, "type": "string"}), of(a=TEXT)),
        (of(a={"minimum": "0", "maxLength": -1, "minItems": 1.5, "multipleOf": 0}), of(a={})),
        (of(a={"minimum": 3, "exclusiveMinimum": True}), of(a={"exclusiveMinimum": 3})),
        (of(a={"minimum": 3, "exclusiveMinimum": False}), of(a={"minimum": 3})),
        *[(of(a={name: 10**400}), of(a={})) for name in ("maximum", "minLength", "multipleOf", "exclusiveMinimum")],
        (of(a={"default": 10**400, "const": -(10**400), "enum": [1, 10**400]}), of(a={})),
        (of(a={"default": float("nan"), "maximum": float("inf"), "examples": [float("-inf")]}), of(a={})),
        (of(a={"anyOf": []}), of(a={})),
        (of(a={"anyOf": {"type": "string"}}), of(a={})),
        (of(a={"additionalProperties": "no", "patternProperties": 3}), of(a={})),
        (of(a={"additionalProperties": False}), of(a={"additionalProperties": False})),
        # patterns that only some engines take
        (of(a={"type": "string", "pattern": "^[\\p{L}]+$"}), of(a=TEXT)),
        (of(a={"type": "string", "pattern": "^(?!undefined$|null$)"}), of(a=TEXT)),
        (of(a={"patternProperties": {"(?<x>a)": TEXT, "^a": TEXT}}), of(a={"patternProperties": {"^a": TEXT}})),
        # references that lead nowhere
        (of(a={"$ref": "#/$defs/gone", "description": "d"}), of(a={"description": "d"})),
        (of(a={"$ref": "https://example.com/a.json"}, b={"$ref": "#node"}), of(a={}, b={})),
        (
            {"anyOf": [of(a=TEXT, b={"$ref": "#/anyOf/0/properties/a"})]},
            of(a=TEXT, b={}),
        ),
        (of(a={"items": {"$ref": "#/properties/b"}}, b=TEXT), of(a={"items": {"$ref": "#/properties/b"}}, b=TEXT)),
        # keys in other members
        (
            of(**{"a b": TEXT}) | {"dependentRequired": {"a b": ["a b"]}},
            of(a_b_c8687a08=TEXT) | {"dependentRequired": {"a_b_c8687a08": ["a_b_c8687a08"]}},
        ),
    ],
)
def test_what_has_a_plain_meaning_is_written_as_providers_take_it(listed: Any, sent: dict[str, Any]) -> None:
    assert mend(listed).schema == sent
    assert accepted_by_all(sent)


def test_a_schema_without_faults_stays_as_it_is() -> None:
    schema = {
        "$defs": {"big": {"const": 12345678901234567890123}, "tree": of(left={"$ref": "#/$defs/tree"})},
        "$schema": "http://json-schema.org/draft-07/schema#",
        "additionalProperties": False,
        "properties": {
            "n": {"oneOf": [{"$ref": "#/$defs/big"}, {"type": "null"}], "default": {"z": 1.0, "required": ["b", "a"]}},
            "x": {"type": "string", "pattern": "^a", "x-vendor": {"any": ["thing", None]}},
        },
        "required": ["n", "x"],
        "type": "object",
    }
    mended = mend(schema)
    assert mended.schema == schema
    assert mended.original_keys == {}


def test_the_same_schema_in_any_order_has_the_same_bytes() -> None:
    one = {"type": "object", "properties": {"b": TEXT, "a": {"type": "array", "items": TEXT}}, "required": ["b", "a"]}
    other = {"required": ["a", "b"], "properties": {"a": {"items": TEXT, "type": "array"}, "b": TEXT}, "type": "object"}
    assert json.dumps(mend(one).schema) == json.dumps(mend(other).schema)


@pytest.mark.parametrize("key", ["filter[id]", "@type", "a b", LONG, "", "größe", "$top", "\ud800"])
def test_a_key_that_providers_refuse_is_renamed_and_the_server_gets_its_own(key: str) -> None:
    mended = mend(of(**{key: TEXT, "a": of(**{key: TEXT})}) | {"required": [key]})
    [renamed] = mended.original_keys
    assert re.fullmatch(r"[a-zA-Z0-9_.-]{1,64}", renamed)
    assert mended.schema == of(**{renamed: TEXT, "a": of(**{renamed: TEXT})}) | {"required": [renamed]}
    called_with = {renamed: "1", "a": {renamed: 2}, "more": [{renamed: renamed}]}
    assert original(called_with, mended.original_keys) == {key: "1", "a": {key: 2}, "more": [{key: renamed}]}


def test_keys_that_differ_only_in_refused_characters_stay_apart() -> None:
    mended = mend(of(**{"a[b]": TEXT, "a{b}": TEXT, "a_b_": TEXT}))
    assert len(mended.schema["properties"]) == 3
    assert sorted(mended.original_keys.values()) == ["a[b]", "a{b}"]


@pytest.mark.parametrize("inner", [of, lambda a: {"type": "array", "items": [a]}, lambda a: {"anyOf": [a]}])
def test_what_is_nested_too_deeply_accepts_anything(inner: Any) -> None:
    schema: Any = TEXT
    for _ in range(400):
        schema = inner(a=schema)
    assert len(json.dumps(mend(of(a=schema)).schema)) < 80 * MAX_DEPTH


# --- any JSON --------------------------------------------------------------------------------------------------------

# fmt: off
WORDS = st.sampled_from([
    "type", "properties", "required", "items", "anyOf", "allOf", "oneOf", "not", "enum", "const", "$ref", "$defs",
    "definitions", "default", "description", "additionalProperties", "prefixItems", "minimum", "exclusiveMinimum",
    "maxLength", "format", "a", "b[c]", "object", "array", "string", "any",
])
# fmt: on
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 2) | st.floats() | WORDS | st.just("#/$defs/a") | st.just("#"),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS, inner, max_size=5),
    max_leaves=25,
)


def accepted_by_all(schema: dict[str, Any]) -> bool:
    """Check what both vendors check."""
    jsonschema.Draft202012Validator.check_schema(schema)
    assert schema["type"] == "object" and isinstance(schema["properties"], dict)
    assert not set(OPENAI_REFUSES_AT_ROOT) & schema.keys()
    assert all(re.fullmatch(r"[a-zA-Z0-9_.-]{1,64}", key) for key in schema["properties"])
    arrays = [found for found in schemas_in(schema) if found.get("type") == "array"]
    assert all("items" in array for array in arrays)
    json.dumps(schema, allow_nan=False)
    return True


def schemas_in(schema: Any) -> list[dict[str, Any]]:
    if not isinstance(schema, dict):
        return []
    found = [schema]
    for name in ("properties", "$defs", "definitions"):
        found += [inner for each in schema.get(name, {}).values() for inner in schemas_in(each)]
    for name in ("anyOf", "allOf", "oneOf", "prefixItems"):
        found += [inner for each in schema.get(name, []) for inner in schemas_in(each)]
    return found + [
        inner for name in ("items", "not", "additionalProperties") for inner in schemas_in(schema.get(name))
    ]


@given(VALUES | st.dictionaries(WORDS, VALUES, max_size=6))
def test_whatever_a_server_lists_every_provider_takes_it_and_it_stays(listed: Any) -> None:
    mended = mend(listed).schema
    assert accepted_by_all(mended)
    assert mend(mended).schema == mended
