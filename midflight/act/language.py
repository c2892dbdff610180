"""The language of templates: Liquid without files, clocks and Python, with a bound on everything that a template can make happen.

Time is bounded by counting work, not by a clock: the same template and values always come to the same end, on every machine.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable, Iterator
from functools import cache
from typing import NamedTuple, TextIO

from liquid import Environment, Markup, escape
from liquid.ast import Node
from liquid.builtin.content import ContentNode
from liquid.builtin.expressions import FilteredExpression, Nil, Path
from liquid.builtin.expressions.primitive import Literal, RangeLiteral, StringLiteral
from liquid.builtin.output import Output, OutputNode
from liquid.builtin.tags.capture_tag import CaptureNode, CaptureTag
from liquid.builtin.tags.comment_tag import CommentNode
from liquid.builtin.tags.cycle_tag import CycleNode, CycleTag
from liquid.builtin.tags.echo_tag import EchoNode, EchoTag
from liquid.builtin.tags.for_tag import ForNode
from liquid.builtin.tags.inline_comment_tag import InlineCommentNode
from liquid.context import RenderContext
from liquid.exceptions import FilterArgumentError, LiquidError, LiquidInterrupt
from liquid.expression import Expression
from liquid.stringify import to_liquid_string
from liquid.template import BoundTemplate
from liquid.undefined import Undefined
from liquid.utils import ReadOnlyChainMap

from ..kit.errors import MidflightError, nearest
from . import filters

source_chars_max = 500_000
tags_max = 5_000  # pieces of Liquid in one template
output_bytes_max = 2_000_000
work_max = 200_000  # one unit is about a microsecond: a node, an expression, a filter, 200 characters looked at
iterations_max = 10_000  # of one loop
text_chars_max = 2_000_000  # what a filter may make
list_items_max = 10_000
number_bits_max = 4096
variables_bytes_max = 4_000_000  # what `assign` and `capture` hold
nesting_max = 30

# Tags of Liquid that are not here either read files or are not used in email.
TAGS = (
    "if", "unless", "case", "for", "break", "continue", "assign", "capture", "comment", "#", "echo", "cycle", "increment", "decrement",
)  # fmt: skip

# What is known besides a recipient's attributes. `now` is the time at which the message is made, in UTC.
SYSTEM = ("recipient.email", "unsubscribe_url", "preferences_url", "campaign", "variant", "wave", "now")
_ROOTS = {name.partition(".")[0] for name in SYSTEM} | {"attributes"}

# Mistakes of a template or a value that come as Python's own errors.
_TROUBLE = (
    LiquidError, LiquidInterrupt, ValueError, TypeError, ArithmeticError, LookupError, RecursionError, MemoryError, AttributeError,
)  # fmt: skip


class TemplateError(MidflightError):
    """A template cannot be used; nothing of it is sent."""

    code = "template"


class RenderError(TemplateError):
    """A message could not be made for one recipient; nothing is sent to that one."""

    code = "render"


# -- where Liquid stands in a text ---------------------------------------------------------------------------------------------------

_TAG = re.compile(
    r"\{%-?\s*(?P<raw>raw)\s*-?%\}.*?\{%-?\s*endraw\s*-?%\}|\{%-?\s*(?P<comment>comment)\b.*?%\}.*?\{%-?\s*endcomment\s*-?%\}"
    r"|\{\{.*?\}\}|\{%-?\s*(?P<name>#|\w+).*?%\}",
    re.DOTALL,
)


class Tag(NamedTuple):
    """One piece of Liquid: ``name`` is ``"{{"`` for output, ``raw`` or ``comment`` for a whole such block, else the tag's name."""

    start: int
    end: int
    name: str
    text: str

    @property
    def writes(self) -> bool:
        """Whether a value may appear in its place."""
        return self.name in ("{{", "echo", "cycle", "increment", "decrement")


def tags_of(source: str) -> list[Tag]:
    """Return the pieces of Liquid in a text, in order."""
    return [
        Tag(found.start(), found.end(), found["raw"] or found["comment"] or found["name"] or "{{", found[0])
        for found in _TAG.finditer(source)
    ]


ENDS = {"if": "endif", "unless": "endunless", "case": "endcase", "for": "endfor", "capture": "endcapture"}


