"""docs/commands.md: the help of every command, from the commands themselves."""

from __future__ import annotations

import typer

from ... import commands
from ...cli import app
from . import MARK
from .configuration import rows_as_table

HEAD = """\
# Commands

`midflight COMMAND --help` says the same. Exit codes: 0 done, 1 the command's answer is no (a check found a difference, say), 2 a
mistake in what was asked for, 3 something is damaged or in the way; 2 and 3 are told in one line on the error output. `--config FILE`
may stand before or after a command.
"""


def page() -> str:
    """Return the page: the global options, then each command with its subcommands."""
    root = typer.main.get_command(app)
    parts = [MARK, HEAD, "## midflight", *options_of(root)]
    for name in commands.names():
        parts += section(f"midflight {name}", commands.load(name), level=2)
    return "\n\n".join(part.strip() for part in parts) + "\n"


def section(title: str, command, level: int) -> list[str]:
    """Return one command's part of the page, and those of its subcommands."""
    inner = getattr(command, "commands", {})
    usage = [title, *(["COMMAND"] if inner else [])]
    usage += [f"[{p.metavar or p.name.upper()}]" if not p.required else (p.metavar or p.name.upper()) for p in arguments(command)]
    parts = [
        f"{'#' * level} {title}",
        help_of(command),
        f"```\n{' '.join(usage)} [OPTIONS]\n```" if options(command) else f"```\n{' '.join(usage)}\n```",
    ]
    parts += options_of(command)
    for name in inner:
        parts += section(f"{title} {name}", inner[name], level + 1)
    return parts


def help_of(command) -> str:
    paragraphs = (command.help or "").strip().split("\n\n")
    return "\n\n".join(" ".join(paragraph.split()) for paragraph in paragraphs)


def arguments(command) -> list:
    return [p for p in command.params if p.param_type_name == "argument"]


def options(command) -> list:
    return [p for p in command.params if p.param_type_name == "option" and p.name != "help" and not p.hidden]


def options_of(command) -> list[str]:
    """Return the table of a command's arguments and options, or nothing where it has none."""
    rows = [[f"`{p.metavar or p.name.upper()}`", p.help or "", default_of(p)] for p in arguments(command)]
    rows += [[spelling(p), p.help or "", default_of(p)] for p in options(command)]
    if not rows:
        return []
    return [rows_as_table([["name", "meaning", "default"], *rows])]


def spelling(option) -> str:
    names = ", ".join(f"`{name}`" for name in (*option.opts, *option.secondary_opts))
    return names if option.is_flag else f"{names} `{option.metavar or option.name.upper()}`"


def default_of(parameter) -> str:
    if parameter.required:
        return "has to be given"
    default = parameter.default
    if default is None or default is False or callable(default) or default in ("", (), []):
        return ""
    return f"`{getattr(default, 'value', default)}`"
