"""One parsed template: what values it needs, and its text for one recipient, filled in directly where it has no logic."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Collection, Iterator
from typing import NamedTuple

from liquid import Environment, escape
from liquid.ast import Node
from liquid.builtin.content import ContentNode
from liquid.builtin.expressions import FilteredExpression, Nil, Path
from liquid.builtin.expressions.filtered import Filter
from liquid.builtin.expressions.primitive import Literal, RangeLiteral, StringLiteral
from liquid.builtin.output import OutputNode
from liquid.builtin.tags.comment_tag import CommentNode
from liquid.builtin.tags.echo_tag import EchoNode
from liquid.builtin.tags.for_tag import ForNode
from liquid.builtin.tags.inline_comment_tag import InlineCommentNode
from liquid.context import RenderContext
from liquid.exceptions import LiquidError
from liquid.expression import Expression
from liquid.template import BoundTemplate
from liquid.undefined import Undefined

from ..kit.errors import nearest
from . import filters
from .language import (
    ENDS,
    ROOTS,
    SYSTEM,
    TROUBLE,
    Budget,
    Context,
    Looped,
    Named,
    RenderError,
    TemplateError,
    TooMuch,
    bounded,
    environment,
    line_of,
    output_bytes_max,
    shown,
    source_chars_max,
    tags_max,
    tags_of,
)


class Use(NamedTuple):
    """One place where a template needs a value. ``name`` is an attribute's, unless ``system``. ``defaulted``: it says what else to show."""

    name: str
    line: int
    system: bool
    defaulted: bool


