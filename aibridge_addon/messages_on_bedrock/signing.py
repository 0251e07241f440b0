"""Sign requests to AWS with botocore and its whole credential chain. Nothing here blocks the event loop.

botocore is an extra: it is imported when a provider asks for it.
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
"""Seconds that credentials may take to be found: a machine's metadata service is asked last."""
DEFAULT_REGION = "us-east-1"
INSTALL = "pip install 'aibridge-mitmproxy[bedrock]'"


class BotocoreMissing(Exception):
    """botocore is not installed."""


class NoCredentials(Exception):
    """There are none in the whole chain, or not in time; the text tells nothing secret."""


class Signer:
    """Signs the requests of one provider. Used on one event loop."""

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
        logging.getLogger("botocore").setLevel(logging.WARNING)  # far below that, it writes what it signs
        self._botocore: Any = botocore
        self._session: Any = botocore.session.Session()
        self._region = settings.region or self._region_of(str(settings.base_url or ""))
        self._credentials: Any = None
        self._used = ""
        if settings.access_key is not None and settings.secret_key is not None:
            self._credentials = botocore.credentials.Credentials(_text(settings.access_key), _text(settings.secret_key))
        # One thread: credentials that have to be refreshed are so once, not once for each request that waits.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="aibridge-aws")

    def _region_of(self, url: str) -> str:
        named = re.search(r"bedrock-runtime[^.]*\.([a-z0-9-]+)\.", url)
        return named[1] if named else self._session.get_config_variable("region") or DEFAULT_REGION

    @property
    def key_id(self) -> str:
        """The access key's id, or the bearer token, as far as it is known: what may be shown is the caller's to say."""
        return self._used or getattr(self._credentials, "access_key", None) or ""

    async def sign(self, method: str, url: str, headers: Mapping[str, str], body: bytes) -> dict[str, str]:
        """The headers, with those that authenticate the request. Raises NoCredentials."""
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(TIMEOUT):
                return await loop.run_in_executor(self._thread, self._signed, method, url, dict(headers), body)
        except TimeoutError as e:
            raise NoCredentials(f"no AWS credentials within {TIMEOUT:.0f} s") from e

    def _signed(self, method: str, url: str, headers: dict[str, str], body: bytes) -> dict[str, str]:
        try:
            if self._credentials is None:
                # Tokens of other providers are for services that want them; Bedrock takes this one.
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
