"""What Amazon SES is sent is signed as AWS says: its own published examples, and what each part of a call does to the signature."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from midflight.act.channels import REGISTRY, Call
from midflight.act.channels import _sigv4 as sigv4
from midflight.act.channels.channel import EXAMPLE, SECOND, channel_of
from midflight.kit.errors import ConfigError

NOW_US = 1_764_000_000_000_000
KEYS = {"access_key_id": "AKIDEXAMPLE", "secret_access_key": "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY"}
VANILLA = {"host": "example.amazonaws.com", "x-amz-date": "20150830T123600Z"}
FORM = VANILLA | {"content-type": "application/x-www-form-urlencoded"}
TOKEN = (
    "AQoDYXdzEPT//////////wEXAMPLEtc764bNrC9SAPBSM22wDOk4x4HIZ8j4FZTwdQWLWsKWHGBuFqwAeMicRXmxfpSPfIeoIYRqTflfKD8YUuwthAx7mSEI/qkPpKPi/kMcGdQ"
    "rmGdeehM4IC1NtBmUpp2wUE8phUZampKsburEDy0KPkyQDYwT7WZ0wq5VSXDvp75YU9HFvlRd8Tx6q6fE8YQcHNVXAkiY9q6d+xo0rKwT38xVqr7ZD0u0iPPkUL64lIZbqBAz+s"
    "cqKmlzm8FDrypNC9Yjc8fPOLn9FX9KSYvKTr4rvx3iSIlTJabIQwj2ICCR/oLxBA=="
)
# The cases of AWS's Signature Version 4 test suite that have no query: name, method, path, headers, body, signed headers, signature.
CASES = (
    (
        "get-vanilla", "GET", "/", VANILLA, b"", "host;x-amz-date",
        "5fa00fa31553b73ebf1942676e86291e8372ff2a2260956d9b8aae1d763fbf31",
    ),
    (
        "get-unreserved", "GET", "/-._~0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz", VANILLA, b"", "host;x-amz-date",
        "07ef7494c76fa4850883e2b006601f940f8a34d404d0cfa977f52a65bbf5f24f",
    ),
    (
        "get-utf8", "GET", "/%E1%88%B4", VANILLA, b"", "host;x-amz-date",
        "8318018e0b0f223aa2bbf98705b62bb787dc9c0e678f255a891fd03141be5d85",
    ),
    (
        "get-header-value-trim", "GET", "/", VANILLA | {"my-header1": " value1", "my-header2": ' "a   b   c"'}, b"",
        "host;my-header1;my-header2;x-amz-date", "acc3ed3afb60bb290fc8d2dd0098b9911fcaa05412b367055dee359757a9c736",
    ),
    (
        "post-vanilla", "POST", "/", VANILLA, b"", "host;x-amz-date",
        "5da7c1a2acd57cee7505fc6676e4e544621c30862966e37dddb68e92efbe5d6b",
    ),
    (
        "post-header-key-sort", "POST", "/", {"my-header1": "value1"} | VANILLA, b"", "host;my-header1;x-amz-date",
        "c5410059b04c1ee005303aed430f6e6645f61f4dc9e1461ec8f8916fdf18852c",
    ),
    (
        "post-header-value-case", "POST", "/", {"my-header1": "VALUE1"} | VANILLA, b"", "host;my-header1;x-amz-date",
        "cdbc9802e29d2942e5e10b5bccfdd67c5f22c7c4e8ae67b53629efa58b974b7d",
    ),
    (
        "post-sts-header-before", "POST", "/", VANILLA | {"x-amz-security-token": TOKEN}, b"", "host;x-amz-date;x-amz-security-token",
        "85d96828115b5dc0cfc3bd16ad9e210dd772bbebba041836c64533a82be05ead",
    ),
    (
        "post-x-www-form-urlencoded", "POST", "/", FORM, b"Param1=value1", "content-type;host;x-amz-date",
        "ff11897932ad3f4e8b18135d722051e5ac45fc38421b1da7b9d196a0fe09473a",
    ),
)  # fmt: skip


def wanted(signed: str, signature: str) -> str:
    return (
        "AWS4-HMAC-SHA256 Credential=AKIDEXAMPLE/20150830/us-east-1/service/aws4_request, "
        f"SignedHeaders={signed}, Signature={signature}"
    )  # fmt: skip


def wrong(sign=sigv4.authorization) -> list[str]:
    """Return the names of AWS's cases that a signer gets wrong."""
    return [
        name
        for name, method, path, headers, body, signed, signature in CASES
        if sign(method, path, headers, body, region="us-east-1", service="service", **KEYS) != wanted(signed, signature)
    ]


