"""Who a browser belongs to, as an id that the site puts into its pages: signed, so that nobody makes another's, and sealed, so that no
address stands in a URL or a log."""

from __future__ import annotations

import base64
import binascii
import hashlib

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESSIV

recipient_bytes_max = 400
id_chars_max = 700
secret_chars_min = 16
_ABOUT = b"midflight on-site id 1"


def site_id(recipient: str, secret: str, expires_s: int) -> str:
    """Return the id of a recipient, good until then (seconds since 1970). The same is made of the same: pages can be cached with it."""
    data = recipient.encode()
    assert 0 < len(data) <= recipient_bytes_max and len(secret) >= secret_chars_min
    sealed = _cipher(secret).encrypt(expires_s.to_bytes(8) + data, [_ABOUT])
    return base64.urlsafe_b64encode(sealed).rstrip(b"=").decode()


def recipient_of(given: str, secrets: list[str], now_s: int) -> str:
    """Return whom an id belongs to, ``""`` for one that is forged, changed or expired.

    ``secrets`` are several while one takes another's place.
    """
    if not 0 < len(given) <= id_chars_max or not given.isascii():
        return ""
    try:
        sealed = base64.urlsafe_b64decode(given + "=" * (-len(given) % 4))
    except (binascii.Error, ValueError):
        return ""
    for secret in secrets:
        try:
            data = _cipher(secret).decrypt(sealed, [_ABOUT])
        except (InvalidTag, ValueError):
            continue
        return data[8:].decode("utf-8", "replace") if int.from_bytes(data[:8]) > now_s else ""
    return ""


def _cipher(secret: str) -> AESSIV:
    """Return AES-SIV (RFC 5297), which needs no nonce, with a key made of the secret."""
    return AESSIV(hashlib.blake2b(secret.encode(), digest_size=32, person=b"midflight-site").digest())
