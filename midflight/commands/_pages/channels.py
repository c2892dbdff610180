"""docs/channels.md: every way out with its settings, from the channels themselves."""

from __future__ import annotations

import inspect

import msgspec

from ...act.channels import REGISTRY
from ...act.channels.channel import Channel, Settings
from ...act.smtp import SmtpSettings
from .._settings import docstring_of, settings_of
from . import MARK
from .configuration import table

HEAD = """\
# Channels

A channel is a way out for email: a vendor's API, or a relay by SMTP. Each has an entry under `channels` in `midflight.yaml`; a campaign
names it. Campaign, variant, wave and the chance by which the variant was chosen travel with every message, so that the vendor's webhooks,
which come in through a [source](sources.md), bring them back.

```yaml
channels:
  news:
    kind: sendgrid
    api_key: env:SENDGRID_API_KEY
```

Before a call its intent is on disk, after it the outcome. A call whose answer never came is `unknown`: it is not made again, and a webhook
that names the message settles it. What a vendor refuses for now waits; wrong credentials hold the channel and lose nobody.
"""


def page() -> str:
    """Return the page: what all channels share, then one section for each, SMTP last."""
    parts = [MARK, HEAD, "## Settings of every channel", docstring_of(Settings), table(settings_of(Settings))]
    for name, channel in sorted(REGISTRY.all().items(), key=lambda item: item[1].label.lower()):
        parts += section(name, channel)
    parts += ["## SMTP", "`kind: smtp`", docstring_of(SmtpSettings), own_table(SmtpSettings)]
    return "\n\n".join(part.strip().replace("``", "`") if "```" not in part else part.strip() for part in parts) + "\n"


def section(name: str, channel: type[Channel]) -> list[str]:
    """Return one channel's part of the page."""
    calls = "One message a call." if channel.batch_max == 1 else f"Up to {channel.batch_max} messages a call."
    parts = [f"## {channel.label}", f"`kind: {name}`, webhooks through a source of the kind `{channel.source}`. {calls}", channel.doc]
    parts.append(inspect.cleandoc(channel.__doc__ or ""))
    return [*parts, own_table(channel.Settings)]


def own_table(settings: type[msgspec.Struct]) -> str:
    return table([setting for setting in settings_of(settings) if setting.name not in Settings.__struct_fields__])