def whole(tags: list[Tag]) -> bool:
    """Whether pieces of Liquid form whole blocks: none is left open, none that was opened elsewhere is closed or left."""
    open_blocks: list[str] = []
    for tag in tags:
        if tag.name in ENDS:
            open_blocks.append(tag.name)
        elif tag.name in ENDS.values():
            if not open_blocks or ENDS[open_blocks.pop()] != tag.name:
                return False
        elif tag.name in ("break", "continue"):
            if "for" not in open_blocks:
                return False
        elif tag.name in ("else", "elsif", "when") and not open_blocks:
            return False
    return not open_blocks


def line_of(source: str, index: int) -> int:
    return source.count("\n", 0, index) + 1


# -- the bounds ------------------------------------------------------------------------------------------------------------------------


class _TooMuch(LiquidError):
    """A render that is cut off."""


class Budget:
    """What one render may still do."""

    __slots__ = ("left",)

    def __init__(self) -> None:
        self.left = work_max

    def spend(self, units: int) -> None:
        self.left -= units
        if self.left < 0:
            raise _TooMuch(f"the template does more than {work_max:,} steps of work", token=None)


def _size(value: object) -> int:
    """Return how many characters or items an operation on a value may have to look at."""
    if isinstance(value, str):
        return len(value)
    if isinstance(value, list | tuple):
        return 8 * len(value) + sum(len(item) for item in value if isinstance(item, str))
    return 8 * len(value) if isinstance(value, dict) else 8


def _grown(name: str, value: object, arguments: tuple) -> int:
    """Return how large a filter's result will be at most, where it may be more than its arguments are long together."""
    if name.startswith("replace") and arguments:
        text, sought = str(value), str(arguments[0])
        found = text.count(sought) if name == "replace" else 1
        return len(text) + found * len(str(arguments[1]) if len(arguments) > 1 else "")
    if name == "join" and isinstance(value, list | tuple) and arguments:
        return _size(value) + len(value) * len(str(arguments[0]))
    return 0


