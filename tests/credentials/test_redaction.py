"""What is taken out of texts before they are stored: secrets always, and what the operator's patterns name."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from aibridge_addon.credentials.redaction import MAX_LEVELS, REDACTED, SHORT, Redactor

PLAIN = Redactor([])
TOKEN = "abcdefghijklmnopqrstuvwxyz0123456789ABCD"

LETTERS = "Zq7Xw2Lk9Pv4Rt6Yn8Bm3Hs5Jd1Gf0CcVvAaQqWwEeRrTtYyUuIiOoPp1234567890abcdefghijklmnopqrstuvwxyz"
LINES = "\n".join([f"MIIEpAIBAAKCAQEA{LETTERS[:48]}", f"{LETTERS[10:74]}", f"{LETTERS[3:20]}=="])

SECRETS = {
    "Anthropic": f"sk-ant-api03-{TOKEN}-{TOKEN}_x",
    "Anthropic, OAuth": f"sk-ant-oat01-{TOKEN}",
    "Anthropic, of an administrator": f"sk-ant-admin01-{TOKEN}",
    "OpenAI": f"sk-{TOKEN}",
    "OpenAI, of a project": f"sk-proj-{TOKEN}_{TOKEN}",
    "OpenAI, of a service account": f"sk-svcacct-{TOKEN}",
    "OpenAI, of an administrator": f"sk-admin-{TOKEN}",
    "OpenRouter": f"sk-or-v1-{TOKEN}",
    "xAI": f"xai-{TOKEN}{TOKEN}",
    "Groq": f"gsk_{TOKEN}",
    "Perplexity": f"pplx-{TOKEN}",
    "Cerebras": f"csk-{TOKEN}",
    "NVIDIA": f"nvapi-{TOKEN}",
    "Together": f"tgp_v1_{TOKEN}",
    "Hugging Face": f"hf_{TOKEN[:34]}",
    "this bridge": f"aib_{TOKEN}",
    "Copilot, a session": f"tid={TOKEN[:32]};exp=1700000000;sku=monthly;8kp=1:{TOKEN}",
    "GitHub": f"ghp_{TOKEN[:36]}",
    "GitHub, of an app's user": f"gho_{TOKEN[:36]}",
    "GitHub, of a user": f"ghu_{TOKEN[:36]}",
    "GitHub, of a server": f"ghs_{TOKEN[:36]}",
    "GitHub, to refresh": f"ghr_{TOKEN[:36]}",
    "GitHub, fine-grained": f"github_pat_{TOKEN}_{TOKEN}",
    "GitLab": f"glpat-{TOKEN[:20]}",
    "Slack": "xoxb-123456789012-abcdefghijkl",
    "Slack, an app": "xapp-1-A123456789012-abcdefghijkl",
    "Stripe": f"sk_live_{TOKEN[:24]}",
    "Stripe, restricted": f"rk_test_{TOKEN[:24]}",
    "Stripe, webhooks": f"whsec_{TOKEN[:32]}",
    "npm": f"npm_{TOKEN[:36]}",
    "PyPI": f"pypi-AgEIcHlwaS5vcmc{TOKEN}",
    "AWS": "AKIAIOSFODNN7EXAMPLE",
    "AWS, temporary": "ASIAIOSFODNN7EXAMPLE",
    "AWS, with its secret": "AKIAIOSFODNN7EXAMPLE:wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY",
    "AWS, a session": f"IQoJb3JpZ2luX2Vj{LETTERS}//////////",
    "Bedrock": f"ABSK{TOKEN}{TOKEN}==",
    "Bedrock, as it is made": f"ABSKQmVkcm9ja0FQSUtleS1{TOKEN}{TOKEN}",
    "Bedrock, of a session": f"bedrock-api-key-{TOKEN}",
    "Azure": f"{LETTERS[:52]}JQQJ99{TOKEN[:26]}",
    "Entra ID": f"abc8Q~{TOKEN[:34]}",
    "Google": f"AIzaSy{TOKEN[:33]}",
    "Google, OAuth": f"ya29.{TOKEN}",
    "Google, a client": f"GOCSPX-{TOKEN[:28]}",
    "Google, to refresh": f"1//0{TOKEN}",
    "a JSON web token": f"eyJ{TOKEN}.eyJ{TOKEN}.{TOKEN}",
    "a JSON web token that is cut": f"eyJ{TOKEN}.eyJ{TOKEN}",
    "a JSON web token, encrypted": f"eyJ{TOKEN}..{TOKEN}.{TOKEN}.{TOKEN}",
    "a private key": f"-----BEGIN RSA PRIVATE KEY-----\n{LINES}\n-----END RSA PRIVATE KEY-----",
    "a private key, Windows": f"-----BEGIN EC PRIVATE KEY-----\n{LINES}\n-----END EC PRIVATE KEY-----".replace(
        "\n", "\r\n"
    ),
    "a private key, OpenSSH": f"-----BEGIN OPENSSH PRIVATE KEY-----\n{LINES}\n-----END OPENSSH PRIVATE KEY-----",
    "a private key, PGP": f"-----BEGIN PGP PRIVATE KEY BLOCK-----\nVersion: GnuPG v2 - x\n\n{LINES}\n=aB3d\n"
    "-----END PGP PRIVATE KEY BLOCK-----",
    "a private key, encrypted": "-----BEGIN RSA PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\nDEK-Info: "
    f"AES-128-CBC,0123\n\n{LINES}\n-----END RSA PRIVATE KEY-----",
    "a private key in JSON": f"-----BEGIN PRIVATE KEY-----\n{LINES}\n-----END PRIVATE KEY-----".replace("\n", "\\n"),
    "a private key in JSON in JSON": f"-----BEGIN PRIVATE KEY-----\n{LINES}\n-----END PRIVATE KEY-----".replace(
        "\n", "\\\\n"
    ),
    "a private key that is cut": f"-----BEGIN PRIVATE KEY-----\n{TOKEN}",
    "a private key in JSON that is cut": f"-----BEGIN PRIVATE KEY-----\n{LINES}".replace("\n", "\\n"),
}
NO_PREFIX_OF_THEIR_OWN = frozenset({"Azure", "Entra ID", "Google, OAuth", "Google, to refresh", "Bedrock"})
"""Keys that begin as any word does, or that base64 may contain."""

IN_PLACE = [
    ("Authorization: Bearer ", TOKEN, "\r\n"),
    ('"authorization": "Bearer ', "abcd", '"'),
    ("curl -H 'authorization: bearer ", f"{TOKEN}=", "'"),
    ("bearer%20", TOKEN, "&a"),
    ("Proxy-Authorization: Basic ", "dXNlcjpwYXNzd29yZA==", "\n"),
    ("Basic ", "YWxhZGRpbjpvcGVuc2VzYW1l", " "),
    ("postgresql://bridge:", "pa$$w?o#r:d", "@db:5432/aibridge"),
    ("redis://:", "0123456789", "@cache"),
    (r"https:\/\/u:", "hunter2", r"@example.com\/x"),
    ("MISTRAL_API_KEY=", LETTERS[:32], "\n"),
    ("DEEPSEEK_API_KEY=", "sk-0123456789abcdef0123456789abcdef", "\n"),
    ('"api_key": "', "0123456789abcdef0123456789abcdef", '"'),
    ("api-key: ", "0123456789abcdef0123456789abcdef", "\r\n"),
    ("Ocp-Apim-Subscription-Key: ", "0123456789abcdef0123456789abcdef", "\r\n"),
    ("AccountKey=", f"{LETTERS[:86]}==", ";Endpoint"),
    ("aws_secret_access_key = ", "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY", "\n"),
    ('"SecretAccessKey": "', "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY", '"'),
    ("<SecretAccessKey>", "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY", "</SecretAccessKey>"),
    ("AWS_SESSION_TOKEN=", f"{LETTERS}/+=", " "),
    ("X-Amz-Security-Token: ", LETTERS, "\r\n"),
    ('"private_key_id": "', "0123456789abcdef0123456789abcdef01234567", '"'),
]
"""What stands before a secret without a form of its own, the secret, and what stands behind it."""

HARMLESS = [
    "",
    "ask-me-anything-about-this-topic",
    "sk-short",
    "risk-averse-but-not-a-secret-key",
    "task-0123456789012345678901234567890123456789",
    "task-da39a3ee5e6b4b0d3255bfef95601890afd80709 in disk-550e8400-e29b-41d4-a716-446655440000",
    "ask-admin-for-permission and risk-proj-or-else",
    "task-implementTheOAuthLoginFlowForAllUsers",
    "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
    "commit ec61ea6d0f7a3b4f1c2d9e8b7a6f5e4d3c2b1a09\nsha256:9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b",
    "550e8400-e29b-41d4-a716-446655440000",
    "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg==",
    "gho_short",
    "AKIA",
    "BEGIN PRIVATE KEY",
    "eyJhbGciOiJIUzI1NiJ9",
    "-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----",
    "-----BEGIN PUBLIC KEY-----\nMFwwDQYJKoZIhvcNAQEBBQADSwAwSAJBAK\n-----END PUBLIC KEY-----",
    "tab\tand\nnewline\r\n\0 😀 [redacted]",
    "the bearer of bad news; Bearer authentication; basic understanding, Basic authentication",
    "http://localhost:8080/@scope/name https://registry.example:443/a@1.0 ssh://git@example.com:22/x",
    "http://localhost:3000?to=me@example.com",
    'api_key = os.environ["OPENAI_API_KEY"]',
    "api_key: str | None = None  # secret_key, access_key",
    "client = OpenAI(api_key=settings.provider_key_from_environment)",
    "def secret_access_key(self) -> str: ...",
    "password and token: see https://example.com/docs/api-keys#authorization",
    "the half_ of it, self_attention_with_a_long_name_0123456789, npm_config_registry_of_the_company",
    "msg_01XFDUDYJgAACzvnptvVoYEL toolu_01A09q90qw90lq917835lq9 chatcmpl-9x8y7z6w5v4u3t2s1r0q call_abcdefghijklmno",
    "resp_68af4030592c81938ec0a5fbab4a3e9f05438e46b5f69a3b req_011CSHoEeqs5C35K2UUqR7Fy",
]

SURROUNDINGS = [
    ("", ""),
    ("key: ", " and more"),
    ("key=", "\nnext"),
    ('{"key":"', '"}'),
    ("Schlüssel „", "“ 😀"),
    ("\n", "\n"),
    ("(", ")"),
    ("https://x/?k=", "&b=1"),
]


@pytest.mark.parametrize("name", SECRETS)
@pytest.mark.parametrize("before_and_after", SURROUNDINGS, ids=repr)
def test_a_secret_is_always_redacted_and_nothing_around_it(name: str, before_and_after: tuple[str, str]) -> None:
    before, after = before_and_after
    if name.endswith("that is cut") and after == "\nnext":
        after = ""  # it could be the key's last line
    assert PLAIN.text(before + SECRETS[name] + after) == before + REDACTED + after


@pytest.mark.parametrize("name", sorted(SECRETS.keys() - NO_PREFIX_OF_THEIR_OWN))
@pytest.mark.parametrize("before", ["key", "X_", "x1", "API_KEY_", "token", "value", "7", "_", "é"])
def test_a_key_is_redacted_behind_letters_digits_and_underscores(name: str, before: str) -> None:
    assert PLAIN.text(before + SECRETS[name]) == before + REDACTED


@pytest.mark.parametrize(("before", "secret", "after"), IN_PLACE)
def test_a_secret_is_redacted_by_what_stands_around_it(before: str, secret: str, after: str) -> None:
    assert PLAIN.text(before + secret + after) == before + REDACTED + after


@pytest.mark.parametrize("text", HARMLESS)
def test_what_is_no_secret_stays_as_it_is(text: str) -> None:
    assert PLAIN.text(text) == text


def test_every_secret_in_a_text_is_redacted() -> None:
    text = " ".join(SECRETS[name] for name in ("OpenAI", "GitHub", "AWS"))
    assert PLAIN.text(text) == " ".join([REDACTED] * 3)


@pytest.mark.parametrize(
    ("patterns", "text", "redacted"),
    [
        (["hunter2"], "my hunter2!", "my [redacted]!"),
        (["(?i)acme"], "ACME and AKIA", "[redacted] and AKIA"),
        (["(?i)acme", "corp"], "Acme CORP corp", "[redacted] CORP [redacted]"),
        (["a|b"], "abc", "[redacted][redacted]c"),
        ([r"\d{3}-\d{2}"], "123-45 12-345", "[redacted] 12-345"),
        (["^first"], "first first", "[redacted] first"),
        (["é+"], "caféé", "caf[redacted]"),
        ([r"(\d)(\d)"], "12", "[redacted]"),
        ([r"(?P<a>x)", r"(?P<a>y)"], "xyz", "[redacted][redacted]z"),
        (["redacted"], "redacted", "[redacted]"),
    ],
)
def test_the_operators_patterns_are_redacted_too(patterns: list[str], text: str, redacted: str) -> None:
    redactor = Redactor(patterns)
    assert redactor.text(text) == redacted
    assert redactor.text(SECRETS["OpenAI"]) == REDACTED


def test_many_patterns_can_be_configured() -> None:
    redactor = Redactor([f"secret-{number}-[a-z]{{1,200}}" for number in range(200)])
    assert redactor.text("secret-199-abc secret-200-abc") == "[redacted] secret-200-abc"


# --- JSON values ------------------------------------------------------------------------------------------------


def test_every_text_of_a_value_is_redacted_and_all_else_stays() -> None:
    key = SECRETS["Anthropic"]
    value = {"a": [1, 2.5, None, True, f"x\n{key}"], key: {"b": [[key]]}, "c": "plain"}
    assert PLAIN.value(value) == {
        "a": [1, 2.5, None, True, f"x\n{REDACTED}"],
        REDACTED: {"b": [[REDACTED]]},
        "c": "plain",
    }


def test_what_lies_too_deep_is_not_stored() -> None:
    deep: Any = SECRETS["AWS"]
    for _ in range(MAX_LEVELS + 10):
        deep = [deep]
    found = PLAIN.value(deep)
    for _ in range(MAX_LEVELS):
        (found,) = found
    assert found == REDACTED


VALUES: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=4),
    max_leaves=10,
)


@given(value=VALUES)
def test_a_value_without_secrets_stays_as_it_is(value: object) -> None:
    assert PLAIN.value(value) == value


@given(value=VALUES, name=st.sampled_from(sorted(SECRETS)))
def test_no_secret_in_a_value_is_ever_stored(value: object, name: str) -> None:
    secret = SECRETS[name]
    stored = msgspec.json.encode(PLAIN.value({"v": value, "s": [f"\n{secret}\n", {"k": secret}]})).decode()
    assert TOKEN[:15] not in stored and "EXAMPLE" not in stored and "123456789012" not in stored


PIECES = st.one_of(
    st.text(max_size=5),
    st.sampled_from(["sk-", "://u:", "@", ":", "Bearer ", "\n", " ", "_", "a", "=", "secret", REDACTED, "[redacted:"]),
    st.sampled_from([before for before, _, _ in IN_PLACE]),
    st.sampled_from([secret for _, secret, _ in IN_PLACE]),
    st.sampled_from(sorted(SECRETS.values())),
)


@pytest.mark.parametrize("redactor", [PLAIN, Redactor(["(?i)acme|secret|a+", r"\bredacted|\d{3}", r"\[", r"\b"])])
@example(pieces=["postgresql://bridge:", "0", "@"])
@given(pieces=st.lists(PIECES, max_size=8))
def test_redacting_twice_is_the_same_as_once(redactor: Redactor, pieces: list[str]) -> None:
    text = "".join(pieces)
    once = redactor.text(text)
    assert redactor.text(once) == once
    link = redactor.link(text)
    assert redactor.link(link) == link


@given(st.text(st.characters()))
def test_no_text_makes_it_fail(text: str) -> None:
    assert PLAIN.link(PLAIN.text(text)) == PLAIN.text(text)


def test_texts_that_link_rows_stay_different() -> None:
    texts = [f"call_{name}_{secret}" for name in ("a", "b") for secret in SECRETS.values()]
    links = [PLAIN.link(text) for text in texts]
    assert len(set(links)) == len(texts)
    assert not any(secret in link for link in links for secret in SECRETS.values())
    assert PLAIN.link("call_1") == "call_1"


def test_members_whose_names_are_secrets_stay_apart() -> None:
    value = {SECRETS["OpenAI"]: 1, SECRETS["GitHub"]: 2}
    redacted = PLAIN.value(value)
    assert sorted(redacted.values()) == [1, 2]
    assert not redacted.keys() & value.keys()


@pytest.mark.parametrize("before", ["", "x" * SHORT + " "], ids=["short", "long"])
def test_a_secret_in_a_name_is_redacted_each_time(before: str) -> None:
    value = {before + SECRETS["OpenAI"]: 1}
    assert PLAIN.value(value) == PLAIN.value(value) == {before + REDACTED: 1}


@pytest.mark.parametrize("text", ["sk-" * 100_000, "-----BEGIN " * 50_000, "eyJ" * 100_000 + ".", "A" * 1_000_000])
def test_a_long_text_that_looks_like_a_secret_takes_no_long_time(text: str) -> None:
    """Not measured: with a pattern that backtracks, it would not come back within the test's time."""
    PLAIN.text(text)


