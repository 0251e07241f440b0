"""Parse the configuration's texts into values: sizes, times, addresses, patterns and secrets.

Every parser accepts the types of a parsed file. It also accepts parsed values, because settings can be built in code.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import timedelta
from ipaddress import IPv4Network, IPv6Network, ip_network
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import re2
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ByteSize,
    ConfigDict,
    Field,
    PlainValidator,
    SecretStr,
    TypeAdapter,
)

from aibridge_addon.config import urls
from aibridge_addon.config.errors import rejected
from aibridge_addon.config.rate import Rate, parse_rate
from aibridge_addon.config.urls import (
    DatabaseUrl,
    expect_text,
    host_name,
    is_address,
    is_host,
    parse_host_pattern,
    split_url,
    to_path,
)
from aibridge_addon.providers.base import BaseUrl

MAX_PATTERN = 1000
MAX_LIFETIME = timedelta(days=36_500)
"""A hundred years. For much longer times `now - lifetime` exceeds the range of datetime."""

_SIZE = re.compile(r"([0-9]{1,15}) ?(KiB|MiB|GiB)?", re.IGNORECASE)
_byte_size = TypeAdapter(ByteSize)  # accepts 32MB and 1.5MiB, too, which read like 32MiB but mean another size
_LIFETIME = re.compile(r"([0-9]{1,6}) ?([dwh])")
_LISTEN = re.compile(r"(?:\[([0-9A-Fa-f:.]+)\]|([^:\s\[\]]+)):([0-9]{1,5})")


class Section(BaseModel):
    """A section of the file: immutable, and without unknown keys."""

    # The inputs may contain secrets.
    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)


class Listen(NamedTuple):
    """An address to listen on."""

    host: str
    port: int


def parse_size(value: object) -> int:
    """Parse a size such as `32MiB` into bytes."""
    expected = "a size above 0: bytes, or a whole number of KiB, MiB or GiB, such as 32MiB"
    if isinstance(value, bool) or not isinstance(value, int | str) or not _SIZE.fullmatch(str(value)):
        raise rejected(expected)
    size = int(_byte_size.validate_python(value))
    if not 0 < size <= 1 << 50:
        raise rejected(expected)
    return size


def parse_lifetime(value: object) -> timedelta | None:
    """Parse a duration such as `60d`. 0, with or without a unit, is None and means for ever."""
    expected = "a whole number of d, w or h, such as 60d; or 0 for ever; at most 36500d"
    if isinstance(value, timedelta):
        return value
    if isinstance(value, bool) or value is None:
        raise rejected(expected)
    if value in (0, "0"):
        return None
    if re.fullmatch(r"[0-9]{1,5}", str(value)):
        raise rejected(f"a unit behind the number: {value}d for days, {value}w or {value}h; or 0 for ever")
    match = _LIFETIME.fullmatch(value) if isinstance(value, str) else None
    if not match:
        raise rejected(expected)
    unit = {"d": timedelta(days=1), "w": timedelta(weeks=1), "h": timedelta(hours=1)}[match[2]]
    # Compared before the multiplication, which may exceed the range of timedelta.
    if int(match[1]) > MAX_LIFETIME // unit:
        raise rejected(expected)
    return int(match[1]) * unit or None


def parse_regex(value: object) -> re.Pattern[str]:
    """Compile a regular expression."""
    expected = f"a regular expression of Python, 1 to {MAX_PATTERN} characters"
    if isinstance(value, re.Pattern):
        return value
    pattern = expect_text(value, expected)
    if not 0 < len(pattern) <= MAX_PATTERN:
        raise rejected(expected, found=f"{len(pattern)} characters")
    try:
        return re.compile(pattern)
    except re.error as error:
        at = "" if error.pos is None else f" at character {error.pos + 1}"
        raise rejected(f"{expected} (this one is wrong{at})", shown=f'"{pattern[:60]}", {error.msg}') from None
    except (OverflowError, RecursionError):
        raise rejected(f"{expected} (this one exceeds its limits)") from None


def parse_redaction(value: object) -> str:
    """Check a pattern of RE2, whose time is linear. It runs over text from untrusted sources."""
    expected = f"a regular expression of RE2 (no look-around, no back-references), 1 to {MAX_PATTERN} characters"
    pattern = expect_text(value, expected)
    if not 0 < len(pattern) <= MAX_PATTERN:
        raise rejected(expected, found=f"{len(pattern)} characters")
    quiet = re2.Options()
    quiet.log_errors = False
    try:
        compiled = re2.compile(pattern, quiet)
    except re2.error as error:
        message = error.args[0].decode() if isinstance(error.args[0], bytes) else str(error)
        raise rejected(f"{expected} (this one is wrong)", shown=f'"{pattern[:60]}", {message}') from None
    if compiled.match(""):
        # It would insert the redaction mark between all characters.
        raise rejected("a regular expression that does not match the empty text", shown=f'"{pattern[:60]}"')
    return pattern


def parse_network(value: object) -> IPv4Network | IPv6Network:
    """Parse a CIDR. An address without a prefix is a network with one address."""
    if isinstance(value, IPv4Network | IPv6Network):
        return value
    expected = "a network such as 10.0.0.0/8 or fd00::/8, with no bits set beyond its prefix"
    try:
        return ip_network(expect_text(value, expected))
    except ValueError:
        raise rejected(expected) from None


def parse_listen(value: object) -> Listen | None:
    """Parse `host:port`, with an IPv6 address in brackets. null is None."""
    expected = "host:port, such as 127.0.0.1:9464 or [::1]:9464, with a port up to 65535; or null"
    if value is None or isinstance(value, Listen):
        return value
    match = _LISTEN.fullmatch(expect_text(value, expected))
    if not match or int(match[3]) > 65535:
        raise rejected(expected)
    host = (match[1] or match[2]).lower()
    if not (is_address(host) if match[1] else is_host(host)):
        raise rejected(expected)
    return Listen(host, int(match[3]))


def parse_path(value: object) -> Path:
    """Parse a path, with `~` replaced by the home folder."""
    return value if isinstance(value, Path) else to_path(expect_text(value, "a path"))


def parse_base_url(value: object) -> BaseUrl:
    """Parse a provider's address."""
    if isinstance(value, BaseUrl):
        return value
    return urls.parse_base_url(expect_text(value, "a URL such as https://host/path"))


