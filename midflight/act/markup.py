"""Markup around Liquid: where in HTML a value may stand, where the body is, and MJML that becomes HTML with Liquid in place."""

from __future__ import annotations

import re
from html.parser import HTMLParser

import msgspec
from mjml import mjml2html

from ..kit.errors import nearest
from .language import Tag, TemplateError, tags_of, whole


class Marked(msgspec.Struct):
    """A text in which each piece of Liquid is replaced by a word of letters and digits that occurs nowhere else in it."""

    text: str
    word: str
    tags: list[Tag]

    def pattern(self) -> re.Pattern:
        return re.compile(self.word + r"(\d+)z")

    def found(self, text: str) -> list[Tag]:
        """Return the pieces of Liquid whose words stand in a text."""
        return [self.tags[int(number)] for number in self.pattern().findall(text)]

    def restored(self, text: str) -> str:
        """Return a text with the Liquid in place of its words."""
        return self.pattern().sub(lambda found: self.tags[int(found[1])].text, text)

    def line(self, index: int) -> int:
        """Return the line of the original text that a place of the marked text stands on."""
        before = self.text[:index]
        return 1 + before.count("\n") + sum(tag.text.count("\n") for tag in self.found(before))


def marked(source: str) -> Marked:
    """Return a template with its Liquid replaced by words."""
    word = "zq"
    while word in source:
        word += "q"
    tags = tags_of(source)
    pieces, at = [], 0
    for number, tag in enumerate(tags):
        pieces += [source[at : tag.start], f"{word}{number}z"]
        at = tag.end
    return Marked("".join([*pieces, source[at:]]), word, tags)


# -- HTML ------------------------------------------------------------------------------------------------------------------------------

_ATTRIBUTE = re.compile(r"""[\s/]*([^\s/>][^\s/>=]*)(?:\s*=\s*("[^"]*"|'[^']*'|[^\s>]*))?""")
_TAG_NAME = re.compile(r"<[A-Za-z][^\s/>]*")


class Places(msgspec.Struct):
    """Where things stand in an HTML template, as places of its text.

    ``hidden`` is Liquid that a reader never sees, in a comment; ``quoted`` is Liquid in the value of an attribute.
    """

    body_start: int
    body_end: int
    hidden: set[int]
    quoted: set[int]


def places_of(source: str, where: str) -> Places:
    """Return where the body is. Refuses a value where escaping does not hold it: in a tag, an attribute without quotes, a script."""
    text = marked(source)
    _check_comments(text, where)
    reader = _Reader(text, where)
    read(reader, text.text, where)
    start, end = reader.body_start, reader.body_end if reader.body_end is not None else len(text.text)
    # Back to places of the source: each word before it is as long as its Liquid.
    return Places(*(len(text.restored(text.text[:at])) for at in (start, max(start, end))), reader.hidden, reader.quoted)


def _check_comments(text: Marked, where: str) -> None:
    last = text.text.rfind("<!--")
    if last >= 0 and text.text.find("-->", last) < 0:
        raise TemplateError("A comment does not end", expected="`-->`", where=f"{where}:{text.line(last)}")


def read(reader: HTMLParser, html: str, where: str) -> None:
    """Let a reader read a whole document. Raises TemplateError where it cannot be read as HTML."""
    try:
        reader.feed(html)
        reader.close()
    except AssertionError as error:
        # Python's parser says so of `<![`.
        raise TemplateError(f"The HTML cannot be read: {str(error)[:100]}", where=where) from None


