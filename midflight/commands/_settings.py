"""What can be configured, read from the configuration's structs: their docstrings, and the comment beside each setting."""

from __future__ import annotations

import ast
import inspect
import io
import tokenize
import typing

import msgspec


class Setting(typing.NamedTuple):
    """One setting: its name, its type in words, its default (``NODEFAULT`` where it has to be given) and what it means."""

    name: str
    type: str
    default: object
    meaning: str


def settings_of(struct: type[msgspec.Struct]) -> list[Setting]:
    """Return a struct's settings in their order, those of its bases first."""
    meanings: dict[str, str] = {}
    for base in reversed(struct.__mro__):
        if issubclass(base, msgspec.Struct) and base is not msgspec.Struct:
            meanings |= comments(base)
    hints = typing.get_type_hints(struct)
    return [Setting(f.name, type_in_words(hints[f.name]), default_of(f), meanings.get(f.name, "")) for f in msgspec.structs.fields(struct)]


def default_of(field: msgspec.structs.FieldInfo) -> object:
    return field.default if field.default_factory is msgspec.NODEFAULT else field.default_factory()


def comments(struct: type) -> dict[str, str]:
    """Return the comment beside each field of a class or in the lines above it. Only the class's own fields."""
    source = inspect.cleandoc("\n" + inspect.getsource(struct))
    fields = {
        node.target.id: (node.lineno, node.end_lineno)
        for node in ast.parse(source).body[0].body
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)
    }
    said: dict[int, str] = {}
    above: dict[int, str] = {}
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            alone = token.line.strip().startswith("#")
            (above if alone else said)[token.start[0]] = token.string.lstrip("# ")
    found = {}
    for name, (first, last) in fields.items():
        lines = []
        line = first - 1
        while line in above:
            lines.insert(0, above[line])
            line -= 1
        lines += [said[n] for n in range(first, last + 1) if n in said]
        found[name] = " ".join(lines)
    return found


WORDS = {str: "text", int: "whole number", float: "number", bool: "true or false", dict: "mapping", type(None): "nothing"}


def type_in_words(hint: object) -> str:
    """Return a type as a person who writes YAML would say it."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is list:
        return f"list of {type_in_words(arguments[0])}"
    if origin is dict:
        return f"mapping of {type_in_words(arguments[0])} to {type_in_words(arguments[1])}"
    if origin is typing.Literal:
        return " or ".join(f"`{value}`" for value in arguments)
    if arguments and origin is not None:
        return " or ".join(dict.fromkeys(type_in_words(argument) for argument in arguments))
    if isinstance(hint, type) and issubclass(hint, msgspec.Struct):
        return hint.__name__.lower()
    return WORDS.get(hint, getattr(hint, "__name__", str(hint)))


def docstring_of(thing: type) -> str:
    """Return the docstring with each paragraph on one line."""
    return "\n\n".join(" ".join(part.split()) for part in inspect.getdoc(thing).split("\n\n"))
