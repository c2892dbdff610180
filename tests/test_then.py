"""What a rule says: templates are checked with the rule, filled in within bounds, and make no host or line that the author did not."""

from __future__ import annotations

import pytest

from midflight.act.language import RenderError, TemplateError
from midflight.act.ways import REGISTRY
from midflight.act.ways._then import Then, render
from midflight.kit.errors import ConfigError, MidflightError

SLACK, TWILIO, TEAMS, WEBHOOK, SITE = (REGISTRY.get(name) for name in ("slack", "sms_twilio", "teams", "webhook", "on_site"))
ADA = {"first_name": "Ada", "phone": "+447700900123", "event": {"url": "https://shop.example/a?b=c&d", "value": 12.5}}


def test_templates_are_filled_in() -> None:
    """Attributes, what the event said, and our own names, with the filters of email."""
    said = render(
        TWILIO, {"to": "{{ phone }}", "body": "Hi {{ first_name | upcase }}, {{ event.value }} {{ campaign }}"}, ADA, {"campaign": "spring"}
    )
    assert said == {"to": "+447700900123", "body": "Hi ADA, 12.5 spring"}
    assert render(WEBHOOK, {"type": "a.b", "data": {"n": "{{ first_name }}", "m": "x"}}, ADA, {}) == {
        "type": "a.b", "data": {"n": "Ada", "m": "x"},
    }  # fmt: skip


def test_values_that_are_missing_say_nothing() -> None:
    """As in email; `check` refuses unknown names when the rule is saved."""
    then = Then(SLACK, {"text": "Hi {{ nickname }}"}, "rules.r.then")
    assert then.render({}, {}) == {"text": "Hi "}
    with pytest.raises(TemplateError, match="nickname"):
        then.check({"first_name"})
    then.check({"nickname"})
    Then(SLACK, {"text": 'Hi {{ nickname | default: "you" }}'}, "then").check(set())


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"text": "{{ a"}, "never closed"),
        ({"text": "{% include 'x' %}"}, "cannot be read"),
        ({"text": "{{ a | nonsense }}"}, "Unknown filter"),
        ({"text": 3}, "text"),
        ({"txt": "x"}, "txt"),
        ({}, "text"),
        ({"text": "x", "link": "javascript:alert(1)"}, "https"),
        ({"text": "x", "link": "{{ url }}"}, "host"),
        ({"text": "x", "link": "https://{{ host }}/x"}, "host"),
        ({"text": "x", "link": "https://shop.example{{ x }}"}, "host"),
        ({"text": "x", "link": "https://a@shop.example/{{ x }}"}, "host"),
        ({"text": "x", "link": "//shop.example/{{ x }}"}, "host"),
        ({"text": "x", "link": "{% if a %}https://shop.example/{% endif %}"}, "host"),
    ],
)
def test_what_cannot_be_said_is_refused_with_the_rule(fields: dict, expected: str) -> None:
    """Broken templates, wrong types and names, and URLs whose host would come from a value."""
    with pytest.raises(MidflightError, match=expected):
        Then(SLACK, fields, "rules.r.then")


def test_what_must_not_come_from_outside_takes_no_template() -> None:
    """Ids, types and names of pools are fixed."""
    with pytest.raises(TemplateError, match="must not come from a template"):
        Then(WEBHOOK, {"type": "{{ event.type }}"}, "then")
    with pytest.raises(TemplateError, match="must not come from a template"):
        Then(REGISTRY.get("meta_audience"), {"audience": "{{ audience }}"}, "then")
    with pytest.raises(ConfigError):
        Then(REGISTRY.get("meta_audience"), {"audience": "1", "do": "{{ do }}"}, "then")


SLY = [
    "x/../../admin", "x?y=z#f", "x y", "x\r\nHost: evil.example", "@evil.example/", "//evil.example", "%2e%2e", '"><script>', "ü\u202e",
    "{{ a }}", "\\evil.example", "x\x00y", "javascript:alert(1)",
]  # fmt: skip