class Script:
    """One parsed template. ``kind`` as in ``environment``; ``where`` names it in errors.

    ``quoted`` are the places of Liquid in attributes of HTML. ``uses`` are the values that it needs. Plain output with plain filters is
    filled in directly, everything else is left to the engine; ``direct`` says which, and both ways give the same bytes.
    """

    def __init__(self, source: str, kind: str, where: str, quoted: Collection[int] = ()) -> None:
        self.source, self.html, self.where = source, kind == "html", where
        if len(source) > source_chars_max:
            raise TemplateError("Template", expected=f"at most {source_chars_max:,} characters", got=len(source), where=where)
        if unwanted := filters.unwanted_in(source):
            raise TemplateError(
                "Template", expected="no control characters or half surrogates", got=f"U+{ord(source[unwanted - 1]):04X}",
                where=f"{where}:{line_of(source, unwanted - 1)}",
            )  # fmt: skip
        _check_ends(source, where)
        if source.count("{{") + source.count("{%") > tags_max:
            raise TemplateError("Template", expected=f"at most {tags_max:,} pieces of Liquid", where=where)
        self.bound = _parsed(source, kind, where)
        self.uses: list[Use] = []
        if quoted and ("capture" in source or "newline_to_br" in source):
            self._quote(quoted)
        self._read()
        self.weight = sum(_weight(node) for node in self.bound.nodes)
        self.direct = _direct(self.bound)

    def render(self, values: dict[str, object]) -> str:
        """Return the text for one recipient. ``values`` are cleaned, keyed as ``key_of`` says, without what is missing."""
        try:
            text = self.fill(values) if self.direct is not None else self.run(values)
        except TROUBLE as error:
            raise self._refused(error) from None
        if len(text) > output_bytes_max // 4 and len(text.encode()) > output_bytes_max:
            raise self._refused(TooMuch(f"more than {output_bytes_max:,} bytes", token=None))
        return text

    def fill(self, values: dict[str, object]) -> str:
        """Fill the gaps of a template that has only plain output."""
        pieces, gaps = self.direct
        pieces = pieces.copy()
        html = self.html
        budget = None
        chars = 0
        for at, key, missing, steps in gaps:
            value = values.get(key, missing)
            if steps:
                budget = budget or Budget()
                for name, run, arguments, named in steps:
                    value = bounded(name, run, budget)(value, *arguments, **named)
            elif type(value) is str:
                if "{" not in value and len(value) < 1000:
                    pieces[at] = escape(value) if html else value
                    continue
            pieces[at] = written = shown(value, html)
            chars += len(written)
            if chars > output_bytes_max:
                break
        return "".join(pieces)

    def run(self, values: dict[str, object]) -> str:
        """Let the engine render."""
        named = {key[1]: value for key, value in values.items() if not key[0]}
        own = {key[1]: value for key, value in values.items() if key[0]}
        scope = named | {name: value for name, value in own.items() if "." not in name} | {"attributes": Named(named)}
        for name in SYSTEM:
            if "." not in name and name not in own:
                scope.pop(name, None)
        scope["recipient"] = Named({name.partition(".")[2]: value for name, value in own.items() if "." in name})
        context = Context(self.bound, globals=scope)
        context.budget.spend(self.weight)
        buffer = context.get_buffer()
        self.bound.render_with_context(context, buffer)
        return buffer.getvalue()

    def written_at(self, name: str) -> list[int]:
        """Return the places where a value is written for everybody, outside of conditions and loops."""
        return [
            node.token.start_index
            for node in self.bound.nodes
            if isinstance(node, OutputNode) and isinstance(node.expression, FilteredExpression) and str(node.expression.left) == name
        ]

    def _refused(self, error: BaseException) -> RenderError:
        said = _said(error)
        place = f"{self.where}:{_error_line(error, self.source)}" if _error_line(error, self.source) else self.where
        return RenderError(f"The template could not be rendered: {said}", where=place)

    # -- what it uses

    def _read(self) -> None:
        """Find what values the template needs, and refuse what cannot be told beforehand."""
        defaulted: set[int] = set()
        for node in _nodes(self.bound.nodes):
            self._read_node(node, defaulted)
        analysis = self.bound.analyze(include_partials=False)
        for name, places in analysis.filters.items():
            if name not in self.bound.env.filters:
                raise self._wrong(places[0].index, f"Unknown filter `{name}`", nearest(name, self.bound.env.filters))
        for found in analysis.globals.values():
            for variable in found:
                self.uses.append(self._use(variable.segments, variable.span.index, variable.span.index in defaulted))
        self.uses.sort(key=lambda use: use.line)

    def _quote(self, quoted: Collection[int]) -> None:
        """Let what is written into attributes be text: tags that were captured may hold the quote that ends the attribute."""
        for node in _nodes(self.bound.nodes):
            start = node.token.start_index
            if isinstance(node, EchoNode):
                start = self.source.rfind("{%", 0, start)
            if isinstance(node, OutputNode) and start in quoted:
                node.expression.filters = [*(node.expression.filters or ()), Filter(node.token, filters.TEXT, [])]

    def _read_node(self, node: Node, defaulted: set[int]) -> None:
        if isinstance(node, ForNode):
            node.expression.iterable = Looped(node.expression.iterable, 1 + sum(_weight(child) for child in _children(node)))
        for name in (*node.template_scope(), *node.block_scope()):
            if str(name) in ROOTS:
                index = getattr(getattr(name, "token", None), "start_index", node.token.start_index)
                raise self._wrong(index, f"`{name}` is a name of ours and cannot be set", "Choose another name")
        for expression in _expressions(node):
            if isinstance(expression, FilteredExpression):
                _ask_for_now(expression)
                if isinstance(expression.left, Path) and any(filter.name == "default" for filter in expression.filters or ()):
                    defaulted.add(expression.left.token.start_index)
            # What a loop goes over is measured; anywhere else a range of a thousand million numbers would cost nothing to write.
            for child in expression.children():
                if isinstance(child, RangeLiteral) and not isinstance(expression, Looped):
                    raise self._wrong(child.token.start_index, "A range stands outside of a loop", "Write it into `{% for i in (1..5) %}`")

    def _use(self, segments: list, index: int, defaulted: bool) -> Use:
        root, second = segments[0], segments[1] if len(segments) > 1 else None
        if not isinstance(root, str) or (root in ("attributes", "recipient") and not isinstance(second, str)):
            raise self._wrong(index, "A name is missing, or is looked up by the value of another", 'Write `attributes["NAME"]`')
        line = line_of(self.source, index)
        if root == "attributes":
            return Use(second, line, False, defaulted)
        if root == "recipient":
            return Use(f"recipient.{second}", line, True, defaulted)
        return Use(root, line, root in ROOTS, defaulted)

    def _wrong(self, index: int, what: str, todo: str) -> TemplateError:
        return TemplateError(what, where=f"{self.where}:{line_of(self.source, index)}", todo=todo)


def key_of(use: Use) -> tuple[bool, str]:
    """Return the key of a value: ours or an attribute, and its name."""
    return use.system, use.name


def _ask_for_now(expression: FilteredExpression) -> None:
    """Make ``"now" | date`` a use of ``now``, which is handed in."""
    left, steps = expression.left, expression.filters
    if isinstance(left, StringLiteral) and left.value in ("now", "today") and steps and steps[0].name == "date":
        expression.left = Path(left.token, ["now"])


def _children(node: Node) -> list[Node]:
    return list(node.children(None, include_partials=False))


def _nodes(nodes: list[Node]) -> Iterator[Node]:
    """Yield all nodes, the inner ones first, so that a loop knows the loops inside it."""
    for node in nodes:
        yield from _nodes(_children(node))
        yield node


def _expressions(node: Node) -> Iterator[Expression]:
    waiting = list(node.expressions())
    while waiting:
        expression = waiting.pop()
        yield expression
        waiting.extend(expression.children())


