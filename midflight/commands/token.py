"""Make, list and revoke the tokens with which programs use the API."""

from __future__ import annotations

from datetime import UTC, datetime

import typer

from ..config import load_config
from ..serve.auth import Access

app = typer.Typer(no_args_is_help=True, help="Make, list and revoke the tokens with which programs use the API.")


@app.command()
def make(
    label: str = typer.Argument(help="What the token is for."),
    scope: list[str] = typer.Option(["read"], "--scope", help="read, write, send, decide or admin; may be given several times."),
) -> None:
    """Make a token and print it, alone on its line: it is shown this once."""
    access = Access(load_config())
    _, secret = access.make_token(label, scope)
    access.close()
    print(secret)


@app.command("list")
def list_() -> None:
    """List the tokens, without their secrets."""
    access = Access(load_config())
    for token in access.tokens():
        print(f"{token.id}\t{token.label}\t{' '.join(token.scopes)}\t{datetime.fromtimestamp(token.made_us / 1e6, UTC):%Y-%m-%d %H:%M} UTC")
    access.close()


@app.command()
def revoke(token: str = typer.Argument(help="The token's id, as `midflight token list` shows it.")) -> None:
    """End a token at once."""
    access = Access(load_config())
    access.revoke_token(token)
    access.close()
    print(f"Token {token} is revoked.")
