"""Follow-up emails: one message of a rule's own campaign, by a channel as campaigns go, once for an action.

The action's row is its intent; what holds for campaigns holds here too: who is suppressed or has just unsubscribed gets none, nobody gets
more in a day than `sending.recipient_per_day`, what bounces is held, each has its link to unsubscribe, and webhooks bring back campaign,
version and intent.
"""

from __future__ import annotations

import asyncio
import hashlib
from functools import cached_property

import msgspec

from ..events import recipient_key
from ..kit.clock import Clock
from ..kit.errors import ConfigError, MidflightError
from ..stream.providers import providers_of
from .calls import Begins, refused
from .channels.channel import Message
from .delivery import Withheld
from .gates import Gate
from .headers import headers_of
from .outbox import PLANNED, REFUSED, SENT, SKIPPED, Result, promise_us_max
from .rulebook import follow_up_of
from .script import Use
from .sender import CUT_OFF, Job, Lane, Links, Sender, cap_wait_us
from .templates import Content, compile_variant
from .ways.email import Email, Fields
from .ways.way import Action, Outcome

wait_s = 5.0  # until a channel that is busy or held is asked again
no_link_s = held_s = 60.0
# Codes of channels that say that nothing was taken.
_NOT_TAKEN = ("unreachable", "connection", "withheld", "401", "403", "429")


class EmailSays:
    """What a version of a rule says by email, ready to fill in. Of an action is kept what is known of its recipient, not the text."""

    def __init__(self, way: Email, fields: dict[str, object], where: str) -> None:
        try:
            said = msgspec.convert(fields, Fields)
        except msgspec.ValidationError as error:
            raise ConfigError(f"What the rule says: {error}", expected=", ".join(Fields.__struct_fields__), where=where) from None
        settings = way.settings
        self.channel = said.channel or settings.channel
        self.from_address = said.from_address or settings.from_address
        self.reply_to = said.reply_to or settings.reply_to
        self.campaign = said.campaign
        if not self.channel:
            raise ConfigError("A follow-up email by no channel", expected="the name of a channel", where=f"{where}.channel")
        for name, address in (("from_address", self.from_address), ("reply_to", self.reply_to)):
            if (address or name == "from_address") and (not recipient_key(address) or "<" in address or not address.isprintable()):
                raise ConfigError("No address", expected="name@domain alone", got=address[:100], where=f"{where}.{name}")
        content = Content(
            subject=said.subject, from_name=said.from_name or settings.from_name, preheader=said.preheader, html=said.html, mjml=said.mjml,
            text=said.text,
        )  # fmt: skip
        self.template = compile_variant(content, where, said.footer)

    @cached_property
    def uses(self) -> list[Use]:
        return [use for _, uses in self.template.parts for use in uses]

    def check(self, known: set[str]) -> None:
        self.template.check(known)

    def render(self, attributes: dict[str, object], system: dict[str, object]) -> dict[str, object]:
        """Return what the text is filled in from."""
        names = {name for ours, name in self.template.used if not ours}
        return {"values": {name: attributes[name] for name in sorted(names) if name in attributes}, "now_us": system["now"]}