def test_signatures_are_those_that_aws_published() -> None:
    """Each case of AWS's test suite that a POST without a query can meet gives AWS's signature."""
    assert wrong() == []


def unsorted(*args: object, **more: str) -> str:
    """Sign with the headers in the order given."""
    sigv4.sorted = list  # the module's own name comes before Python's
    try:
        return sigv4.authorization(*args, **more)
    finally:
        del sigv4.sorted


BROKEN = {
    "headers in another order": unsorted,
    "values not trimmed": lambda method, path, headers, body, **more: sigv4.authorization(
        method, path, {name: value.replace(" ", "_") for name, value in headers.items()}, body, **more
    ),
    "the body left out": lambda method, path, headers, body, **more: sigv4.authorization(method, path, headers, b"", **more),
    "the path left out": lambda method, path, headers, body, **more: sigv4.authorization(method, "/", headers, body, **more),
    "the token not signed": lambda method, path, headers, body, **more: sigv4.authorization(
        method, path, {name: value for name, value in headers.items() if name != "x-amz-security-token"}, body, **more
    ),
    "another day in the scope": lambda method, path, headers, body, **more: sigv4.authorization(
        method, path, headers | {"x-amz-date": "20150831T123600Z"}, body, **more
    ),
}


@pytest.mark.parametrize("how", BROKEN)
def test_the_cases_catch_a_broken_signer(how: str) -> None:
    """Control: a signer that forgets a step gets at least one of AWS's cases wrong."""
    assert wrong(BROKEN[how])


def call_of(now_us: int = NOW_US, message=EXAMPLE, **settings: str) -> Call:
    given = REGISTRY.get("ses").EXAMPLES[0]["settings"] | settings
    return channel_of(REGISTRY.get("ses"), given, "ses").call([message], now_us)


def test_a_call_is_signed_with_its_own_time_region_and_body() -> None:
    """The signature of a call is that of its own headers and body, for SES, in the region and at the time given."""
    call = call_of()
    at = datetime.fromtimestamp(NOW_US / 1e6, UTC)
    assert call.headers["x-amz-date"] == f"{at:%Y%m%dT%H%M%SZ}" == "20251124T160000Z"
    headers = {name: value for name, value in call.headers.items() if name != "authorization"}
    path = "/v2/email/outbound-emails"
    assert call.headers["authorization"] == sigv4.authorization(
        "POST", path, headers, call.body, region="eu-central-1", service="ses", **KEYS
    )
    assert "/20251124/eu-central-1/ses/aws4_request, SignedHeaders=content-type;host;x-amz-date, " in call.headers["authorization"]
    assert call_of().headers == call.headers


def test_what_is_sent_decides_the_signature() -> None:
    """Another message, second, region, secret or session token gives another signature, and none of the secrets is in the call."""
    calls = [
        call_of(),
        call_of(message=SECOND),
        call_of(now_us=NOW_US + 1_000_000),
        call_of(region="eu-west-1"),
        call_of(secret_access_key="another"),
        call_of(session_token="a-token"),
    ]
    assert len({call.headers["authorization"].rpartition("=")[2] for call in calls}) == len(calls)
    assert calls[5].headers["x-amz-security-token"] == "a-token"
    assert "x-amz-security-token" in calls[5].headers["authorization"]
    for call in calls:
        assert KEYS["secret_access_key"] not in str(call.headers) and KEYS["secret_access_key"].encode() not in call.body


def test_regions_have_their_own_hosts() -> None:
    """China has another ending, an own endpoint is signed for its own host, and a region that is none is refused."""
    assert call_of(region="cn-north-1").url == "https://email.cn-north-1.amazonaws.com.cn/v2/email/outbound-emails"
    own = call_of(url="https://email-fips.us-east-1.amazonaws.com", region="us-east-1")
    assert own.url == "https://email-fips.us-east-1.amazonaws.com/v2/email/outbound-emails"
    assert own.headers["host"] == "email-fips.us-east-1.amazonaws.com"
    for region in ("", "eu", "evil.example/#", "eu-central-1.evil.example"):
        with pytest.raises(ConfigError, match="region"):
            call_of(region=region)
