"""SparkPost's (Bird's) event webhooks: an unsigned JSON array, each event wrapped in `msys` and its class."""

from __future__ import annotations

from typing import Literal

from ..events import Event
from .source import Malformed, Request, Source, SourceConfig, as_dict, at_path, decode_items, iso_us, number_us, sub, text, texts

KINDS = {
    "injection": "queued",
    "delivery": "delivered",
    "delay": "deferred",
    "bounce": "bounced",
    "out_of_band": "bounced",
    "policy_rejection": "rejected",
    "generation_rejection": "rejected",
    "generation_failure": "failed",
    "spam_complaint": "complained",
    "open": "opened",
    "initial_open": "opened",
    "amp_open": "opened",
    "amp_initial_open": "opened",
    "click": "clicked",
    "amp_click": "clicked",
    "list_unsubscribe": "unsubscribed",
    "link_unsubscribe": "unsubscribed",
    "relay_injection": "inbound",
    "relay_delivery": "inbound",
    "relay_rejection": "inbound",
    "relay_tempfail": "inbound",
    "relay_permfail": "inbound",
}
# `bounce_class`: bounce class of ours, reason.
BOUNCES = {
    "1": ("soft", "other"),  # undetermined
    "10": ("hard", "invalid"),
    "20": ("soft", "bounced"),
    "21": ("soft", "bounced"),
    "22": ("soft", "bounced"),
    "23": ("soft", "bounced"),
    "24": ("soft", "timed_out"),
    "25": ("block", "blocked"),  # the account's own policy
    "30": ("hard", "bounced"),
    "40": ("soft", "bounced"),
    "50": ("block", "blocked"),
    "51": ("block", "spam"),
    "52": ("block", "spam"),
    "53": ("block", "other"),
    "54": ("block", "blocked"),
    "60": ("", "other"),
    "70": ("soft", "bounced"),
    "80": ("", "other"),
    "90": ("", "unsubscribed"),
    "100": ("", "other"),
}
# These arrive as bounces and are answers: an auto-reply, a subscribe or unsubscribe request, a challenge.
ANSWERS = {"60": "autoresponded", "80": "subscribed", "90": "unsubscribed", "100": "autoresponded"}
IGNORED = ("ab_test_event", "ingest_event")  # classes of events that are about no message and no person


