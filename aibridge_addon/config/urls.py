"""Parse URLs, host names and paths of the configuration."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from ipaddress import ip_address
from pathlib import Path
from urllib.parse import SplitResult, urlsplit

from aibridge_addon.config.errors import rejected
from aibridge_addon.providers.base import BaseUrl

_LABEL = r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?"
_HOST = re.compile(rf"{_LABEL}(?:\.{_LABEL})*")
# A wildcard as the last label would send a provider's credentials to `api.openai.<anything>`.
_HOST_PATTERN = re.compile(rf"(?:(?:\*|{_LABEL})\.)*{_LABEL}")
_POSTGRES_HOST = r"(?:[A-Za-z0-9_.-]*|\[[0-9A-Fa-f:.]+\])(?::[0-9]{1,5})?"
# Several hosts are a primary and its standbys, one of which may become the primary.
_POSTGRES = re.compile(
    rf"postgres(?:ql)?://(?:[^@/?#\s]*@)?{_POSTGRES_HOST}(?:,{_POSTGRES_HOST})*/[^/?#\s]+(?:\?[^#\s]*)?"
)

_FILE = re.compile(r"(?:~|\.{0,2})/[^:@?#]{0,200}[^:@?#/]|[^:@?#]{1,200}\.(?:db|sqlite3?)")


def parse_base_url(text: str) -> BaseUrl:
    """Parse `http(s)://host[:port][/path]`."""
    parts = split_url(text)
    if "@" in parts.netloc or "?" in text or "#" in text:
        raise rejected("a URL without user, query and fragment")
    host = host_name(parts.hostname or "")
    port = parts.port or (443 if parts.scheme == "https" else 80)
    return BaseUrl(parts.scheme, host, port, parts.path.rstrip("/"))


@dataclass(frozen=True, slots=True)
class DatabaseUrl:
    """The URL of the database. Its text form hides the password."""

    _url: str = field(repr=False)
    sqlite_path: Path | None
    """The file, relative to the working directory. None for PostgreSQL."""

    @classmethod
    def parse(cls, text: str) -> DatabaseUrl:
        """Parse `sqlite:///file`, `sqlite:////absolute/file` or `postgresql://user:password@host/name`."""
        if text.startswith("sqlite:"):
            return cls(text, _sqlite_path(text))
        if not text.isprintable() or not _POSTGRES.fullmatch(text):
            raise rejected(
                "sqlite:///file or postgresql://user:password@host:port/name (percent-encode /, ?, # and @)"
                + _meant_file(text)
            )
        return cls(text, None)

    @property
    def place(self) -> str:
        """Where the database is: the absolute path, or the hosts and the name, without user and parameters."""
        if self.sqlite_path is not None:
            return str(self.sqlite_path.absolute())
        return self._url.partition("?")[0].partition("://")[2].rpartition("@")[2]

    @property
    def absolute(self) -> str:
        """The URL without its password. The path of a file is absolute."""
        return str(self) if self.sqlite_path is None else f"sqlite:///{self.place}"

    def get_secret_value(self) -> str:
        """Return the URL including the password."""
        return self._url

    def __str__(self) -> str:
        # A query may contain a password as well.
        return re.sub(r"(://[^:@/]*):[^@/]*@", r"\1:***@", self._url).partition("?")[0]

    def __repr__(self) -> str:
        return f"DatabaseUrl('{self}')"


def _meant_file(text: str) -> str:
    """Return a hint for what is a path without doubt. Anything else may be a password, which errors must not show."""
    return f'; did you mean "sqlite:///{text}"?' if text.isprintable() and _FILE.fullmatch(text) else ""


def _sqlite_path(text: str) -> Path:
    name = text.removeprefix("sqlite:///")
    # An in-memory database belongs to one connection and is lost with it.
    wrong = name == text or not name or ":memory:" in name or name.startswith("file:") or name.endswith("/")
    if wrong or not name.isprintable() or "?" in name or "#" in name:
        raise rejected("sqlite:///file or sqlite:////absolute/file (a file, without options)")
    return to_path(name)


def split_url(text: str) -> SplitResult:
    """Split an http(s) URL. Malformed URLs are refused."""
    # urlsplit silently removes tabs and line breaks.
    if not text.isascii() or not text.isprintable() or " " in text or "\\" in text:
        raise rejected("a URL in printable ASCII, without spaces")
    try:
        parts = urlsplit(text)
        valid = parts.scheme in {"http", "https"} and bool(parts.hostname) and parts.port != 0
    except ValueError:
        valid = False
    if not valid:
        raise rejected("http://host or https://host, with a port from 1 to 65535 and a path if need be")
    return parts


def host_name(text: str) -> str:
    """Return a hostname or IP address in lower case."""
    host = text.lower()
    if not (is_host(host) or is_address(host)):
        raise rejected("a hostname (punycode where it is not ASCII) or an IP address")
    return host


def is_host(text: str) -> bool:
    """Return whether `text` is a hostname in lower case."""
    return len(text) <= 253 and _HOST.fullmatch(text) is not None


def is_address(text: str) -> bool:
    """Return whether `text` is an IP address."""
    try:
        ip_address(text)
    except ValueError:
        return False
    return True


def expect_text(value: object, expected: str) -> str:
    """Return `value` if it is text, or refuse it."""
    if not isinstance(value, str):
        raise rejected(expected)
    return value


def parse_host_pattern(value: object) -> str:
    """Return a hostname in lower case, in which `*` may stand for labels."""
    expected = "a hostname without port, in which * may stand for labels, but not for the last one"
    host = expect_text(value, expected).lower()
    if len(host) > 253 or not (_HOST_PATTERN.fullmatch(host) or is_address(host)):
        raise rejected(expected)
    return host


def to_path(text: str) -> Path:
    """Return a path, with `~` replaced by the home folder."""
    if "\0" in text:
        raise rejected("a path")
    try:
        return Path(text).expanduser()
    except RuntimeError:
        raise rejected("a path (no home folder is known for its ~)") from None
