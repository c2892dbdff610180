"""docs/ways.md: every way out of rules with its settings and what a rule may say through it, from the ways themselves."""

from __future__ import annotations

import inspect

from ...act.ways import REGISTRY
from ...act.ways.way import Fields, Settings, Way
from .._settings import docstring_of, settings_of
from . import MARK
from .configuration import table

HEAD = """\
# Ways out

A way out is what a rule acts by. Each has an entry under `ways` in `midflight.yaml`; a rule's `action` names it, with what it says in
`fields`. Texts are templates as those of [campaigns](sending.md): of the recipient's attributes (the newest list's, and before
them what a poll, an import or an `identify` call said), `event` for what set the rule off, and
`recipient.email`. Names, ids and addresses of services are fixed text: they never come from outside. There is always a way called `email`.

```yaml
ways:
  shop:
    kind: webhook
    url: https://shop.example/hooks
    secrets: [env:SHOP_HOOK_SECRET]
```

```json
{"when": {"kind": "absence", "after": {"did": "clicked"}, "no": {"did": "converted"}, "within": "30m"},
 "action": {"way": "shop", "fields": {"type": "rule.fired", "data": {"who": "{{ recipient.email }}"}}},
 "limits": {"holdout": 0.1, "cooldown_hours": 72, "autonomy": "act_within_caps"}}
```

Before a call its intent is on disk, after it the outcome, and right before its last bytes leave all that may keep it back is asked once
more: limits, the kill switch, who has unsubscribed. A call that got no answer is made again only where the service promises that the same
call made twice has one effect, and only as long as it promises; otherwise its end is `unknown`. What a service puts off waits, as long as
it says; a service that fails again and again is left alone and probed; what is given up is kept and can be tried again.

Calls go to the internet alone: an address inside is refused at the moment of connecting, unless `automation.allow_networks` names it.
"""


def page() -> str:
    """Return the page: what all ways share, then one section for each."""
    parts = [MARK, HEAD, "## Settings of every way", docstring_of(Settings), table(settings_of(Settings))]
    for name, way in sorted(REGISTRY.all().items(), key=lambda item: item[1].label.lower()):
        parts += section(name, way)
    return "\n\n".join(part.strip().replace("``", "`") if "```" not in part else part.strip() for part in parts) + "\n"


def section(name: str, way: type[Way]) -> list[str]:
    """Return one way's part of the page."""
    calls = f" Up to {way.batch_max:,} actions a call." if way.batch_max > 1 else ""
    undo = f"Taken back: {way.undoes}." if way.undoes else "What has gone cannot be taken back."
    parts = [f"## {way.label}", f"`kind: {name}`.{calls} {undo}", way.doc, inspect.cleandoc(way.__doc__ or "")]
    own = [setting for setting in settings_of(way.Settings) if setting.name not in Settings.__struct_fields__]
    if own:
        parts += ["Settings:", table(own)]
    said = [setting for setting in settings_of(way.Fields) if setting.name not in Fields.__struct_fields__]
    return [*parts, "Fields of a rule:", table(said)]
