"""Results as parts that a dialect can carry."""

import base64
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from mcp_types import (
    AudioContent,
    BlobResourceContents,
    CallToolResult,
    EmbeddedResource,
    ImageContent,
    ResourceLink,
    TextContent,
    TextResourceContents,
)

from aibridge_addon.dialects.turns import Media, Part, Text
from aibridge_addon.tools.results import to_parts

ROOMY = 1 << 20
IMAGE = ImageContent(data="aGVsbG8=", mime_type="image/png")


def returned(*blocks: Any, structured: Any = None, is_error: bool = False) -> CallToolResult:
    return CallToolResult(content=list(blocks), structured_content=structured, is_error=is_error)


def text(value: str) -> TextContent:
    return TextContent(text=value)


def blob(mime_type: str | None, data: bytes) -> EmbeddedResource:
    content = base64.b64encode(data).decode()
    return EmbeddedResource(resource=BlobResourceContents(uri="file:///f", mime_type=mime_type, blob=content))


def parts(*blocks: Any, structured: Any = None, max_bytes: int = ROOMY) -> tuple[Part, ...]:
    return to_parts(returned(*blocks, structured=structured), max_bytes).parts


def test_text_is_handed_on_as_it_is() -> None:
    assert to_parts(returned(text("a\nb"), text("c")), ROOMY) == ((Text("a\nb"), Text("c")), False, None)


def test_images_and_sounds_are_media() -> None:
    sound = AudioContent(data="UklG", mime_type="audio/wav")
    assert parts(IMAGE, sound) == (Media("image/png", "aGVsbG8="), Media("audio/wav", "UklG"))


def test_a_text_resource_is_text_under_its_address() -> None:
    resource = TextResourceContents(uri="memo://x", mime_type="text/markdown", text="# Hi")
    assert parts(EmbeddedResource(resource=resource)) == (Text("[Resource memo://x (text/markdown)]\n# Hi"),)


def test_a_binary_resource_is_a_file() -> None:
    assert parts(blob("application/pdf", b"%PDF")) == (Media("application/pdf", "JVBERg==", "file:///f"),)


def test_a_binary_resource_of_no_known_type_is_a_file_all_the_same() -> None:
    assert parts(blob(None, b"\0")) == (Media("application/octet-stream", "AA==", "file:///f"),)


def test_a_binary_resource_that_is_text_is_shown_as_text() -> None:
    shown = (Text("[Resource file:///f (text/csv; charset=utf-8)]\nä,b"),)
    assert parts(blob("text/csv; charset=utf-8", "ä,b".encode())) == shown


def test_a_binary_resource_that_only_claims_to_be_text_stays_a_file() -> None:
    assert parts(blob("text/plain", b"\xff\xfe")) == (Media("text/plain", "//4=", "file:///f"),)


def test_a_link_to_a_resource_is_told_with_all_that_is_known() -> None:
    link = ResourceLink(uri="file:///m.rs", name="m.rs", mime_type="text/x-rust", description="Entry point")
    expected = "[Link to the resource file:///m.rs]\nname: m.rs\ntype: text/x-rust\ndescription: Entry point"
    assert parts(link) == (Text(expected),)


def test_a_link_with_only_an_address_and_a_name_is_told() -> None:
    assert parts(ResourceLink(uri="x://y", name="n")) == (Text("[Link to the resource x://y]\nname: n"),)


def test_content_of_an_unknown_kind_is_noted() -> None:
    hologram = TextContent.model_construct(type="hologram")
    assert parts(text("a"), hologram) == (Text("a"), Text("[content of the unknown kind 'hologram']"))


@pytest.mark.parametrize("blocks", [(), (text(""),), (text(" \n"), text("\t"))])
def test_nothing_to_show_is_said_so(blocks: tuple[TextContent, ...]) -> None:
    assert parts(*blocks) == (Text("(no output)"),)


def test_blank_texts_are_dropped_for_providers_refuse_them() -> None:
    assert parts(text(""), IMAGE, text(" ")) == (Media("image/png", "aGVsbG8="),)


