"""What a campaign is: one strict definition, the same in a file, through the API and in the console's form."""

from __future__ import annotations

import re
from collections.abc import Collection
from datetime import UTC, datetime
from typing import Annotated, Literal

import msgspec

from ..decide.claims import ClaimSettings, arms_max
from ..decide.guardrails import Guardrails
from ..decide.policies import REGISTRY as POLICIES
from ..decide.policies import Policy
from ..events import recipient_key
from ..kit.errors import MidflightError, nearest
from ..stream.providers import PROVIDERS
from .slots import Slot, check_slots, filled
from .templates import Content, Template, compile_variant

DEFAULT_POLICY = "finite_list"
GOALS = ("click", "conversion", "revenue", "open")
name_chars_max = 100
waves_max = 2_000

Share = Annotated[float, msgspec.Meta(ge=0, le=1)]
PerMinute = Annotated[int, msgspec.Meta(ge=1)]


class BadCampaign(MidflightError):
    """A definition that cannot be sent as it is; nothing of it is."""

    code = "bad_campaign"


class Variant(Content, kw_only=True, forbid_unknown_fields=True):
    """One version of the campaign: its name and what it says."""

    name: str


class Audience(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """Who gets it: one of a CSV file with a column `email`, a segment, or whoever your own system asks about through `/v1/decide`; then
    ``expected`` is about how many that will be."""

    csv: str = ""
    segment: str = ""
    api: bool = False
    expected: Annotated[int, msgspec.Meta(ge=0)] = 0


class Waves(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """When it is sent. The policy says how much of the list each wave takes; these are the bounds it keeps.

    ``start`` is ISO 8601 (UTC where no zone is given), empty for as soon as it is started. ``warm_up`` holds how many messages may go on
    the first, second, ... day; afterwards there is no such bound.
    """

    start: str = ""
    hours: Annotated[float, msgspec.Meta(gt=0, le=24 * 31)] = 8.0
    every_minutes: Annotated[float, msgspec.Meta(ge=0.5, le=24 * 60)] = 5.0
    per_minute: Annotated[int, msgspec.Meta(ge=0)] = 0  # messages, all together; 0 is no bound
    per_provider_per_minute: dict[str, PerMinute] = {}  # by mailbox provider, as in `Gmail: 200`
    warm_up: list[PerMinute] = []

    def start_us(self) -> int:
        """Return the start in microseconds since 1970, 0 for at once. Raises ValueError."""
        if not self.start:
            return 0
        moment = datetime.fromisoformat(self.start)
        return int((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp() * 1e6)

    def moments(self) -> int:
        """Return at how many moments a wave can go, the first and the last included."""
        return int(self.hours * 60 / self.every_minutes) + 1


class Campaign(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """A campaign. ``policy`` holds ``kind`` and that policy's settings; ``why_opens`` why a goal that machines reach is wanted."""

    name: str
    channel: str = ""  # none where your own system sends
    from_address: str
    reply_to: str = ""
    audience: Audience
    variants: list[Variant]
    slots: dict[str, Slot] = {}  # places in the content that are filled by recipient group
    goal: Literal["click", "conversion", "revenue", "open"] = "click"
    why_opens: str = ""
    policy: dict = {}
    claims: ClaimSettings = msgspec.field(default_factory=ClaimSettings)
    waves: Waves = msgspec.field(default_factory=Waves)
    guardrails: Guardrails = msgspec.field(default_factory=Guardrails)
    holdout: Annotated[float, msgspec.Meta(ge=0, le=0.9)] = (
        0.0  # share of the audience that gets nothing, to measure what the campaign is worth
    )
    seed: Annotated[int, msgspec.Meta(ge=0)] = 1
    footer: str = "Unsubscribe"  # text of the link below a body that has none


class Ready(msgspec.Struct, kw_only=True):
    """A definition that was checked: its policy, its templates by variant (slots filled with their first options), and what its owner
    should know before sending."""

    campaign: Campaign
    policy: Policy
    templates: list[Template]
    warnings: list[str]
    others: dict[tuple[int, tuple[int, ...]], Template] = {}

    def template(self, variant: int, options: tuple[int, ...]) -> Template:
        """Return a variant with these options in its slots, in the slots' order; made when it is first asked for."""
        if not any(options):
            return self.templates[variant]
        if (variant, options) not in self.others:
            self.others[variant, options] = _template(self.campaign, variant, options)
        return self.others[variant, options]

    def every_template(self) -> list[Template]:
        """Return templates in which each variant and each option of a slot occurs."""
        slots = list(self.campaign.slots.values())
        found = list(self.templates)
        for place, slot in enumerate(slots):
            for option in range(1, len(slot.options)):
                chosen = tuple(option if n == place else 0 for n in range(len(slots)))
                found += [self.template(variant, chosen) for variant in range(len(self.templates))]
        return found


def campaign_of(raw: object, channels: set[str]) -> Ready:
    """Check a definition given as plain data. Raises BadCampaign or TemplateError with the place of what is wrong."""
    _refuse_unknown(raw)
    try:
        campaign = msgspec.convert(raw, Campaign)
    except msgspec.ValidationError as error:
        raise BadCampaign(f"The campaign's definition: {error}") from None
    _check_names(campaign, channels)
    _check_audience(campaign)
    _check_waves(campaign.waves)
    _check_providers(campaign.waves)
    check_slots(campaign.slots)
    if campaign.slots and campaign.audience.api:
        raise BadCampaign("Slots are for campaigns that Midflight sends", where="$.slots", todo="Leave them out, or hand in a list")
    policy = _policy(campaign.policy)
    first = (0,) * len(campaign.slots)
    templates = [_template(campaign, variant, first) for variant in range(len(campaign.variants))]
    ready = Ready(campaign=campaign, policy=policy, templates=templates, warnings=_warnings(campaign), others={})
    ready.every_template()
    return ready


def _template(campaign: Campaign, variant: int, options: tuple[int, ...]) -> Template:
    """Return one variant with these options in its slots. Raises BadSlot and TemplateError with the place of what is wrong."""
    return compile_variant(content_of(campaign, variant, options), f"variant {campaign.variants[variant].name}", campaign.footer)


def content_of(campaign: Campaign, variant: int, options: tuple[int, ...] = ()) -> Content:
    """Return what one variant says, with these options in its slots, the first of each where none are given. Raises BadSlot."""
    said = campaign.variants[variant]
    chosen = dict(zip(campaign.slots, options, strict=False))
    fields = {
        name: filled(
            getattr(said, name), "html" if name in ("html", "mjml") else "text", campaign.slots, chosen, f"variant {said.name}.{name}"
        )
        for name in Content.__struct_fields__
    }
    return Content(**fields)


def check_columns(ready: Ready, columns: Collection[str]) -> None:
    """Refuse what a definition asks of a list that does not have it: variables of its templates, and what its slots group by."""
    for template in ready.every_template():
        template.check(set(columns))
    for name, slot in ready.campaign.slots.items():
        for column in slot.by:
            if column not in columns:
                raise BadCampaign(f"The list has no column `{column}`", where=f"$.slots.{name}.by", todo=nearest(column, columns))


def _refuse_unknown(raw: object) -> None:
    for name in raw if isinstance(raw, dict) else ():
        if name not in Campaign.__struct_fields__:
            raise BadCampaign(f"Unknown setting `{name}`", where=f"$.{name}", todo=nearest(str(name), Campaign.__struct_fields__))


_PLAIN = re.compile(r"[^\x00-\x1f\x7f]+")


def _check_names(campaign: Campaign, channels: set[str]) -> None:
    named = [("$.name", campaign.name), *((f"$.variants[{n}].name", variant.name) for n, variant in enumerate(campaign.variants))]
    for where, name in named:
        if not _PLAIN.fullmatch(name) or name != name.strip() or len(name) > name_chars_max:
            raise BadCampaign("A name", expected=f"1 to {name_chars_max} characters on one line", got=repr(name[:120]), where=where)
    if campaign.channel not in channels and (campaign.channel or not campaign.audience.api):
        raise BadCampaign(f"Unknown channel `{campaign.channel}`", where="$.channel", todo=nearest(campaign.channel, channels))
    if not 1 <= len(campaign.variants) <= arms_max:
        raise BadCampaign("Variants", expected=f"1 to {arms_max}", got=len(campaign.variants), where="$.variants")
    seen: set[str] = set()
    for n, variant in enumerate(campaign.variants):
        if variant.name in seen:
            raise BadCampaign(f"Two variants are called `{variant.name}`", where=f"$.variants[{n}].name")
        seen.add(variant.name)
    for where, address in (("$.from_address", campaign.from_address), ("$.reply_to", campaign.reply_to)):
        if (address or where == "$.from_address") and (not recipient_key(address) or "<" in address or not address.isprintable()):
            raise BadCampaign("No address", expected="name@domain alone", got=repr(address[:120]), where=where)


def _check_audience(campaign: Campaign) -> None:
    audience = campaign.audience
    given = [name for name in ("csv", "segment", "api") if getattr(audience, name)]
    if len(given) != 1:
        raise BadCampaign("The audience", expected="one of `csv`, `segment`, `api`", got=" and ".join(given) or "none", where="$.audience")


def _check_waves(waves: Waves) -> None:
    try:
        waves.start_us()
    except ValueError:
        raise BadCampaign("The start", expected="as in 2026-11-27T09:00", got=waves.start[:60], where="$.waves.start") from None
    if waves.moments() > waves_max:
        raise BadCampaign(
            "Too many waves", expected=f"at most {waves_max}", got=waves.moments(), where="$.waves", todo="Raise `every_minutes`"
        )  # fmt: skip


def _check_providers(waves: Waves) -> None:
    known = [name for name in PROVIDERS if name]
    for name in waves.per_provider_per_minute:
        if name.lower() not in {provider.lower() for provider in known}:
            where = "$.waves.per_provider_per_minute"
            raise BadCampaign(f"Unknown mailbox provider `{name[:60]}`", where=where, todo=nearest(name[:60], known))


def _policy(raw: dict) -> Policy:
    settings = dict(raw)
    kind = settings.pop("kind", DEFAULT_POLICY)
    if kind not in POLICIES.names():
        raise BadCampaign(f"Unknown policy `{kind}`", where="$.policy.kind", todo=nearest(str(kind), POLICIES.names()))
    try:
        return msgspec.convert(settings, POLICIES.get(kind))
    except msgspec.ValidationError as error:
        raise BadCampaign(f"Policy `{kind}`: {error}", where="$.policy") from None


def _warnings(campaign: Campaign) -> list[str]:
    found = []
    if campaign.goal == "open":
        because = f" It was chosen because: {campaign.why_opens}" if campaign.why_opens else ""
        found.append(
            "The goal is opens. Mail apps load images before anybody has looked, and some providers hide who did: a subject that is better "
            f"by opens may be no better by clicks.{because}"
        )
    if len(campaign.variants) == 1:
        found.append("There is one variant: the send is paced and guarded, and nothing can be learned from it.")
    for name in Guardrails.__struct_fields__:
        ceiling = getattr(campaign.guardrails, name)
        if ceiling == 0:
            found.append(f"The ceiling for `{name}` is 0: the first one stops the campaign.")
        if ceiling >= 1:
            found.append(f"The ceiling for `{name}` is 100 %: it never stops anything.")
    return found
