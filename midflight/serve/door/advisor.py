"""Who gets what, for those who send with their own system: the same for ever once it was told, and never to who must not be written to.

What was told is found in two places. The log's newest records are remembered here until the engine has folded them; older ones are in the
engine's store. While the engine has not yet folded what the log held when this door started, nobody is told anything.
"""

from __future__ import annotations

import logging
from collections import deque
from pathlib import Path
from time import monotonic, thread_time

import msgspec

from ...act.advice import HOLDS, NAME, Advice, decoded
from ...act.audience import held_out
from ...act.links import Links
from ...events import recipient_key
from ...kit.errors import MidflightError, nearest
from ...log import Reader
from .folded import Folded

logger = logging.getLogger("midflight.door")

unfolded_max = 200_000  # decisions that the engine has not folded; beyond this no new ones are made
unsubscribed_max = 500_000  # unsubscribes that are remembered; beyond this nobody is told anything until the engine has folded them
remembered_s = 60.0  # an unsubscribe at least so long: no answer is under way for longer
behind_s_max = 60.0  # how old numbers may be, and how long the conductor may say nothing
slow_s = 0.002  # a message that takes longer to make is made in a thread


class Decided:
    """What a recipient was told in a campaign. ``uses`` are answers under way; ``position`` is -1 until it is in the log."""

    __slots__ = ("position", "propensity", "uses", "variant", "wave")

    def __init__(self, wave: int, variant: str, propensity: float) -> None:
        self.wave, self.variant, self.propensity = wave, variant, propensity
        self.uses, self.position = 0, -1


class Hold(msgspec.Struct):
    """The answer that nothing is to be sent, in one word and in a sentence."""

    hold: str
    what: str


class Asked(msgspec.Struct, forbid_unknown_fields=True):
    """One question."""

    campaign: str
    recipient: str
    attributes: dict[str, object] = {}


class Chosen(msgspec.Struct):
    """A question that has an answer. ``key`` is the recipient's, ``decided`` what is to be told."""

    asked: Asked
    campaign: Known
    key: str
    decided: Decided

    @property
    def name(self) -> tuple[str, str]:
        return self.campaign.advice.campaign, self.key


class Told(msgspec.Struct):
    """The answer that something is to be sent. ``custom`` is to be attached to the message, so that the vendor's events name it."""

    variant: str
    wave: str
    propensity: float
    content: object
    custom: dict[str, str]
    unsubscribe_url: str


class Known:
    """A campaign as the conductor told of it, with its templates."""

    def __init__(self, advice: Advice, before: Known | None = None) -> None:
        self.advice = advice
        self.is_new = before is None or before.advice.definition != advice.definition
        if not self.is_new:
            self.templates, self.broken, self.took_s = before.templates, before.broken, before.took_s
        else:
            self.templates, self.broken, self.took_s = {}, {}, {}
            self._compile(advice.definition)

    def _compile(self, definition: dict) -> None:
        # They take a while to load, and most doors are never asked.
        from ...act.templates import Content, compile_variant

        for given in definition.get("variants", ()):
            try:
                name = given["name"]
                content = Content(**{part: given[part] for part in Content.__struct_fields__ if part in given})
                self.templates[name] = compile_variant(content, f"variant {name}", definition.get("footer", "Unsubscribe"))
            except MidflightError as error:
                self.broken[name] = error.text()
            except (KeyError, TypeError, AttributeError) as error:
                logger.error("campaign %r: a variant cannot be read: %r", self.advice.campaign, error)

    def message(self, chosen: Chosen, links: Links, now_us: int) -> Told | Hold:
        """Return the message of one recipient, or why it cannot be made."""
        decided, name = chosen.decided, self.advice.campaign
        template = self.templates.get(decided.variant)
        if template is None:
            return Hold("content", self.broken.get(decided.variant) or f"Variant `{decided.variant}` is no longer in the campaign")
        wave = str(decided.wave)
        url = links.url(chosen.key, name, decided.variant, wave)
        system = {
            "recipient.email": chosen.asked.recipient.strip(), "unsubscribe_url": url, "preferences_url": url, "campaign": name,
            "variant": decided.variant, "wave": wave, "now": now_us,
        }  # fmt: skip
        began_s = thread_time()
        try:
            content = template.render(chosen.asked.attributes, system)
        except MidflightError as error:
            return Hold("content", error.text())
        finally:
            self.took_s[decided.variant] = thread_time() - began_s
        custom = {"campaign": name, "variant": decided.variant, "wave": wave, "propensity": f"{decided.propensity:.6g}"}
        return Told(decided.variant, wave, decided.propensity, content, custom, url)

    def is_slow(self, variant: str) -> bool:
        """Whether the last message of a variant took long to make."""
        return self.took_s.get(variant, 0.0) > slow_s


