"""Iterable's system webhooks: one JSON object; authentic by a token, not signed."""

from __future__ import annotations

from ..events import Event
from .source import Request, Source, as_dict, iso_us, number_us, sub, text, texts, with_headers

KINDS = {
    "emailsend": "sent",
    "emailsendskip": "rejected",
    "emailopen": "opened",
    "emailclick": "clicked",
    "emailbounce": "bounced",
    "emailcomplaint": "complained",
    "emailsubscribe": "subscribed",
    "emailunsubscribe": "unsubscribed",
    "hostedunsubscribeclick": "unsubscribed",
}
REASONS = {"rejected": "blocked", "bounced": "bounced", "complained": "spam", "unsubscribed": "unsubscribed"}

OWN_KEYS = frozenset({"email", "userId", "eventName", "createdAt", "messageId", "url", "userAgent", "ip", "labels", "isBot", "proxySource"})


class Iterable(Source):
    """``bearer`` holds the tokens, whichever of Iterable's kinds of authorization is chosen there.

    The campaign is Iterable's campaign id and the variant its content id (the version in an experiment); names are in the
    metadata: ``campaign: [metadata.campaignName]``.
    """

    label = "Iterable"
    docs_url = "https://support.iterable.com/hc/en-us/articles/208013936-System-Webhooks"
    shape = "object"

    def verify(self, request: Request) -> int:
        # Iterable's "Basic" sends the bare token without a scheme word, its "OAuth2" sends the word OAuth2 before it.
        token = request.header("authorization").removeprefix("OAuth2 ")
        if self.config.bearer and token and " " not in token:
            request = with_headers(request, {"authorization": f"Bearer {token}"})
        return super().verify(request)

    def events(self, item: object, request: Request) -> Event | None:
        item = as_dict(item)
        data = sub(item, "dataFields")
        name = text(item.get("eventName"))
        kind = KINDS.get(name.lower(), "unknown")
        created = data.get("createdAt") or item.get("createdAt")
        event = Event(
            kind=kind,
            occurred_at_us=iso_us(created) or number_us(created),
            recipient=text(item.get("email")) or text(data.get("email")),
            user_id=text(item.get("userId")),
            message_id=text(data.get("messageId")),
            url=text(data.get("url")),
            user_agent=text(data.get("userAgent")),
            ip=text(data.get("ip")),
            reason=REASONS.get(kind, ""),
            detail=text(data.get("bounceMessage")) or text(data.get("reason")),
            name=name,
            tags=texts(data.get("labels")),
            metadata={key: value for key, value in data.items() if key not in OWN_KEYS},
            campaign=text(data.get("campaignId")),
            variant=text(data.get("contentId")),
        )
        if kind == "bounced":
            event.bounce_class = "soft" if "soft" in text(data.get("recipientState")).lower() else "hard"
        elif kind in ("opened", "clicked"):
            event.agent, event.agent_reason = agent(data)
        return event


def agent(data: dict) -> tuple[str, str]:
    """Return who opened or clicked: a bot, Apple's prefetching proxy, a proxy that fetched for a reader, or not said."""
    proxy = text(data.get("proxySource"))
    if data.get("isBot") in (True, "true"):
        return "machine", "vendor flag: isBot"
    if "apple" in proxy.lower():
        # Apple Mail's privacy protection fetches every mail, read or not.
        return "machine", f"vendor flag: proxySource {proxy}"
    return ("proxied", f"vendor flag: proxySource {proxy}") if proxy else ("", "")


EXAMPLES = Iterable.EXAMPLES = [
    {
        "title": "A click in an experiment",
        "body": {
            "email": "ada@example.com",
            "userId": "42",
            "eventName": "emailClick",
            "dataFields": {
                "campaignId": 49313,
                "campaignName": "Spring",
                "templateId": 79190,
                "experimentId": 301,
                "contentId": 274222,
                "messageId": "d3c44d47b4994306b4db8d16a94db025",
                "createdAt": "2025-11-24 16:00:00 +00:00",
                "url": "https://shop.example/spring",
                "ip": "203.0.113.9",
                "userAgent": "Mozilla/5.0 (X11; Linux x86_64)",
                "labels": ["sale"],
            },
        },
        "events": [
            {
                "kind": "clicked",
                "recipient": "ada@example.com",
                "user_id": "42",
                "message_id": "d3c44d47b4994306b4db8d16a94db025",
                "occurred_at_us": 1764000000000000,
                "campaign": "49313",
                "variant": "274222",
                "url": "https://shop.example/spring",
                "tags": ["sale"],
            }
        ],
    },
    {
        "title": "An open by a bot",
        "body": {
            "email": "ada@example.com",
            "eventName": "emailOpen",
            "dataFields": {
                "campaignId": 49313,
                "messageId": "d3c44d47b4994306b4db8d16a94db025",
                "createdAt": "2025-11-24 16:00:00 +00:00",
                "isBot": True,
                "proxySource": "Gmail",
            },
        },
        "events": [{"kind": "opened", "agent": "machine", "agent_reason": "vendor flag: isBot"}],
    },
]