class _Reader(HTMLParser):
    """Reads a marked HTML template and keeps to where values stand."""

    def __init__(self, text: Marked, where: str, offset: int = 0) -> None:
        super().__init__(convert_charrefs=False)
        self.text, self.where, self.offset = text, where, offset
        self.starts = [0]
        self.body_start, self.body_end = 0, None
        self.hidden: set[int] = set()
        self.quoted: set[int] = set()
        self.raw = ""
        self.inside: list[Tag] = []  # Liquid of the script or style that is open

    def feed(self, data: str) -> None:
        self.starts = [0, *(found.end() for found in re.finditer("\n", data))]
        super().feed(data)

    def at(self) -> int:
        line, column = self.getpos()
        return self.starts[line - 1] + column

    def handle_starttag(self, tag: str, attrs: list) -> None:
        written = self.get_starttag_text() or ""
        if tag in ("html", "body") or (tag == "head" and not self.body_start):
            self.body_start = self.at() + len(written)
        name = _TAG_NAME.match(written)
        self._refuse(name[0] if name else "", "in the name of a tag")
        rest = written[name.end() :].removesuffix(">") if name else written
        at = 0
        while found := _ATTRIBUTE.match(rest, at):
            at = found.end()
            self._refuse(found[1], "where the name of an attribute stands")
            if found[2] and found[2][0] not in "\"'":
                self._refuse(found[2], "in an attribute without quotes")
            self._whole(self.text.found(found[2] or ""), "attribute")
            self.quoted |= {liquid.start for liquid in self.text.found(found[2] or "")}
        self._refuse(rest[at:], "in a tag")
        self._whole(self.text.found(written), "tag")
        if tag in self.CDATA_CONTENT_ELEMENTS:
            self.raw = tag

    def handle_startendtag(self, tag: str, attrs: list) -> None:
        self.handle_starttag(tag, attrs)
        self.raw = ""

    def handle_endtag(self, tag: str) -> None:
        self._refuse(tag, "in the name of a tag")
        self._whole(self.text.found(tag), "tag")
        self._whole(self.inside, self.raw)
        self.raw, self.inside = "", []
        if tag == "head":
            self.body_start = max(self.body_start, self.text.text.find(">", self.at()) + 1)
        elif tag == "body" or (tag == "html" and self.body_end is None):
            self.body_end = self.at()

    def handle_data(self, data: str) -> None:
        if self.raw:
            self._refuse(data, f"inside of <{self.raw}>")
            self.inside += self.text.found(data)
            return
        # A tag that does not end is no tag to this reader, and one to others once something is put after it.
        if found := re.search(r"<[A-Za-z/!?]", data):
            line = self.text.line(self.offset + self.at() + found.start())
            raise TemplateError("A tag of the HTML does not end", got=data[found.start() :][:40], where=f"{self.where}:{line}")

    def handle_comment(self, data: str) -> None:
        start = self.at() + len("<!--")
        # Outlook reads what stands in a conditional comment, and other readers see the end of a comment earlier in these.
        if data.lstrip().lower().startswith("[if") or data.startswith((">", "->")) or "--!>" in data:
            inner = _Reader(self.text, self.where, self.offset + start)
            read(inner, data, self.where)
            self.quoted |= inner.quoted
        self._whole(self.text.found(data), "comment")
        self.hidden |= {tag.start for tag in self.text.found(data)}

    def handle_decl(self, decl: str) -> None:
        self._refuse(decl, "in a declaration")

    def handle_pi(self, data: str) -> None:
        self._refuse(data, "in a declaration")

    def unknown_decl(self, data: str) -> None:
        self._refuse(data, "in a declaration")

    def _whole(self, tags: list[Tag], place: str) -> None:
        """Refuse a condition that begins in a place and ends outside: there would be two readings of what follows, and one was checked."""
        if not whole(tags):
            raise TemplateError(
                f"A block of Liquid begins or ends inside of a {place}", got=tags[0].text[:60], where=f"{self.where}:{self._line(tags[0])}",
                todo="Put the whole of it inside, or the whole of it outside",
            )  # fmt: skip

    def _line(self, tag: Tag) -> int:
        return self.text.line(self.text.text.find(f"{self.text.word}{self.text.tags.index(tag)}z"))

    def _refuse(self, part: str, place: str) -> None:
        for tag in self.text.found(part):
            if tag.writes:
                raise TemplateError(
                    f"`{tag.text[:60]}` stands {place}", expected="values only in text and in attributes with quotes",
                    where=f"{self.where}:{self._line(tag)}",
                    todo="Put quotes around it, or choose between written-out variants with `{% if %}`",
                )  # fmt: skip


# -- MJML ------------------------------------------------------------------------------------------------------------------------------

depth_max = 100  # the compiler's own stack ends somewhere above ten thousand, and the process with it

