"""Sign requests to AWS with botocore and its credential chain, without blocking the event loop.

botocore is an optional dependency. It is imported when a provider needs it.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from pydantic import SecretStr

from aibridge_addon.config.providers import Bedrock

SERVICE = "bedrock"
TIMEOUT = 30.0
"""Seconds. Maximum time to find credentials; the chain ends with requests to the instance's metadata service."""
DEFAULT_REGION = "us-east-1"
INSTALL = "pip install 'aibridge-mitmproxy[bedrock]'"


class BotocoreMissing(Exception):
    """botocore is not installed."""


class NoCredentials(Exception):
    """The credential chain has no credentials, or timed out. The message contains no secrets."""


class Signer:
    """Signs the requests of one provider, on one event loop."""

    def __init__(self, settings: Bedrock) -> None:
        """Raises BotocoreMissing."""
        try:
            import botocore.auth
            import botocore.awsrequest
            import botocore.credentials
            import botocore.exceptions
            import botocore.session
            import botocore.tokens
        except ImportError as e:
            raise BotocoreMissing from e
        logging.getLogger("botocore").setLevel(logging.WARNING)  # at lower levels botocore logs what it signs
        self._botocore: Any = botocore
        self._session: Any = botocore.session.Session()
        self._region = settings.region or self._region_of(str(settings.base_url or ""))
        self._credentials: Any = None
        self._used = ""
        if settings.access_key is not None and settings.secret_key is not None:
            self._credentials = botocore.credentials.Credentials(_text(settings.access_key), _text(settings.secret_key))
        # One thread, so that expired credentials are refreshed once and not by every waiting request.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="aibridge-aws")

    def _region_of(self, url: str) -> str:
        named = re.search(r"bedrock-runtime[^.]*\.([a-z0-9-]+)\.", url)
        return named[1] if named else self._session.get_config_variable("region") or DEFAULT_REGION

    @property
    def key_id(self) -> str:
        """The access key id or the bearer token, if known. The caller must mask it before showing it."""
        return self._used or getattr(self._credentials, "access_key", None) or ""

    async def sign(self, method: str, url: str, headers: Mapping[str, str], body: bytes) -> dict[str, str]:
        """Return the headers with those that authenticate the request. Raises NoCredentials."""
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(TIMEOUT):
                return await loop.run_in_executor(self._thread, self._signed, method, url, dict(headers), body)
        except TimeoutError as e:
            raise NoCredentials(f"no AWS credentials within {TIMEOUT:.0f} s") from e

    def _signed(self, method: str, url: str, headers: dict[str, str], body: bytes) -> dict[str, str]:
        try:
            if self._credentials is None:
                # Bedrock accepts a bearer token from the environment only, not from other token providers.
                token = self._botocore.tokens.ScopedEnvTokenProvider(self._session).load_token(signing_name=SERVICE)
                if token is not None:
                    self._used = token.token
                    return headers | {"authorization": f"Bearer {token.token}"}
                self._credentials = self._session.get_credentials()
            frozen = self._credentials.get_frozen_credentials() if self._credentials is not None else None
        except (self._botocore.exceptions.BotoCoreError, self._botocore.exceptions.ClientError, OSError) as e:
            raise NoCredentials(f"AWS credentials cannot be loaded: {type(e).__name__}") from e
        if frozen is None:
            raise NoCredentials("there are no AWS credentials")
        self._used = frozen.access_key
        request = self._botocore.awsrequest.AWSRequest(method=method, url=url, headers=headers, data=body)
        self._botocore.auth.SigV4Auth(frozen, SERVICE, self._region).add_auth(request)
        return {name.lower(): value for name, value in request.headers.items()}


def _text(secret: SecretStr) -> str:
    return secret.get_secret_value()
