"""An OAuth token that expires: when a new one is fetched, and what of its answer is kept. Only memory holds it."""

from __future__ import annotations

from urllib.parse import urlencode

from ..channels.channel import Answer, Call, at, decoded

life_s_default = 3600.0  # where the answer does not say, as Salesforce's does not
life_s_max = 24 * 3600.0
token_chars_max = 8192
spare_s = 60.0  # a token is not used in its last minute


class Token:
    """One token of one service. ``value`` is ``""`` until one was granted; ``found`` is what else its answer said."""

    def __init__(self, url: str, form: dict[str, str]) -> None:
        self._url, self._form = url, form
        self.value = ""
        self.found: object = None
        self._until_us = 0

    def call(self, now_us: int) -> Call | None:
        """Return the call that fetches one, or None while there is a good one."""
        if self.value and now_us < self._until_us:
            return None
        headers = {"content-type": "application/x-www-form-urlencoded"}
        return Call(url=self._url, headers=headers, body=urlencode(self._form).encode(), idempotent=True)

    def granted(self, answer: Answer, now_us: int) -> str:
        """Keep the token of an answer; return what is wrong with it, or ``""``."""
        self.found = decoded(answer.body)
        value = at(self.found, "access_token")
        if not isinstance(value, str) or not 0 < len(value) <= token_chars_max or any(not "!" <= c <= "~" for c in value):
            return "the answer holds no token"
        said = at(self.found, "expires_in")
        life_s = float(said) if isinstance(said, int | float) and not isinstance(said, bool) else life_s_default
        self.value = value
        self._until_us = now_us + int(max(1.0, min(life_s, life_s_max) - spare_s) * 1e6)
        return ""

    def forget(self) -> None:
        self.value = ""
