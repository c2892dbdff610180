"""The form that makes a campaign: one page that works without any script, keeps what was typed, and says errors where they are about."""

from __future__ import annotations

import math
import re
import secrets
from collections.abc import Callable

import msgspec
from fastapi import APIRouter, Depends, Request
from starlette.responses import RedirectResponse, Response

from ...act import orders
from ...act.definition import DEFAULT_POLICY, Campaign
from ...act.slots import options_max, slots_max
from ...decide.policies import REGISTRY as POLICIES
from ...events import recipient_key
from ...kit.errors import MidflightError, NotFound
from .. import api
from ..auth import Session
from ..ordering import Checked, Listed, Refused, checked, named, new_id, ordered, preview, reading, somebody
from ..shield import POLICY
from . import wizard_slots
from .experiments import link_of, start_sentence
from .multipart import parsed
from .pages import render, visitor, written_by_us

variants_max = 20  # in the form; the API takes more
# A mail's own styles have to apply, so the one page that shows mails allows them; everything else on it stays shut.
PREVIEW_POLICY = POLICY.replace("style-src 'self'", "style-src 'self' 'unsafe-inline'")
# Within the frame nothing runs and nothing is loaded, whatever the page around it allows.
FRAME = (
    '<!doctype html><meta charset="utf-8"><meta http-equiv="Content-Security-Policy" '
    "content=\"default-src 'none'; style-src 'unsafe-inline'; img-src data:\">"
)
wizard = APIRouter(include_in_schema=False)

DEFAULTS = {
    "name": "", "channel": "", "from_address": "", "reply_to": "", "goal": "click", "why_opens": "", "list": "", "list_text": "",
    "start": "", "hours": "8", "every_minutes": "5", "per_minute": "", "warm_up": "", "holdout": "0", "seed": "",
    "policy": DEFAULT_POLICY, "providers": "",
    "guard_unsubscribe": "1", "guard_complaint": "0.2", "guard_bounce": "5", "preview_for": "", "test_to": "", "why": "",
}  # fmt: skip
VARIANT = {"name": "", "subject": "", "from_name": "", "preheader": "", "body_as": "html", "body": "", "text": ""}


class Form(msgspec.Struct, kw_only=True):
    """What stands in the form, what is wrong with it by field, and what is shown with it. ``errors`` has a key for each field; ``count`` is
    how many variants there are, ``slots`` how many options each slot has."""

    fields: dict[str, str]
    count: int = 2
    slots: list[int] = []
    errors: dict[str, str] = {}
    listed: Listed | None = None
    focus: str = ""

    def value(self, name: str) -> str:
        return self.fields.get(name, "")

    def wrong(self, field: str, said: str) -> None:
        """Note what is wrong with a field; the first that is said of it stays."""
        self.errors.setdefault(field, said)
        self.focus = self.focus or field


def empty() -> Form:
    """Return the form before anything is typed."""
    form = Form(fields={**DEFAULTS, "seed": str(secrets.randbelow(2**31))}, errors={})
    for n in range(form.count):
        form.fields |= variant_fields(n)
    return form


def variant_fields(n: int) -> dict[str, str]:
    """Return a variant's empty fields; its name is the next letter."""
    return {f"v{n}_{key}": value for key, value in (VARIANT | {"name": chr(65 + n)}).items()}


def like(campaign: Campaign) -> Form:
    """Return the form as it would have to be filled in for a campaign, but for the name."""
    form = empty()
    waves, guards = campaign.waves, campaign.guardrails
    form.fields |= {
        "channel": campaign.channel, "from_address": campaign.from_address, "reply_to": campaign.reply_to, "goal": campaign.goal,
        "why_opens": campaign.why_opens, "list": campaign.audience.csv, "hours": f"{waves.hours:g}",
        "every_minutes": f"{waves.every_minutes:g}", "per_minute": str(waves.per_minute or ""),
        "warm_up": ", ".join(map(str, waves.warm_up)), "holdout": f"{100 * campaign.holdout:g}",
        "policy": campaign.policy.get("kind", DEFAULT_POLICY),
        "providers": ", ".join(f"{name}: {count}" for name, count in waves.per_provider_per_minute.items()),
        **{f"guard_{name}": f"{100 * getattr(guards, name):g}" for name in guards.__struct_fields__},
    }  # fmt: skip
    form.count = min(variants_max, len(campaign.variants))
    for n, variant in enumerate(campaign.variants[: form.count]):
        kind = "mjml" if variant.mjml else "html" if variant.html else "text"
        own = {key: getattr(variant, key) for key in ("name", "subject", "from_name", "preheader")}
        more = {"body_as": kind, "body": getattr(variant, kind), "text": "" if kind == "text" else variant.text}
        form.fields |= {f"v{n}_{key}": value for key, value in (own | more).items()}
    wizard_slots.put_like(form, campaign)
    return form


