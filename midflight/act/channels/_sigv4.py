"""AWS Signature Version 4, as far as a POST of a body without a query needs it."""

from __future__ import annotations

import hmac
from collections.abc import Mapping
from datetime import UTC, datetime
from hashlib import sha256

ALGORITHM = "AWS4-HMAC-SHA256"


def amz_date(now_us: int) -> str:
    """Return a time as ``X-Amz-Date`` has it; AWS accepts it for fifteen minutes."""
    return f"{datetime.fromtimestamp(now_us // 1_000_000, UTC):%Y%m%dT%H%M%SZ}"


def authorization(
    method: str, path: str, headers: Mapping[str, str], body: bytes, *, access_key_id: str, secret_access_key: str, region: str,
    service: str,
) -> str:  # fmt: skip
    """Return the value of the header ``Authorization`` that signs all of these headers and the body.

    Header names are lower-case; ``host`` and ``x-amz-date`` are among them. The path is encoded already. The steps are those of
    https://docs.aws.amazon.com/IAM/latest/UserGuide/reference_sigv-create-signed-request.html.
    """
    names = sorted(headers)
    signed = ";".join(names)
    lines = "".join(f"{name}:{' '.join(headers[name].split())}\n" for name in names)
    request = f"{method}\n{path}\n\n{lines}\n{signed}\n{sha256(body).hexdigest()}"
    at = headers["x-amz-date"]
    scope = f"{at[:8]}/{region}/{service}/aws4_request"
    to_sign = f"{ALGORITHM}\n{at}\n{scope}\n{sha256(request.encode()).hexdigest()}"
    key = b"AWS4" + secret_access_key.encode()
    for part in (*scope.split("/"), to_sign):
        key = hmac.digest(key, part.encode(), "sha256")
    return f"{ALGORITHM} Credential={access_key_id}/{scope}, SignedHeaders={signed}, Signature={key.hex()}"
