"""docs/triggers.md: every kind of trigger with its settings and examples, from the triggers themselves."""

from __future__ import annotations

import json

from ...decide.triggers import REGISTRY, AboutPeople
from .._settings import settings_of
from . import MARK
from .configuration import table

HEAD = """\
# Triggers

What sets a rule off stands under `when`, its kind as `kind`. A trigger about people fires for one person, with the event or within a second
of the time; one about numbers is looked at once a minute and fires for nobody in particular, unless it says for whom.
[Segments and rules](rules.md) says what happens then.
"""


def page() -> str:
    """Return the page: those about people first."""
    parts = [MARK, HEAD]
    found = sorted(REGISTRY.all().items(), key=lambda one: (not issubclass(one[1], AboutPeople), one[1].label))
    for name, trigger in found:
        parts += [f"## {trigger.label}", f"`kind: {name}`", trigger.doc]
        settings = settings_of(trigger)
        parts += [table(settings)] if settings else []
        parts += [f"```json\n{json.dumps(when, ensure_ascii=False)}\n```\n\nWhen {said}." for when, said in trigger.EXAMPLES]
    return "\n\n".join(part.strip().replace("``", "`") if "```" not in part else part.strip() for part in parts) + "\n"