def read(kind: str, body: bytes) -> tuple[Form, dict[str, bytes]]:
    """Return a posted form, and the files that came with it."""
    fields, files = parsed(kind, body)
    given = fields.get("count", "")
    count = min(variants_max, max(1, int(given))) if given.isdigit() and len(given) < 4 else 1
    slots = wizard_slots.sizes_of(fields.get("slots", ""))
    known = DEFAULTS.keys() | {f"v{n}_{key}" for n in range(count) for key in VARIANT} | wizard_slots.keys(slots) | {"csrf", "do"}
    # Every field of ours is there, and no other.
    return Form(fields={key: fields.get(key, "") for key in known}, count=count, slots=slots, errors={}), files


# -- from the form to a definition ---------------------------------------------------------------------------------------


def definition_of(form: Form) -> dict:
    """Return the definition that the form describes; what cannot be read is noted in its errors."""
    value = form.value
    waves = {
        "start": value("start").strip(), "hours": number(form, "hours"), "every_minutes": number(form, "every_minutes"),
        "per_minute": number(form, "per_minute", int, 0), "warm_up": warm_up(form), "per_provider_per_minute": providers(form),
    }  # fmt: skip
    raw = {name: value(name).strip() for name in ("name", "channel", "from_address", "reply_to", "goal", "why_opens")}
    for field, said in (("name", "The campaign needs a name."), ("from_address", "Whose address does it come from?")):
        if not raw[field]:
            form.wrong(field, said)
    guards = {name: percent(form, f"guard_{name}", 100) for name in ("unsubscribe", "complaint", "bounce")}
    return raw | {
        "audience": {"csv": value("list")},
        "variants": [variant_of(form, n) for n in range(form.count)],
        "waves": waves,
        "guardrails": guards,
        "policy": {"kind": value("policy") or DEFAULT_POLICY},
        "slots": wizard_slots.slots_of(form),
        "holdout": percent(form, "holdout", 90),
        "seed": number(form, "seed", int, 1),
    }


def variant_of(form: Form, n: int) -> dict:
    """Return one variant as a definition has it."""
    own = {key: form.value(f"v{n}_{key}") for key in ("name", "subject", "from_name", "preheader")}
    own["name"] = own["name"].strip()
    kind = form.value(f"v{n}_body_as")
    kind = kind if kind in ("html", "mjml", "text") else "html"
    body, text = form.value(f"v{n}_body"), form.value(f"v{n}_text")
    for field, said, missing in (
        ("name", "The variant needs a name.", not own["name"]),
        ("subject", "The variant needs a subject.", not own["subject"].strip()),
        ("body", "The variant needs a body.", not body.strip()),
    ):
        if missing:
            form.wrong(f"v{n}_{field}", said)
    return own | ({"text": body} if kind == "text" else {kind: body} | ({"text": text} if text.strip() else {}))


def number(form: Form, field: str, kind: Callable = float, default: float | None = None) -> float:
    """Return a field's number; an empty one is its default, where it has one."""
    text = form.value(field).strip().removesuffix("%").strip()
    if not text and default is not None:
        return default
    try:
        found = kind(text if kind is int else text.replace(",", "."))
        if not math.isfinite(found) or found < 0 or found > 2**62:
            raise ValueError
    except (ValueError, OverflowError):
        form.wrong(field, "This has to be a whole number, 0 or more." if kind is int else "This has to be a number, 0 or more.")
        return 1
    return found


def percent(form: Form, field: str, most: int) -> float:
    """Return a field's share, which is typed in percent."""
    found = number(form, field)
    if found > most:
        form.wrong(field, f"At most {most} %.")
    return min(found, most) / 100


