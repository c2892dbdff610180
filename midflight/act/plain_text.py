"""Plain text made from HTML: what a reader without pictures and formats is to read. It works on templates too, with Liquid in place."""

from __future__ import annotations

import re
from html.parser import HTMLParser

from .language import Tag, whole
from .markup import Marked, marked, read

_SKIPPED = {"head", "script", "style", "title", "template", "noscript", "select", "textarea", "object", "svg", "audio", "video", "iframe"}
_LINES = {
    "address", "article", "aside", "center", "div", "dd", "dl", "dt", "fieldset", "figcaption", "figure", "footer", "form", "header", "li",
    "main", "nav", "section", "tr", "caption", "tbody", "thead", "tfoot", "body", "html",
}  # fmt: skip
_PARAGRAPHS = {"p", "h1", "h2", "h3", "h4", "h5", "h6", "ul", "ol", "blockquote", "table", "pre", "hr"}
_VOID = {"area", "br", "col", "embed", "hr", "img", "input", "link", "meta", "source", "track", "wbr"}
_HIDDEN = re.compile(r"display\s*:\s*none|visibility\s*:\s*hidden|mso-hide\s*:\s*all", re.IGNORECASE)
_INVISIBLE = re.compile("[\u00ad\u200b\u200c\u2060\u034f\ufeff]")
_BLANKS = re.compile("[ \t\r\n\f\u00a0]+")


def plain_text(html: str) -> str:
    """Return the text of an HTML document that holds no Liquid."""
    reader = _TextReader(Marked(html, "\ufdd0", []))
    return tidied(reader.result())


def text_template(html: str) -> str | None:
    """Return a text template from an HTML template.

    None where what it leaves out has logic that the rest needs: then the text has to be made from each rendered HTML.
    """
    text = marked(html)
    reader = _TextReader(text)
    made = reader.result()
    return None if reader.unsure else _literal(made, text)


def tidied(text: str) -> str:
    """Return text with at most one blank line in a row, none at the ends, and no blanks at the ends of lines."""
    if " \n" in text or "\t\n" in text:
        text = re.sub(r"[ \t]+\n", "\n", text)
    if "\n\n\n" in text:
        text = re.sub(r"\n{3,}", "\n\n", text)
    return text.strip()


def _literal(made: str, text: Marked) -> str:
    """Return the template, with braces that HTML wrote as entities kept from being read as Liquid."""
    pieces = []
    at = 0
    for found in text.pattern().finditer(made):
        pieces += [_raw(made[at : found.start()]), text.tags[int(found[1])].text]
        at = found.end()
    return "".join([*pieces, _raw(made[at:])])


def _raw(literal: str) -> str:
    return f"{{% raw %}}{literal}{{% endraw %}}" if "{{" in literal or "{%" in literal or literal.endswith("{") else literal


_REMEMBERED = {"assign", "capture", "cycle", "increment", "decrement"}


def _closed(tags: list[Tag]) -> bool:
    """Whether Liquid can be left out together: its blocks are whole, and nothing in it is remembered for later."""
    return whole(tags) and not any(tag.name in _REMEMBERED for tag in tags)


class _List:
    """A list that is open: how many items it had, whether they are counted, and whether a loop makes them."""

    def __init__(self, ordered: bool) -> None:
        self.ordered = ordered
        self.items = 0


