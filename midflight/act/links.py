"""Public links by which recipients unsubscribe: whom a link is for is in it, so that nothing has to be kept, and nobody else can read or
make one."""

from __future__ import annotations

import base64
import binascii
import os
import secrets
from pathlib import Path
from typing import NamedTuple

import msgspec
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESSIV

from ..kit.errors import Damaged

VERSION = 1
PREFIX = "/u/"
key_bytes = 64
token_chars_max = 2_000  # longer is none of ours: an address has at most 320 characters, names are bounded too
_PURPOSE = [b"midflight link"]
_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(tuple[int, str, str, str, str])


class Link(NamedTuple):
    """What a link says: the recipient's key, and which message it stood in."""

    recipient: str
    campaign: str
    variant: str
    wave: str


class Links:
    """Makes links and reads them. The same message always has the same link.

    AES-SIV (RFC 5297) needs no random nonce, shows nothing of what is in it but its length, and refuses every token that was changed.
    """

    def __init__(self, key: bytes, base_url: str) -> None:
        self._cipher = AESSIV(key)
        self.base_url = base_url.rstrip("/")
        self._before = self.base_url + PREFIX

    @property
    def secure(self) -> bool:
        """Whether links lead to HTTPS, as those have to by which a mailbox unsubscribes (RFC 8058)."""
        return self.base_url.startswith("https://")

    def url(self, recipient: str, campaign: str, variant: str, wave: str) -> str:
        """Return the link of one message. ``recipient`` is the key of `events.recipient_key`."""
        sealed = self._cipher.encrypt(_encoder.encode((VERSION, recipient, campaign, variant, wave)), _PURPOSE)
        return self._before + base64.urlsafe_b64encode(sealed).rstrip(b"=").decode()

    def read(self, token: str) -> Link | None:
        """Return what a token says, or None where it is none of ours."""
        if len(token) > token_chars_max or not token.isascii():
            return None
        try:
            sealed = base64.b64decode(token + "=" * (-len(token) % 4), b"-_", validate=True)
            # The last character has bits to spare: one spelling of a token is enough.
            if base64.urlsafe_b64encode(sealed).rstrip(b"=").decode() != token:
                return None
            version, *said = _decoder.decode(self._cipher.decrypt(sealed, _PURPOSE))
        except (binascii.Error, InvalidTag, msgspec.DecodeError, ValueError):
            return None
        return Link(*said) if version == VERSION else None


def public_key(folder: Path) -> bytes:
    """Return the key of ``{folder}/public.key``, made now when there is none; whoever comes first makes it for all.

    It is never made anew over what is there: links in mailboxes would end. Raises Damaged, and OSError for what the disk says.
    """
    path = folder / "public.key"
    if not path.exists():
        _make(path)
    key = path.read_bytes()
    if len(key) != key_bytes:
        raise Damaged(
            "The key of public links is not whole", expected=f"{key_bytes} bytes", got=len(key), where=str(path),
            todo="Put it back from a backup. Without it the links in messages that went out unsubscribe nobody; if it is lost, remove it",
        )  # fmt: skip
    return key


def _make(path: Path) -> None:
    fresh = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}")
    fd = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(fd, "wb") as file:
            file.write(secrets.token_bytes(key_bytes))
            file.flush()
            os.fsync(file.fileno())
        try:
            os.link(fresh, path)
        except FileExistsError:
            return  # somebody else was first, and that is the key
    finally:
        fresh.unlink()
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
