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
from aibridge_addon.tools.results import MAX_PARTS, to_parts
from tests.support.mcp_servers import PIXEL

ROOMY = 1 << 20
TEXTS = st.text(max_size=40).map(lambda words: text(words))
BLOBS = st.binary(min_size=1, max_size=60).map(lambda data: blob("a/b", data))
IMAGE = ImageContent(data=PIXEL, mime_type="image/png")


def returned(*blocks: Any, structured: Any = None, is_error: bool = False) -> Any:
    """A result as a server of the Python SDK sends it."""
    result = CallToolResult(content=list(blocks), structured_content=structured, is_error=is_error)
    return result.model_dump(mode="json", by_alias=True, exclude_none=True)


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
    assert parts(IMAGE, sound) == (Media("image/png", PIXEL), Media("audio/wav", "UklG"))


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
    shown = to_parts({"content": [{"type": "text", "text": "a"}, {"type": "hologram"}]}, ROOMY).parts
    assert shown == (Text("a"), Text("[content of the unknown kind 'hologram']"))


@pytest.mark.parametrize("blocks", [(), (text(""),), (text(" \n"), text("\t"))])
def test_nothing_to_show_is_said_so(blocks: tuple[TextContent, ...]) -> None:
    assert parts(*blocks) == (Text("(no output)"),)


def test_blank_texts_are_dropped_for_providers_refuse_them() -> None:
    assert parts(text(""), IMAGE, text(" ")) == (Media("image/png", PIXEL),)


def test_data_that_is_no_base64_is_noted_for_providers_refuse_the_request() -> None:
    assert parts(ImageContent(data="a&b", mime_type="image/png")) == (Text("[image/png: not valid base64]"),)


def test_base64_in_lines_is_joined() -> None:
    lines = f"{PIXEL[:20]}\n{PIXEL[20:]}\n"
    assert parts(ImageContent(data=lines, mime_type="image/png")) == (Media("image/png", PIXEL),)


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
    shown = parts(AudioContent(data="AAAA" * 100, mime_type="audio/mp3"), text("caption"), max_bytes=300)
    assert shown == (
        Text("[audio/mp3, 300 bytes: cannot be shown here]"),
        Text("caption"),
        Text("[The result was too large: 400 of 407 bytes were cut]"),
    )


