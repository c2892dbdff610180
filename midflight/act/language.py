"""The language of templates: Liquid without files, clocks and Python, with a bound on everything that a template can make happen.

Time is bounded by counting work, not by a clock: the same template and values always come to the same end, on every machine.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import cache
from typing import NamedTuple, TextIO

from liquid import Environment, Markup, escape
from liquid.builtin.output import Output, OutputNode
from liquid.builtin.tags.capture_tag import CaptureNode, CaptureTag
from liquid.builtin.tags.cycle_tag import CycleNode, CycleTag
from liquid.builtin.tags.echo_tag import EchoNode, EchoTag
from liquid.context import RenderContext
from liquid.exceptions import FilterArgumentError, LiquidError, LiquidInterrupt
from liquid.expression import Expression
from liquid.stringify import to_liquid_string
from liquid.template import BoundTemplate
from liquid.utils import ReadOnlyChainMap

from ..kit.errors import MidflightError
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
ROOTS = {name.partition(".")[0] for name in SYSTEM} | {"attributes"}

# Mistakes of a template or a value that come as Python's own errors.
TROUBLE = (
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


class TooMuch(LiquidError):
    """A render that is cut off."""


class Budget:
    """What one render may still do."""

    __slots__ = ("left",)

    def __init__(self) -> None:
        self.left = work_max

    def spend(self, units: int) -> None:
        self.left -= units
        if self.left < 0:
            raise TooMuch(f"the template does more than {work_max:,} steps of work", token=None)


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


def bounded(name: str, run: Callable, budget: Budget) -> Callable:
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
        raise TooMuch(f"a text of more than {text_chars_max:,} characters", token=None)
    if isinstance(value, list | tuple) and len(value) > list_items_max:
        raise TooMuch(f"a list of more than {list_items_max:,} items", token=None)
    if isinstance(value, int) and value.bit_length() > number_bits_max:
        raise TooMuch("a number of more than a thousand digits", token=None)


class Context(RenderContext):
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
        return bounded(name, super().filter(name, token), self.budget)

    def assign(self, key: str, val: object) -> None:
        _within(val)
        self.budget.spend(1 + len(self.locals) // 10)
        super().assign(key, val)

    def raise_for_loop_limit(self, length: int = 1) -> None:
        if length > iterations_max:
            raise TooMuch(f"a loop of more than {iterations_max:,} rounds", token=None)
        self.budget.spend(length * self.loop_weight)


class Looped(Expression):
    """What a loop goes over. It is measured before the engine copies it, and tells the context what one round costs."""

    __slots__ = ("inner", "weight")

    def __init__(self, inner: Expression, weight: int) -> None:
        super().__init__(inner.token)
        self.inner = inner
        self.weight = weight

    def __str__(self) -> str:
        return str(self.inner)

    def evaluate(self, context: Context) -> object:
        found = self.inner.evaluate(context)
        # A range may be too long for `len`.
        length = found.stop - found.start if isinstance(found, range) else len(found) if isinstance(found, list | tuple | dict) else 0
        if length > iterations_max:
            raise TooMuch(f"a loop of more than {iterations_max:,} rounds", token=self.token)
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
    context_class = Context


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


class Named:
    """What stands behind ``attributes.`` and ``recipient.``: no length and no order that a name like ``size`` or ``first`` could mean."""

    __slots__ = ("values",)

    def __init__(self, values: dict[str, object]) -> None:
        self.values = values

    def __getitem__(self, name: object) -> object:
        return self.values[name]