def test_data_that_is_no_base64_is_noted_for_providers_refuse_the_request() -> None:
    assert parts(ImageContent(data="data:;base64,AA==", mime_type="image/png")) == (
        Text("[image/png: not valid base64]"),
    )


def test_base64_in_lines_is_joined() -> None:
    assert parts(ImageContent(data="aGVs\nbG8=\n", mime_type="image/png")) == (Media("image/png", "aGVsbG8="),)


# --- structured content ---------------------------------------------------------------------------


def test_structured_content_alone_is_shown_as_json() -> None:
    assert parts(structured={"city": "Zürich", "n": 12345678901234567890123}) == (
        Text('{"city": "Zürich", "n": 12345678901234567890123}'),
    )


def test_structured_content_that_differs_from_the_text_is_added() -> None:
    assert parts(text("sunny"), structured={"sky": 1}) == (Text("sunny"), Text('{"sky": 1}'))


@pytest.mark.parametrize(
    ("texts", "structured"),
    [
        (['{"b": 1, "a": [2.5]}'], {"a": [2.5], "b": 1}),
        (["Here it is:", '{"a": 1}'], {"a": 1}),
        (["3"], {"result": 3}),
        (["hello"], {"result": "hello"}),
        (["a", "b"], {"result": ["a", "b"]}),
        (["1", "2"], [1, 2]),
        (["null"], {"result": None}),
        (['{"result": 3}'], {"result": 3}),
    ],
)
def test_structured_content_that_the_text_says_already_is_not_repeated(texts: list[str], structured: Any) -> None:
    assert parts(*map(text, texts), structured=structured) == tuple(map(Text, texts))


# --- errors ---------------------------------------------------------------------------------------


def test_an_error_says_what_was_wrong() -> None:
    result = to_parts(returned(text("no such file"), text("try ls"), is_error=True), ROOMY)
    assert result == ((Text("no such file"), Text("try ls")), True, "no such file\ntry ls")


def test_an_error_without_words_is_an_error() -> None:
    assert to_parts(returned(is_error=True), ROOMY) == ((Text("(no output)"),), True, "(no output)")


def test_an_errors_text_in_records_is_short_and_the_models_is_not() -> None:
    result = to_parts(returned(text("x" * 5000), is_error=True), ROOMY)
    assert result.parts == (Text("x" * 5000),)
    assert result.error_text == "x" * 4096 + "…"


# --- too large ------------------------------------------------------------------------------------


def test_a_result_at_its_limit_stays_whole() -> None:
    assert parts(text("ä" * 5), text("b" * 5), max_bytes=15) == (Text("ä" * 5), Text("b" * 5))


def test_a_text_is_cut_between_characters_and_the_end_says_how_much() -> None:
    note = Text("[The result was too large: 6 of 10 bytes were cut]")
    assert parts(text("ä" * 5), max_bytes=5) == (Text("ää"), note)


def test_nothing_follows_a_text_that_was_cut() -> None:
    note = Text("[The result was too large: 4 of 8 bytes were cut]")
    assert parts(text("abcdef"), text("gh"), max_bytes=4) == (Text("abcd"), note)


def test_media_that_do_not_fit_give_way_to_a_note_and_what_follows_is_shown() -> None:
    shown = parts(ImageContent(data="AAAA" * 100, mime_type="image/png"), text("caption"), max_bytes=300)
    assert shown == (
        Text("[image/png, 300 bytes: cannot be shown here]"),
        Text("caption"),
        Text("[The result was too large: 400 of 407 bytes were cut]"),
    )


@given(
    st.lists(st.text(max_size=40).map(text) | st.binary(max_size=60).map(lambda data: blob("a/b", data)), max_size=6),
    st.integers(1, 200),
)
def test_what_is_shown_keeps_to_the_limit_and_its_order(blocks: list[Any], max_bytes: int) -> None:
    whole = parts(*blocks)
    shown = parts(*blocks, max_bytes=max_bytes)
    assert shown
    size = sum(len(part.data if isinstance(part, Media) else part.text.encode()) for part in shown if part in whole)
    assert size <= max_bytes or shown == (Text("(no output)"),)
    kept = [part for part in shown if part in whole]
    remaining = iter(whole)
    assert all(part in remaining for part in kept)