@given(
    st.lists(
        st.text(max_size=40).map(text) | st.binary(min_size=1, max_size=60).map(lambda data: blob("a/b", data)),
        max_size=6,
    ),
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


# --- odd results -----------------------------------------------------------------------------------------------------

TEXT = {"type": "text", "text": "done"}


@pytest.mark.parametrize(
    ("result", "expected"),
    [
        ({"content": [TEXT], "isError": None}, (Text("done"),)),
        ({"content": [TEXT], "isError": False, "resultType": None, "ttlMs": "x", "cacheScope": 3}, (Text("done"),)),
        ({"content": TEXT}, (Text("done"),)),
        ({"content": "done"}, (Text("done"),)),
        ({"content": ["done", None, {"text": "more"}]}, (Text("done"), Text("more"))),
        ({"content": None}, (Text("(no output)"),)),
        ({"content": [{"type": "text", "text": None}]}, (Text("(no output)"),)),
        ({"content": [{"type": "text", "text": 7}]}, (Text("7"),)),
        ({"content": [{"type": "text", "text": "a", "annotations": 3, "_meta": []}]}, (Text("a"),)),
        ({"content": [{"type": "x"}, TEXT]}, (Text("[content of the unknown kind 'x']"), Text("done"))),
        ({"structuredContent": {"a": 1}}, (Text('{"a": 1}'),)),
        ({"structuredContent": [1, 2]}, (Text("[1, 2]"),)),
        ({"structuredContent": None, "content": [TEXT]}, (Text("done"),)),
        ({"toolResult": {"a": 1}}, (Text('{"a": 1}'),)),
        ({"toolResult": "done"}, (Text("done"),)),
        ({"temperature": 3}, (Text('{"temperature": 3}'),)),
        ({"_meta": {"x": 1}}, (Text("(no output)"),)),
        ({}, (Text("(no output)"),)),
        (None, (Text("(no output)"),)),
        ("done", (Text("done"),)),
        (7, (Text("7"),)),
        ([TEXT], (Text("done"),)),
        ({"content": [{"type": "image", "data": PIXEL}]}, (Media("image/png", PIXEL),)),
        ({"content": [{"data": PIXEL, "mimeType": "image/png"}]}, (Media("image/png", PIXEL),)),
        ({"content": [{"type": "image", "mimeType": "image/png"}]}, (Text("[image/png: no data]"),)),
        ({"content": [{"type": "resource", "resource": {"text": "a"}}]}, (Text("[Resource ]\na"),)),
        ({"content": [{"type": "resource", "resource": "x"}]}, (Text("[content of the unknown kind 'resource']"),)),
        ({"content": [{"type": "resource_link", "uri": 7}]}, (Text("[Link to the resource ]"),)),
    ],
)  # fmt: skip
def test_an_odd_result_shows_what_it_has(result: Any, expected: tuple[Part, ...]) -> None:
    assert to_parts(result, ROOMY) == (expected, False, None)


@pytest.mark.parametrize(
    ("flag", "is_error"),
    [(True, True), ("true", True), (1, True), (False, False), (None, False), (0, False), ("false", False)],
)
def test_only_a_plain_yes_is_an_error(flag: Any, is_error: bool) -> None:
    assert to_parts({"content": [TEXT], "isError": flag}, ROOMY).is_error is is_error


JPEG, GIF, WEBP = b"\xff\xd8\xff\xe0rest", b"GIF89a....", b"RIFF\x10\0\0\0WEBPVP8 "
HTML = b"<!doctype html><p>Not found"


@pytest.mark.parametrize(
    ("claimed", "content", "expected"),
    [
        ("image/png", JPEG, "image/jpeg"),
        ("image/jpg", JPEG, "image/jpeg"),
        ("IMAGE/PNG; x=y", GIF, "image/gif"),
        ("image/png", WEBP, "image/webp"),
        ("application/octet-stream", JPEG, "image/jpeg"),
        ("", GIF, "image/gif"),
        ("image/*", JPEG, "image/jpeg"),
        ("image/png", b"%PDF-1.4", "application/pdf"),
        ("image/svg+xml", b"<svg/>", "image/svg+xml"),
        ("image/png", HTML, None),
        ("image/jpeg", b"\0\0\0", None),
        ("application/pdf", HTML, None),
        ("image/png", b"", None),
        ("audio/wav", b"", None),
        ("application/zip", b"PK", "application/zip"),
    ],
)
def test_media_have_the_type_that_their_first_bytes_show(claimed: str, content: bytes, expected: str | None) -> None:
    data = base64.b64encode(content).decode()
    [part] = to_parts({"content": [{"type": "image", "mimeType": claimed, "data": data}]}, ROOMY).parts
    if expected is None:
        assert isinstance(part, Text) and part.text.startswith(f"[{claimed}: ")
    else:
        assert part == Media(expected, data)


@pytest.mark.parametrize(
    "data",
    [
        PIXEL.rstrip("="),
        f"data:image/png;base64,{PIXEL}",
        PIXEL.replace("+", "-").replace("/", "_"),
        f"  {PIXEL}\r\n",
        f"{PIXEL}==",
    ],
)
def test_base64_in_any_spelling_is_written_as_providers_take_it(data: str) -> None:
    assert to_parts({"content": [{"type": "image", "mimeType": "image/png", "data": data}]}, ROOMY).parts == (
        Media("image/png", PIXEL),
    )


def test_parts_are_counted_as_well_as_bytes() -> None:
    shown = to_parts({"content": [TEXT] * 1000}, ROOMY).parts
    assert shown == (
        *[Text("done")] * MAX_PARTS,
        Text(f"[The result had too many parts: the last {1000 - MAX_PARTS} were cut]"),
    )


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8) | st.sampled_from(["text", "image", "resource"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                [
                    "content",
                    "type",
                    "text",
                    "data",
                    "mimeType",
                    "resource",
                    "uri",
                    "blob",
                    "isError",
                    "structuredContent",
                ]
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


@given(JSON_VALUES)
def test_no_result_is_too_odd(result: Any) -> None:
    shown = to_parts(result, ROOMY)
    assert shown.parts
    assert all(part.text.strip() if isinstance(part, Text) else part.data for part in shown.parts)
