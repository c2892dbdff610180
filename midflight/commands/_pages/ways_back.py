"""docs/ways_back.md: every system that segments and engagement are written back to, from the ways themselves."""

from __future__ import annotations

import inspect

from ...act.written_back import REGISTRY, WayBack
from ...act.written_back.way_back import Settings
from .._settings import docstring_of, settings_of
from . import MARK
from .configuration import table
from .polls import inner_tables

HEAD = """\
# Ways back

A way back writes what Midflight finds out about people into a system that has them already: in which segments they are, and how engaged
they are (`engagement`, 0 to 100). Each has an entry under `ways_back` in `midflight.yaml`.

```yaml
ways_back:
  crm:
    kind: hubspot
    token: env:HUBSPOT_TOKEN
    values: {engagement: midflight_engagement}
```

What is written is how things are, never a change, so writing it twice is writing it once. Who comes into a segment or leaves it is
written within seconds, in batches; who was in a segment when a way was configured, or when the segment was made, is written too. A score
is written when somebody comes into a segment or leaves it, and once a day when it has changed. Nobody is made in the other system: who is
not there is named, as is who is refused, with the reason.

How each way stands is in `written_back/state.json` of the data folder and in `GET /v1/ways-back`.
"""


def page() -> str:
    """Return the page: what all ways share, then one section for each."""
    parts = [MARK, HEAD, "## Settings of every way back", docstring_of(Settings), table(settings_of(Settings))]
    for name, way in sorted(REGISTRY.all().items(), key=lambda item: item[1].label.lower()):
        parts += section(name, way)
    return "\n\n".join(part.strip().replace("``", "`") if "```" not in part else part.strip() for part in parts) + "\n"


def section(name: str, way: type[WayBack]) -> list[str]:
    """Return one way's part of the page."""
    own = [one for one in settings_of(way.Settings) if one.name not in Settings.__struct_fields__]
    parts = [f"## {way.label}", f"`kind: {name}`. {way.doc}", inspect.cleandoc(way.__doc__ or ""), docstring_of(way.Settings), table(own)]
    return parts + inner_tables(way.Settings)
