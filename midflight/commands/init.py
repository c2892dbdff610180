"""Write a commented midflight.yaml: every setting with its default; an existing file is left alone."""

from __future__ import annotations

import os
import textwrap
from pathlib import Path

import msgspec
import typer

from ..config import Attribute, Config
from ..kit.errors import ConfigError
from ._settings import Setting, docstring_of, settings_of

# A line of text begins with `# `, a setting with `#` alone, so that removing the sign from whole settings leaves good YAML.
HEAD = """\
# Midflight's settings. Each has a default: take away the `#` before what you change. docs/configuration.md explains them.
# A secret is written as env:NAME or file:PATH, so that this file can be shown to anybody.
"""

SOURCES = """\
# One entry for each place that events come from: its name stands in the webhook's URL, /in/NAME. docs/sources.md has every kind.
#sources:
#  sendgrid:
#    kind: sendgrid
#    secrets: [env:SENDGRID_VERIFICATION_KEY]
"""

ATTRIBUTES = """\
#attributes:
#  - country
#  - name: age
#    bands: [25, 40, 60]
"""


def command(
    path: Path = typer.Argument(Path("midflight.yaml"), help="The file to write."),
) -> None:
    """Write a commented midflight.yaml: every setting with its default; an existing file is left alone."""
    try:
        with open(path, "x") as file:
            file.write(template())
    except FileExistsError:
        raise ConfigError(f"{path} is there already and stays as it is", todo="Name another file: `midflight init other.yaml`") from None
    except OSError as error:
        raise ConfigError(f"Cannot write {path}: {os.strerror(error.errno)}") from None
    print(f"Wrote {path}. Add your sources to it, then run `midflight up`.")


def template() -> str:
    """Return the file's text, made from the configuration's structs so that it names all that there is."""
    top, blocks = [], []
    for setting in settings_of(Config):
        if setting.name == "sources":
            blocks.append(SOURCES)
        elif setting.name == "attributes":
            blocks.append(as_text(f"{setting.meaning}. {docstring_of(Attribute)}") + ATTRIBUTES)
        elif isinstance(setting.default, msgspec.Struct):
            section = type(setting.default)
            lines = [as_setting(inner, indent="  ") for inner in settings_of(section)]
            blocks.append(as_text(docstring_of(section)) + f"#{setting.name}:\n" + "".join(lines))
        else:
            top.append(as_setting(setting))
    return "\n".join([HEAD, "".join(top), *blocks])


def as_setting(setting: Setting, indent: str = "") -> str:
    line = f"#{indent}{setting.name}: {as_yaml(setting.default)}"
    return f"{line}  # {setting.meaning}\n" if setting.meaning else f"{line}\n"


def as_text(text: str) -> str:
    text = " ".join(text.replace("``", "`").split())
    return textwrap.fill(text[0].upper() + text[1:], 130, initial_indent="# ", subsequent_indent="# ") + "\n"


def as_yaml(value: object) -> str:
    """Return a default on one line: JSON, which is YAML, with plain words unquoted."""
    if isinstance(value, str) and value.replace(".", "").replace("/", "").isalnum() and not value.isdigit():
        return value
    return msgspec.json.encode(value).decode()