def _bounded(name: str, run: Callable, budget: Budget) -> Callable:
    """Return a filter that spends from a budget and refuses to make what is too large."""

    def call(value: object, *arguments: object, **named: object) -> object:
        for given in (value, *arguments):
            _within(given)
            budget.spend(1 + _size(given) // 200)
        if isinstance(value, Markup) and name not in filters.LEAVES_MARKUP:
            value = value.unescape()
        budget.spend(_grown(name, value, arguments) // 200)
        if name == "uniq" and isinstance(value, list):
            budget.spend(len(value) * len(value) // 50)
        try:
            made = run(value, *arguments, **named)
        except (ValueError, ArithmeticError, LookupError, AttributeError) as error:
            raise FilterArgumentError(f"{name}: {error}", token=None) from None
        _within(made)
        budget.spend(_size(made) // 200)
        return made

    return call


def _within(value: object) -> None:
    """Refuse a value that no filter may take or make."""
    if isinstance(value, str) and len(value) > text_chars_max:
        raise _TooMuch(f"a text of more than {text_chars_max:,} characters", token=None)
    if isinstance(value, list | tuple) and len(value) > list_items_max:
        raise _TooMuch(f"a list of more than {list_items_max:,} items", token=None)
    if isinstance(value, int) and value.bit_length() > number_bits_max:
        raise _TooMuch("a number of more than a thousand digits", token=None)


class _Context(RenderContext):
    """A render that spends from a budget and knows no clock."""

    __slots__ = ("budget", "loop_weight")

    def __init__(self, template: BoundTemplate, **given: object) -> None:
        super().__init__(template, **given)
        self.budget = Budget()
        self.loop_weight = 1
        # Without the engine's own `now` and `today`, which ask the machine.
        self.scope = ReadOnlyChainMap(self.locals, self.globals, self.counters)

    def get(self, path: list[object], **given: object) -> object:
        found = super().get(path, **given)
        self.budget.spend(1 + _size(found) // 200)
        return found

    def filter(self, name: str, token: object) -> Callable:
        return _bounded(name, super().filter(name, token), self.budget)

    def assign(self, key: str, val: object) -> None:
        _within(val)
        self.budget.spend(1 + len(self.locals) // 10)
        super().assign(key, val)

    def raise_for_loop_limit(self, length: int = 1) -> None:
        if length > iterations_max:
            raise _TooMuch(f"a loop of more than {iterations_max:,} rounds", token=None)
        self.budget.spend(length * self.loop_weight)


class _Looped(Expression):
    """What a loop goes over. It is measured before the engine copies it, and tells the context what one round costs."""

    __slots__ = ("inner", "weight")

    def __init__(self, inner: Expression, weight: int) -> None:
        super().__init__(inner.token)
        self.inner = inner
        self.weight = weight

    def __str__(self) -> str:
        return str(self.inner)

    def evaluate(self, context: _Context) -> object:
        found = self.inner.evaluate(context)
        # A range may be too long for `len`.
        length = found.stop - found.start if isinstance(found, range) else len(found) if isinstance(found, list | tuple | dict) else 0
        if length > iterations_max:
            raise _TooMuch(f"a loop of more than {iterations_max:,} rounds", token=self.token)
        context.loop_weight = self.weight
        return found

    def children(self) -> list[Expression]:
        return [self.inner]


# -- what is written -------------------------------------------------------------------------------------------------------------------

_OPENS = re.compile(r"\{(?=[{%#]|$)")


def shown(value: object, html: bool) -> str:
    """Return a value as it is written. In HTML it is escaped. It never reads as a template tag to whoever handles the message next."""
    text = to_liquid_string(value, autoescape=False)
    if html:
        # As plain text: markup that is escaped already would escape what is put into it.
        text = str(escape(text))
    if "{" in text:
        return text.replace("{", "&#123;") if html else _OPENS.sub("{ ", text)
    return text


class _OutputNode(OutputNode):
    def render_to_output(self, context: RenderContext, buffer: TextIO) -> int:
        return buffer.write(shown(self.expression.evaluate(context), context.env.html))


class _EchoNode(EchoNode):
    render_to_output = _OutputNode.render_to_output


class _CycleNode(CycleNode):
    def render_to_output(self, context: RenderContext, buffer: TextIO) -> int:
        own = context.get_buffer(buffer)
        super().render_to_output(context, own)
        return buffer.write(shown(own.getvalue(), context.env.html))


class _CaptureNode(CaptureNode):
    def render_to_output(self, context: RenderContext, buffer: TextIO) -> int:
        own = context.get_buffer(buffer)
        self.block.render(context, own)
        text = own.getvalue()
        # What was captured in HTML is escaped. It is text again, unless it has tags: those are the author's, a value's are escaped.
        context.assign(self.name, text if not context.env.html else Markup(text) if "<" in text else Markup(text).unescape())
        return 0


class _Output(Output):
    node_class = _OutputNode


class _Echo(EchoTag):
    node_class = _EchoNode


class _Cycle(CycleTag):
    node_class = _CycleNode


class _Capture(CaptureTag):
    node_class = _CaptureNode


class _Bound(BoundTemplate):
    context_class = _Context


class _Environment(Environment):
    html = False  # whether what is written is escaped; the engine's own escaping trusts what stands in quotes, and is off
    block_nesting_limit = nesting_max
    local_namespace_limit = variables_bytes_max
    output_stream_limit = output_bytes_max
    template_class = _Bound


@cache
def environment(kind: str) -> Environment:
    """Return the language for ``html``, for ``plain`` text, or for ``plain_from_html``: text that was made from an HTML template."""
    made = _Environment(autoescape=False, strict_filters=True)
    made.html = kind == "html"
    for tag in (_Output, _Echo, _Cycle, _Capture):
        made.add_tag(tag)
    own = {name: tag for name, tag in made.tags.items() if name in TAGS or name in ("content", "output", "illegal")}
    made.tags.clear()
    made.tags.update(own)
    filters.put_into(made, kind)
    return made


# -- values ----------------------------------------------------------------------------------------------------------------------------

depth_max = 8


def cleaned(value: object, depth: int = 0) -> object:
    """Return a value as templates may have it: text, numbers, truth, lists and dictionaries of these; None where there is nothing."""
    kind = type(value)
    if kind is str:
        return filters.clean_text(value)
    if kind is int or kind is bool or value is None:
        return value
    if kind is float:
        return value if value == value else None
    if depth < depth_max and isinstance(value, list | tuple):
        return ["" if (item := cleaned(given, depth + 1)) is None else item for given in value]
    if depth < depth_max and isinstance(value, dict):
        made = {filters.clean_text(str(key)): cleaned(given, depth + 1) for key, given in value.items()}
        return {key: item for key, item in made.items() if item is not None}
    if isinstance(value, str):
        return filters.clean_text(str.__str__(value))
    raise RenderError(
        "A value cannot stand in a message", expected="text, number, truth, or a list or object of these", got=type(value).__name__
    )


class _Named:
    """What stands behind ``attributes.`` and ``recipient.``: no length and no order that a name like ``size`` or ``first`` could mean."""

    __slots__ = ("values",)

    def __init__(self, values: dict[str, object]) -> None:
        self.values = values

    def __getitem__(self, name: object) -> object:
        return self.values[name]


# -- a template ------------------------------------------------------------------------------------------------------------------------


class Use(NamedTuple):
    """One place where a template needs a value. ``name`` is an attribute's, unless ``system``. ``defaulted``: it says what else to show."""

    name: str
    line: int
    system: bool
    defaulted: bool


class Script:
    """One parsed template. ``kind`` as in ``environment``; ``where`` names it in errors.

    ``uses`` are the values that it needs. Plain output with plain filters is filled in directly, everything else is left to the engine;
    ``direct`` says which, and both ways give the same bytes.
    """

    def __init__(self, source: str, kind: str, where: str) -> None:
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
        self._read()
        self.weight = sum(_weight(node) for node in self.bound.nodes)
        self.direct = _direct(self.bound)

    def render(self, values: dict[str, object]) -> str:
        """Return the text for one recipient. ``values`` are cleaned, keyed as ``key_of`` says, without what is missing."""
        try:
            text = self.fill(values) if self.direct is not None else self.run(values)
        except _TROUBLE as error:
            raise self._refused(error) from None
        if len(text) > output_bytes_max // 4 and len(text.encode()) > output_bytes_max:
            raise self._refused(_TooMuch(f"more than {output_bytes_max:,} bytes", token=None))
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
                    value = _bounded(name, run, budget)(value, *arguments, **named)
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
        scope = named | {name: value for name, value in own.items() if "." not in name} | {"attributes": _Named(named)}
        for name in SYSTEM:
            if "." not in name and name not in own:
                scope.pop(name, None)
        scope["recipient"] = _Named({name.partition(".")[2]: value for name, value in own.items() if "." in name})
        context = _Context(self.bound, globals=scope)
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

    def _read_node(self, node: Node, defaulted: set[int]) -> None:
        if isinstance(node, ForNode):
            node.expression.iterable = _Looped(node.expression.iterable, 1 + sum(_weight(child) for child in _children(node)))
        for name in (*node.template_scope(), *node.block_scope()):
            if str(name) in _ROOTS:
                index = getattr(getattr(name, "token", None), "start_index", node.token.start_index)
                raise self._wrong(index, f"`{name}` is a name of ours and cannot be set", "Choose another name")
        for expression in _expressions(node):
            if isinstance(expression, FilteredExpression):
                _ask_for_now(expression)
                if isinstance(expression.left, Path) and any(filter.name == "default" for filter in expression.filters or ()):
                    defaulted.add(expression.left.token.start_index)
            # What a loop goes over is measured; anywhere else a range of a thousand million numbers would cost nothing to write.
            for child in expression.children():
                if isinstance(child, RangeLiteral) and not isinstance(expression, _Looped):
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
        return Use(root, line, root in _ROOTS, defaulted)

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
        key = (path[0] in _ROOTS, path[0])
    elif len(path) == 2 and path[0] in ("attributes", "recipient"):
        key = (False, path[1]) if path[0] == "attributes" else (True, f"recipient.{path[1]}")
    else:
        return None
    context = _Context(bound)
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
    (re.compile(r"\{\{"), "}}"), (re.compile(r"\{%"), "%}"), (re.compile(r"\{%-?\s*raw\b"), "endraw"),
    (re.compile(r"\{%-?\s*comment\b"), "endcomment"), (re.compile(r"\{%-?\s*doc\b"), "enddoc"),
)  # fmt: skip
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
    except _TROUBLE as error:
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
        except _TROUBLE:
            return line_of(source, tag.start)
    open_blocks = []
    for tag in tags:
        if tag.name in ENDS:
            open_blocks.append(tag)
        elif tag.name in ENDS.values() and open_blocks:
            open_blocks.pop()
    return line_of(source, open_blocks[-1].start if open_blocks else len(source))
