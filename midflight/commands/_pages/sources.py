"""docs/sources.md: every source with how to connect it, its settings and an example, from the sources themselves."""

from __future__ import annotations

import inspect
import json

import msgspec

from ...sources import REGISTRY
from ...sources.source import Source, SourceConfig
from .._settings import docstring_of, settings_of
from . import MARK
from .configuration import table

HEAD = """\
# Sources

A source is a place that events come from. Each has an entry under `sources` in `midflight.yaml`; the entry's name is the last part
of the URL that you give to the vendor:

```
https://YOUR-PUBLIC-HOST/in/NAME
```

Midflight answers `200` once the request is on disk, and only then. A request whose signature or credentials do not fit is answered
`401`. One that is authentic but cannot be read later is kept with its reason under Sources in the console, to be read again.
"""

SHAPES = {
    "array": "a JSON array of events",
    "object": "a JSON object",
    "either": "a JSON array or object",
    "form": "form fields",
    "lines": "JSON, one event a line",
}


def page() -> str:
    """Return the page: what all sources share, then one section for each."""
    sources = REGISTRY.all()
    parts = [
        MARK,
        HEAD,
        overview(sources),
        "## Settings of every source",
        docstring_of(SourceConfig).replace("``", "`"),
        table(settings_of(SourceConfig)),
    ]
    for name, source in sorted(sources.items(), key=lambda item: item[1].label.lower()):
        parts += section(name, source)
    return "\n\n".join(part.strip() for part in parts) + "\n"


def overview(sources: dict[str, type[Source]]) -> str:
    rows = ["| kind | vendor | body | proves itself by |", "| --- | --- | --- | --- |"]
    for name, source in sources.items():
        anchor = "".join(c for c in source.label.lower().replace(" ", "-") if c.isalnum() or c in "-_")
        rows.append(f"| `{name}` | [{source.label}](#{anchor}) | {shape(source)} | {proof(source)} |")
    return "\n".join(rows)


def shape(source: type[Source]) -> str:
    return SHAPES.get(source.shape, source.shape)


def proof(source: type[Source]) -> str:
    return "a signature" if source.signs else "credentials that you choose"


def section(name: str, source: type[Source]) -> list[str]:
    """Return one source's part of the page."""
    module = inspect.getmodule(source)
    parts = [f"## {source.label}", docstring_of(module).replace("``", "`")]
    if source.__doc__ and source.__doc__ != Source.__doc__:
        parts.append(docstring_of(source).replace("``", "`"))
    parts.append(connect(name, source))
    own = [setting for setting in settings_of(source.Config) if setting.name not in SourceConfig.__struct_fields__]
    if own:
        parts += ["Settings of its own:", docstring_of(source.Config).replace("``", "`"), table(own)]
    defaults = {field: paths for field, paths in source.where.items() if paths}
    if defaults:
        parts.append("\n".join(f"- {field}: from {', '.join(f'`{path}`' for path in paths)}" for field, paths in defaults.items()))
    return parts + example(source)


def connect(name: str, source: type[Source]) -> str:
    """Return the configuration to start from, and where the vendor describes its side."""
    secret = f"secrets: [env:{name.upper()}_SECRET]" if source.signs else f"basic_auth: [env:{name.upper()}_CREDENTIALS]  # user:password"
    lines = ["```yaml", "sources:", f"  {name}:", f"    kind: {name}", f"    {secret}", "```"]
    if source.docs_url:
        lines += ["", f"The vendor's own description: <{source.docs_url}>"]
    return "\n".join(lines)


def example(source: type[Source]) -> list[str]:
    """Return the first example in full and the titles of the others, which are tests as well."""
    if not source.EXAMPLES:
        return []
    first, *others = source.EXAMPLES
    parts = [f"Example: {first['title']}.", fenced(first["body"]), "becomes", fenced(first["events"])]
    if others:
        parts.append(
            "Also shown in the source's file: " + "; ".join(other["title"][0].lower() + other["title"][1:] for other in others) + "."
        )
    return parts


def fenced(body: object) -> str:
    """Return a body in a code block: JSON laid out, anything else as it is."""
    if isinstance(body, bytes):
        body = body.decode("utf-8", "replace")
    if isinstance(body, str):
        return f"```\n{body.strip()}\n```"
    return f"```json\n{json.dumps(msgspec.to_builtins(body), indent=2, ensure_ascii=False)}\n```"
