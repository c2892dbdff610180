"""The two files of a sandbox: settings for Midflight with verification keys, and the private keys that only the sandbox has."""

from __future__ import annotations

import base64
import math
from functools import lru_cache
from hashlib import blake2b, shake_256
from pathlib import Path

import msgspec
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from ..kit.errors import ConfigError
from ..sources import REGISTRY, Source, load
from .audience import DIMENSIONS
from .vendors import SITE, VENDORS

# Order of P-256's group: a private key is a number below it.
_P256 = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551


def secret_of(seed: int, what: str) -> bytes:
    """Return 32 bytes that follow from the seed: sandbox keys protect nothing, and the same run has to be repeatable."""
    return blake2b(f"midflight sandbox {seed} {what}".encode(), digest_size=32).digest()


def sendgrid_keys(seed: int) -> tuple[str, str]:
    """Return (private PEM, public key as SendGrid shows it)."""
    private = ec.derive_private_key(int.from_bytes(secret_of(seed, "sendgrid")) % (_P256 - 1) + 1, ec.SECP256R1())
    pem = private.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    der = private.public_key().public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    return pem.decode(), base64.b64encode(der).decode()


@lru_cache(maxsize=8)
def ses_keys(seed: int) -> tuple[str, str]:
    """Return (private PEM, public PEM) of an RSA key, as Amazon's SNS has one."""
    p, q = (prime_of(secret_of(seed, f"ses {which}")) for which in "pq")
    e = 65537
    d = pow(e, -1, (p - 1) * (q - 1))
    public = rsa.RSAPublicNumbers(e, p * q)
    private = rsa.RSAPrivateNumbers(p, q, d, d % (p - 1), d % (q - 1), rsa.rsa_crt_iqmp(p, q), public).private_key()
    pem = private.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    shown = private.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    return pem.decode(), shown.decode()


def prime_of(secret: bytes, bits: int = 1024) -> int:
    """Return the first probable prime of so many bits that follows from a secret."""
    number = int.from_bytes(shake_256(secret).digest(bits // 8)) | 3 << (bits - 2) | 1
    small = 3 * 5 * 7 * 11 * 13 * 17 * 19 * 23 * 29 * 31 * 37 * 41 * 43 * 47 * 53 * 59 * 61 * 67 * 71 * 73 * 79 * 83 * 89 * 97
    while math.gcd(number, small) > 1 or (number - 1) % 65537 == 0 or any(pow(base, number - 1, number) != 1 for base in (2, 3, 5, 7)):
        number += 2
    return number


def source_settings(kind: str, seed: int) -> tuple[dict, dict]:
    """Return the settings of one source as (Midflight's, the sandbox's)."""
    text = secret_of(seed, kind).hex()
    if kind == "sendgrid":
        private, public = sendgrid_keys(seed)
        return {"kind": kind, "secrets": [public]}, {"kind": kind, "secrets": [private]}
    if kind == "ses":
        private, public = ses_keys(seed)
        return {"kind": kind, "secrets": [public]}, {"kind": kind, "secrets": [private]}
    if kind == "resend":
        both = {"kind": kind, "secrets": ["whsec_" + base64.b64encode(secret_of(seed, kind)).decode()]}
    elif kind == "postmark":
        both = {"kind": kind, "basic_auth": [f"postmark:{text[:32]}"]}
    elif kind == SITE:
        both = {"kind": kind, "basic_auth": [text[:32]]}
    else:
        both = {"kind": kind, "secrets": [text]}
    return both, both


def kinds() -> tuple[str, ...]:
    """Return the simulated vendors and the site, as far as this Midflight reads them."""
    known = REGISTRY.names()
    return tuple(kind for kind in (*VENDORS, SITE) if kind in known)


def sandbox_config(ports: dict[str, int] | None = None, seed: int = 1, data: str = "data") -> tuple[dict, dict]:
    """Return (midflight.yaml, sandbox keys) as plain data: ``sandbox_config({"door": 8400, "console": 8401}, 1)``."""
    ports = ports or {}
    both = {kind: source_settings(kind, seed) for kind in kinds()}
    config = {
        "data": data,
        "door": {"port": ports.get("door", 8400)},
        "console": {"port": ports.get("console", 8401)},
        "attributes": [{"name": d.name, "trait": d.trait, **({"bands": d.bands} if d.bands else {})} for d in DIMENSIONS],
        "sources": {kind: settings for kind, (settings, _) in both.items()},
    }
    return config, {"sources": {kind: settings for kind, (_, settings) in both.items()}}


def write_files(folder: Path, config: dict, keys: dict) -> tuple[Path, Path]:
    """Write midflight.yaml and sandbox.yaml; what is there already stays. Raises ConfigError."""
    paths = folder / "midflight.yaml", folder / "sandbox.yaml"
    for path in paths:
        if path.exists():
            raise ConfigError(f"{path} is there already and stays as it is", todo="Choose another folder")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        paths[0].write_bytes(msgspec.yaml.encode(config))
        paths[1].write_bytes(msgspec.yaml.encode(keys))
        paths[1].chmod(0o600)
    except OSError as error:
        raise ConfigError(f"Cannot write the sandbox's settings: {error.strerror}", got=folder) from None
    return paths


def read_keys(path: Path) -> dict:
    """Read sandbox.yaml. Raises ConfigError."""
    try:
        keys = msgspec.yaml.decode(path.read_bytes(), type=dict[str, dict[str, dict]])
    except OSError as error:
        raise ConfigError(
            f"Cannot read the sandbox's keys: {error.strerror}", got=path, todo="`midflight sandbox init` writes them"
        ) from None
    except msgspec.DecodeError as error:
        raise ConfigError(f"{path} holds no sandbox keys: {error}") from None
    if "sources" not in keys:
        raise ConfigError(f"{path} holds no sandbox keys", expected="`sources`")
    return keys


def sources_from(keys: dict) -> dict[str, Source]:
    """Return the signing sources by name, from the sandbox's keys."""
    made = {}
    for name, settings in keys["sources"].items():
        settings = dict(settings)
        made[name] = load(settings.pop("kind"), settings, name=name)
    return made


def sandbox_sources(seed: int, names: tuple[str, ...]) -> dict[str, Source]:
    """Return signing sources for these kinds with the keys of a seed."""
    return sources_from({"sources": {kind: source_settings(kind, seed)[1] for kind in names}})
