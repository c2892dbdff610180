"""The command line: finds the command, hands it the configuration's place, words operators' mistakes in one line."""

from __future__ import annotations

import os
import sys

import typer

from . import __version__, commands
from .kit.errors import MidflightError
from .supervise import end_with_supervisor


class Commands(typer.core.TyperGroup):
    """The commands by name. Listing them imports none; running one imports that one."""

    def list_commands(self, ctx) -> list[str]:
        return list(commands.names())

    def get_command(self, ctx, cmd_name: str):
        """Return a line for the list of commands; `resolve_command` has the command itself."""
        return typer.core.TyperCommand(cmd_name, callback=None, help=commands.summary(cmd_name))

    def resolve_command(self, ctx, args: list[str]):
        return args[0], commands.load(args[0]), args[1:]


app = typer.Typer(cls=Commands, add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False)


def show_version(wanted: bool) -> None:
    if wanted:
        print(__version__)
        raise typer.Exit


@app.callback()
def midflight(
    config: str = typer.Option("", "--config", metavar="FILE", help="The settings to use (default: midflight.yaml, or MIDFLIGHT_CONFIG)."),
    version: bool = typer.Option(False, "--version", callback=show_version, is_eager=True, help="Print the version."),
) -> None:
    """Live numbers of an email campaign while it is being sent."""
    if config:
        # The environment carries it to the processes that `up` starts.
        os.environ["MIDFLIGHT_CONFIG"] = config


def config_first(arguments: list[str]) -> list[str]:
    """Return the arguments with ``--config FILE`` moved to the front, so that it may stand after the command too."""
    found: list[str] = []
    rest: list[str] = []
    words = iter(arguments)
    for word in words:
        if word == "--":
            return [*found, *rest, word, *words]
        if word == "--config":
            found = [word, *[value for value in [next(words, None)] if value is not None]]
        elif word.startswith("--config="):
            found = [word]
        else:
            rest.append(word)
    return found + rest


def main(arguments: list[str] | None = None) -> None:
    """Run one command and leave the process: 0 done, 1 the answer is no, 2 an operator's mistake, 3 damage or an obstacle."""
    end_with_supervisor()
    try:
        app(config_first(sys.argv[1:] if arguments is None else arguments), prog_name="midflight")
    except MidflightError as error:
        print(f"midflight: {' '.join(error.text().split())}", file=sys.stderr)
        sys.exit(error.exit_status)