class SparkPostConfig(SourceConfig, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """``opens`` says which of SparkPost's two pixels count.

    A message has one pixel at the top (`initial_open`) and one at the bottom (`open`). A fully shown message sends both, one that
    the mailbox clips (Gmail, from 102 KB) only the first. With ``both``, the default, either makes the message opened, and initial
    opens share one id per message and recipient, so that they add at most one to the total of opens. Set ``open`` or ``initial_open`` to
    count one pixel only where that total has to be exact; whether the other is sent depends on the account, so that is not for us to guess.
    """

    opens: Literal["both", "open", "initial_open"] = "both"


class SparkPost(Source):
    label = "SparkPost"
    docs_url = "https://developers.sparkpost.com/api/webhooks/"
    shape = "array"
    Config = SparkPostConfig

    def items(self, request: Request) -> list:
        items = decode_items(request.body)
        if not isinstance(items, list):
            raise Malformed("SparkPost sends an array of events", got=type(items).__name__)
        if items and not any(isinstance(item, dict) and "msys" in item for item in items):
            raise Malformed("SparkPost wraps each event in `msys`")
        return items

    def events(self, item: object, request: Request) -> Event | None:
        wrapped = as_dict(as_dict(item).get("msys"))
        if not wrapped:  # a ping
            return None
        if len(wrapped) > 1:
            raise Malformed("An event of SparkPost has one class", got=", ".join(sorted(wrapped))[:100])
        ((wrapper, said),) = wrapped.items()
        if wrapper == "relay_message":
            raise Malformed(
                "This is inbound mail, not an event", todo="In SparkPost, point the relay webhook elsewhere; this URL is for event webhooks"
            )
        return self.event(wrapper, as_dict(said))

    def event(self, wrapper: str, said: dict) -> Event | None:
        name = text(said.get("type"))
        if wrapper in IGNORED or name == "sms_status":
            return None
        if not name:
            raise Malformed("An event of SparkPost says what happened in `type`")
        kind = KINDS.get(name, "unknown")
        top = name.endswith("initial_open")
        if kind == "opened" and self.config.opens == ("open" if top else "initial_open"):
            return None
        transmission, campaign = text(said.get("transmission_id")), text(said.get("campaign_id"))
        event = Event(
            event_id=text(said.get("event_id")),
            kind=kind,
            occurred_at_us=number_us(said.get("timestamp")) or iso_us(said.get("timestamp")),
            recipient=text(said.get("raw_rcpt_to")) or text(said.get("rcpt_to")),  # the raw one keeps the case
            # A transmission goes to many recipients, a message to one.
            message_id=text(said.get("message_id")) or transmission,
            url=text(said.get("target_link_url")),
            user_agent=text(said.get("user_agent")),
            ip=text(said.get("ip_address")),
            code=text(said.get("error_code")),
            detail=text(said.get("raw_reason")) or text(said.get("reason")) or text(said.get("fbtype")),
            name=name,
            tags=[campaign] if campaign else [],
            metadata=sub(said, "rcpt_meta"),
            campaign=campaign,
            variant=text(said.get("ab_test_version")),
        )
        self.from_recipient_tags(event, texts(said.get("rcpt_tags")))
        if top and self.config.opens == "both" and event.message_id:
            event.event_id = f"initial_open:{event.message_id}:{event.recipient.lower()}"
        bounced(event, text(said.get("bounce_class")))
        if kind in ("opened", "clicked"):
            flagged(event, said)
        return event

    def from_recipient_tags(self, event: Event, tags: list[str]) -> None:
        """Find campaign, variant and wave in `rcpt_tags` too: they come from the recipient list, so they are no tags of the message."""
        aside = Event(tags=tags)
        for field, paths in self._paths.items():
            found = next((value for path in paths if path.startswith("tag.") and (value := at_path(aside, path))), "")
            if found:
                setattr(event, field, found)


def bounced(event: Event, code: str) -> None:
    """Read `bounce_class`, which also comes with rejections and delays."""
    if code:
        bounce_class, event.reason = BOUNCES.get(code, ("soft", "other"))
        if event.kind == "bounced":
            event.kind, event.bounce_class = ANSWERS.get(code, "bounced"), bounce_class
    elif event.kind == "bounced":
        event.bounce_class = "soft"


def flagged(event: Event, said: dict) -> None:
    parsed = sub(said, "user_agent_parsed")
    if is_true(said.get("is_prefetched")) or is_true(parsed.get("is_prefetched")):
        event.agent, event.agent_reason = "machine", "vendor flag: is_prefetched"
    elif is_true(said.get("is_proxy")) or is_true(parsed.get("is_proxy")):
        event.agent, event.agent_reason = "proxied", "vendor flag: is_proxy"


def is_true(value: object) -> bool:
    return value is True or value in ("true", "1", 1)


PLUGIN = SparkPost
EXAMPLES = SparkPost.EXAMPLES = [
    {
        "title": "A click, with recipient metadata",
        "body": [
            {
                "msys": {
                    "track_event": {
                        "type": "click",
                        "event_id": "92356927693813856",
                        "message_id": "000443ee14578172be22",
                        "transmission_id": "65832150921904138",
                        "campaign_id": "spring",
                        "raw_rcpt_to": "Ada@example.com",
                        "rcpt_to": "ada@example.com",
                        "rcpt_meta": {"variant": "B"},
                        "target_link_url": "https://shop.example/spring",
                        "ip_address": "203.0.113.9",
                        "timestamp": "1764000000",
                    }
                }
            }
        ],
        "events": [
            {
                "kind": "clicked",
                "event_id": "92356927693813856",
                "message_id": "000443ee14578172be22",
                "recipient": "Ada@example.com",
                "occurred_at_us": 1764000000000000,
                "url": "https://shop.example/spring",
                "campaign": "spring",
                "variant": "B",
                "tags": ["spring"],
            }
        ],
    },
    {
        "title": "Gmail fetched the images before anybody looked",
        "body": [
            {
                "msys": {
                    "track_event": {"type": "open", "event_id": "1", "message_id": "m1", "rcpt_to": "a@gmail.com", "is_prefetched": True}
                }
            }
        ],
        "events": [{"kind": "opened", "agent": "machine", "agent_reason": "vendor flag: is_prefetched"}],
    },
    {
        "title": "A bounce of a spam filter is a block; a ping is nothing",
        "body": [
            {"msys": {}},
            {
                "msys": {
                    "message_event": {
                        "type": "bounce",
                        "event_id": "2",
                        "bounce_class": "51",
                        "rcpt_to": "ada@example.com",
                        "error_code": "550",
                    }
                }
            },
        ],
        "events": [{"kind": "bounced", "bounce_class": "block", "reason": "spam", "code": "550"}],
    },
]
