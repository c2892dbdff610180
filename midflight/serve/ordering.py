"""What the console asks of campaigns: it reads the conductor's file, and changes anything only by orders in the log."""

from __future__ import annotations

import logging
import secrets
import tempfile
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import apsw
import msgspec

from ..act import lists, orders
from ..act.audience import BadAudience, Recipient, Report, read_audience
from ..act.campaigns import Campaigns, Running
from ..act.definition import BadCampaign, Ready, Variant, campaign_of, check_columns, content_of
from ..act.outbox import as_it_stands
from ..act.templates import Content, compile_variant
from ..config import Config
from ..events import recipient_key
from ..kit.clock import Clock
from ..kit.errors import MidflightError, NotFound
from ..log.record import Record
from . import doorlink

logger = logging.getLogger(__name__)

wait_s = 5.0  # for the conductor, which sees an order as soon as the engine has folded it
pause_s = 0.05
lists_kept_max = 32
first_people = 20  # of a list, kept for previews
reasons_max = 30
TROUBLED = {3: "refused", 4: "unknown", 5: "skipped"}


class Refused(MidflightError):
    """What the conductor answered to an order that it did not carry out."""


# -- reading -------------------------------------------------------------------------------------------------------------


@contextmanager
def reading(config: Config) -> Iterator[Campaigns | None]:
    """Give the campaigns as they stand at one moment; None where there were never any."""
    with as_it_stands(config.folder / "outbox.db", "campaigns", "decisions", "orders") as outbox:
        yield Campaigns(outbox, config.sending.speed) if outbox else None


def named(campaigns: Campaigns | None, name: str) -> Running:
    """Return a campaign by its name. Raises NotFound with the nearest one."""
    if campaigns is None:
        raise NotFound(f"Unknown campaign `{name[:100]}`", todo="None is defined")
    return campaigns.named(name)


def newest(campaigns: Campaigns | None, before: int, count_max: int) -> list[Running]:
    """Return campaigns with an id below ``before``, the newest first."""
    if campaigns is None:
        return []
    found = campaigns.db.execute("SELECT id FROM campaigns WHERE id < ? ORDER BY id DESC LIMIT ?", (before, count_max)).fetchall()
    return [campaigns.get(number) for (number,) in found]


def sent_here(config: Config, names: list[str]) -> set[str]:
    """Return those of these campaigns that Midflight itself sends. Pages of numbers do without where that cannot be read."""
    asked = msgspec.json.encode(names).decode()
    try:
        with reading(config) as campaigns:
            if campaigns is None:
                return set()
            found = campaigns.db.execute("SELECT name FROM campaigns WHERE name IN (SELECT value FROM json_each(?))", (asked,))
            return {name for (name,) in found}
    except apsw.Error as error:
        logger.warning("What is sent from here cannot be read: %s", error)
        return set()


def reasons(campaigns: Campaigns, number: int) -> list[dict]:
    """Return why messages were refused or skipped or have no known end, with how many each, the most first."""
    found = campaigns.db.execute(
        "SELECT state, code, min(detail), count(*) AS n FROM messages WHERE campaign = ? AND state IN (3, 4, 5) "
        "GROUP BY state, code, CASE code WHEN '' THEN detail END ORDER BY n DESC LIMIT ?",
        (number, reasons_max),
    )
    return [{"state": TROUBLED[state], "code": code, "detail": detail, "count": n} for state, code, detail, n in found]


def guard_acted(campaigns: Campaigns, number: int) -> tuple[int, str] | None:
    """Return when a guard last did something to a campaign, and what; None where none did."""
    return campaigns.db.execute(
        "SELECT at_us, text FROM decisions WHERE campaign = ? AND (kind = 'guard' OR who = 'guard') ORDER BY number DESC LIMIT 1", (number,)
    ).fetchone()


# -- orders --------------------------------------------------------------------------------------------------------------


def new_id() -> str:
    """Return the name of a new order."""
    return secrets.token_hex(16)


def ordered(config: Config, clock: Clock, order, record_of: Callable[..., Record] = orders.record_of) -> bool:
    """Hand in an order; tell whether it is done. False: it is in the log, and will be done when the conductor runs.

    ``record_of`` says how the log carries it. Raises DoorAway where it could not be handed in, and Refused with what the conductor said.
    """
    doorlink.append(config, [record_of(order)])
    end = clock.monotonic_s() + wait_s
    while (error := ended(config, order.id)) is None:
        if clock.monotonic_s() >= end:
            return False
        clock.sleep_s(pause_s)
    if error:
        raise refusal(error)
    return True


def ended(config: Config, order: str) -> str | None:
    """Return ``""`` for an order that was done, an error as JSON for one that was refused, None for one that is still to come."""
    with reading(config) as campaigns:
        return None if campaigns is None else campaigns.order_end(order)


def refusal(text: str) -> Refused:
    """Return the error that the conductor noted for an order."""
    try:
        said = {name: str(value) for name, value in msgspec.json.decode(text, type=dict).items()}
    except (msgspec.DecodeError, msgspec.ValidationError):
        said = {"what": text}
    error = Refused(said.get("what", "It was refused"), **{name: said.get(name) for name in ("expected", "got", "where", "todo")})
    error.code = said.get("code", "refused")
    error.status = {"not_found": 404, "not_now": 409}.get(error.code, 400)
    return error


# -- lists ---------------------------------------------------------------------------------------------------------------


class Listed(msgspec.Struct, kw_only=True):
    """A list that was handed in: its name, what became of its rows, and its first people."""

    name: str
    report: Report
    first: list[Recipient]

    def told(self) -> dict:
        """Return what the API tells of it."""
        examples = [{"line": line, "reason": reason} for line, reason in self.report.examples]
        return {"list": self.name, **msgspec.structs.asdict(self.report), "examples": examples}


