"""docs/polls.md: every system that can be asked now and then with its settings, from the polls themselves."""

from __future__ import annotations

import inspect
import typing

import msgspec

from ...sources.polls import REGISTRY, Poll
from ...sources.polls._mapping import MappedSettings
from ...sources.polls.poll import Settings
from .._settings import docstring_of, settings_of
from . import MARK
from .configuration import table

HEAD = """\
# Polls

A poll asks a system that Midflight's door hears nothing of: a CRM, a database, an API, a folder of files, or an email provider for events
whose webhooks never came. Each has an entry under `polls` in `midflight.yaml`.

```yaml
polls:
  crm:
    kind: hubspot
    token: env:HUBSPOT_TOKEN
    traits: [plan, country]
```

The process `poller` asks each of them every `every_s` seconds, page by page. What a page says is in the log before the poll goes on
behind it, so whatever is killed, nothing is lost, and what is asked for twice has the same ids and counts once. Of a row only what has
changed is said. Changes of attributes are events of the kind `identified`: segments follow them, and of late or conflicting ones the one
that was true latest holds.

What cannot be read holds up nothing: a row is set aside with its reason and read again after the next start, an answer is gone past and
asked for again later. Limits of the other side are kept to (`per_second`, `per_day`), its `Retry-After` too. How each poll stands is in
`polls/state.json` of the data folder and in `GET /v1/polls`.

`POST /v1/polls/NAME/backfill` has a range of time read once more, which counts nothing twice. When a [source brings less than it
should](operating.md#when-a-source-brings-less-than-it-should), the polls of its events are asked for that time by themselves.
"""


def page() -> str:
    """Return the page: what all polls share, then one section for each."""
    parts = [MARK, HEAD, "## Settings of every poll", docstring_of(Settings), table(settings_of(Settings))]
    own = [one for one in settings_of(MappedSettings) if one.name not in Settings.__struct_fields__]
    parts += ["## Rows", docstring_of(MappedSettings), table(own), *inner_tables(MappedSettings)]
    for name, poll in sorted(REGISTRY.all().items(), key=lambda item: item[1].label.lower()):
        parts += section(name, poll)
    return "\n\n".join(part.strip().replace("``", "`") if "```" not in part else part.strip() for part in parts) + "\n"


def section(name: str, poll: type[Poll]) -> list[str]:
    """Return one poll's part of the page."""
    events = f" Its events count under a source of the kind `{poll.vendor}`." if poll.vendor else ""
    rows = " Its rows are read [as above](#rows)." if issubclass(poll.Settings, MappedSettings) else ""
    parts = [f"## {poll.label}", f"`kind: {name}`. {poll.doc}{events}{rows}", inspect.cleandoc(poll.__doc__ or "")]
    own = own_settings(poll.Settings)
    return [*parts, *([docstring_of(poll.Settings), table(own)] if own else []), *inner_tables(poll.Settings, MappedSettings)]


def own_settings(settings: type[msgspec.Struct]) -> list:
    """Return the settings that the parts above do not have, or have with another default."""
    shared = {one.name: one for one in settings_of(MappedSettings if issubclass(settings, MappedSettings) else Settings)}
    return [one for one in settings_of(settings) if one.name not in shared or one.default != shared[one.name].default]


def inner_tables(settings: type[msgspec.Struct], but: type[msgspec.Struct] | None = None) -> list[str]:
    """Return the tables of settings that are mappings themselves, each behind its name."""
    said = set(typing.get_type_hints(but)) if but else set()
    parts = []
    for name, hint in typing.get_type_hints(settings).items():
        for inner in structs_in(hint) if name not in said else ():
            parts += [f"`{name}`: {docstring_of(inner)}", table(settings_of(inner), f"{name}.")]
    return parts


def structs_in(hint: object) -> list[type[msgspec.Struct]]:
    if isinstance(hint, type) and issubclass(hint, msgspec.Struct):
        return [hint]
    return [found for argument in typing.get_args(hint) for found in structs_in(argument)]
