"""docs/policies.md: every policy with its settings, from the policies themselves."""

from __future__ import annotations

from ...act.definition import DEFAULT_POLICY
from ...decide.policies import REGISTRY
from .._settings import settings_of
from . import MARK
from .configuration import table

HEAD = """\
# Policies

A policy says at each moment of a campaign how many people the next wave takes, and which share of it each variant gets. It sees what was
sent, what people did and how long ago, how many are left and how many moments; nothing else. The same evidence and the campaign's seed give
the same wave, and each person's chance is written down with the message.

A policy decides who gets what. What may be [claimed](sending.md#claims) is decided apart from it, and holds whichever policy is used.
`midflight evaluate experiment` replays a file of past tests against every policy.
"""


def page() -> str:
    """Return the page: the default first."""
    parts = [MARK, HEAD]
    for name, policy in sorted(REGISTRY.all().items(), key=lambda item: (item[0] != DEFAULT_POLICY, item[1].label.lower())):
        settings = settings_of(policy)
        parts += [f"## {policy.label}", f"`kind: {name}`" + (", the default" if name == DEFAULT_POLICY else ""), policy.doc]
        parts += [table(settings)] if settings else []
    return "\n\n".join(part.strip().replace("``", "`") for part in parts) + "\n"
