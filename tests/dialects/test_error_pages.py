"""The words of an error page that a proxy or a load balancer has sent."""

from __future__ import annotations

import pytest

from aibridge_addon.dialects.errors import error_of_body

PAGES = {
    "a title": ("<html><head><title> Bad\nGateway </title></head><body>x</body></html>", "Bad Gateway"),
    "no title": ("<html><body><h1>Busy</h1> try &amp; wait</body></html>", "Busy try & wait"),
    "an empty title": ("<title></title><p>Busy</p>", "Busy"),
    "a script and a style": (
        "<html><STYLE>p {}</style ><script>if (a < b) {}</script><p>Busy</p></html>",
        "Busy",
    ),
    "a script without an end": ("<html><script>a<b>Busy</b>", "a Busy"),
    "a tag without an end": ("<p>Busy</p><p and more", "Busy <p and more"),
    "beginnings of tags only": ("<" * 8192, "<" * 2000),
    "beginnings of scripts only": ("<script>" * 1024 + "Busy", "Busy"[:0]),
    "plain text": ("upstream < 3 > down", "upstream < 3 > down"),
}


@pytest.mark.parametrize("case", PAGES)
def test_the_words_of_a_page_are_found(case: str) -> None:
    page, words = PAGES[case]
    assert error_of_body(page.encode(), default_type="http_502").message == words
