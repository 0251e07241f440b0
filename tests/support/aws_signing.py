"""Requests with AWS's signature: made, and checked as AWS would, by botocore."""

from __future__ import annotations

import hashlib
import re
from typing import Any

from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials

from tests.support.script import Request

REGION = "us-east-1"
ACCESS_KEY = "AKIDEXAMPLE0123456789"
SECRET_KEY = "not-a-secret-not-a-secret-not-a-secret-0"
SESSION_TOKEN = "a-session-token"
HINT = "AKID...6789"

_AUTHORIZATION = re.compile(
    r"AWS4-HMAC-SHA256 Credential=(?P<key>[^/]+)/\d{8}/(?P<region>[^/]+)/(?P<service>[^/]+)/aws4_request, "
    r"SignedHeaders=(?P<headers>[^,]+), Signature=(?P<signature>[0-9a-f]{64})"
)


def signed_headers(url: str, body: bytes, service: str = "bedrock") -> list[tuple[str, str]]:
    """The headers of a signed POST of JSON, `host` left to the HTTP client."""
    request = AWSRequest("POST", url, headers={"content-type": "application/json"}, data=body)
    SigV4Auth(Credentials(ACCESS_KEY, SECRET_KEY, SESSION_TOKEN), service, REGION).add_auth(request)
    return [(name.lower(), value) for name, value in request.headers.items()]


def is_validly_signed(request: Request) -> bool:
    """Whether the signature is over the request as it has arrived: its path, its signed headers, its body."""
    found = _AUTHORIZATION.fullmatch(request.header("authorization") or "")
    assert found is not None, f"no signature: {request.header('authorization')}"
    names = found["headers"].split(";")
    headers = {name: request.header(name) or "" for name in names if name != "host"}
    if (told := request.header("x-amz-content-sha256")) is not None:
        assert told == hashlib.sha256(request.body).hexdigest()
    arrived = AWSRequest(request.method, f"https://{request.authority}{request.target}", headers, request.body)
    arrived.context["timestamp"] = request.header("x-amz-date")
    signer: Any = SigV4Auth(Credentials(found["key"], SECRET_KEY), found["service"], found["region"])
    text = signer.string_to_sign(arrived, signer.canonical_request(arrived))
    return bool(signer.signature(text, arrived) == found["signature"])