# --- encoded text -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("secret", SECRETS.values())
@pytest.mark.parametrize("before", ["", "\n", "\t", "text ", "<", "\\"])
def test_a_secret_inside_of_json_is_redacted_and_the_rest_stays(secret: str, before: str) -> None:
    value = {"a": [1.0, before + secret + " after"], "b": "é\n"}
    expected = {"a": [1.0, before + REDACTED + " after"], "b": "é\n"}
    assert PLAIN.encoded(msgspec.json.encode(value)) == msgspec.json.encode(expected)
    escaped, wanted = (json.dumps(v).replace("<", "\\u003c").encode() for v in (value, expected))
    assert PLAIN.encoded(escaped) == wanted


def test_json_inside_of_json_is_looked_into_too() -> None:
    inner = json.dumps({"text": f"x\n{SECRETS['OpenAI']}"})
    expected = json.dumps({"text": f"x\n{REDACTED}"})
    assert PLAIN.encoded(json.dumps([inner]).encode()) == json.dumps([expected]).encode()


@pytest.mark.parametrize("levels", [1, 2, 3])
@pytest.mark.parametrize("name", SECRETS)
def test_a_secret_is_redacted_however_it_is_escaped(name: str, levels: int) -> None:
    """PHP escapes the slash, .NET all that is special in HTML, and some programs all that is not ASCII."""
    for escaped in ("/", "+=-_:;~.", SECRETS[name]):
        text, wanted = (f"é\n{found}\t😀\\" for found in (SECRETS[name], REDACTED))
        for _ in range(levels):
            text, wanted = json.dumps({"a": text}), json.dumps({"a": wanted})
            for character in set(escaped):
                code = "\\/" if character == "/" else f"\\u{ord(character):04X}"
                if character not in '{}": \\\n' and not character.isalnum():
                    text, wanted = text.replace(character, code), wanted.replace(character, code)
        assert PLAIN.encoded(text.encode()).decode() == wanted


ESCAPES = st.sampled_from(
    ["\\", "\\n", "\\\\t", '\\"', "\\\\/", "\\u00e9", "\\\\u0416", "\\ud83d\\uDE00", "\\ud83d", "\\u12", "/", " ", "é"]
)
TEXTS = st.lists(st.one_of(ESCAPES.map(str.encode), st.binary(max_size=3)), max_size=8).map(b"".join)


@example(before=b"\\", after=b"\\\\")
@example(before=b"\xff\\u00e9", after=b"\\u0022")
@given(before=TEXTS, after=TEXTS)
def test_escapes_around_a_secret_stay_as_they_are(before: bytes, after: bytes) -> None:
    secret = b"AKIAIOSFODNN7EXAMPLE"
    before, after = b"\\n" + before + b" ", b" " + after
    assert PLAIN.encoded(before + secret + after) == before + REDACTED.encode() + after


@given(st.binary())
def test_encoded_text_without_secrets_is_not_touched(data: bytes) -> None:
    assert PLAIN.encoded(data) == data
