"""JSON objects that are decoded member by member."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aibridge_addon.wire.json_object import JSONObject, NotJSON, Unreadable, decode

DEEP = b"[" * 100_000 + b"]" * 100_000
VALUES: st.SearchStrategy[Any] = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner, max_size=4),
    max_leaves=12,
)
OBJECTS = st.dictionaries(st.text(max_size=6), VALUES, max_size=5)

NOT_JSON = [
    b"",
    b" ",
    b"{",
    b"nope",
    b'{"a":}',
    b'{"a":1}x',
    b"{'a':1}",
    b"NaN",
    b'{"a":NaN}',
    b"[-Infinity]",
    b"\xff\xfe\xfd",
    b'"\xff"',
]


@pytest.mark.parametrize(
    ("data", "value"),
    [
        (b"null", None),
        (b' {"a": [1, 2.5, "x"]} ', {"a": [1, 2.5, "x"]}),
        (b"100000000000000000000000", 10**23),
        (rb'"\u00e9\ud83d\ude00"', "é😀"),
        (rb'"a\ud83d"', "a?"),
        (rb'{"\udc00": "\ud83dx"}', {"?": "?x"}),
        (b'\xef\xbb\xbf{"a": 1}', {"a": 1}),
    ],
)
def test_a_value_is_decoded(data: bytes, value: object) -> None:
    """Half a surrogate pair, which JavaScript clients send, is replaced: nothing downstream could store it."""
    assert decode(data) == value


@pytest.mark.parametrize("data", NOT_JSON)
def test_what_is_not_json_is_refused(data: bytes) -> None:
    with pytest.raises(NotJSON):
        decode(data)
    with pytest.raises(NotJSON):
        JSONObject(data)


@pytest.mark.parametrize("data", [DEEP, b'{"a":' * 50_000 + b"1" + b"}" * 50_000, b"1" * 5_000, b"-1e999"])
def test_json_beyond_the_decoders_limits_is_distinguished_from_what_is_not_json(data: bytes) -> None:
    with pytest.raises(Unreadable):
        decode(data)
    with pytest.raises(Unreadable):
        JSONObject(b"[" + data + b"]")


@pytest.mark.parametrize("data", [b"null", b"[]", b'"text"', b"1", b"true"])
def test_json_that_is_no_object_is_unreadable(data: bytes) -> None:
    with pytest.raises(Unreadable):
        JSONObject(data)


@given(value=VALUES)
def test_any_value_is_decoded_as_python_does(value: object) -> None:
    assert decode(json.dumps(value).encode()) == value
    assert decode(json.dumps(value, ensure_ascii=False, indent=1).encode()) == value


@given(data=st.binary(max_size=40))
def test_no_bytes_make_it_fail_otherwise(data: bytes) -> None:
    for read in (decode, JSONObject):
        try:
            read(data)
        except (NotJSON, Unreadable):
            pass


@given(members=OBJECTS)
def test_a_member_is_what_the_whole_objects_member_is(members: dict[str, Any]) -> None:
    body = JSONObject(json.dumps(members).encode())
    for name, value in members.items():
        assert name in body
        assert body.get(name) == value
        assert body.text(name) == (value if isinstance(value, str) else None)
        assert list(body.elements_backwards(name)) == (value[::-1] if isinstance(value, list) else [])
    assert "no such member" not in body
    assert body.get("no such member") is None
    assert list(body.elements_backwards("no such member")) == []


@pytest.mark.parametrize("data", [b'{"a":%s,"b":[%s,7]}' % (DEEP, DEEP), b'{"b":[%s,7],"a":%s}' % (b"1" * 5_000, DEEP)])
def test_a_member_that_cannot_be_read_is_absent_and_hides_no_other(data: bytes) -> None:
    try:
        body = JSONObject(data)
    except Unreadable:
        return
    assert body.get("a") is None
    assert next(iter(body.elements_backwards("b"))) == 7


def test_elements_and_members_are_at_hand_verbatim() -> None:
    body = JSONObject(rb'{"a": [ 1.50 , {"x" : "\u00e9" },[1 ,2] ] , "b" : { "n":1e2 },"c":null,"d":"[1]"}')
    assert body.elements("a") == [b"1.50", rb'{"x" : "\u00e9" }', b"[1 ,2]"]
    assert [body.elements(name) for name in ("b", "c", "d", "e")] == [[], [], [], []]
    assert [body.raw(name) for name in ("b", "c", "e")] == [b'{ "n":1e2 }', b"null", b"null"]


def test_a_lone_surrogate_costs_no_member() -> None:
    body = JSONObject(rb'{"model": "m", "messages": [{"content": "a\ud83d"}, {"content": "b"}], "\udfff": 1}')
    assert body.text("model") == "m"
    assert list(body.elements_backwards("messages")) == [{"content": "b"}, {"content": "a?"}]


def test_of_a_repeated_member_the_last_one_counts() -> None:
    assert JSONObject(b'{"a": 1, "a": 2}').get("a") == 2


def test_a_member_is_set_and_every_other_one_stays_verbatim_and_in_its_place() -> None:
    body = JSONObject(rb' { "b" : 1.50 , "a":{ "x" : "\u00e9" },"c":[1 ,2] } ')
    assert body.replaced({"n": b"true"}) == rb'{"b":1.50,"a":{ "x" : "\u00e9" },"c":[1 ,2],"n":true}'
    assert body.replaced({"a": b"0"}) == b'{"b":1.50,"a":0,"c":[1 ,2]}'


def test_a_member_is_set_in_an_empty_object() -> None:
    assert JSONObject(b"{}").replaced({'a"é': b"1"}) == '{"a\\"é":1}'.encode()


@given(members=OBJECTS, name=st.text(max_size=6), value=VALUES)
def test_setting_a_member_changes_no_other(members: dict[str, Any], name: str, value: object) -> None:
    changed = JSONObject(json.dumps(members).encode()).replaced({name: json.dumps(value).encode()})
    assert json.loads(changed) == members | {name: value}
    assert list(json.loads(changed)) == list(members | {name: value})


@pytest.mark.parametrize("data", [b'\xef\xbb\xbf{"a": 1}', rb'{"\ud83d": 1}', rb'{"a": "\ud83d"}'])
def test_an_object_that_could_only_be_decoded_leniently_is_not_verbatim(data: bytes) -> None:
    assert JSONObject(b'{"a": 1}').verbatim and not JSONObject(data).verbatim
