"""Templates: what a campaign wrote and what is known of a recipient become a message, and neither can make it anything else."""

from __future__ import annotations

import email
import email.policy
import re
from email.message import EmailMessage
from email.utils import formataddr, getaddresses
from html.parser import HTMLParser

import liquid
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from midflight.act import language
from midflight.act.headers import display_name, headers_of, one_line, subject_chars_max
from midflight.act.language import RenderError, TemplateError, environment
from midflight.act.markup import COMPONENTS, compiled
from midflight.act.plain_text import plain_text, text_template
from midflight.act.script import Script
from midflight.act.templates import Content, Rendered, Template, compile_variant
from midflight.kit.errors import MidflightError

NOW_US = 1_764_000_000_000_000  # 2025-11-24T16:00:00Z
SYSTEM = {
    "recipient.email": "ada@example.com",
    "unsubscribe_url": "https://m.example/u/x?a=1&b=2",
    "preferences_url": "https://m.example/p/x",
    "campaign": "spring",
    "variant": "B",
    "wave": "3",
    "now": NOW_US,
}


def variant(**content: str) -> Template:
    return compile_variant(Content(**{"subject": "Hello", **content}), "spring.B")


def render(attributes: dict | None = None, **content: str) -> Rendered:
    return variant(**content).render(attributes or {}, SYSTEM)


def html_of(source: str, **attributes: object) -> str:
    return render(attributes, html=source + "{{ unsubscribe_url }}").html.removesuffix("https://m.example/u/x?a=1&amp;b=2")


def text_of(source: str, **attributes: object) -> str:
    return render(attributes, text=source + "{{ unsubscribe_url }}").text.removesuffix(SYSTEM["unsubscribe_url"])


# -- what a variant has to be ------------------------------------------------------------------------------------------------------------

REFUSED = [
    (dict(subject="a"), "no body", "spring.B"),
    (dict(subject=" ", text="a"), "no subject", "spring.B"),
    (dict(subject="a", html="b", mjml="<mjml></mjml>"), "both `html` and `mjml`", "spring.B"),
    (dict(subject="a {{ b", text="c"), "never closed", "spring.B.subject:1"),
    (dict(subject="a", html="\n\n{{ b | }}"), "cannot be read", "spring.B.html:3"),
    (dict(subject="a", html="x\n{% if b %}\ny"), "expected tag endif", "spring.B.html:2"),
    (dict(subject="a", html="x\n{% if b %}{% endfor %}"), "cannot be read", "spring.B.html:2"),
    (dict(subject="a", html="\n{% endif %}"), "unexpected tag 'endif'", "spring.B.html:2"),
    (dict(subject="a", html="\n{% if b = 1 %}{% endif %}"), "cannot be read", "spring.B.html:2"),
    (dict(subject="a", text="\n\n\n{{ b c }}"), "cannot be read", "spring.B.text:4"),
    (dict(subject="a", text="{{ b | upcas }}"), "Unknown filter `upcas`", "spring.B.text:1"),
    (dict(subject="a", html="\n{% include 'x' %}"), "include", "spring.B.html:2"),
    (dict(subject="a", html="{% render 'x' %}"), "render", "spring.B.html:1"),
    (dict(subject="a", html="{{ b | safe }}"), "Unknown filter `safe`", "spring.B.html:1"),
    (dict(subject="a", html="\n{% assign campaign = 1 %}"), "`campaign` is a name of ours", "spring.B.html:2"),
    (dict(subject="a", html="{% for attributes in b %}{% endfor %}"), "`attributes` is a name of ours", "spring.B.html:1"),
    (dict(subject="a", html="{{ attributes[b] }}"), "looked up by the value", "spring.B.html:1"),
    (dict(subject="a", html="{{ attributes }}"), "A name is missing", "spring.B.html:1"),
    (dict(subject="a", html="\n{{ (1..3) | join }}"), "range stands outside", "spring.B.html:2"),
    (dict(subject="a", html="{{ 1 | divided_by: b }}"), "divide by 0", "spring.B.html:1"),
    (dict(subject="a\x00", html="b"), "control characters", "spring.B.subject:1"),
    (dict(subject="a", html="\nb\ud800"), "half surrogates", "spring.B.html:2"),
    (dict(subject="a" * 256, html="b"), "too long", "spring.B.subject"),
    (dict(subject="a", html="b" * 500_001), "at most 500,000", "spring.B.html"),
    (dict(subject="a", html="{{ b }}" * 5_001), "at most 5,000 pieces", "spring.B.html"),
    (dict(subject="a", html="<p>\n<!-- b"), "comment does not end", "spring.B.html:2"),
    (dict(subject="a", html="\n<![<b"), "cannot be read", "spring.B.html"),
]


@pytest.mark.parametrize(("content", "said", "where"), REFUSED, ids=[said for _, said, _ in REFUSED])
def test_a_wrong_variant_is_refused_with_its_place(content: dict, said: str, where: str) -> None:
    """What cannot be sent is refused before the send, with the part and the line."""
    with pytest.raises(TemplateError) as caught:
        compile_variant(Content(**content), "spring.B")
    assert said in caught.value.text() and caught.value.where == where


def test_a_right_variant_is_not_refused() -> None:
    """The checks leave alone what is right: the same parts without the mistakes."""
    assert variant(
        subject="a {{ b }}", html="\n{% if b == 1 %}{{ b | upcase }}{% endif %}{% for i in (1..3) %}{{ i }}{% endfor %}<!-- c -->"
    )
    assert variant(text="a" * 400_000) and variant(subject="a" * 255, text="b")


@given(st.text(alphabet="{}%|-'\":.[]() \nabif<>=/&#rwcomendx!", max_size=60))
@settings(max_examples=400, deadline=None)
def test_no_template_is_a_traceback(source: str) -> None:
    """Any text is a template or is refused in our words, with the part that is wrong."""
    for part in ("html", "text", "mjml", "preheader"):
        try:
            compile_variant(Content(**{"subject": "a", "text": "b", part: source}), "v").render({"a": "x"}, SYSTEM)
        except MidflightError as error:
            assert error.where and error.where.startswith("v")


HOSTILE = [
    "{{",
    "{% raw %}",
    "{% comment %}",
    "{% if a %}",
    "{%",
    "{% doc %}",
    "{{ a }}",
    "<!--",
    "<a ",
    "<a title='",
    "<p",
    "</",
    "<![",
    "<!",
    "<",
    "<script>",
    "<ul>",
    "&a",
    "<p hidden>",
    "{% capture a %}{% endcapture %}",
]


