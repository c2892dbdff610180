"""How a poll shows who it is: a fixed key, or an access token that ends and is fetched anew, in two pure steps."""

from __future__ import annotations

import base64
from urllib.parse import urlencode, urlsplit

import msgspec

from ...kit.errors import ConfigError
from .poll import Answer, Call, NotAllowed, NotNow, Unreadable, decoded, trouble_of

early_us = 60_000_000  # a token is renewed so long before it ends
lifetime_s_default = 1800.0
FORM = {"content-type": "application/x-www-form-urlencoded", "accept": "application/json"}


class OAuth(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """OAuth 2: with a ``refresh_token`` that grant (RFC 6749 section 6), without one the client's credentials (section 4.4).

    A vendor that gives a new refresh token each time (rotation) cannot be used: what is configured has to stay valid.
    """

    token_url: str
    client_id: str
    client_secret: str = ""
    refresh_token: str = ""
    scope: str = ""
    extra: dict[str, str] = {}  # further fields of the token request, such as `audience`


def basic(user: str, password: str) -> str:
    return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()


class Token:
    """An access token as long as it is good; it lives in memory alone."""

    def __init__(self, oauth: OAuth | None, fixed: str, label: str, *, lifetime_s: float = lifetime_s_default) -> None:
        self.oauth, self.label, self._lifetime_s = oauth, label, lifetime_s
        self.renews = oauth is not None
        self._value, self._until_us = fixed, 0
        self.answered: dict = {}  # what came with the token, such as Salesforce's `instance_url`

    def call(self, now_us: int) -> Call | None:
        """Return the call that fetches a token, or None where the one at hand is good."""
        if not self.oauth or (self._value and now_us < self._until_us):
            return None
        form = {"grant_type": "refresh_token" if self.oauth.refresh_token else "client_credentials", "client_id": self.oauth.client_id}
        given = {"client_secret": self.oauth.client_secret, "refresh_token": self.oauth.refresh_token, "scope": self.oauth.scope}
        form |= {name: value for name, value in given.items() if value} | self.oauth.extra
        return Call(method="POST", url=self.oauth.token_url, headers=FORM, body=urlencode(form).encode())

    def take(self, answer: Answer, now_us: int) -> None:
        """Keep the token of an answer. Raises NotAllowed, NotNow or Unreadable."""
        if answer.status in (400, 401, 403):
            # `invalid_grant` and its like (RFC 6749 section 5.2); what else stands in the answer might be a secret.
            said = msgspec.json.decode(answer.body) if answer.body[:1] == b"{" else {}
            why = str(said.get("error", ""))[:60] if isinstance(said, dict) else ""
            raise NotAllowed(
                f"{self.label} gives no access token ({answer.status} {why})".rstrip(), todo="Check `oauth`, or connect it anew"
            )
        if not 200 <= answer.status < 300:
            problem = trouble_of(answer, self.label, "no access token")
            raise problem if isinstance(problem, NotAllowed | NotNow) else NotAllowed(problem.what)
        found = decoded(answer, self.label)
        value, lifetime = found.get("access_token"), found.get("expires_in", self._lifetime_s)
        if not isinstance(value, str) or not value:
            raise Unreadable(f"{self.label}: no `access_token` in the answer")
        try:
            lifetime_us = int(float(lifetime) * 1e6)
        except (TypeError, ValueError, OverflowError):
            lifetime_us = int(self._lifetime_s * 1e6)
        self._value, self.answered = value, found
        # A token that is good for a minute must not be fetched for each call.
        self._until_us = now_us + max(lifetime_us - early_us, lifetime_us // 2)

    def forget(self) -> None:
        if self.oauth:
            self._value = ""

    @property
    def bearer(self) -> str:
        return f"Bearer {self._value}"


def same_place(url: str, wanted: str) -> bool:
    """Whether a URL from an answer leads to where the poll's own does: with our credentials nobody is to be led elsewhere."""
    try:
        given, own = urlsplit(url), urlsplit(wanted)
        return (given.scheme, given.hostname, given.port) == (own.scheme, own.hostname, own.port) and not given.username
    except ValueError:
        return False


def checked_url(url: str, where: str) -> str:
    """Return a base address without its last slash. Raises ConfigError where credentials would go over plain HTTP to another machine."""
    parts = urlsplit(url)
    near = parts.hostname in ("127.0.0.1", "localhost", "::1")
    if not parts.hostname or parts.scheme not in ("http", "https") or (parts.scheme == "http" and not near):
        raise ConfigError("Not an address to ask", expected="https://...", got=url, where=where)
    return url.rstrip("/")
