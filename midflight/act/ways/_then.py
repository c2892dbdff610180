"""What a rule says through a way: the templates of its fields, checked once with the rule and filled in for each action."""

from __future__ import annotations

import re
import typing
from functools import cache
from typing import Protocol
from urllib.parse import quote

from ...kit.errors import nearest
from .. import headers
from ..guarded import url_problem
from ..language import SYSTEM, RenderError, TemplateError, cleaned
from ..script import Script, Use, key_of
from .way import Text, Way, fields_of

CODE = "code"
depth_max = 4  # of a value whose texts are encoded for a URL
_HOST = re.compile(r"https?://[^/?#\s{}@\\]+[/?#]")
_URL = re.compile(r"[!#-;=?-\[\]_a-z~]+")  # printable ASCII without spaces, quotes, backslashes, <, > and ^ ` { | }
_OPENS = re.compile(r"\{[{%]")


class Says(Protocol):
    """Fields ready to fill in."""

    uses: list[Use]

    def check(self, known: set[str]) -> None: ...
    def render(self, attributes: dict[str, object], system: dict[str, object]) -> dict[str, object]: ...


class Then:
    """The fields of one rule, ready to fill in. It is the same for all recipients and can be used from several threads."""

    def __init__(self, way: type[Way], fields: dict[str, object], where: str, inner: Says | None = None) -> None:
        """``inner`` says what stands in ``say``, for a way that hands something on (offer_code.py)."""
        fields_of(way, fields, where)
        self.inner = inner
        if self.inner and CODE not in {use.name for use in self.inner.uses}:
            raise TemplateError("What is said does not tell the code", expected="`{{ code }}` in one of its texts", where=f"{where}.say")
        self.way, self.where = way, where
        self.fixed: dict[str, object] = {}
        self.scripts: list[tuple[str, str | None, Text, Script]] = []  # a field, its key where it is a mapping, what it is, its template
        texts = texts_of(way.Fields)
        for name, value in fields.items():
            if name not in texts:
                self.fixed[name] = value
                continue
            for key, source in value.items() if isinstance(value, dict) else [(None, value)]:
                self.scripts.append((name, key, texts[name], _script(source, texts[name], f"{where}.{name}" + (f".{key}" if key else ""))))

    @property
    def uses(self) -> list[Use]:
        """Every place where a value is needed."""
        own = [use for _, _, _, script in self.scripts for use in script.uses]
        return own + ([use for use in self.inner.uses if use.name != CODE] if self.inner else [])

    def check(self, known: set[str]) -> None:
        """Refuse a variable that is neither ours nor among the ``known`` names, unless a ``default`` says what else to say."""
        if self.inner:
            self.inner.check(known | {CODE})
        for _, _, _, script in self.scripts:
            for use in script.uses:
                if not use.defaulted and use.name not in (SYSTEM if use.system else known):
                    raise TemplateError(
                        f"Unknown variable `{use.name}`", where=f"{script.where}:{use.line}", todo=nearest(use.name, {*known, *SYSTEM})
                    )

    def render(self, attributes: dict[str, object], system: dict[str, object], code: str = "") -> dict[str, object]:
        """Return the fields for one action, or raise RenderError: nothing is sent then.

        ``attributes`` are what is known of the recipient, besides what the rule adds (``event``); ``system`` is keyed by
        ``language.SYSTEM``. Work and size are bounded as for email. ``code`` is what is handed on, where something is.
        """
        values = _values([use for _, _, _, script in self.scripts for use in script.uses], attributes, system)
        encoded = None
        made = dict(self.fixed)
        for name, key, text, script in self.scripts:
            if text.kind == "url":
                encoded = encoded if encoded is not None else {k: _encoded(value, 0) for k, value in values.items()}
                said = _url(script, encoded, text)
            else:
                said = _said(script, values, text)
            if key is None:
                made[name] = said
            else:
                made.setdefault(name, {})[key] = said
        if self.inner:
            made["say"] = self.inner.render({**attributes, CODE: code}, system)
        return made


def render(way: type[Way], fields: dict[str, object], attributes: dict[str, object], system: dict[str, object]) -> dict[str, object]:
    """Return fields filled in once: for a preview. Raises ConfigError, TemplateError or RenderError."""
    return Then(way, fields, "then").render(attributes, system)


@cache
def texts_of(fields: type) -> dict[str, Text]:
    """Return which fields are text, and what of: those that are annotated so, also as the values of a mapping."""
    found = {}
    for name, hint in typing.get_type_hints(fields, include_extras=True).items():
        stack = [hint]
        while stack:
            inner = stack.pop()
            text = next((note for note in getattr(inner, "__metadata__", ()) if isinstance(note, Text)), None)
            if text:
                found[name] = text
                break
            stack.extend(typing.get_args(inner))
    return found


def _script(source: str, text: Text, where: str) -> Script:
    script = Script(source, "plain", where)
    if text.kind == "fixed" and _OPENS.search(source):
        raise TemplateError("This must not come from a template", expected="fixed text", got=source[:100], where=where)
    if text.kind == "url" and source:
        if _OPENS.search(source):
            if not _HOST.match(source):
                raise TemplateError(
                    "The host of a URL must not come from a template", expected="https://HOST/ before the first `{{`", got=source[:100],
                    where=where, todo="Write the host out; what is filled in may stand in the path and behind",
                )  # fmt: skip
        elif problem := url_problem(source, http=True):
            raise TemplateError("A URL", expected=problem, got=source[:100], where=where)
    return script


def _values(uses: list[Use], attributes: dict[str, object], system: dict[str, object]) -> dict[tuple[bool, str], object]:
    values = {}
    for key in {key_of(use) for use in uses}:
        given = system.get(key[1]) if key[0] else attributes.get(key[1])
        value = cleaned(given) if given is not None else None
        if value is not None:
            values[key] = value
    return values


def _said(script: Script, values: dict[tuple[bool, str], object], text: Text) -> str:
    said = script.render(values)
    if text.kind == "line":
        return headers.one_line(said, text.chars_max)
    if len(said) > text.chars_max:
        raise RenderError(
            "A text is too long for this recipient", expected=f"at most {text.chars_max} characters", got=len(said), where=script.where
        )
    return said


def _url(script: Script, encoded: dict[tuple[bool, str], object], text: Text) -> str:
    """Return a URL whose scheme and host are the author's: a value can neither end the host nor break the line."""
    said = script.render(encoded)
    if not said:
        return said
    fixed = script.source[: opens.start()] if (opens := _OPENS.search(script.source)) else script.source
    if not said.startswith(fixed) or not _URL.fullmatch(said) or len(said) > text.chars_max:
        raise RenderError(
            "A URL cannot be made for this recipient", expected=f"printable ASCII, at most {text.chars_max}", where=script.where
        )
    return said


def _encoded(value: object, depth: int) -> object:
    """Return a value whose texts are percent-encoded."""
    if isinstance(value, str):
        return quote(value, safe="")
    if depth < depth_max and isinstance(value, dict):
        return {key: _encoded(inner, depth + 1) for key, inner in value.items()}
    if depth < depth_max and isinstance(value, list | tuple):
        return [_encoded(inner, depth + 1) for inner in value]
    return value if isinstance(value, int | float | bool) else ""