@pytest.mark.parametrize("value", SLY)
def test_a_value_stays_inside_of_its_url(value: str) -> None:
    """Whatever a value is, the URL begins as the author wrote it, is printable ASCII, and the value is one percent-encoded piece."""
    said = render(SLACK, {"text": "x", "link": "https://shop.example/p/{{ v }}?u={{ v }}"}, {"v": value}, {})["link"]
    piece = said.removeprefix("https://shop.example/p/").partition("?")[0]
    assert said.startswith("https://shop.example/p/") and said.isascii() and said.isprintable()
    assert not set(piece) & set("/?#@:\\ \"'<>{}&=") and said == f"https://shop.example/p/{piece}?u={piece}"


def test_nested_values_are_encoded_too() -> None:
    """A text inside of an event's object is no way around it."""
    said = render(SLACK, {"text": "x", "link": "https://shop.example/?u={{ event.url }}"}, ADA, {})
    assert said["link"] == "https://shop.example/?u=https%3A%2F%2Fshop.example%2Fa%3Fb%3Dc%26d"


def test_a_filter_cannot_open_a_url() -> None:
    """What puts characters back is caught by what a URL may hold, and cannot change the host."""
    fields = {"text": "x", "link": "https://shop.example/{{ v | url_decode }}"}
    for value in ("a b", "a\r\nb", '"', "<", "{", "\\", "ü"):
        with pytest.raises(RenderError):
            render(SLACK, fields, {"v": value}, {})
    assert render(SLACK, fields, {"v": "//evil.example"}, {})["link"] == "https://shop.example///evil.example"


@pytest.mark.parametrize("value", ["a\nb", "a\r\nBcc: x", "a\x00b", "a\u2028b", "\u202eevil"])
def test_a_line_stays_one_line(value: str) -> None:
    """Titles and numbers are one printable line, cut at their bound."""
    said = render(TEAMS, {"text": "x", "title": "{{ v }}"}, {"v": value}, {})["title"]
    assert "\n" not in said and "\r" not in said and said.isprintable()
    assert len(render(TEAMS, {"text": "x", "title": "{{ v }}"}, {"v": "y" * 999}, {})["title"]) == 200


def test_a_text_beyond_its_bound_is_not_sent() -> None:
    """A message that would lose its end, and with it its link, is refused for this recipient."""
    with pytest.raises(RenderError, match="1600"):
        render(TWILIO, {"to": "{{ phone }}", "body": "{{ v }}"}, ADA | {"v": "x" * 1601}, {})


def test_work_is_bounded() -> None:
    """A template that would run for ever ends as in email."""
    with pytest.raises(RenderError):
        render(SLACK, {"text": "{% for i in (1..9999) %}{% for j in (1..9999) %}x{% endfor %}{% endfor %}"}, {}, {})


# -- codes of offers ---------------------------------------------------------------------------------------------------------------

OFFER = {"pool": "spring", "way": "text", "say": {"to": "{{ phone }}", "body": "{{ first_name }}: {{ code | upcase }}"}}


def test_what_tells_a_code_is_rendered_around_it() -> None:
    """The other way's templates are filled in, with the code where they say so."""
    then = Then(REGISTRY.get("offer_code"), OFFER, "then", Then(TWILIO, OFFER["say"], "then.say"))
    assert then.render(ADA, {}, "abc-1")["say"] == {"to": "+447700900123", "body": "Ada: ABC-1"}
    then.check({"phone", "first_name"})
    with pytest.raises(TemplateError, match="phone"):
        then.check({"first_name"})


def test_an_offer_that_does_not_tell_its_code_is_refused() -> None:
    """Also one whose inner fields are wrong for the other way."""
    with pytest.raises(TemplateError, match="does not tell the code"):
        Then(REGISTRY.get("offer_code"), OFFER, "then", Then(TWILIO, {"to": "x", "body": "y"}, "then.say"))
    with pytest.raises(ConfigError, match="txt"):
        Then(SLACK, {"txt": "{{ code }}"}, "then.say")