# https://documentation.mjml.io/#components, without mj-include: a campaign reads no files.
COMPONENTS = {
    "mj-head", "mj-attributes", "mj-all", "mj-class", "mj-breakpoint", "mj-font", "mj-html-attributes", "mj-selector", "mj-html-attribute",
    "mj-preview", "mj-style", "mj-title", "mj-body", "mj-accordion", "mj-accordion-element", "mj-accordion-title", "mj-accordion-text",
    "mj-button", "mj-carousel", "mj-carousel-image", "mj-column", "mj-divider", "mj-group", "mj-hero", "mj-image", "mj-navbar",
    "mj-navbar-link", "mj-raw", "mj-section", "mj-social", "mj-social-element", "mj-spacer", "mj-table", "mj-text", "mj-wrapper",
}  # fmt: skip
_VOID = {"area", "br", "col", "embed", "hr", "img", "input", "link", "meta", "source", "track", "wbr"}
_MJML_TAG = re.compile(
    r"""<!--.*?-->|<!\[CDATA\[.*?\]\]>|<[!?][^<>]*>|<(?P<close>/?)(?P<name>[A-Za-z][^\s/<>]*)(?:"[^"<]*"|'[^'<]*'|[^'"<>])*?(?P<empty>/?)>|<""",
    re.DOTALL,
)
_NOT_ASCII = re.compile(r"[^\x00-\x7f]+")
_POSITION = re.compile(r" in root template(?: at position (\d+):\d+)?$")


def compiled(source: str, where: str) -> str:
    """Return the HTML of an MJML template, Liquid in place. Raises TemplateError with the line."""
    text = marked(source)
    _check_structure(text, where)
    # The compiler's errors cut text without regard for characters of several bytes, and abort: it gets words instead of these.
    runs: list[str] = []
    text.text = _NOT_ASCII.sub(lambda found: runs.append(found[0]) or f"{text.word}{len(runs) - 1}u", text.text)
    try:
        html = mjml2html(text.text, disable_comments=False)
    except ValueError as error:
        position = _POSITION.search(str(error))
        line = text.line(int(position[1])) if position and position[1] else 0
        raise _refused(_POSITION.sub("", str(error)), f"{where}:{line}" if line else where) from None
    html = re.sub(text.word + r"(\d+)u", lambda found: runs[int(found[1])], html)
    kept = {tag.start for tag in text.found(html)}
    for tag in text.tags:
        if tag.start not in kept and tag.name != "comment":
            index = text.text.find(f"{text.word}{text.tags.index(tag)}z")
            raise TemplateError(
                f"`{tag.text[:60]}` would be lost: MJML leaves out what stands there", where=f"{where}:{text.line(index)}",
                todo="Use an attribute that the component has, and write widths as numbers",
            )  # fmt: skip
    return text.restored(html)


def _check_structure(text: Marked, where: str) -> None:
    """Find what the compiler would refuse without a line, drop without a word, or not survive."""
    _check_comments(text, where)
    open_tags: list[tuple[str, int]] = []
    for found in _MJML_TAG.finditer(text.text):
        name, line = found["name"], text.line(found.start())
        if name is None:
            if found[0] == "<":
                raise _refused("`<` begins no tag", f"{where}:{line}", "Write `&lt;` for the sign itself, and close quotes")
            continue
        if name == "mj-include":
            raise _refused("mj-include reads a file", f"{where}:{line}", "Put the part itself here")
        if name.startswith("mj-") and name not in COMPONENTS:
            raise _refused(f"unknown component <{name}>", f"{where}:{line}", nearest(name, COMPONENTS))
        if found["close"]:
            if not open_tags or open_tags[-1][0] != name:
                opened = f"<{open_tags[-1][0]}> of line {open_tags[-1][1]} is open" if open_tags else "nothing is open"
                raise _refused(f"</{name}> closes nothing: {opened}", f"{where}:{line}")
            open_tags.pop()
        elif not found["empty"] and name.lower() not in _VOID:
            open_tags.append((name, line))
            if len(open_tags) > depth_max:
                raise _refused(f"nested deeper than {depth_max}", f"{where}:{line}")
    if open_tags:
        raise _refused(f"<{open_tags[-1][0]}> is not closed", f"{where}:{open_tags[-1][1]}")


def _refused(said: str, where: str, todo: str | None = None) -> TemplateError:
    return TemplateError(f"The MJML cannot be compiled: {said}", where=where, todo=todo)