def warm_up(form: Form) -> list[int]:
    """Return how many may go on the first days."""
    found = []
    for word in re.split(r"[\s,;]+", form.value("warm_up").strip()):
        if word and (not word.isdigit() or len(word) > 12):
            form.wrong("warm_up", f"Numbers, one a day, as in 1000, 5000, 20000; not `{word[:40]}`.")
        elif word:
            found.append(int(word))
    return found


def providers(form: Form) -> dict[str, int]:
    """Return how many messages a minute may go to single mailbox providers."""
    found = {}
    for part in re.split(r"[,;\n]+", form.value("providers")):
        name, _, count = (word.strip() for word in part.rpartition(":"))
        if not part.strip():
            continue
        if not name or not count.isdigit() or not 1 <= len(count) <= 12:
            form.wrong("providers", f"As in Gmail: 2000, Yahoo: 500; not `{part.strip()[:40]}`.")
        else:
            found[name] = int(count)
    return found


_PLACE = re.compile(r"`(\$[^`]*)`")
_VARIANT_PLACE = re.compile(r"\$\.variants\[(\d+)\]\.(\w+)")
_SIMPLE = {
    "$.name": "name", "$.channel": "channel", "$.from_address": "from_address", "$.reply_to": "reply_to", "$.goal": "goal",
    "$.audience": "list", "list": "list", "$.variants": "variants", "$.waves": "every_minutes", "$.holdout": "holdout", "$.seed": "seed",
    "recipient": "preview_for", "$.why_opens": "why_opens", "$.policy": "policy", "$.policy.kind": "policy",
    "$.waves.per_provider_per_minute": "providers",
}  # fmt: skip


def field_of(form: Form, error: MidflightError) -> str:
    """Return the field that an error is about; ``""`` for one that is about the whole."""
    where = error.where or ""
    if not where and (found := _PLACE.search(error.what)):
        where = found[1]
    if where in _SIMPLE:
        return _SIMPLE[where]
    if where.startswith("$.slots"):
        return wizard_slots.field_of(form, where)
    if found := _VARIANT_PLACE.match(where):
        return f"v{found[1]}_{found[2]}"
    for start, prefix in (("$.waves.", ""), ("$.guardrails.", "guard_")):
        if where.startswith(start):
            return prefix + re.sub(r"\[.*", "", where.removeprefix(start))
    # The longest name first: `A` is also the beginning of `A.text`.
    for n in sorted(range(form.count), key=lambda n: -len(form.value(f"v{n}_name"))):
        place = f"variant {form.value(f'v{n}_name').strip()}"
        if where == place:
            return f"v{n}_body"
        if where.startswith(f"{place}."):
            part = re.split(r"[:.]", where.removeprefix(f"{place}."))[0]
            own = part in ("subject", "from_name", "preheader")
            other = part == "text" and form.value(f"v{n}_body_as") != "text"
            return f"v{n}_{part if own else 'text' if other else 'body'}"
    return ""


def title_of(form: Form, field: str) -> str:
    """Return what a field is called in the list of what is to be mended."""
    whose, _, what = field.partition("_")
    plain = what.replace("_", " ")
    if re.fullmatch(r"v\d+", whose):
        return f"variant {form.value(f'{whose}_name') or 'without a name'}: {plain}"
    if found := re.fullmatch(r"(s\d+)(o\d+)?", whose):
        option = f" option {form.value(f'{whose}_name')}" if found[2] else ""
        return f"slot {form.value(f'{found[1]}_name')}{option}: {plain}"
    return f"ceiling: {plain}" if whose == "guard" else field.replace("_", " ")


def said_of(error: MidflightError) -> str:
    """Return an error as it stands beside its field: with the line, as the place is plain."""
    text = _PLACE.sub("", error.what).removesuffix(" - at ").removeprefix("The campaign's definition: ")
    if error.expected:
        text += f": expected {error.expected}" + (f", got {error.got}" if error.got is not None else "")
    elif error.got is not None:
        text += f": got {error.got}"
    for kind, plain in (("`float`", "a number"), ("`int`", "a whole number"), ("`str`", "text")):
        text = text.replace(kind, plain)
    line = re.search(r":(\d+)(?::\d+)?$", error.where or "")
    text += f", in line {line[1]}" if line and error.where.startswith("variant") else ""
    return f"{text}. {error.todo or ''}".strip()


