"""The form of rules says what the definition says, for every kind of trigger and every way out, and errors lead to their fields."""

from __future__ import annotations

import contextlib

import msgspec
import pytest

from midflight.act.ways import REGISTRY as WAYS
from midflight.act.ways.way import Way
from midflight.act.ways_out import says_of
from midflight.decide.acts import RuleAction, acts_of
from midflight.decide.triggers import REGISTRY as TRIGGERS
from midflight.decide.triggers import trigger_of
from midflight.kit.errors import ConfigError, MidflightError
from midflight.serve.console import rule_form, shapes
from midflight.serve.console.rule_form import Form

LIMITS = {
    "autonomy": "act_within_caps", "per_recipient": [{"count": 1, "hours": 24.0}, {"count": 3, "hours": 168.0}], "cooldown_hours": 1.5,
    "per_hour": 500, "per_day": 2000, "priority": -3, "expires_minutes": 120.0, "holdout": 0.125, "seed": 7,
    "hours": {"quiet_from": "22:00", "quiet_until": "08:00", "send_days": ["mon", "fri"], "zone": "Europe/Berlin", "zone_attribute": "tz"},
}  # fmt: skip


def a_way(kind: str) -> Way:
    """Return a way out of a kind, set up as its first example is."""
    settings = WAYS.get(kind).EXAMPLES[0]["settings"]
    return WAYS.get(kind)(msgspec.convert(settings, WAYS.get(kind).Settings))


def there_and_back(raw: dict, ways: dict[str, Way]) -> Form:
    """Return the form that is posted back as it was shown."""
    shown = rule_form.form_of("r", 3, raw)
    fields = dict(shown.fields) | {"csrf": "x", "do": "save"}
    if raw.get("where"):
        fields |= {"c_join": "all", "c-0_kind": "segment", "c-0_segment": "fans"}
    return rule_form.read(fields, ways)


@pytest.mark.parametrize("kind", TRIGGERS.names())
def test_every_trigger_survives_the_form(kind: str) -> None:
    """Each of its examples comes back as it was, with limits and condition."""
    ways = {"chat": a_way("slack")}
    for when, said in TRIGGERS.get(kind).EXAMPLES:
        raw = {"when": when, "where": {"segment": "fans"}, "action": {"way": "chat", "fields": {"text": "hi"}}, "limits": LIMITS}
        form = there_and_back(raw, ways)
        back = rule_form.definition_of(form, ways)
        assert form.errors == {} and trigger_of(back["when"]).words() == said and back["where"] == raw["where"]
        assert acts_of(back) == acts_of(raw) and form.version == 3


@pytest.mark.parametrize("kind", WAYS.names())
def test_every_way_out_survives_the_form(kind: str) -> None:
    """What each of its examples says comes back as it was."""
    ways = {"out": a_way(kind)}
    for example in WAYS.get(kind).EXAMPLES:
        for action in example["actions"]:
            fields = msgspec.json.decode(msgspec.json.encode(action.fields))
            raw = {"when": {"kind": "event", "did": "opened"}, "action": {"way": "out", "fields": fields}}
            back = rule_form.definition_of(there_and_back(raw, ways), ways)["action"]["fields"]
            own = WAYS.get(kind).Fields
            assert msgspec.convert(back, own) == msgspec.convert(fields, own)


@pytest.mark.parametrize(("kind", "ticked", "reaches"), [
    ("sms_twilio", "", True), ("web_push", "", True), ("on_site", "", True), ("webhook", "", False), ("webhook", "1", True),
])  # fmt: skip
def test_what_people_read_never_goes_past_an_unsubscribe(kind: str, ticked: str, reaches: bool) -> None:
    """The empty form says that a rule reaches the person; only where nobody reads it can that be taken out."""
    assert rule_form.DEFAULTS["to_person"]
    ways = {"out": a_way(kind)}
    raw = {"when": {"kind": "event", "did": "opened"}, "action": {"way": "out", "fields": {}}}
    form = rule_form.form_of("r", 1, raw)
    form.fields["to_person"] = ticked
    assert rule_form.definition_of(form, ways)["action"]["to_person"] is reaches


@pytest.mark.parametrize("kind", WAYS.names())
def test_a_rule_that_would_go_past_an_unsubscribe_says_nothing(kind: str) -> None:
    """Put by the API, such a rule cannot be made into anything to say, where people read it; its ledger says why."""
    ways = {"out": a_way(kind)}
    action = WAYS.get(kind).EXAMPLES[0]["actions"][0]
    fields = msgspec.json.decode(msgspec.json.encode(action.fields))
    goes = kind in ("email", "sms_twilio", "web_push", "on_site")
    if kind == "offer_code":
        ways |= {"inner": a_way("sms_twilio")}
        fields |= {"way": "inner", "say": {"text": "Here: {{ code }}"}}
        goes = True
    with pytest.raises(ConfigError, match="unsubscribed") if goes else contextlib.nullcontext():
        says_of(ways, RuleAction(way="out", fields=fields, to_person=False))


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"caps": "often"}, "caps"), ({"holdout": "much"}, "holdout"), ({"holdout": "95"}, "holdout"), ({"per_hour": "1.5"}, "per_hour"),
        ({"quiet_from": "22:00", "quiet_until": ""}, "quiet_from"), ({"zone": "Nowhere"}, "quiet_from"), ({"priority": "500"}, "priority"),
        ({"kind": "absence", "w_absence_after.did": "clicked", "w_absence_no.did": "opened", "w_absence_within": "x"}, "w_absence_within"),
        ({"kind": "segment", "w_segment_entered": ""}, "kind"), ({"kind": "schedule", "w_schedule_at": "25:00"}, "kind"),
    ],
)  # fmt: skip
def test_an_error_stands_beside_its_field(changes: dict, field: str) -> None:
    """What cannot be read, and what whoever checks the definition says, leads to the field that it is about."""
    ways = {"chat": a_way("slack")}
    raw = {"when": {"kind": "event", "did": "opened"}, "action": {"way": "chat", "fields": {"text": "hi"}}}
    form = there_and_back(raw, ways)
    form.fields |= changes
    made = rule_form.definition_of(form, ways)
    if not form.errors:
        with pytest.raises(MidflightError) as wrong:
            trigger_of(made["when"])
            acts_of(made)
        rule_form.told_beside(form, wrong.value)
    assert list(form.errors) == [field]


def test_a_name_that_is_short_for_words_is_spelt_in_capitals() -> None:
    """The form asks for HTML and MJML, within a label too; all other names begin with a capital."""
    labels = {field.path: field.label for field in shapes.fields_of(WAYS.get("email").Fields)}
    assert (labels["html"], labels["mjml"], labels["from_name"]) == ("HTML", "MJML", "From name")
    assert shapes.label_of("the html of it") == "The HTML of it"