class _TextReader(HTMLParser):
    def __init__(self, text: Marked) -> None:
        super().__init__(convert_charrefs=True)
        self.text = text
        self.split = re.compile(f"({text.word}\\d+z)")
        self.out: list[str] = []
        self.breaks = 0  # line feeds that have to stand before what comes next
        self.blank = False
        self.skipping: list[str] = []  # the elements that are open since one was hidden
        self.left_out: list[Tag] = []
        self.lists: list[_List] = []
        self.links: list[tuple[str, int]] = []
        self.kept_blanks = 0
        self.unsure = False

    def result(self) -> str:
        read(self, self.text.text, "html")
        self.unsure = self.unsure or not _closed(self.left_out)
        return "".join(self.out)

    # -- elements

    def handle_starttag(self, tag: str, attrs: list) -> None:
        if self.skipping:
            self.left_out += self.text.found(self.get_starttag_text() or "")
            if tag not in _VOID:
                self.skipping.append(tag)
            return
        given = {name: value or "" for name, value in attrs}
        if not _closed(self.text.found(self.get_starttag_text() or "")):
            self.unsure = True
        if tag in _SKIPPED or "hidden" in given or _HIDDEN.search(given.get("style", "")):
            if tag not in _VOID:
                self.skipping = [tag]
            return
        if tag == "br":
            self._line_break()
        elif tag in _PARAGRAPHS:
            # A list inside of a list begins on the next line.
            self._break(1 if tag in ("ul", "ol") and self.lists else 2)
        elif tag in _LINES:
            self._break(1)
        self._begin(tag, given)

    def _begin(self, tag: str, given: dict[str, str]) -> None:
        if tag in ("ul", "ol"):
            self.lists.append(_List(tag == "ol"))
        elif tag == "li":
            self._begin_item()
        elif tag == "a":
            self.links.append((given.get("href", "").strip(), len(self.out)))
        elif tag == "img":
            self._write(_INVISIBLE.sub("", given.get("alt", "")))
        elif tag in ("td", "th"):
            self.blank = True
        elif tag == "hr":
            self._write("-" * 20)
            self._break(2)
        elif tag == "pre":
            self.kept_blanks += 1

    def _begin_item(self) -> None:
        mark = "- "
        if self.lists:
            self.lists[-1].items += 1
            if self.lists[-1].ordered:
                mark = f"{self.lists[-1].items}. "
        self._flush()
        self.out.append("  " * (len(self.lists) - 1) + mark)

    def handle_startendtag(self, tag: str, attrs: list) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in _VOID:
            self.handle_endtag(tag)

    def handle_endtag(self, tag: str) -> None:
        if self.skipping:
            if tag in self.skipping:
                while self.skipping.pop() != tag:
                    pass
            if not self.skipping:
                if not _closed(self.left_out):
                    self.unsure = True
                self.left_out = []
            return
        if tag in ("ul", "ol") and self.lists:
            self.lists.pop()
        elif tag == "a" and self.links:
            self._end_link(*self.links.pop())
        elif tag == "pre" and self.kept_blanks:
            self.kept_blanks -= 1
        if tag in _PARAGRAPHS:
            self._break(1 if tag in ("ul", "ol") and self.lists else 2)
        elif tag in _LINES:
            self._break(1)

    def _end_link(self, href: str, start: int) -> None:
        label = " ".join("".join(self.out[start:]).split())
        address = href.removeprefix("mailto:")
        if not href or href.startswith("#") or label in (href, address):
            return
        self._write(f" ({address})" if label else address)

    # -- text

    def handle_data(self, data: str) -> None:
        if self.skipping:
            self.left_out += self.text.found(data)
            return
        data = _INVISIBLE.sub("", data)
        for number, part in enumerate(self.split.split(data)):
            if number % 2:
                self._liquid(part)
            elif self.kept_blanks:
                self._write_kept(part)
            elif part:
                self._words(part)

    def _words(self, part: str) -> None:
        part = _BLANKS.sub(" ", part)
        if part.startswith(" "):
            self.blank = True
        if words := part.strip(" "):
            self._write(words)
            self.blank = part.endswith(" ")

    def _liquid(self, word: str) -> None:
        (tag,) = self.text.found(word)
        if tag.writes or tag.name == "raw":
            self._write(word)
            return
        if tag.name == "for":
            # What stands before the first round stands there once.
            self._flush()
            for open_list in self.lists:
                open_list.ordered = False
        if self.blank and not self.breaks:
            self._write("")
        self.out.append(word)

    def _write(self, text: str) -> None:
        self._flush()
        if self.blank and self.out and not self.out[-1].endswith((" ", "\n")):
            self.out.append(" ")
        self.blank = False
        if text:
            self.out.append(text)

    def _write_kept(self, text: str) -> None:
        self._flush()
        if text:
            self.out.append(text)

    def _break(self, count: int) -> None:
        self.breaks = max(self.breaks, count)
        self.blank = False

    def _line_break(self) -> None:
        self.breaks = min(self.breaks + 1, 2)
        self.blank = False

    def _flush(self) -> None:
        if self.breaks and self.out:
            self.out.append("\n" * self.breaks)
        self.breaks = 0
