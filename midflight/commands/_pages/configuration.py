"""docs/configuration.md: every setting, from the configuration's structs."""

from __future__ import annotations

import msgspec

from ...config import Attribute, Config
from .._settings import Setting, docstring_of, settings_of
from . import MARK

HEAD = """\
# Configuration

Midflight reads `midflight.yaml` in the folder it is started in, or the file that `--config` or the environment's `MIDFLIGHT_CONFIG`
names. Without a file every setting has its default. `midflight init` writes one with all settings in it, as comments.

The file is checked strictly before anything starts: an unknown name, a wrong type or settings that contradict each other stop the
start, with the path of the mistake (`$.retention.dedup_days`) and, for a misspelt name, the nearest known one.

A value written `env:NAME` or `file:PATH` anywhere under `sources`, `channels`, `ways`, `polls` or `ways_back` is read from the
environment or from a file, so that the configuration itself holds no secret.
"""

SOURCES = """\
One entry for each place that events come from. Its name is the last part of the webhook's URL (`/in/NAME`) and the first half of
every key by which duplicates are known, so it should not change later. `kind` is the vendor; the other settings are in
[sources](sources.md).

```yaml
sources:
  newsletters:
    kind: sendgrid
    secrets: [env:SENDGRID_VERIFICATION_KEY]
```
"""


def page() -> str:
    """Return the page: the top-level settings, then one section for each part."""
    top = settings_of(Config)
    plain = [
        setting for setting in top if not isinstance(setting.default, msgspec.Struct) and setting.name not in ("attributes", "sources")
    ]
    parts = [MARK, HEAD, "## Top level", table(plain)]
    for setting in top:
        if isinstance(setting.default, msgspec.Struct):
            section = type(setting.default)
            parts += [f"## `{setting.name}`", docstring_of(section), table(inside(section), setting.name + ".")]
        elif setting.name == "attributes":
            parts += ["## `attributes`", setting.meaning[0].upper() + setting.meaning[1:] + ".", docstring_of(Attribute)]
            parts += [table(settings_of(Attribute), "attributes[].")]
        elif setting.name == "sources":
            parts += ["## `sources`", SOURCES.strip()]
    return "\n\n".join(part.strip().replace("``", "`") if "```" not in part else part.strip() for part in parts) + "\n"


def inside(section: type[msgspec.Struct]) -> list[Setting]:
    """Return a section's settings; those of a part of it by both names."""
    found: list[Setting] = []
    for setting in settings_of(section):
        if isinstance(setting.default, msgspec.Struct):
            found += [inner._replace(name=f"{setting.name}.{inner.name}") for inner in inside(type(setting.default))]
        else:
            found.append(setting)
    return found


def table(settings: list[Setting], prefix: str = "") -> str:
    """Return settings as a table; the last column only where something is said in it."""
    said = any(setting.meaning for setting in settings)
    rows = [["setting", "type", "default"] + ["meaning"] * said]
    for setting in settings:
        row = [f"`{prefix}{setting.name}`", setting.type, in_words(setting.default)]
        rows.append(row + [setting.meaning] * said)
    return rows_as_table(rows)


def rows_as_table(rows: list[list[str]]) -> str:
    """Return rows, the first one being the heads, as a Markdown table."""
    rows = [rows[0], ["---"] * len(rows[0]), *rows[1:]]
    return "\n".join("| " + " | ".join(" ".join(str(cell).split()).replace("|", "\\|") for cell in row) + " |" for row in rows)


def in_words(default: object) -> str:
    """Return a default as it would be written, or that one has to be given."""
    if default is msgspec.NODEFAULT:
        return "has to be given"
    if default in ("", [], {}, None):
        return "empty"
    return f"`{msgspec.json.encode(default).decode()}`"