def parse_database(value: object) -> DatabaseUrl:
    """Parse a database's address."""
    return (
        value
        if isinstance(value, DatabaseUrl)
        else DatabaseUrl.parse(expect_text(value, "a URL such as sqlite:///file"))
    )


def parse_api_keys(value: object) -> tuple[SecretStr, ...]:
    """Parse one key, a list or none. Empty texts are dropped, so that `${KEY:-}` may be unset."""
    items = value if isinstance(value, list | tuple) else () if value is None else (value,)
    keys = (parse_credential(item) for item in items)
    return tuple(key for key in keys if key.get_secret_value())


def parse_credential(value: object) -> SecretStr:
    """Parse a key or secret for a header. Surrounding blanks from copying are removed."""
    expected = "a key: text in printable ASCII, without blanks; a list of them where several are allowed"
    text = value.get_secret_value() if isinstance(value, SecretStr) else expect_text(value, expected).strip()
    if not text.isascii() or not text.isprintable() or " " in text:
        raise rejected(expected)
    return SecretStr(text)


def parse_secret_text(value: object) -> SecretStr:
    """Parse a text that must not be printed: the value of a header or variable."""
    secret = value if isinstance(value, SecretStr) else SecretStr(expect_text(value, "text (put numbers in quotes)"))
    if any(character in secret.get_secret_value() for character in "\r\n\0"):
        raise rejected("text of one line")
    return secret


def parse_server_url(value: object) -> SecretStr:
    """Check an MCP server's URL. It is a secret, because its query often contains a key."""
    if isinstance(value, SecretStr):
        value = value.get_secret_value()
    text = expect_text(value, "a URL such as https://host/mcp")
    parts = split_url(text)
    host_name(parts.hostname or "")
    if "@" in parts.netloc:
        raise rejected("a URL without user and password (use headers)")
    return SecretStr(text)


def parse_http_transport(value: object) -> str:
    """Accept the names that client configurations use for streamable HTTP, and its predecessor of 2024."""
    if value == "sse":
        return "sse"
    if value not in ("http", "streamable-http", "streamableHttp"):
        raise rejected("http (streamable HTTP), sse or stdio")
    return "http"