# -- the page ------------------------------------------------------------------------------------------------------------


@wizard.get("/experiments/new")
def begin(request: Request, session: Session = Depends(visitor)) -> Response:
    """The empty form, or one that is filled in as another campaign was."""
    site = api.site_of(request)
    form, name = empty(), request.query_params.get("like", "")
    if name:
        with reading(site.config) as campaigns:
            form = like(named(campaigns, name).definition)
    show_list(site, form)
    return page(request, session, form)


def show_list(site: api.Site, form: Form) -> None:
    """Look up the list that the form names; one that is no list of ours is forgotten."""
    if form.fields["list"]:
        try:
            form.listed = site.lists.get(form.fields["list"])
        except NotFound:
            form.fields["list"] = ""


def page(request: Request, session: Session, form: Form, status: int = 200, **more: object) -> Response:
    """Return the form with what is shown beside it."""
    site = api.site_of(request)
    shown = {"previews": [], "warnings": [], "person": "", "confirm": "", "trouble": None} | more
    channels = {name: settings["kind"] for name, settings in site.config.channels.items()}
    response = render(
        request, "wizard.html", status, session=session, form=form, value=form.value, errors=form.errors, listed=form.listed,
        channels=channels, variants_max=variants_max, slots_max=slots_max, options_max=options_max, policies=policies(),
        titles={field: title_of(form, field) for field in form.errors}, **shown,
    )  # fmt: skip
    if shown["previews"]:
        response.headers["content-security-policy"] = PREVIEW_POLICY
    return response


def policies() -> list[tuple[str, str]]:
    """Return every policy with what it is called, the default first."""
    found = [(name, policy.label) for name, policy in POLICIES.all().items()]
    return sorted(found, key=lambda pair: (pair[0] != DEFAULT_POLICY, pair[1]))


async def raw_body(request: Request) -> bytes:
    return await request.body()


@wizard.post("/experiments/new")
def go_on(request: Request, session: Session = Depends(visitor), body: bytes = Depends(raw_body)) -> Response:
    """Whatever button was pressed; nothing that was typed is lost by any of them."""
    site = api.site_of(request)
    form, files = read(request.headers.get("content-type", ""), body)
    written_by_us(request, session, form.fields)
    do = form.value("do")
    take_list(site, form, files.get("list_file", b""))
    if do == "add" and form.count < variants_max:
        form.fields |= variant_fields(form.count)
        form.focus, form.count = f"v{form.count}_name", form.count + 1
        return page(request, session, form)
    if do.startswith("remove-"):
        removed(form, do.removeprefix("remove-"))
        return page(request, session, form)
    if do.startswith(("slot-", "option-")):
        wizard_slots.changed(form, do)
        return page(request, session, form)
    if do == "list":
        return page(request, session, form, 400 if form.errors else 200)
    found = check(site, form)
    if do == "test" and not recipient_key(form.value("test_to")):
        form.wrong("test_to", "An address of your own, as in you@example.com.")
    if found is None or form.errors:
        return page(request, session, form, 400)
    warnings = found.ready.warnings
    try:
        if do in ("draft", "yes", "test"):
            return put_down(site, session, form, found, do)
        if do == "start":
            return page(request, session, form, confirm=confirmation(found, site.clock.now_us()), warnings=warnings)
        person = somebody(site.lists, found, form.value("preview_for").strip())
        rows = preview(found, person, f"{api.door_url(site.config)}/u/preview", site.clock.now_us())
    except MidflightError as error:
        return refused(request, session, form, error)
    form.focus = "previews"
    for row in rows:
        row["frame"] = FRAME + row["html"]
    return page(request, session, form, previews=rows, person=person.address, warnings=warnings)


def refused(request: Request, session: Session, form: Form, error: MidflightError) -> Response:
    """Return the form with an error beside the field that it is about, or at the top."""
    field = field_of(form, error)
    if "already" in error.what and isinstance(error, Refused):
        field = "name"
    if not field:
        return page(request, session, form, error.status, trouble=error.as_dict()["error"])
    form.wrong(field, said_of(error))
    return page(request, session, form, error.status)


