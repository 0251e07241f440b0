"""Which characters are shown as escapes."""

from __future__ import annotations

import sys

from aibridge_addon.wire.printable import UNSAFE, printable


def test_each_control_and_format_character_is_an_escape_wherever_it_stands() -> None:
    unsafe = [character for code in range(sys.maxunicode + 1) if UNSAFE.match(character := chr(code))]
    assert len(unsafe) > 2000
    assert not [character for character in unsafe if character in printable(f"a{character}b")]


def test_all_other_characters_stay() -> None:
    text = "Grüße, 世界 🙂 ~\t\n\u00a0\u3000"
    assert printable(text) == text
