"""The password file of `--proxyauth`: what is wrong with it, and what to do."""

from __future__ import annotations

from pathlib import Path

import pytest

from aibridge_addon.proxy import password_file

SHA = "ada:{SHA}0DPiKuNIrrVmD8IUCuw1hQxNqZc=\n"


def written(folder: Path, content: bytes | None) -> str:
    path = folder / "htpasswd"
    if content is not None:
        path.write_bytes(content)
    return f"@{path}"


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "it does not exist"),
        (b"ada:$apr1$salt$hash\n", "only bcrypt ($2y$) and {SHA} are read"),
        (b"ada:plain\n", "format for user 'ada'"),
        (f"{SHA}eve:$6$salt$hash\n".encode(), "format for user 'eve'"),
        (b"no colon\n", "a line is not USER:HASH"),
        (b"\xff\xfe", "not UTF-8"),
    ],
)
@pytest.mark.parametrize(
    "form", ["--proxyauth {}", "--proxyauth={}", "--set proxyauth={}", "-s a.py --set=proxyauth={} -p 0"]
)
def test_a_file_that_cannot_be_used_is_named_with_the_reason_and_the_next_step(
    tmp_path: Path, content: bytes | None, reason: str, form: str, capsys: pytest.CaptureFixture[str]
) -> None:
    value = written(tmp_path, content)
    assert password_file.main(form.format(value).split()) == 1
    printed = capsys.readouterr().err
    assert value[1:] in printed and reason in printed and "htpasswd -B -c FILE USER" in printed
    assert "hash" not in printed.replace("HASH", "")


@pytest.mark.parametrize("value", ["any", "ada:secret", "ldap:host:user:password:tree", ""])
def test_other_forms_are_left_to_mitmproxy(value: str) -> None:
    assert password_file.problem(["--proxyauth", value]) is None


def test_a_good_file_has_no_problem(tmp_path: Path) -> None:
    assert password_file.problem(["-s", "a.py", "--proxyauth", written(tmp_path, SHA.encode())]) is None
    assert password_file.problem(["-s", "a.py"]) is None


def test_what_the_terminal_acts_on_is_not_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert password_file.main(["--proxyauth", "@/no/\x1b[31m"]) == 1
    assert "\x1b" not in capsys.readouterr().err