def take_list(site: api.Site, form: Form, file: bytes) -> None:
    """Take in a list that was chosen or pasted; it is kept, and the form names it from then on."""
    pasted = form.value("list_text").strip()
    if file and pasted:
        form.wrong("list", "A file or pasted rows, not both: empty the one that is not meant.")
    elif file or pasted:
        try:
            form.listed = site.lists.take(file or pasted.encode())
        except MidflightError as error:
            place = f" ({error.where})" if error.where else ""
            form.wrong("list", said_of(error) + place)
        else:
            form.fields |= {"list": form.listed.name, "list_text": ""}
            return
    show_list(site, form)


def removed(form: Form, which: str) -> None:
    """Take a variant out of the form; those after it move up."""
    if not which.isdigit() or len(which) > 3 or int(which) >= form.count or form.count < 2:
        return
    for n in range(int(which), form.count - 1):
        for key in VARIANT:
            form.fields[f"v{n}_{key}"] = form.fields[f"v{n + 1}_{key}"]
    form.count -= 1
    form.focus = f"v{min(int(which), form.count - 1)}_name"


def check(site: api.Site, form: Form) -> Checked | None:
    """Check everything that was typed; None where something is wrong, which then stands in the form's errors."""
    raw = definition_of(form)
    if not form.value("list"):
        form.wrong("list", "Who gets it? Choose a file, or paste the list.")
    with reading(site.config) as campaigns:
        taken = (
            campaigns is not None
            and campaigns.db.execute("SELECT 1 FROM campaigns WHERE name = ? AND state <> 'draft'", (raw["name"],)).fetchone()
        )
    if taken:
        form.wrong("name", "There is a campaign of that name already. Numbers are kept by name: take another.")
    if form.errors:
        return None
    try:
        return checked(site.config, site.lists, raw, form.value("list"))
    except MidflightError as error:
        field = field_of(form, error)
        form.wrong(field or "whole", said_of(error) if field else error.text())
        return None


def confirmation(found: Checked, now_us: int) -> str:
    """Return in a sentence what is going to happen."""
    campaign = found.ready.campaign
    people = found.listed.report.taken
    held = round(people * campaign.holdout)
    about = "About " if held else ""
    when = (
        f" The first wave goes at {campaign.waves.start.replace('T', ' ')} UTC."
        if campaign.waves.start
        else " The first wave goes at once."
    )
    return about + start_sentence(people - held, len(campaign.variants), campaign.waves.hours, held) + when


def put_down(site: api.Site, session: Session, form: Form, found: Checked, do: str) -> Response:
    """Put the campaign down as a draft, and start it or send tests of it where that was asked for. Raises what the conductor said."""
    campaign = found.ready.campaign
    given = {"campaign": campaign.name, "who": session.user}
    add = orders.Add(id=new_id(), definition=msgspec.to_builtins(campaign), audience=found.listed.name, **given)
    link = link_of(campaign.name)
    mark = "&" if "?" in link else "?"
    if not ordered(site.config, site.clock, add):
        # Whether there is a draft is not known yet, so nothing may follow: it could be another's of that name.
        return RedirectResponse(f"{link}{mark}order={add.id}", 303)
    follow: list[orders.Order] = []
    if do == "yes":
        to = "scheduled" if campaign.waves.start_us() > site.clock.now_us() else "sending"
        follow = [orders.Move(id=new_id(), to=to, why=form.value("why").strip(), **given)]
    elif do == "test":
        person = somebody(site.lists, found, form.value("preview_for").strip()).key
        to = form.value("test_to").strip()
        follow = [orders.Test(id=new_id(), to=to, variant=variant.name, recipient=person, **given) for variant in campaign.variants]
    for order in follow:
        try:
            done = ordered(site.config, site.clock, order)
        except Refused:
            done = False
        except MidflightError:
            # The draft is there already, so the form must not come back: it would make it once more.
            return RedirectResponse(f"{link}{mark}halfway=1", 303)
        if not done:
            return RedirectResponse(f"{link}{mark}order={order.id}", 303)
    return RedirectResponse(link, 303)
