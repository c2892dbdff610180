"""How a campaign's variants become the message of one recipient: templates are checked once, before the send, and filled in for each."""

from __future__ import annotations

import html
from datetime import UTC, datetime
from functools import cached_property

import msgspec

from ..kit.errors import nearest
from . import headers
from .language import SYSTEM, RenderError, TemplateError, cleaned, tags_of
from .markup import Marked, Places, compiled, marked, places_of
from .plain_text import plain_text, text_template, tidied
from .script import Script, Use, key_of

preheader_chars_max = 500


class Content(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """What a variant says, each field a Liquid template. The body is ``html`` or ``mjml``, ``text``, or both: text is made from the HTML
    where there is none."""

    subject: str = ""
    from_name: str = ""
    preheader: str = ""
    html: str = ""
    mjml: str = ""
    text: str = ""


class Rendered(msgspec.Struct, kw_only=True, frozen=True):
    """The message of one recipient. ``html`` is ``""`` where the variant is plain text."""

    subject: str
    from_name: str
    html: str
    text: str


PREHEADER = (
    '<div style="display:none;font-size:1px;line-height:1px;max-height:0;max-width:0;opacity:0;overflow:hidden;mso-hide:all">{}</div>'
)
FOOTER = (
    '<p style="margin:24px 0 8px;text-align:center;font-family:sans-serif;font-size:12px;color:#666666">'
    '<a href="{{{{ unsubscribe_url }}}}" style="color:#666666">{}</a></p>'
)


def compile_variant(content: Content, where: str, footer: str = "Unsubscribe") -> Template:
    """Return a variant ready to render, or raise TemplateError with the place of what is wrong.

    ``where`` names the variant in errors. ``footer`` is the text of the link that is put below a body without a link to unsubscribe; ``""``
    puts none, and is refused where a body has no ``{{ unsubscribe_url }}`` that every recipient sees.
    """
    if content.html and content.mjml:
        raise TemplateError("A variant has both `html` and `mjml`", where=where, todo="Keep the one that is to be sent")
    if not (content.html or content.mjml or content.text).strip():
        raise TemplateError("A variant has no body", expected="`html`, `mjml` or `text`", where=where)
    if not content.subject.strip():
        raise TemplateError("A variant has no subject", where=where)
    subject = Script(content.subject, "plain", f"{where}.subject")
    from_name = Script(content.from_name, "plain", f"{where}.from_name")
    preheader = Script(content.preheader, "html", f"{where}.preheader")
    _check_length(subject, headers.subject_chars_max)
    _check_length(from_name, headers.from_name_chars_max)
    _check_length(preheader, preheader_chars_max)
    body, body_uses = _body(content, where, footer)
    text, text_uses = _text(content, body, where, footer)
    if body is not None and content.preheader.strip():
        at = places_of(body.source, body.where).body_start
        shown = PREHEADER.format(_escaped(marked(content.preheader)))
        body, _ = _html_script(body.source[:at] + shown + body.source[at:], body.where)
    parts = [(script.where, script.uses) for script in (subject, from_name, preheader)]
    parts += [(body.where, body_uses)] if body else []
    parts += [(f"{where}.text", text_uses)] if content.text.strip() else []
    template = Template(where, subject, from_name, body, text, parts)
    template.try_out()
    return template


class Template:
    """A variant that was compiled. It is the same for all recipients and can be used from several threads."""

    def __init__(
        self, where: str, subject: Script, from_name: Script, body: Script | None, text: Script | None, parts: list[tuple[str, list[Use]]]
    ) -> None:
        self.where, self.subject, self.from_name, self.body, self.text = where, subject, from_name, body, text
        self.parts = parts
        used = {key_of(use): None for script in (subject, from_name, body, text) if script for use in script.uses}
        self.used = tuple(used)

    @cached_property
    def variables(self) -> dict[str, bool]:
        """The names that the variant uses, ours and attributes; True where every use says what to show without one."""
        found: dict[str, bool] = {}
        for _, uses in self.parts:
            for use in uses:
                found[use.name] = found.get(use.name, True) and use.defaulted
        return found

    def check(self, known: set[str]) -> None:
        """Refuse a variable that is neither ours nor among the ``known`` attributes, unless a ``default`` says what else to show."""
        for part, uses in self.parts:
            for use in uses:
                if use.defaulted or (use.name in SYSTEM if use.system else use.name in known):
                    continue
                raise TemplateError(
                    f"Unknown variable `{use.name}`", where=f"{part}:{use.line}",
                    todo=nearest(use.name, SYSTEM if use.system else {*known, *SYSTEM})
                    + f' A variable that only some have can say what else to show: `{{{{ {use.name} | default: "..." }}}}`.',
                )  # fmt: skip

    def render(self, attributes: dict[str, object], system: dict[str, object]) -> Rendered:
        """Return the message of one recipient, or raise RenderError.

        ``system`` is keyed by the names of ``language.SYSTEM``; ``unsubscribe_url`` has to be there, and ``now`` is the time in
        microseconds. What is missing of either renders as nothing.
        """
        if not system.get("unsubscribe_url"):
            raise RenderError("A message without a URL to unsubscribe", where=self.where)
        rendered = self._rendered(self._values(attributes, system))
        if not rendered.subject:
            raise RenderError("The subject is empty for this recipient", where=self.subject.where, todo="Give its variable a `default`")
        return rendered

    def try_out(self) -> None:
        """Render once for a recipient of whom nothing is known: what cannot be done then is refused before the send."""
        try:
            self._rendered({(True, "unsubscribe_url"): "https://unsubscribe.example/"})
        except RenderError as error:
            raise TemplateError(
                error.what, where=error.where, todo="This is what a recipient without any of the attributes would get"
            ) from None

    def _values(self, attributes: dict[str, object], system: dict[str, object]) -> dict[tuple[bool, str], object]:
        values = {}
        for key in self.used:
            given = system.get(key[1]) if key[0] else attributes.get(key[1])
            if given is None:
                continue
            if key == (True, "now"):
                given = datetime.fromtimestamp(given // 1_000_000, UTC).isoformat()
            if (value := cleaned(given)) is not None:
                values[key] = value
        return values

    def _rendered(self, values: dict[tuple[bool, str], object]) -> Rendered:
        body = self.body.render(values) if self.body else ""
        return Rendered(
            subject=headers.one_line(self.subject.render(values), headers.subject_chars_max),
            from_name=headers.display_name(self.from_name.render(values)),
            html=body,
            text=tidied(self.text.render(values)) if self.text else plain_text(body),
        )


def _check_length(script: Script, chars_max: int) -> None:
    """Refuse a line that is too long before any value stands in it."""
    fixed = len(script.source) - sum(len(tag.text) for tag in tags_of(script.source) if tag.name != "raw")
    if fixed > chars_max:
        raise TemplateError("A line is too long", expected=f"at most {chars_max} characters besides values", got=fixed, where=script.where)


def _escaped(text: Marked) -> str:
    """Return a template of plain text as one of HTML."""
    return text.restored(html.escape(text.text, quote=False))


# -- the bodies --------------------------------------------------------------------------------------------------------------------------


def _body(content: Content, where: str, footer: str) -> tuple[Script | None, list[Use]]:
    """Return the HTML with its link to unsubscribe, and what it uses by the lines that the author wrote."""
    source, name = (content.mjml, f"{where}.mjml") if content.mjml.strip() else (content.html, f"{where}.html")
    if not source.strip():
        return None, []
    # The author's own text is read first, so that errors name its lines.
    uses = Script(source, "html", name).uses
    if content.mjml:
        source = compiled(source, name)
    script, places = _html_script(source, name)
    if not _links(script, places.hidden):
        _check_footer(footer, name)
        made = FOOTER.format(html.escape(footer))
        script, _ = _html_script(source[: places.body_end] + made + source[places.body_end :], name)
    return script, uses


def _html_script(source: str, where: str) -> tuple[Script, Places]:
    places = places_of(source, where)
    return Script(source, "html", where, places.quoted), places


def _text(content: Content, body: Script | None, where: str, footer: str) -> tuple[Script | None, list[Use]]:
    """Return the plain text, and what it uses. No script where it has to be made from each recipient's HTML."""
    name = f"{where}.text"
    if content.text.strip():
        script = Script(content.text, "plain", name)
        uses = script.uses
        if not _links(script, set()):
            _check_footer(footer, name)
            script = Script(f"{content.text.rstrip()}\n\n{footer}: {{{{ unsubscribe_url }}}}\n", "plain", name)
        return script, uses
    source = text_template(body.source)
    if source is None:
        return None, []
    try:
        script = Script(source, "plain_from_html", name)
    except TemplateError:
        # The HTML has logic across what plain text leaves out.
        return None, []
    if not _links(script, set()):
        script = Script(f"{source}\n\n{footer or 'Unsubscribe'}: {{{{ unsubscribe_url }}}}", "plain_from_html", name)
    return script, []


def _links(script: Script, hidden: set[int]) -> bool:
    """Whether every recipient sees the URL to unsubscribe: outside of comments, conditions and loops."""
    return any(start not in hidden for start in script.written_at("unsubscribe_url"))


def _check_footer(footer: str, where: str) -> None:
    if not footer.strip():
        raise TemplateError(
            "The footer is turned off and the body has no link to unsubscribe", expected="`{{ unsubscribe_url }}` outside of conditions",
            where=where,
        )  # fmt: skip
