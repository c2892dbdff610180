"""Make, list and remove the users of the console."""

from __future__ import annotations

from datetime import UTC, datetime

import typer

from ..config import load_config
from ..serve.auth import Access

app = typer.Typer(no_args_is_help=True, help="Make, list and remove the users of the console.")


@app.command("set")
def set_(
    name: str = typer.Argument(help="The user's name."),
    password: str = typer.Option("", "--password", envvar="MIDFLIGHT_PASSWORD", help="The password; asked for where it is not given."),
) -> None:
    """Make a user, or give one a new password; the user's open sessions end."""
    password = password or typer.prompt("Password", hide_input=True, confirmation_prompt=True)
    access = Access(load_config())
    access.set_user(name, password)
    access.close()
    print(f"User {name} can log in.")


@app.command("list")
def list_() -> None:
    """List the users."""
    access = Access(load_config())
    for name, made_us in access.users():
        print(f"{name}\t{datetime.fromtimestamp(made_us / 1e6, UTC):%Y-%m-%d %H:%M} UTC")
    access.close()


@app.command()
def remove(name: str = typer.Argument(help="The user's name.")) -> None:
    """Remove a user; the user's open sessions end."""
    access = Access(load_config())
    access.remove_user(name)
    access.close()
    print(f"User {name} is removed.")
