"""What a demonstration automates: segments of who clicks and who does not buy, and a rule that follows the latter up by email."""

from __future__ import annotations

from urllib.parse import quote

import httpx

from ..kit.errors import MidflightError

CLICKED, HESITATING, RULE = "Clicked today", "Clicked and not bought", "Remind who did not buy"
SEGMENTS = {
    CLICKED: {"did": "clicked", "within": "24h"},
    HESITATING: {"all": [{"did": "clicked", "within": "24h"}, {"not": {"did": "converted", "within": "24h"}}]},
}
SAYS = {
    "subject": "Still thinking about it?", "from_name": "The Shop", "from_address": "news@shop.example",
    "text": "The spring collection is still here: https://shop.example/offer\n{{ unsubscribe_url }}",
}  # fmt: skip
holdout = 0.1
within_minutes = 20.0  # so long nothing is bought after a click, by the campaign's hours
answer_s_max = 30.0


def follow_up_of(campaign: str) -> str:
    """Return the campaign that follow-ups of a campaign belong to."""
    return f"Follow-up: {campaign}"


def rule_of(campaign: str, channel: str, speed: float) -> dict:
    """Return the rule for a campaign whose hours go by so many times as fast: who clicks and does not buy is written to once a day."""
    within = f"{max(1, round(within_minutes * 60 / speed))}s"
    return {
        "when": {"kind": "absence", "after": {"did": "clicked", "campaign": campaign}, "no": {"did": "converted"}, "within": within},
        "action": {"way": "email", "fields": SAYS | {"channel": channel, "campaign": follow_up_of(campaign)}},
        "limits": {
            "autonomy": "act", "holdout": holdout, "per_recipient": [{"count": 1, "hours": 24}], "per_hour": 100_000,
            "expires_minutes": 60.0,
        },
    }  # fmt: skip


def automate(api: str, token: str, campaign: str, channel: str, speed: float) -> None:
    """Put the segments into force, where they are not yet, and the rule's next version, for this campaign. The token may send.

    Raises MidflightError where the console does not take it.
    """
    with httpx.Client(base_url=api, headers={"authorization": f"Bearer {token}"}, timeout=answer_s_max, trust_env=False) as client:
        there = {row["name"] for row in _asked(client, "GET", "/v1/segments")["segments"]}
        for name, where in SEGMENTS.items():
            if name not in there:
                _asked(client, "PUT", f"/v1/segments/{quote(name)}", {"where": where, "why": "the demonstration"})
        wanted = {"definition": rule_of(campaign, channel, speed), "why": f"for {campaign}"}
        _asked(client, "PUT", f"/v1/rules/{quote(RULE)}", wanted)


def _asked(client: httpx.Client, method: str, path: str, body: dict | None = None) -> dict:
    try:
        answer = client.request(method, path, json=body)
    except httpx.HTTPError as error:
        raise MidflightError(f"The API does not answer: {error}", where=path) from None
    if not answer.is_success:
        raise MidflightError(f"The API answers {answer.status_code}", got=answer.text[:300], where=path)
    return answer.json()