def _weight(node: Node) -> int:
    """Return what rendering a node costs once. A loop inside pays for its own rounds when it starts."""
    weight = 1
    if isinstance(node, ContentNode):
        weight += len(node.text) // 200
    for expression in _expressions(node):
        weight += 1 + (len(expression.value) // 200 if isinstance(expression, StringLiteral) else 0)
        weight += len(expression.path) // 10 if isinstance(expression, Path) else 0
    return weight if isinstance(node, ForNode) else weight + sum(_weight(child) for child in _children(node))


# -- filling in directly ---------------------------------------------------------------------------------------------------------------


def _direct(bound: BoundTemplate) -> tuple[list[str], list[tuple]] | None:
    """Return the template as pieces and gaps: where, which value, what stands for a missing one, filters. None where it has any logic."""
    pieces: list[str] = []
    gaps = []
    for node in bound.nodes:
        if isinstance(node, ContentNode):
            pieces.append(node.text)
        elif isinstance(node, OutputNode):
            gap = _gap(node.expression, bound)
            if gap is None:
                return None
            gaps.append((len(pieces), *gap))
            pieces.append("")
        elif not isinstance(node, CommentNode | InlineCommentNode):
            return None
    return pieces, gaps


def _gap(expression: Expression, bound: BoundTemplate) -> tuple | None:
    if not isinstance(expression, FilteredExpression) or not isinstance(expression.left, Path):
        return None
    path = expression.left.path
    if len(path) == 1 and path[0] not in ("attributes", "recipient"):
        key = (path[0] in ROOTS, path[0])
    elif len(path) == 2 and path[0] in ("attributes", "recipient"):
        key = (False, path[1]) if path[0] == "attributes" else (True, f"recipient.{path[1]}")
    else:
        return None
    context = Context(bound)
    steps = []
    for step in expression.filters or ():
        if not all(isinstance(argument.value, Literal | Nil) for argument in step.args):
            return None
        run = RenderContext.filter(context, step.name, step.token)
        arguments, named = step.evaluate_args(context)
        steps.append((step.name, run, tuple(arguments), named))
    return key, Undefined(path[0]), steps


# -- errors ------------------------------------------------------------------------------------------------------------------------------


_OPENERS = (
    (re.compile(r"\{\{"), "}}"),
    (re.compile(r"\{%"), "%}"),
    (re.compile(r"\{%-?\s*raw\b"), "endraw"),
    (re.compile(r"\{%-?\s*comment\b"), "endcomment"),
    (re.compile(r"\{%-?\s*doc\b"), "enddoc"),
)
_WIDE = re.compile(r"\s{100}")


def _check_ends(source: str, where: str) -> None:
    """Refuse what the engine's lexer would need minutes for: many openings without an end, and long white space inside of a tag."""
    for opener, end in _OPENERS:
        for last in deque(opener.finditer(source), maxlen=1):
            if source.find(end, last.end()) < 0:
                raise TemplateError(f"`{last[0]}` is never closed", expected=f"`{end}`", where=f"{where}:{line_of(source, last.start())}")
    if _WIDE.search(source):
        for tag in tags_of(source):
            if tag.name not in ("raw", "comment") and _WIDE.search(tag.text):
                raise TemplateError("A tag holds a hundred blanks in a row", where=f"{where}:{line_of(source, tag.start)}")


def _parsed(source: str, kind: str, where: str) -> BoundTemplate:
    env = environment(kind)
    try:
        return env.from_string(source)
    except TROUBLE as error:
        line = _error_line(error, source) or _broken_line(source, env)
        raise TemplateError(f"The template cannot be read: {_said(error)}", where=f"{where}:{line}") from None


def _said(error: BaseException) -> str:
    """Return an error's words on one line."""
    text = str(error.message) if isinstance(error, LiquidError) else str(error) or type(error).__name__
    if isinstance(error, LiquidError) and isinstance(error.__cause__, RecursionError):
        text = "it is nested too deeply"
    return " ".join(text.replace("end of expression", "the end").split())[:200]


def _error_line(error: BaseException, source: str) -> int:
    """Return the line that an error names, or 0."""
    token = getattr(error, "token", None)
    if token is None or token.start_index < 0 or token.source != source:
        return 0
    return line_of(source, token.start_index)


def _broken_line(source: str, env: Environment) -> int:
    """Return the line of the piece that is wrong by itself, or of the block that is not closed, or of the end."""
    tags = tags_of(source)
    for tag in tags:
        alone = tag.text
        if tag.name in ENDS:
            alone += f"{{% {ENDS[tag.name]} %}}"
        elif tag.name == "elsif":
            alone = "{% if x %}" + alone + "{% endif %}"
        elif tag.name not in ("{{", "assign", "echo", "cycle"):
            continue
        try:
            env.from_string(alone)
        except TROUBLE:
            return line_of(source, tag.start)
    open_blocks = []
    for tag in tags:
        if tag.name in ENDS:
            open_blocks.append(tag)
        elif tag.name in ENDS.values() and open_blocks:
            open_blocks.pop()
    return line_of(source, open_blocks[-1].start if open_blocks else len(source))
