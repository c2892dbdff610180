"""A campaign's definition: strict, with clear errors, and never sent by accident."""

from __future__ import annotations

import copy

import pytest

from midflight.act.definition import BadCampaign, campaign_of
from midflight.kit.errors import MidflightError

GOOD = {
    "name": "spring",
    "channel": "main",
    "from_address": "news@shop.example",
    "audience": {"csv": "people.csv"},
    "variants": [
        {"name": "A", "subject": "Two days left", "html": "<p>Hello {{ first_name | default: 'you' }}</p>"},
        {"name": "B", "subject": "Last chance, {{ first_name | default: 'friend' }}", "text": "Hello. {{ unsubscribe_url }}"},
    ],
}


def changed(**changes: object) -> dict:
    return copy.deepcopy(GOOD) | changes


def test_a_good_definition_is_ready() -> None:
    """Defaults suit a first campaign: clicks, the finite list, no holdout."""
    ready = campaign_of(GOOD, {"main"})
    assert (ready.campaign.goal, type(ready.policy).__name__, ready.campaign.holdout) == ("click", "FiniteList", 0.0)
    assert len(ready.templates) == 2 and not ready.warnings
    assert ready.campaign.waves.moments() == 97


BAD = [
    (changed(colour="red"), "colour", ""),
    (changed(chanel="x"), "Did you mean `channel`", ""),
    (changed(channel="mian"), "Did you mean `main`", "$.channel"),
    (changed(name=""), "A name", "$.name"),
    (changed(name="spring\nBcc: x@example.com"), "A name", "$.name"),
    (changed(name="x" * 101), "A name", "$.name"),
    (changed(variants=[]), "Variants", "$.variants"),
    (
        changed(variants=[{"name": f"v{n}", "subject": "s", "text": "t {{ unsubscribe_url }}"} for n in range(1000)]),
        "1 to 100",
        "$.variants",
    ),
    (changed(variants=[GOOD["variants"][0]] * 2), "Two variants", "$.variants[1].name"),
    (changed(variants=[{"name": "A", "subject": "s"}]), "no body", "variant A"),
    (changed(variants=[{"name": "A", "text": "t"}]), "no subject", "variant A"),
    (changed(variants=[{"name": "A", "subject": "s", "html": "<p>{{ x "}]), "", "variant A"),
    (changed(variants=[{"name": "A", "subject": "s", "html": "a", "htm": "b"}]), "htm", ""),
    (changed(from_address="The Shop <news@shop.example>"), "No address", "$.from_address"),
    (changed(from_address=""), "No address", "$.from_address"),
    (changed(reply_to="nobody"), "No address", "$.reply_to"),
    (changed(audience={}), "one of", "$.audience"),
    (changed(audience={"csv": "a.csv", "segment": "s"}), "csv and segment", "$.audience"),
    (changed(goal="opens"), "opens", ""),
    (changed(policy={"kind": "finite"}), "Did you mean `finite_list`", "$.policy.kind"),
    (changed(policy={"floor": 2}), "<= 0.5", "$.policy"),
    (changed(policy={"kind": "thompson", "start_scale": 1}), "start_scale", "$.policy"),
    (changed(holdout=1.0), "<= 0.9", ""),
    (changed(waves={"hours": 0}), "> 0", ""),
    (changed(waves={"start": "tomorrow"}), "as in", "$.waves.start"),
    (changed(waves={"hours": 700, "every_minutes": 1}), "Too many waves", "$.waves"),
    (changed(waves={"per_provider_per_minute": {"gmail": 0}}), ">= 1", ""),
    (changed(guardrails={"complaint": -0.1}), ">= 0", ""),
    (changed(claims={"alpha": 0.9}), "< 0.5", ""),
    (None, "", ""),
    ([], "", ""),
    ("spring", "", ""),
]


@pytest.mark.parametrize(("raw", "said", "where"), BAD, ids=[f"{n}-{said}" for n, (_, said, _) in enumerate(BAD)])
def test_a_bad_definition_says_what_is_wrong(raw: object, said: str, where: str) -> None:
    """Each mistake is refused with what it is and where."""
    with pytest.raises(MidflightError) as refused:
        campaign_of(raw, {"main"})
    assert said in refused.value.text() and where in refused.value.text()
    assert isinstance(refused.value, BadCampaign) or "variant" in where


def test_what_is_risky_is_said() -> None:
    """Opens as a goal, a single variant and ceilings that stop at once or never are allowed and said."""
    ready = campaign_of(
        changed(
            goal="open", why_opens="a newsletter without links", variants=GOOD["variants"][:1], guardrails={"complaint": 0, "bounce": 1}
        ),
        {"main"},
    )
    told = " ".join(ready.warnings)
    assert "a newsletter without links" in told and "one variant" in told and "the first one stops" in told and "never stops" in told