@pytest.mark.parametrize("piece", [*HOSTILE, "{% " + "a" * 200_000, "{{" + " " * 200_000 + "}}", "{% if" + " " * 200_000 + "%}"])
def test_broken_tags_in_masses_are_read_in_time(piece: str) -> None:
    """A long text of nothing but openings is read or refused; the test's time limit catches the minutes that a lexer can take for it."""
    source = piece * (200_000 // len(piece))
    for part in ("html", "text", "mjml"):
        try:
            compile_variant(Content(**{"subject": "a", part: source}), "v")
        except MidflightError as error:
            assert error.text()


# -- variables -----------------------------------------------------------------------------------------------------------------------------

UNKNOWN = [
    ("\n\n{{ frist_name }}", "frist_name", 3, "Did you mean `first_name`?"),
    ("{{ attributes.citty }}", "citty", 1, "Did you mean `city`?"),
    ("\n{% if viip %}{% endif %}", "viip", 2, "Did you mean `vip`?"),
    ("{{ city | append: frst_name }}", "frst_name", 1, "Did you mean `first_name`?"),
    ("\n{% for x in citi %}{{ x }}{% endfor %}", "citi", 2, "Did you mean `city`?"),
    ("{{ recipient.mail }}", "recipient.mail", 1, "Did you mean `recipient.email`?"),
    ("{{ unsubscribe_ur }}", "unsubscribe_ur", 1, "Did you mean `unsubscribe_url`?"),
    ("{{ today }}", "today", 1, "Known:"),
]


@pytest.mark.parametrize(("source", "name", "line", "todo"), UNKNOWN)
def test_an_unknown_variable_refuses_the_send(source: str, name: str, line: int, todo: str) -> None:
    """A variable that nothing is known of is named, with its line and the nearest name, in every part of a variant."""
    for part in ("subject", "from_name", "preheader", "html", "text"):
        template = variant(**{"html": "a", part: f"{source}b"})
        with pytest.raises(TemplateError) as caught:
            template.check({"first_name", "city", "vip"})
        assert f"`{name}`" in caught.value.what and caught.value.where == f"spring.B.{part}:{line}" and todo in caught.value.todo


def test_an_unknown_variable_in_mjml_has_the_line_of_the_mjml() -> None:
    """The line is the author's, not that of the compiled HTML."""
    template = variant(
        mjml=f"<mjml><mj-body><mj-section><mj-column>\n{'<!-- {% comment %} -->'}\n".replace("{% comment %}", "c") + MJML_END
    )
    with pytest.raises(TemplateError) as caught:
        template.check({"name"})
    assert caught.value.where == "spring.B.mjml:4"


MJML_END = "<mj-text>\n{{ nmae }}</mj-text></mj-column></mj-section></mj-body></mjml>"


def test_known_variables_pass() -> None:
    """Attributes by either name, what is ours, what the template sets itself, and anything with a default are known."""
    source = (
        "{{ city }}{{ attributes.city }}{{ attributes['First name'] }}{{ recipient.email }}{{ unsubscribe_url }}{{ preferences_url }}"
        "{{ campaign }}{{ variant }}{{ wave }}{{ now }}{% assign x = city %}{{ x }}"
        "{% for i in (1..2) %}{{ i }}{{ forloop.index }}{% endfor %}"
        "{{ nickname | default: city }}{{ 'now' | date: '%Y' }}{% capture y %}{% endcapture %}{{ y }}"
    )
    template = variant(html=source)
    template.check({"city", "First name"})
    assert template.variables["city"] is False and template.variables["nickname"] is True and "x" not in template.variables
    with pytest.raises(TemplateError, match="First name"):
        template.check({"city"})


def test_a_default_elsewhere_excuses_nothing() -> None:
    """The default has to stand where the variable does: another use of the same name is still refused."""
    with pytest.raises(TemplateError, match="nickname"):
        variant(html="{{ nickname | default: 'you' }}{% if nickname %}{% endif %}").check(set())


@pytest.mark.parametrize(
    "tag", ["city", "attributes.city", "city | upcase", "city | date: '%Y'", "city | join: ', '", "city.size", "preferences_url"]
)
def test_a_missing_value_renders_as_nothing(tag: str) -> None:
    """A recipient without the attribute, or with none in it, gets nothing in its place, directly and with logic around it."""
    assert html_of(f"[{{{{ {tag} }}}}]").replace("https://m.example/p/x", "") == "[]"
    assert html_of(f"[{{{{ {tag} }}}}]{{% if city %}}x{{% endif %}}", city=None).replace("https://m.example/p/x", "") == "[]"


def test_names_of_ours_and_of_attributes_do_not_mix() -> None:
    """An attribute that is called like something of ours is reached only as an attribute; `size` is a name like another."""
    source = "{{ campaign }},{{ attributes.campaign }},{{ attributes.size }},{{ attributes.first }},{{ recipient.email }}"
    for logic in ("", "{% if campaign %}{% endif %}"):
        assert html_of(source + logic, campaign="mine", recipient="x") == "spring,mine,,,ada@example.com"


def test_a_message_without_a_way_out_is_not_made() -> None:
    """Without a URL to unsubscribe there is no message, and none with an empty subject."""
    template = variant(subject="{{ name }}", text="a")
    with pytest.raises(RenderError, match="unsubscribe"):
        template.render({"name": "x"}, {})
    with pytest.raises(RenderError, match="empty for this recipient"):
        template.render({"name": " \r\n "}, SYSTEM)
    assert template.render({"name": "x"}, SYSTEM).subject == "x"


# -- values --------------------------------------------------------------------------------------------------------------------------------

UGLY = [
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "' onmouseover='x",
    "</title></style></a>",
    "<!-- ",
    "-->",
    "]]>",
    "&lt;b&gt;",
    "{{ campaign }}",
    "{% for i in (1..9) %}x{% endfor %}",
    "{{{{ campaign }}}}",
    "{% raw %}",
    "{",
    "{{",
    "%}",
    "{#",
    "a\r\nBcc: eve@example.com",
    "a\nTo: eve@example.com",
    "a\x00b",
    "\x1b[31m",
    "\ud800",
    "a\udfffb",
    "\u202egnp.exe",
    "שלום עולם",
    "مرحبا",
    "👩‍👩‍👧‍👦🇩🇪👍🏽",
    "e\u0301",
    "\u2028x\u2029",
    "\u0085",
    "zq0z",
    "zqq1z",
    "\ufdd00z",
    "%recipient.email%",
    "=?utf-8?q?=0D=0ABcc:_x?=",
    "x" * 9_000,
    "{{" * 4_000,
    "<" * 9_000,
    "",
    " ",
    "\ufeff",
]


class Structure(HTMLParser):
    """The tags, attribute names and comments of a document, without any text or value."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple] = []

    def handle_starttag(self, tag: str, attrs: list) -> None:
        self.seen.append((tag, *(name for name, _ in attrs)))

    def handle_endtag(self, tag: str) -> None:
        self.seen.append(("/", tag))

    def handle_comment(self, data: str) -> None:
        self.seen.append(("!",))


def structure(document: str) -> list[tuple]:
    reader = Structure()
    reader.feed(document)
    reader.close()
    return reader.seen


PLACES = (
    "<html><head><title>{{ v }}</title></head><body class=\"{{ v }}\"><!-- {{ v }} --><p title='{{ v }}'>{{ v }}</p>"
    '<a href="https://x/?{{ v }}">{{ v | upcase }}{{ v | truncate: 20 }}{{ v | append: v }}{{ v | escape }}{{ v | newline_to_br }}</a>'
    "{{ v | url_encode | url_decode }}{{ v | strip_html }}{{ v | escape_once }}{{ v | replace: 'a', 'b' }}"
    "{{ v | split: ' ' | join: '-' }}</body></html>"
)
LOGIC = "{% if v %}{{ v }}{% endif %}{% assign w = v %}{{ w }}{% capture c %}{{ v }}{% endcapture %}{{ c }}{% echo v %}{% cycle v, v %}"
UNDOING = (
    "{{ v | escape | replace: '&lt;', '<' | replace: '&gt;', '>' }}{{ v | escape | split: '&lt;' | join: '<' }}"
    "{% capture c %}{{ v }}{% endcapture %}{{ c | replace: '&lt;', '<' }}{{ c | remove: 'amp;' }}{{ c | replace_first: '&lt;', '<' }}"
    "{{ v | prepend: '<' }}{{ '<b' | append: v }}{% capture d %}<b></b>{% endcapture %}{{ d | slice: 0 }}{{ v }}"
    "{{ d | remove: '>' | append: v }}{{ d | split: '>' | first }}{{ v }}"
)


QUOTED = (
    "{% capture c %}<b>'\"{% endcapture %}{% assign d = c %}"
    "<p title='{{ c }}{{ v }}' lang=\"{{ d | strip }}{{ v }}\" class='{% echo c %}{{ v }}'>"
    "{% for x in c %}<i title='{{ x }}{{ v }}'></i>{% endfor %}<a href='{{ v | newline_to_br }}'></a>"
    "<!--[if mso]><p title='{{ c }}{{ v }}'><![endif]-->{{ c }}"
)


def without_breaks(found: list[tuple]) -> list[tuple]:
    return [tag for tag in found if "br" not in tag]


@pytest.mark.parametrize("value", UGLY, ids=range(len(UGLY)))
@pytest.mark.parametrize(
    "source", [PLACES, PLACES.replace("</body>", LOGIC + "</body>"), UNDOING, QUOTED], ids=["plain", "logic", "undoing", "quoted"]
)
def test_no_value_changes_the_markup(value: str, source: str) -> None:
    """Whatever an attribute holds, the message has the tags and attributes that the author wrote, and can be encoded."""
    template = variant(subject="a {{ v }}", preheader="{{ v }}", from_name="{{ v }}", html=source)
    plain, ugly = template.render({"v": "word"}, SYSTEM), template.render({"v": value}, SYSTEM)
    assert without_breaks(structure(ugly.html)) == without_breaks(structure(plain.html))
    for part in (ugly.subject, ugly.from_name, ugly.html, ugly.text):
        assert "\x00" not in part and "\x1b" not in part and part.encode() is not None


def test_markup_that_a_value_changes_is_caught() -> None:
    """The comparison sees a value that was not escaped, in a text and in an attribute."""
    for source in ("<p>{{ v }}</p>", "<p title='{{ v }}'></p>"):
        open_script = Script(source, "plain", "x")
        plain, ugly = (open_script.render({(False, "v"): value}) for value in ("word", "' onclick='1'><script>"))
        assert structure(plain) != structure(ugly)
    quoted = Script(QUOTED, "html", "x")
    assert structure(quoted.render({(False, "v"): "word"})) != structure(quoted.render({(False, "v"): " onclick=x>"}))
    # In the library as it comes, escaping can be undone, and a tag put together.
    for source in ("{{ v | escape | replace: '&lt;', '<' }}", "{{ v | prepend: '<' }}"):
        assert "<script" in liquid.Environment(autoescape=True).from_string(source).render(v="<script" if "esc" in source else "script")
        assert "<script" not in html_of(source, v="<script") + html_of(source, v="script")


def test_text_is_escaped_once() -> None:
    """Values, texts in quotes and captured text are escaped once, whatever filters they go through; captured tags stay tags."""
    value = "Tom & <Jerry>"
    for source in (
        "{{ v }}",
        "{{ v | escape }}",
        "{{ v | escape | strip }}",
        "{{ v | escape_once }}",
        "{% capture c %} {{ v }}{% endcapture %}{{ c | strip }}",
        "{{ 'Tom & <Jerry>' }}",
        "{{ missing | default: 'Tom & <Jerry>' }}",
        "{% assign w = v | append: '' %}{{ w }}",
        "{{ v | newline_to_br | strip }}",
        "{% for x in l %}{{ x }}{% endfor %}",
        "{{ l }}",
        "{{ l | join: '' }}",
    ):
        assert html_of(source, v=value, l=["Tom & ", "<Jerry>"]) == "Tom &amp; &lt;Jerry&gt;", source
    assert html_of("{% capture c %}<b>{{ v }}</b>{% endcapture %}{{ c }}{{ c | strip }}", v="<") == "<b>&lt;</b>" * 2
    assert html_of("{{ v | newline_to_br }}", v="a\n<b") == "a<br />\n&lt;b"


@given(st.text(max_size=30), st.sampled_from([PLACES, LOGIC, UNDOING, QUOTED]))
@settings(max_examples=300, deadline=None)
def test_no_text_at_all_changes_the_markup(value: str, source: str) -> None:
    """The same for any text."""
    template = variant(html=source, preheader="{{ v }}")
    plain, ugly = template.render({"v": "word"}, SYSTEM), template.render({"v": value}, SYSTEM)
    assert without_breaks(structure(ugly.html)) == without_breaks(structure(plain.html)) and ugly.html.encode() is not None


@pytest.mark.parametrize("value", UGLY, ids=range(len(UGLY)))
@pytest.mark.parametrize("logic", ["", LOGIC], ids=["plain", "logic"])
def test_no_value_is_a_template(value: str, logic: str) -> None:
    """A message that is rendered again, as a vendor may do, is the same: no value reads as a tag, also not two beside each other."""
    source = "{{ v }}{{ w }}{{ v | remove: ' ' }}{{ v | url_encode | url_decode }}" + logic
    for part in ("html", "text", "subject"):
        made = render({"v": value, "w": "{ campaign }}"}, **{"text": "a", part: "a" + source})
        for text in (made.html, made.text, made.subject):
            assert "{{" not in text and "{%" not in text
            assert liquid.Environment().from_string(text).render(campaign="SPRING") == text


def test_a_value_that_is_a_template_is_caught() -> None:
    """Rendered twice by the library alone, the same value does become the name of the campaign."""
    twice = liquid.Environment().from_string(liquid.Environment().from_string("{{ v }}").render(v="{{ campaign }}"))
    assert twice.render(campaign="SPRING") == "SPRING"


def test_values_of_other_kinds() -> None:
    """Numbers, truth, lists and objects render as Liquid renders them; anything else is refused, and nothing of Python is reached."""
    assert (
        html_of("{{ a }},{{ b }},{{ c }},{{ d.e }},{{ f | join: '+' }}", a=3, b=1.5, c=True, d={"e": "<"}, f=["x", None, 2])
        == "3,1.5,true,&lt;,x++2"
    )
    assert html_of("{{ a }}", a=float("nan")) == ""
    for reached in ("a.__class__", "a.__class__.__mro__", "a.upper", "d.keys", "d.__len__", "attributes.a.__doc__", "forloop"):
        assert html_of(f"[{{{{ {reached} }}}}]", a="x", d={"e": 1}) == "[]"
    for value in (object(), NOW_US.__add__, b"x", {1, 2}, type):
        with pytest.raises(RenderError, match="cannot stand in a message"):
            html_of("{{ a }}", a=value)

    class Safe(str):
        def __html__(self) -> str:
            return "<script>"

    assert html_of("{{ a }}", a=Safe("<b>")) == "&lt;b&gt;"


def test_only_html_is_escaped() -> None:
    """Plain text and subject have a value as it is."""
    made = render({"v": "Tom & <Jerry>"}, subject="{{ v }}", html="{{ v }}", text="{{ v }}")
    assert made.subject == "Tom & <Jerry>" and made.text.startswith("Tom & <Jerry>") and made.html.startswith("Tom &amp; &lt;Jerry&gt;")


def test_no_clock_but_the_one_that_is_handed_in() -> None:
    """`now` is the message's time, in UTC; without one it is nothing. The library alone asks the machine."""
    assert html_of("{{ 'now' | date: '%Y-%m-%d %H:%M' }},{{ now | date: '%-d %B' }}") == "2025-11-24 16:00,24 November"
    for logic in ("", "{% if now or today %}x{% endif %}"):
        template = variant(html="[{{ now }}{{ 'now' | date: '%Y' }}{{ today | default: '' }}" + logic + "]")
        assert template.render({}, {"unsubscribe_url": "https://x"}).html.startswith("[]")
    assert liquid.Environment().from_string("{{ now }}").render() != ""


@pytest.mark.parametrize(
    ("value", "form", "shown"),
    [
        ("2026-05-01", "%-d %B %Y, %a", "1 May 2026, Fri"),
        ("2026-05-01T23:30:00+02:00", "%H:%M %p %Z", "21:30 PM UTC"),
        (0, "%F %T", "1970-01-01 00:00:00"),
        ("1764000000", "%e %b %y", "24 Nov 25"),
        ("soon", "%Y", "soon"),
        ("", "%Y", ""),
        ("9" * 400, "%Y", "9" * 400),
        (True, "%Y", "True"),
        ("2026-13-45", "%Y", "2026-13-45"),
        ("-99999999999", "%Y", "-99999999999"),
        ("2026-05-01", "100%%", "100%"),
    ],
)
def test_dates(value: object, form: str, shown: str) -> None:
    """ISO 8601 and seconds are dates; anything else stays what it is."""
    assert text_of(f"{{{{ v | date: '{form}' }}}}", v=value) == shown


# -- headers -------------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", UGLY, ids=range(len(UGLY)))
def test_no_value_makes_a_header_or_a_recipient(value: str) -> None:
    """With any value, subject and name are one line each, and a message made of them has one recipient and no header more."""
    made = render({"v": value}, subject="Hi {{ v }}!{{ v }}", from_name="Shop {{ v }}", text="a")
    assert made.subject.splitlines() == [made.subject] and len(made.subject) <= subject_chars_max
    assert made.from_name.splitlines() == [made.from_name] and len(made.from_name) <= 100
    message = EmailMessage(policy=email.policy.SMTP)
    message["Subject"], message["To"], message["From"] = made.subject, "ada@example.com", formataddr((made.from_name, "news@shop.example"))
    message.set_content("a")
    read = email.message_from_bytes(message.as_bytes(), policy=email.policy.default)
    assert sorted(read.keys()) == sorted(message.keys()) and read["To"] == "ada@example.com"
    assert [address for _, address in getaddresses([str(read["From"])])] == ["news@shop.example"]


def test_a_header_that_a_value_makes_is_caught() -> None:
    """The same message with the value as it comes is one that has a header more, written as such programs write it."""
    raw = f"Subject: Hi {'a' + chr(13) + chr(10) + 'Bcc: eve@example.com'}\r\nTo: ada@example.com\r\n\r\na"
    assert "Bcc" in email.message_from_string(raw)


def test_one_line_is_cut_at_whole_characters() -> None:
    """A line is as long as it may be, its end never half an emoji, half a flag or a letter without its accent."""
    assert one_line("a\t b\r\n c\x00d", 50) == "a b c d"
    assert one_line("x" * 20, 10) == "x" * 9 + "…"
    for whole in ("👩‍👩‍👧", "👍🏽", "e\u0301", "🇩🇪"):
        for before in range(12):
            cut = one_line("x" * before + whole + "y" * 20, 12)
            assert len(cut) <= 12 and cut.rstrip("…").replace("x", "").replace("y", "") in ("", whole)
    assert one_line("\u202eabc\u2066", 9) == "abc" and one_line("שלום\u200f", 9) == "שלום\u200f"
    assert display_name('"Shop" <eve@example.com>') == "Shop eve@example.com"


def test_headers_that_unsubscribe() -> None:
    """The two headers are as RFC 8058 shows them, with a mailto where there is one."""
    assert headers_of("https://m.example/u/x?a=1&b=2") == {
        "List-Unsubscribe": "<https://m.example/u/x?a=1&b=2>",
        "List-Unsubscribe-Post": "List-Unsubscribe=One-Click",
    }
    assert headers_of("https://m.example/u", "out+a@m.example")["List-Unsubscribe"] == (
        "<https://m.example/u>, <mailto:out+a@m.example?subject=unsubscribe>"
    )


@pytest.mark.parametrize(
    "url",
    [
        "",
        "http://m.example/u",
        "mailto:a@b",
        "https://",
        "https://m.example/a b",
        "https://m.example/>,<x",
        "https://m.example/\r\nBcc: x",
        "https://ü.example/",
        "https://m.example/" + "x" * 900,
        "javascript:x",
    ],
)
def test_a_url_that_is_no_https_makes_no_header(url: str) -> None:
    """Anything but one HTTPS URL in ASCII is refused."""
    with pytest.raises(MidflightError, match="URL that unsubscribes"):
        headers_of(url)


@pytest.mark.parametrize("address", ["a", "a@b\r\nBcc: x", "a@b>,<c", "a b@c", "@"])
def test_an_address_that_is_none_makes_no_header(address: str) -> None:
    """Anything but one plain address is refused."""
    with pytest.raises(MidflightError, match="address that unsubscribes"):
        headers_of("https://m.example/u", address)


# -- bounds --------------------------------------------------------------------------------------------------------------------------------

BOMBS = {
    "a loop": "{% for i in (1..1000000000) %}x{% endfor %}",
    "a loop backwards": "{% for i in (1..1000000000) reversed %}x{% endfor %}",
    "a loop past counting": "{% for i in (1..99999999999999999999999999) %}x{% endfor %}",
    "loops in loops": "{% for i in (1..9999) %}{% for j in (1..9999) %}{% endfor %}{% endfor %}",
    "loops after loops": "{% for i in (1..9999) %}{{ i }}{% endfor %}" * 100,
    "conditions in a loop": "{% for i in (1..9999) %}" + "{% if i == 0 %}x{% endif %}" * 50 + "{% endfor %}",
    "ten megabytes": "{% for i in (1..9999) %}" + "x" * 1100 + "{% endfor %}",
    "doubling": "{% assign a = 'xxxxxxxxxx' %}" + "{% assign a = a | append: a %}" * 40,
    "many variables": "{% for i in (1..5000) %}" + "{% capture a %}" + "x" * 400 + "{% endcapture %}" + "{% endfor %}{{ a }}" * 60,
    "captured": "{% for i in (1..9999) %}{% capture a %}" + "x" * 90_000 + "{% endcapture %}{% endfor %}",
    "replacing": "{% assign a = '" + "x" * 3000 + "' %}{% assign a = a | replace: 'x', a %}{{ a }}",
    "joining": "{% assign a = '" + "x" * 90_000 + "' %}{% assign b = a | split: '' %}{{ b | join: a }}",
    "powers": "{{ 9 " + "| times: 99999999999999999999 " * 900 + "}}",
    "unique": "{% assign a = '" + "x " * 9_000 + "' | split: ' ' %}" + "{% assign b = a | uniq %}" * 9,
    "nesting": "{% if true %}" * 40 + "{% endif %}" * 40,
    "brackets": "{{ " + "a[" * 3000 + "b" + "]" * 3000 + " }}",
    "or": "{% if " + " or ".join(["a"] * 3000) + " %}{% endif %}",
}


@pytest.mark.parametrize("bomb", BOMBS.values(), ids=BOMBS)
@pytest.mark.parametrize("part", ["html", "text", "subject"])
def test_a_bomb_is_refused_before_the_send(bomb: str, part: str) -> None:
    """A template that would run on, or grow on, is refused when it is compiled; never is there half a message."""
    with pytest.raises(TemplateError) as caught:
        variant(**{"text": "a", part: "a" + bomb})
    assert caught.value.where.startswith(f"spring.B.{part}")


def test_what_is_no_bomb_goes_through() -> None:
    """Within the bounds the same constructs render whole, and the library alone has no bound: the refusals above are ours."""
    assert html_of("{% for i in (1..1000) %}x{% endfor %}") == "x" * 1000
    assert html_of("{% for i in (1..9) limit: 3 %}x{% endfor %}") == "xxx"
    assert html_of("{% assign a = 'xx' %}" + "{% assign a = a | append: a %}" * 10 + "{{ a }}") == "x" * 2048
    assert html_of("{% for i in (1..100) %}{% for j in (1..100) %}x{% endfor %}{% endfor %}") == "x" * 10_000
    assert len(liquid.Environment().from_string(BOMBS["ten megabytes"]).render()) > 10_000_000


VALUE_BOMBS = [
    ("{% for x in v %}{{ x }}{% endfor %}", list(range(20_000)), [1]),
    ("{% for i in (1..v) %}x{% endfor %}", 10**30, 3),
    ("{% for i in (1..v) reversed %}x{% endfor %}", 10**9, 3),
    ("{{ v | replace: 'x', v }}", "x" * 100_000, "x"),
    ("{% assign w = v | split: '' %}{{ w | join: v }}", "x" * 9_000, "x"),
    ("{% for i in (1..100) %}{{ v }}{% endfor %}", "x" * 100_000, "x"),
    ("{{ v }}" * 30, "x" * 100_000, "x"),
    ("{{ v | times: v }}", 10**1000, 2),
    ("{{ v }}", 10**5000, 2),
    ("{{ v | base64_decode }}", "/w==", "YQ=="),
    ("{{ v | round: 2 | ceil }}", float("inf"), 1.5),
    ("{% if v == 0 %}{{ 1 | divided_by: v }}{% endif %}", 0, 1),
]


@pytest.mark.parametrize(("source", "value", "good"), VALUE_BOMBS, ids=range(len(VALUE_BOMBS)))
def test_a_value_that_is_a_bomb_costs_only_its_own_message(source: str, value: object, good: object) -> None:
    """What one recipient's value makes too much, or wrong, is an error for that one, with its place; the next is rendered whole."""
    template = variant(html=f"<p>{source}")
    with pytest.raises(RenderError) as caught:
        template.render({"v": value}, SYSTEM)
    assert caught.value.where.startswith("spring.B.html")
    assert template.render({"v": good}, SYSTEM).html.endswith("</a></p>")


def test_the_bound_is_the_same_everywhere() -> None:
    """What is counted is work, not time: just below the bound goes through, just above does not, each time."""
    script = Script("{% for i in (1..v) %}{{ i }}{% endfor %}" * 8, "html", "x")

    def fits(rounds: int) -> bool:
        try:
            script.render({(False, "v"): rounds})
        except RenderError:
            return False
        return True

    low, high = 1, language.iterations_max
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    assert all(fits(low) and not fits(low + 1) for _ in range(3)) and 1000 < low < language.iterations_max


def test_large_values_go_through() -> None:
    """A hundred kilobytes of any text are a value like another."""
    for value in ("x" * 100_000, "<&>" * 33_000, "é" * 100_000, "👍" * 50_000):
        made = render({"v": value}, subject="a {{ v }}", html="<p>{{ v }}</p>{{ v | upcase }}", text="{{ v }}")
        assert made.text.startswith(value) and len(made.subject) == subject_chars_max and made.html.count("</p>") >= 1


ARGUMENTS = ["", ": 'a'", ": v", ": 3", ": -1", ": 'a', 'b'", ": v, v", ": w", ": 99999999999999999999", ": nil", ": missing"]


@pytest.mark.parametrize("name", sorted(environment("plain").filters))
def test_no_filter_is_a_traceback(name: str) -> None:
    """Every filter, with every kind of value and argument, gives text that can be sent or an error of ours, in HTML and in plain text."""
    values = [
        "x",
        "",
        "<b>",
        "-3",
        "1e400",
        "2026-01-01",
        "\ud800%zz",
        7,
        -1.5,
        True,
        [],
        ["b", "a", 3, None],
        {"a": {"b": 1}},
        [["x"], {"y": 1}],
        "x" * 5000,
    ]
    for arguments in ARGUMENTS:
        for kind in ("html", "plain", "plain_from_html"):
            script = Script(f"{{{{ v | {name}{arguments} }}}}", kind, "x")
            for value in values:
                try:
                    text = script.render({(False, "v"): language.cleaned(value), (False, "w"): ["q", 1]})
                except RenderError as error:
                    assert error.what
                    continue
                assert text.encode() is not None and (kind != "html" or "<" not in text.replace("<br />", ""))


# -- two ways to render --------------------------------------------------------------------------------------------------------------------

NAMES = [
    "a",
    "b",
    "missing",
    "attributes.a",
    "attributes['b c']",
    "attributes.missing",
    "recipient.email",
    "campaign",
    "unsubscribe_url",
    "now",
]
FILTERS = [
    "default: 'x'",
    "default: '<i>'",
    "default: 'x', allow_false: true",
    "upcase",
    "downcase",
    "capitalize",
    "strip",
    "escape",
    "escape_once",
    "truncate: 5",
    "truncate: 9, '…'",
    "truncatewords: 2",
    "append: '<b>'",
    "prepend: '{'",
    "replace: 'a', 'b'",
    "replace: '&', '<'",
    "remove: ' '",
    "url_encode",
    "url_decode",
    "date: '%Y'",
    "newline_to_br",
    "strip_html",
    "strip_newlines",
    "size",
    "plus: 1",
    "times: 2.5",
    "split: ','",
    "join: '-'",
    "first",
    "last",
    "slice: 0, 3",
    "round: 1",
    "divided_by: 0",
    "base64_encode",
    "squish",
    "sort",
    "reverse",
]
tags = st.builds(
    lambda name, steps: "{{ " + " | ".join([name, *steps]) + " }}", st.sampled_from(NAMES), st.lists(st.sampled_from(FILTERS), max_size=3)
)
literals = st.text(alphabet="ab <>&\"'\n}%-é👍", max_size=8)
sources = st.lists(
    st.one_of(tags, literals, st.just("{% comment %}c{% endcomment %}"), st.just("{%- # c -%}"), st.just("{% raw %}{{ a }}{% endraw %}")),
    max_size=8,
).map("".join)
one_value = st.one_of(st.text(max_size=12), st.sampled_from(UGLY[:30]), st.integers(), st.floats(), st.booleans(), st.none())
any_value = st.one_of(one_value, st.lists(one_value, max_size=3), st.dictionaries(st.text(max_size=3), one_value, max_size=3))


def outcome(run: object, values: dict) -> str | type:
    """Return what a way of rendering gives, or that it refused."""
    try:
        return run(values)
    except language.TROUBLE:
        return RenderError


@given(sources, any_value, any_value, st.sampled_from(["html", "plain", "plain_from_html"]))
@settings(max_examples=1500, deadline=None)
def test_both_ways_of_rendering_give_the_same_bytes(source: str, a: object, b: object, kind: str) -> None:
    """Filling the gaps directly gives exactly what the engine gives, or refuses where it does."""
    try:
        script = Script(source, kind, "x")
    except TemplateError:
        return
    assert script.direct is not None
    given_values = {
        (False, "a"): a,
        (False, "b"): b,
        (False, "b c"): b,
        (True, "recipient.email"): "a@b",
        (True, "campaign"): "<c>",
        (True, "now"): "2026-01-01",
    }
    values = {key: value for key, raw in given_values.items() if (value := language.cleaned(raw)) is not None}
    assert outcome(script.fill, values) == outcome(script.run, values)


def test_ways_that_differ_are_caught() -> None:
    """A direct way that left out one filter, the escaping or the default for a missing value would give other bytes than the engine."""
    script = Script("{{ a | upcase }}{{ b }}", "html", "x")
    values = {(False, "a"): "x", (False, "b"): "<"}
    assert script.fill(values) == script.run(values) == "X&lt;"
    pieces, gaps = script.direct
    script.direct = pieces, [(at, key, missing, []) for at, key, missing, _ in gaps]
    assert script.fill(values) != script.run(values)
    script.direct, script.html = (pieces, gaps), False
    assert script.fill(values) != script.run(values)


def test_logic_is_left_to_the_engine() -> None:
    """Only plain output is filled in directly."""
    for source in (
        "{{ a }}",
        "{{ a | upcase | append: 'x' }}",
        "{{ attributes['b c'] }}",
        "{% comment %}{% endcomment %}x",
        "{{ 'now' | date: '%Y' }}",
    ):
        assert Script(source, "html", "x").direct is not None
    for source in ("{% if a %}{% endif %}", "{{ a.b }}", "{{ a | append: b }}", "{{ 'x' }}", "{% assign a = 1 %}", "{{ a[0] }}"):
        assert Script(source, "html", "x").direct is None


# -- where a value may stand -------------------------------------------------------------------------------------------------------------

UNHELD = [
    "<p title={{ v }}>",
    "<p {{ v }}>",
    "<p a{{ v }}=1>",
    "<{{ v }}>",
    "</{{ v }}>",
    "<p{{ v }}>",
    "<script>{{ v }}</script>",
    "<style>a{color:{{ v }}}</style>",
    "<p title=a{{ v }}>",
    "<p a='1'{{ v }}>",
    '<p a=b="{{ v }}">',
    '<p title=x"y {{ v }} z">',
    "<!--[if mso]><p title={{ v }}><![endif]-->",
    "<!--><p title={{ v }}>-->",
    "<!-- --!><p title={{ v }}>-->",
    '<p title="{% if v %}">{{ v }}"{% endif %} {{ v }}>',
    '<p title="{{ v }}',
    "<?{{ v }}?>",
    "<{% if v %}{{ v }}{% endif %}>",
    "<{% capture c %}{{ v }}{% endcapture %}",
    "{% capture c %}<{% endcapture %}",
    "<br title={{ v }} />",
    "<a href={% echo v %}>",
    "<a href={% cycle v, 'x' %}>",
    '<p title="{% if v %}a" {% else %}b"{% endif %}>',
    "<p {% if v %}>x{% endif %}>",
    "<!-- {% if v %}-->{% endif %}",
    "<style>{% if v %}</style>x{% endif %}",
    "{% for i in v %}<p title='{% break %}'>{% endfor %}",
]
HELD = [
    "<p title='{{ v }}'>",
    '<p title="a {{ v }} b">',
    "{{ v }}",
    "a < {{ v }}",
    "<!-- {{ v }} -->",
    "<!--[if mso]><p title='{{ v }}'><![endif]-->",
    "<p {% if v %}class='x'{% endif %}>",
    "<title>{{ v }}</title>",
    "<style>{% if v %}a{}{% endif %}</style>",
    "<td width={% if v %}1{% else %}2{% endif %}>",
    '<p style="color: {{ v }}">',
    "&{{ v }};",
    "<p a = '{{ v }}' b=\"{{ v }}\" c>",
    "<img alt='{{ v }}'/>",
]


@pytest.mark.parametrize("source", UNHELD)
def test_a_value_stands_only_where_escaping_holds_it(source: str) -> None:
    """A value in a tag, in an attribute without quotes or in a script is refused, with its line."""
    with pytest.raises(TemplateError) as caught:
        variant(html=f"<p>\n{source}</p>")
    assert caught.value.where == "spring.B.html:2"


@pytest.mark.parametrize("source", HELD)
def test_a_value_may_stand_where_escaping_holds_it(source: str) -> None:
    """Text, attributes with quotes and comments take values; conditions may stand anywhere."""
    assert variant(html=f"<p>\n{source}</p>").render({"v": "x"}, SYSTEM).html


# -- unsubscribing -----------------------------------------------------------------------------------------------------------------------

URL = "https://m.example/u/x?a=1&amp;b=2"


@pytest.mark.parametrize(
    "body",
    [
        "<p>a</p>",
        "<html><body><p>a</p></body></html>",
        "a {% if v %}{{ unsubscribe_url }}{% endif %}",
        "<!-- {{ unsubscribe_url }} -->a",
        "{% for x in v %}{{ unsubscribe_url }}{% endfor %}",
        "{% comment %}{{ unsubscribe_url }}{% endcomment %}a",
        "{% raw %}{{ unsubscribe_url }}{% endraw %}",
    ],
)
def test_a_body_without_a_way_out_gets_one(body: str) -> None:
    """A body in which not every recipient sees the link gets a footer with it, in HTML and text, which cannot be turned off."""
    made = render({}, html=body, text="hello")
    assert made.html.count(f'<a href="{URL}"') == 1 and made.text == f"hello\n\nUnsubscribe: {SYSTEM['unsubscribe_url']}"
    assert "</body>" not in body or made.html.endswith("</p></body></html>")
    assert SYSTEM["unsubscribe_url"] in render({}, html=body).text
    with pytest.raises(TemplateError, match="footer is turned off"):
        compile_variant(Content(subject="a", html=body), "x", footer="")
    with pytest.raises(TemplateError, match="footer is turned off"):
        compile_variant(Content(subject="a", html="{{ unsubscribe_url }}", text="hello"), "x", footer="")


def test_a_body_with_a_way_out_is_left_alone() -> None:
    """Where the link stands for everybody, nothing is added, and the footer can be off; its words can be others."""
    body = '<p><a href="{{ unsubscribe_url }}">No more</a></p>'
    assert render({}, html=body).html == f'<p><a href="{URL}">No more</a></p>'
    assert (
        compile_variant(Content(subject="a", html=body), "x", footer="").render({}, SYSTEM).text == f"No more ({SYSTEM['unsubscribe_url']})"
    )
    assert (
        ">Abmelden &amp; Schluss</a>"
        in compile_variant(Content(subject="a", html="b"), "x", footer="Abmelden & Schluss").render({}, SYSTEM).html
    )


def test_the_preheader_stands_hidden_at_the_start() -> None:
    """The preheader is text of the author, escaped, in front of the body, and no part of the plain text."""
    made = render(
        {"v": "<b>"}, html="<html><head><title>t</title></head><body class='x'><p>a</p></body></html>", preheader="Tom & {{ v }} < Jerry"
    )
    start = made.html.index("<body class='x'>") + len("<body class='x'>")
    assert made.html[start:].startswith('<div style="display:none') and ">Tom &amp; &lt;b&gt; &lt; Jerry</div><p>a</p>" in made.html
    assert "Tom" not in made.text
    assert render({}, html="<p>a</p>", preheader="x").html.startswith("<div")
    assert render({}, html="<head><title>t</title></head><p>a</p>", preheader="x").html.startswith("<head><title>t</title></head><div")


# -- MJML --------------------------------------------------------------------------------------------------------------------------------

MJML = """<mjml><mj-head><mj-title>{{ name }} é</mj-title><mj-attributes><mj-text color="#123456" /></mj-attributes></mj-head><mj-body>
{% if vip %}<mj-section><mj-column><mj-text>VIP {{ name | default: "you" }}</mj-text></mj-column></mj-section>{% endif %}
<mj-section background-color="{{ colour | default: "#fff" }}"><mj-column>
<mj-text>Grüße {{ name }} <b title="{{ name }}">x</b> {% for i in items %}<i>{{ i }}</i>{% endfor %} 5 &lt; 6</mj-text>
<mj-button href="https://shop.example/?c={{ code | url_encode }}&amp;d={% if a < b %}1{% else %}2{% endif %}">Go {{ code }}</mj-button>
<mj-image src="{{ picture }}" alt="Ä {{ name }}" />
<mj-raw>{% assign z = "<i>" %}</mj-raw><mj-table><tr><td>{{ z }}</td></tr></mj-table>
</mj-column></mj-section></mj-body></mjml>"""


def test_liquid_survives_the_compiler() -> None:
    """Liquid in texts, attributes and between components comes out of the compiler as it went in, and renders."""
    html = compiled(MJML, "x")
    for tag in language.tags_of(MJML):
        assert tag.text in html
    template = variant(mjml=MJML)
    attributes = {
        "name": '"A" <b>',
        "code": "a b&c",
        "items": ["1", "2"],
        "picture": "https://p.example/1.png",
        "a": 1,
        "b": 2,
        "colour": "#abc",
    }
    made = template.render(attributes, SYSTEM)
    for part in (
        "Grüße &#34;A&#34; &lt;b&gt;",
        'title="&#34;A&#34; &lt;b&gt;"',
        "<i>1</i><i>2</i>",
        'href="https://shop.example/?c=a+b%26c&amp;d=1"',
        ">Go a b&amp;c<",
        'src="https://p.example/1.png"',
        'alt="Ä &#34;A&#34; &lt;b&gt;"',
        "#abc",
        "5 &lt; 6",
        "#123456",
    ):
        assert part in made.html, part
    assert "VIP" not in made.html and "<mj-" not in made.html and "zq" not in made.html
    assert "VIP &#34;A" in template.render(attributes | {"vip": True}, SYSTEM).html
    assert made.text.startswith('Grüße "A" <b>') and "Go a b&c (https://shop.example/?c=a+b%26c&d=1)" in made.text
    assert structure(made.html) == structure(template.render(attributes | {"name": "word"}, SYSTEM).html)


def mjml(inside: str) -> str:
    return f"<mjml><mj-body><mj-section><mj-column>\n{inside}\n</mj-column></mj-section></mj-body></mjml>"


BROKEN_MJML = [
    (mjml("<mj-text>a"), "</mj-column> closes nothing: <mj-text> of line 2 is open", 3),
    (mjml("</mj-text>"), "</mj-text> closes nothing", 2),
    (mjml("<mj-txt></mj-txt>"), "unknown component <mj-txt>", 2),
    (mjml("<mj-include path='/etc/passwd' />"), "mj-include reads a file", 2),
    (mjml("<mj-text>a < b</mj-text>"), "`<` begins no tag", 2),
    (mjml("<mj-text><p>a</mj-text>"), "<p> of line 2 is open", 2),
    (mjml("<mj-text title='a></mj-text>"), "`<` begins no tag", 2),
    (mjml("<mj-text>" + "<b>" * 20_000 + "</b>" * 20_000 + "</mj-text>"), "nested deeper than 100", 2),
    (mjml("<mj-button title='\n{{ v }}'>x</mj-button>"), "would be lost", 3),
    (mjml("<mj-text>{{\n\n v }}</mj-text>\n<mj-button title='{{ v }}'>x</mj-button>"), "would be lost", 5),
    (mjml("<mj-image width='{{ v }}' src='a' />"), "would be lost", 2),
    (mjml("<mj-text {{ v }}>x</mj-text>"), "", 2),
    ("<mjml><mj-body></mj-body>", "<mjml> is not closed", 1),
    ("\n<html></html>", "", None),
    ("hello", "", None),
]


@pytest.mark.parametrize(("source", "said", "line"), BROKEN_MJML, ids=range(len(BROKEN_MJML)))
def test_broken_mjml_is_refused_with_its_line(source: str, said: str, line: int | None) -> None:
    """What the compiler refuses, drops or would not survive is refused with the line of the MJML."""
    with pytest.raises(TemplateError) as caught:
        variant(mjml=source)
    assert said in caught.value.what
    assert line is None or caught.value.where in (f"spring.B.mjml:{line}", "spring.B.mjml" if not said else "")


def test_all_components_are_known() -> None:
    """What the compiler knows is not refused as unknown."""
    for name in sorted(COMPONENTS):
        try:
            variant(mjml=mjml(f"<{name}></{name}>"))
        except TemplateError as error:
            assert "unknown" not in error.what


# -- plain text --------------------------------------------------------------------------------------------------------------------------

TEXTS = [
    ("<h1>A</h1><p>b  \n c</p><p>d</p>", "A\n\nb c\n\nd"),
    ("<p>a<br>b<br/><br>c<br><br><br><br>d</p>", "a\nb\n\nc\n\nd"),
    ("<ul><li>a</li><li>b <b>c</b></li></ul>", "- a\n- b c"),
    ("<ol><li>a<li>b</ol>x", "1. a\n2. b\n\nx"),
    ("<ul><li>a<ul><li>b</li></ul></li><li>c</li></ul>", "- a\n  - b\n- c"),
    ('<a href="https://x.example/?a=1&amp;b=2">Go <b>on</b></a>.', "Go on (https://x.example/?a=1&b=2)."),
    ('<a href="https://x.example">https://x.example</a> <a href="mailto:a@b.example">a@b.example</a>', "https://x.example a@b.example"),
    ('<a href="#top">up</a> <a>none</a> <a href="mailto:a@b.example">write</a>', "up none write (a@b.example)"),
    ('<a href="https://x.example"><img src="a.png" alt="Logo"></a><img src="b.gif">', "Logo (https://x.example)"),
    ('<a href="https://x.example"><img src="a.png"></a>', "https://x.example"),
    ("<head><title>t</title><style>s</style></head><script>x</script><body>a<!-- b --><noscript>n</noscript></body>", "a"),
    ('<div style="display: none">h</div><p hidden>i</p>a', "a"),
    ("<table><tr><td>a</td><td>b</td></tr><tr><td>c</td></tr></table>d", "a b\nc\n\nd"),
    ("a&nbsp;&amp;&nbsp;b&shy;c &lt;d&gt; &#8364;\u200b", "a & bc <d> €"),
    ("<pre>a\n  b</pre>", "a\n  b"),
    ("a<hr>b", "a\n\n--------------------\n\nb"),
    ("  <div>\n <div>a</div>\n\n <div> b </div></div> ", "a\nb"),
    ("a<p>b</a></ul></li></pre></b>c", "a\n\nb\n\nc"),
    ("", ""),
]


@pytest.mark.parametrize(("html", "text"), TEXTS)
def test_text_is_made_from_html(html: str, text: str) -> None:
    """Paragraphs, lists, links and pictures become text that reads well; scripts, styles and what is hidden do not."""
    assert plain_text(html) == text


TEMPLATES = [
    "<p>Hi {{ a }}, see <a href='https://x/{{ b }}'>{{ a }} more</a></p>",
    "<p>a</p>{% if a %}<p>{{ a }}</p>{% else %}<p>none</p>{% endif %}<p>b</p>",
    "<p>a</p>{% if missing %}<p>{{ a }}</p>{% endif %}<p>b</p>",
    "<ul>{% for i in list %}<li>{{ i }}</li>{% endfor %}</ul><p>x</p>",
    "<table>{% for i in list %}<tr><td>{{ i }}</td><td>{{ a }}</td></tr>{% endfor %}</table>",
    "<a href='{% if a %}https://y{% else %}https://z{% endif %}'>go</a>",
    "<p class='{% if a %}x{% endif %}'>{{ a | escape }}</p><style>{% if a %}x{}{% endif %}</style>",
    "Hello {% if a %}{{ a }}{% endif %}, you {% if missing %}x{% endif %}two",
    "<td title='{% assign c = a %}'>{{ c }}</td>",
    "<head>{% assign c = a %}</head><p>{{ c }}</p>",
    "<div style='display:none'>{% if a %}</div><p>x</p>{% endif %}<p>{{ a }}</p>",
    "{% capture c %}<b>{{ a }}</b>{% endcapture %}<p>{{ a }}</p>",
]


@pytest.mark.parametrize("source", TEMPLATES)
def test_text_of_the_template_is_text_of_the_message(source: str) -> None:
    """Making the text once, from the template, gives what each message's HTML would give; where it cannot, each message's HTML is used."""
    source += "<p>{{ unsubscribe_url }}</p>"
    for attributes in ({"a": "word", "b": "w", "list": ["x", "y"]}, {"a": "Tom & <Jerry>", "b": "w", "list": []}, {}):
        made = render(attributes, html=source)
        assert re.sub(" +", " ", made.text) == re.sub(" +", " ", plain_text(made.html))
    assert (text_template(source) is None) == any(part in source for part in ("'{% assign", "<head>{% assign", "none'>{% if"))


def test_braces_of_the_html_are_no_liquid_in_the_text() -> None:
    """Braces that the HTML writes as entities stay braces: they are not read as a tag once the text is a template."""
    made = render({"x": "SECRET"}, html="<p>&#123;&#123; x &#125;&#125; {<b>{</b> x }} &lbrace;% if %} {{ x | downcase }}</p>")
    assert made.text.startswith("{{ x }} {{ x }} {% if %} secret")
    for braces in ("&#123;&#123; x }}", "{<b>{</b> x }}", "&#123;% assign x = 1 %}", "&#123;{{ x | downcase }}"):
        assert text_template(f"<p>{braces}</p>") is not None
        made = render({"x": "SECRET"}, html=f"<p>{braces}</p>")
        assert "SECRET" not in made.text and made.text == plain_text(made.html)


def test_values_with_line_breaks_keep_their_text() -> None:
    """Filters that are HTML's do nothing in the text that is made from it."""
    made = render({"v": "a\n<b>"}, html="<p>{{ v | newline_to_br }}</p><p>{{ v | escape }}</p>")
    assert made.text.startswith("a\n<b>\n\na\n<b>")