class Lists:
    """Lists that were handed in, with what became of their rows. A list is named by what is in it, so what is known of it stays true."""

    def __init__(self, config: Config) -> None:
        self.config = config
        # One at a time is read: each takes some hundred bytes a row while it is.
        self._lock = threading.Lock()
        self._known: OrderedDict[str, Listed] = OrderedDict()

    def take(self, body: bytes) -> Listed:
        """Check a list and keep it. Raises BadAudience; then nothing is kept."""
        with self._lock, tempfile.TemporaryDirectory() as folder:
            # The name is the subject of what is said about it.
            path = Path(folder) / "The list"
            path.write_bytes(body)
            people, report = read_audience(path)
            if not people:
                raise BadAudience("The list has nobody in it", got=f"{report.rows} rows")
            return self._remember(lists.keep(self.config.make_folder(), body), people, report)

    def get(self, name: str) -> Listed:
        """Return a list that was handed in. Raises NotFound."""
        path = lists.place_of(self.config.folder, name)
        with self._lock:
            if name in self._known:
                self._known.move_to_end(name)
                return self._known[name]
            return self._remember(name, *read_audience(path))

    def person(self, name: str, address: str) -> Recipient:
        """Return one of a list's people. Raises NotFound."""
        wanted = recipient_key(address)
        listed = self.get(name)
        found = next((person for person in listed.first if person.key == wanted), None)
        if found is None and wanted:
            with self._lock:
                people, _ = read_audience(lists.place_of(self.config.folder, name))
            found = next((person for person in people if person.key == wanted), None)
        if found is None:
            raise NotFound("Nobody of that address is in the list", got=address[:100], where="recipient")
        return found

    def _remember(self, name: str, people: list[Recipient], report: Report) -> Listed:
        self._known[name] = Listed(name=name, report=report, first=people[:first_people])
        if len(self._known) > lists_kept_max:
            self._known.popitem(last=False)
        return self._known[name]


# -- definitions ---------------------------------------------------------------------------------------------------------


class Checked(msgspec.Struct, kw_only=True):
    """A definition that can be sent as it is, with its list if it has one."""

    ready: Ready
    listed: Listed | None


def checked(config: Config, known: Lists, raw: dict, name: str) -> Checked:
    """Check a definition with the list that it goes to. Raises BadCampaign, TemplateError, NotFound."""
    raw = {"audience": {"csv": name}, **raw} if name else raw
    ready = campaign_of(raw, set(config.channels))
    wants = bool(ready.campaign.audience.csv)
    if wants and not name:
        raise BadCampaign("The audience's list is missing", expected="`list`, as `POST /v1/lists` names it", where="list")
    if name and not wants:
        raise BadCampaign("A list, and an audience that is none", expected="`audience` with `csv`", where="$.audience")
    listed = known.get(name) if name else None
    if listed:
        check_columns(ready, listed.report.columns)
    return Checked(ready=ready, listed=listed)


def checked_variant(config: Config, campaigns: Campaigns, now: Running, raw: dict) -> None:
    """Check a variant that a campaign is to get besides those that it has. Raises BadCampaign, TemplateError."""
    try:
        variant = msgspec.convert(raw, Variant)
    except msgspec.ValidationError as error:
        raise BadCampaign(f"The variant: {error}") from None
    whole = msgspec.structs.replace(now.definition, variants=[*now.definition.variants, variant])
    ready = campaign_of(msgspec.to_builtins(whole), {*config.channels, now.definition.channel})
    if now.definition.audience.csv:
        ready.templates[-1].check(campaigns.columns(now.id))


def preview(found: Checked, person: Recipient, url: str, now_us: int) -> list[dict]:
    """Return each variant as one person gets it; the preheader stands beside the HTML and not in it. Raises TemplateError, RenderError."""
    out = []
    campaign = found.ready.campaign
    for number, (variant, template) in enumerate(zip(campaign.variants, found.ready.templates, strict=True)):
        system = {
            "recipient.email": person.address, "unsubscribe_url": url, "preferences_url": url, "campaign": campaign.name,
            "variant": variant.name, "wave": "1", "now": now_us,
        }  # fmt: skip
        content = content_of(campaign, number)
        bare = compile_variant(msgspec.structs.replace(content, preheader=""), f"variant {variant.name}", campaign.footer)
        made = bare.render(person.attributes, system)
        out.append(
            {
                "name": variant.name, "subject": made.subject, "from_name": made.from_name, "html": made.html, "text": made.text,
                "preheader": _preheader(content, variant.name, person, system), "variables": sorted(template.variables),
            }
        )  # fmt: skip
    return out


def _preheader(content: Content, name: str, person: Recipient, system: dict[str, object]) -> str:
    """Return the preheader as text. A line of text is what a subject is, which must not be empty: hence the dash."""
    if not content.preheader.strip():
        return ""
    line = compile_variant(Content(subject=f"-{content.preheader[:1000]}", text="{{ unsubscribe_url }}"), f"variant {name}.preheader")
    return line.render(person.attributes, system).subject[1:].strip()


def somebody(known: Lists, found: Checked, address: str) -> Recipient:
    """Return for whom a preview is made: the one who is asked for, or the list's first. Raises NotFound, BadCampaign."""
    if found.listed:
        return known.person(found.listed.name, address) if address else found.listed.first[0]
    address = address or "ada@example.com"
    if not recipient_key(address):
        raise BadCampaign("No address", expected="name@domain alone", got=address[:100], where="recipient")
    return Recipient(key=recipient_key(address), address=address)