class FollowUps:
    """Sends follow-ups over the channels of a `Sender`. ``unsafe`` says why people could not unsubscribe, or nothing."""

    def __init__(self, sender: Sender, links: Links, clock: Clock, *, unsafe: str = "") -> None:
        self.sender, self.links, self.clock, self.unsafe = sender, links, clock, unsafe

    async def deliver(self, action: Action, begins: Begins, says: EmailSays, way: Email) -> Outcome:
        """Send one follow-up and return what became of it."""
        lane = self.sender.lanes.get(says.channel)
        if why := self._waits(action, lane, says):
            return why
        try:
            message = self.message(action, says)
            call = lane.carrier.call_of([message])
        except MidflightError as error:
            return refused(error)
        promise_us = promise_us_max if call is not None and call.idempotent else 0
        ended: asyncio.Future[Result] = asyncio.get_running_loop().create_future()

        begun = False

        def begin() -> None:
            nonlocal begun
            if ended.done() or not begins(promise_us):
                raise Withheld
            begun = True

        def ends(result: Result) -> None:
            if not ended.done():
                ended.set_result(result)

        lane.pace.took(1)
        for gate in self._gates(action, says):
            gate.took(1)
        lane.offer(
            [Job(campaign=0, keys=[action.recipient], messages=[message], call=call, tries=0, stale_us=1 << 62, begin=begin, ends=ends)]
        )
        result = await ended
        if result.code == CUT_OFF and not begun:
            return Outcome(kind="later", code="withheld")
        return outcome_of(result, promised=bool(promise_us))

    def _waits(self, action: Action, lane: Lane | None, says: EmailSays) -> Outcome | None:
        """Return what keeps a follow-up from being offered to its channel now, or None."""
        key = action.recipient
        if not recipient_key(key):
            return Outcome(kind="refused", code="no_address", detail="no address of this recipient is known")
        if why := self.sender.suppressed([key]).get(key):
            return Outcome(kind="refused", code="suppressed", detail=why)
        if self.unsafe:
            return Outcome(kind="later", code="no_channel", detail=self.unsafe, retry_s=no_link_s)
        if lane is None:
            detail = f"channel `{says.channel}` is not in the configuration"
            return Outcome(kind="later", code="no_channel", detail=detail, retry_s=no_link_s)
        if why := lane.held():
            return Outcome(kind="later", code="busy", detail=why, retry_s=wait_s)
        if any(gate.ready(self.clock.monotonic_s(), 1) < 1 for gate in self._gates(action, says)):
            detail = "its mailbox provider, its domain or what the rule sends is held, because too much bounces there"
            return Outcome(kind="later", code="busy", detail=detail, retry_s=held_s)
        if self.sender.often([key], self.clock.now_us(), action.id):
            detail = "has got as many messages as anybody may in a day"
            return Outcome(kind="later", code="cap", detail=detail, retry_s=cap_wait_us / 1e6)
        if lane.waiting >= lane.most or not lane.pace.ready(self.clock.monotonic_s(), 1):
            return Outcome(kind="later", code="busy", detail=f"channel `{says.channel}` is busy", retry_s=1.0)
        return None

    def _gates(self, action: Action, says: EmailSays) -> list[Gate]:
        """Return the gates that a follow-up goes through, which are those of campaigns."""
        (provider,) = providers_of([action.recipient])
        return self.sender.gates.of(follow_up_of(action.rule, says.campaign), provider, action.recipient)

    def message(self, action: Action, says: EmailSays) -> Message:
        """Return the message of one action: of the same action always the same. Raises RenderError."""
        campaign, variant = follow_up_of(action.rule, says.campaign), f"v{action.version}"
        link = self.links.url(action.recipient, campaign, variant, "1")
        system = {
            "recipient.email": action.recipient, "unsubscribe_url": link, "preferences_url": link, "campaign": campaign,
            "variant": variant, "wave": "1", "now": action.fields["now_us"],
        }  # fmt: skip
        rendered = says.template.render(action.fields["values"], system)
        return Message(
            intent=intent_of(action.id), campaign=campaign, variant=variant, wave="1", propensity=1.0, to=action.recipient,
            from_address=says.from_address, from_name=rendered.from_name, reply_to=says.reply_to, subject=rendered.subject,
            html=rendered.html, text=rendered.text, headers=headers_of(link, self.sender.mailto) if self.links.secure else {},
        )  # fmt: skip


def intent_of(action_id: str) -> str:
    """Return the name of an action's message, as webhooks bring it back."""
    return "in-" + hashlib.blake2b(b"follow-up\0" + action_id.encode(), digest_size=15).hexdigest()


def outcome_of(result: Result, *, promised: bool) -> Outcome:
    """Return what a channel's result means for an action."""
    kinds = {SENT: "sent", REFUSED: "refused", SKIPPED: "refused", PLANNED: "later"}
    kind = kinds.get(result.state, "unknown")
    if kind == "later" and promised and not result.code.startswith(_NOT_TAKEN):
        # The channel would try again what may have been taken already, because its vendor promises that twice is once.
        kind = "again"
    return Outcome(kind=kind, message_id=result.message_id, code=result.code, detail=result.detail)