class Advisor:
    """What is known here of campaigns and people. Everything but `read_advice` and `read_head` is for the loop's thread."""

    def __init__(self, folder: Path, public_url: str, links: Links | None) -> None:
        self.folder = folder
        self.folded = Folded(folder)
        self.links, self.public_url = links, public_url
        self.campaigns: dict[str, Known] | None = None  # None before the conductor has said anything
        self.raw = b""
        self.seen: tuple[int, int] | None = None
        self.seen_s = 0.0
        self.head_at_start = -1  # where the log ended after the start; -1 until that is known
        self.needed = 0  # the log's position that the engine has to have reached
        self.decided: dict[tuple[str, str], Decided] = {}
        self.unsubscribed: dict[str, int] = {}  # recipient -> position
        self._in_log: deque[tuple[int, tuple[str, str]]] = deque()
        self._noted: deque[tuple[float, int, str]] = deque()

    # -- keeping up ----------------------------------------------------------------------------------------------------------

    def look(self) -> None:
        """Forget what the engine has folded. Called a few times a second."""
        self.folded.look()
        position, now_s = self.folded.position, monotonic()
        while self._in_log and self._in_log[0][0] < position:
            at, name = self._in_log.popleft()
            self.decided.pop(name, None)
            # If the store is ever made anew, it has to come to here again.
            self.needed = max(self.needed, at + 1)
        while self._noted and self._noted[0][1] < position and now_s - self._noted[0][0] > remembered_s:
            _, at, recipient = self._noted.popleft()
            if self.unsubscribed.get(recipient) == at:
                del self.unsubscribed[recipient]
            self.needed = max(self.needed, at + 1)

    def changed(self) -> bool:
        """Tell whether the conductor has written since the last time."""
        try:
            about = (self.folder / NAME).stat()
        except OSError:
            return False
        seen, self.seen = self.seen, (about.st_ino, about.st_mtime_ns)
        if seen != self.seen:
            self.seen_s = monotonic()
        return seen != self.seen

    def read_advice(self) -> dict[str, Known] | None:
        """Return the campaigns that the conductor tells of; None where the file cannot be read. In a thread: templates are compiled."""
        try:
            raw = (self.folder / NAME).read_bytes()
            if raw == self.raw and self.campaigns is not None:
                return self.campaigns
            before = self.campaigns or {}
            found = {advice.campaign: Known(advice, before.get(advice.campaign)) for advice in decoded(raw)}
        except (OSError, MidflightError) as error:
            logger.error("what the conductor tells cannot be read: %s", error)
            return None
        self.raw = raw
        return found

    def read_head(self) -> int:
        """Return where the log ends. In a thread."""
        with Reader(self.folder / "log") as reader:
            return reader.head()

    def starts_at(self, head: int) -> None:
        """Take where the log ended after the start: what is before it, only the engine knows."""
        self.head_at_start = head

    # -- what was told and taken ---------------------------------------------------------------------------------------------

    def note_unsubscribed(self, recipient: str, position: int) -> None:
        """Note an unsubscribe that is in the log and that the engine has not folded yet."""
        if len(self._noted) >= unsubscribed_max:
            self.needed = max(self.needed, position + 1)
            return
        self.unsubscribed[recipient] = position
        self._noted.append((monotonic(), position, recipient))

    def in_log(self, chosen: list[Chosen], position: int) -> None:
        """Note that these are in the log from a position on."""
        for one in chosen:
            if one.decided.position < 0:
                one.decided.position = position
                self._in_log.append((position, one.name))

    def let_go(self, chosen: list[Chosen]) -> None:
        """Note that the answers to these are given, or refused; what is then not in the log was told to nobody."""
        for one in chosen:
            one.decided.uses -= 1
            if not one.decided.uses and one.decided.position < 0:
                self.decided.pop(one.name, None)

    # -- choosing ------------------------------------------------------------------------------------------------------------

    def choose(self, asked: Asked, now_us: int) -> Chosen | Hold:
        """Return what a recipient gets; it is then in use until `let_go`. The recipient has to be an address."""
        if self.campaigns is None:
            return Hold("starting", "It is not yet known which campaigns there are")
        campaign = self.campaigns.get(asked.campaign)
        if campaign is None:
            todo = nearest(asked.campaign[:100], self.campaigns)
            return Hold("unknown_campaign", f"Unknown campaign `{asked.campaign[:100]}`. {todo}")
        advice, key = campaign.advice, recipient_key(asked.recipient)
        found = self.folded.find(advice.campaign, key)
        if held := self._not_now(found.position, found.log_time_us, now_us) or self._barred(key, found.why):
            return held
        if advice.state in HOLDS:
            return Hold(HOLDS[advice.state], f"The campaign is {advice.state}")
        name = (advice.campaign, key)
        decided = self.decided.get(name)
        if decided is None and found.wave is not None:
            decided = Decided(found.wave, found.variant, found.propensity)
            decided.position = 0
        if decided is None:
            decided = self._new(advice, key)
            if isinstance(decided, Hold):
                return decided
            self.decided[name] = decided
        decided.uses += 1
        return Chosen(asked, campaign, key, decided)

    def _not_now(self, position: int, log_time_us: int, now_us: int) -> Hold | None:
        if self.head_at_start < 0 or position < self.head_at_start or not log_time_us:
            return Hold("starting", "It is still being read what happened before the start")
        if position < self.needed or now_us - log_time_us > behind_s_max * 1e6:
            return Hold("behind", "It is still being read what has happened")
        if monotonic() - self.seen_s > behind_s_max:
            return Hold("behind", f"Nothing was heard of the campaigns for {behind_s_max:.0f} s: does the conductor run?")
        if self.links is None or not self.public_url:
            return Hold("content", "A message needs a link to unsubscribe: set `door.public_url`")
        return None

    def _barred(self, key: str, why: str) -> Hold | None:
        if why or key in self.unsubscribed:
            why = why or "unsubscribed"
            return Hold(why, f"The recipient {'has ' if why != 'bounced' else ''}{why}")
        return None

    def barred_since(self, chosen: Chosen) -> Hold | None:
        """Return why a recipient must not be written to who could be when the choice was made."""
        return self._barred(chosen.key, "")

    def _new(self, advice: Advice, key: str) -> Decided | Hold:
        if advice.state != "sending":
            return Hold("done", f"The campaign is {advice.state}")
        if held_out(advice.seed, advice.campaign, key, advice.holdout):
            return Hold("holdout", "The recipient is among those who get nothing, to measure what the campaign is worth")
        if len(self.decided) >= unfolded_max:
            return Hold("behind", "It is still being read who was told what")
        found = advice.choose(key)
        if found is None:
            return Hold("not_started", "The campaign has no wave yet")
        return Decided(advice.wave, *found)