def _matching(pattern: str, expected: str) -> Callable[[str], str]:
    def check(text: str) -> str:
        if not re.fullmatch(pattern, text):
            raise rejected(expected)
        return text

    return check


server_name = _matching(r"[A-Za-z0-9_-]+", "a name that matches [A-Za-z0-9_-]+")


def _plain_line(text: str) -> str:
    if not text.isprintable():
        raise rejected("text of one line, without control characters")
    return text


def _not_blank(text: str) -> str:
    if not text.strip():
        raise rejected("text that is not blank")
    return text


def not_boolean(value: object) -> object:
    # Python treats true as 1, but `max_turns: true` is a mistake.
    if isinstance(value, bool):
        raise rejected("a number")
    return value


def _one_or_many(value: object) -> object:
    return value if isinstance(value, list | tuple) else () if value is None else (value,)


def _or_null(parse: Callable[[object], Any]) -> PlainValidator:
    """Return a validator that treats an empty text as null, so that `${VAR:-}` may be unset."""
    return PlainValidator(lambda value: None if value is None or value == "" else parse(value))


NullIsEmpty = BeforeValidator(lambda value: {} if value is None else value)
EmptyIsNull = BeforeValidator(lambda value: None if value == "" else value)

Line = Annotated[str, AfterValidator(_plain_line), AfterValidator(_not_blank)]
OptionalLine = Annotated[Line | None, EmptyIsNull]
PlainText = Annotated[str, AfterValidator(_plain_line)]
Whole = Annotated[int, BeforeValidator(not_boolean)]
Positive = Annotated[Whole, Field(gt=0, le=2**31 - 1)]
Port = Annotated[Whole, Field(gt=0, le=65535)]
Seconds = Annotated[float, BeforeValidator(not_boolean), Field(gt=0, le=86_400, allow_inf_nan=False)]
SecondsFromZero = Annotated[float, BeforeValidator(not_boolean), Field(ge=0, le=86_400, allow_inf_nan=False)]
OptionalSeconds = Annotated[Seconds | None, EmptyIsNull]
Size = Annotated[int, PlainValidator(parse_size)]
OptionalSize = Annotated[int | None, _or_null(parse_size)]
OptionalRate = Annotated[Rate | None, _or_null(parse_rate)]
Lifetime = Annotated[timedelta | None, PlainValidator(parse_lifetime)]
Regex = Annotated[re.Pattern[str], PlainValidator(parse_regex)]
Redaction = Annotated[str, PlainValidator(parse_redaction)]
Regexes = Annotated[tuple[Regex, ...], BeforeValidator(_one_or_many)]
Network = Annotated[IPv4Network | IPv6Network, PlainValidator(parse_network)]
OptionalListen = Annotated[Listen | None, _or_null(parse_listen)]
OptionalPath = Annotated[Path | None, _or_null(parse_path)]
OptionalBaseUrl = Annotated[BaseUrl | None, _or_null(parse_base_url)]
OptionalSecret = Annotated[SecretStr | None, _or_null(parse_credential)]
Database = Annotated[DatabaseUrl, PlainValidator(parse_database)]
HostPattern = Annotated[str, PlainValidator(parse_host_pattern)]
ApiKeys = Annotated[tuple[SecretStr, ...], PlainValidator(parse_api_keys)]
SecretText = Annotated[SecretStr, PlainValidator(parse_secret_text)]
ServerUrl = Annotated[SecretStr, PlainValidator(parse_server_url)]
Argument = Annotated[str, AfterValidator(_matching(r"[^\0]*", "text without NUL"))]
ServerName = Annotated[str, AfterValidator(server_name)]
MetricPrefix = Annotated[
    str,
    AfterValidator(_matching(r"([A-Za-z_:][A-Za-z0-9_:]*)?", "a prefix that matches [A-Za-z_:][A-Za-z0-9_:]*")),
]
HeaderName = Annotated[
    str,
    AfterValidator(
        _matching(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+", "a valid header name: letters, digits and !#$%&'*+.^_`|~-")
    ),
]
OptionalHeaderName = Annotated[HeaderName | None, EmptyIsNull]
VariableName = Annotated[str, AfterValidator(_matching(r"[^=\0]+", "a name without = and NUL"))]
