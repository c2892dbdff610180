"""Events become the vendors' requests: batched as the vendor batches, written and signed by the source's own code."""

from __future__ import annotations

import msgspec
import numpy as np

from ..events import Event
from ..sources import Request, Source
from .manners import Manners, Sending
from .vendors import SITE, vendor

POISON = (b"17", b'"x"', b"null", b"[]")
CALLS = {"converted": "/v1/track", "tracked": "/v1/track", "paged": "/v1/page", "identified": "/v1/identify"}


class Shipment(msgspec.Struct):
    """One request to come: what it reports and when. ``poison`` is a spoiled event put among the others, or empty.

    ``milliseconds`` says that the vendor's clock counts in milliseconds this time (SendGrid's own example does).
    """

    source: str
    due_us: int
    events: list[Event]
    poison: bytes = b""
    milliseconds: bool = False
    cut: bool = False
    tries: int = 0
    body: bytes = b""
    ready: Request | None = None  # signed ahead of time

    @property
    def path(self) -> str:
        if self.source != SITE:
            return f"/in/{self.source}"
        # A site reports one thing by its own call, several as a batch.
        return CALLS[self.events[0].kind] if len(self.events) == 1 else "/v1/batch"

    def write(self, source: Source) -> None:
        """Fill in the body, once."""
        if self.body:
            return
        body = source.write(self.events)
        if self.source == SITE and len(self.events) == 1:
            body = msgspec.json.encode(msgspec.json.decode(body)["batch"][0])
        if self.milliseconds:
            items = msgspec.json.decode(body)
            for item in items:
                item["timestamp"] *= 1000
            body = msgspec.json.encode(items)
        if self.poison:
            end = body.rindex(b"]")
            body = body[:end] + b"," + self.poison + body[end:]
        self.body = body

    def signed(self, source: Source, now_us: int, base_url: str = "") -> Request:
        """Return the request as the vendor sends it at ``now_us``."""
        self.write(source)
        headers = {"content-type": vendor(self.source).content_type}
        if self.source == "resend":
            headers["svix-id"] = self.events[0].event_id
        return source.sign(Request(url=base_url + self.path, headers=headers, body=self.body, received_at_us=now_us))


def requests(told: list[Sending], rng: np.random.Generator, *, window_us: int, batch_max: int, manners: Manners) -> list[Shipment]:
    """Group reports into requests. A vendor that batches sends when ``window_us`` have passed (0: only when full) or a batch is full."""
    out: list[Shipment] = []
    open_: dict[str, Shipment] = {}
    for sending in told:
        name = sending.event.source
        most = min(batch_max, vendor(name).batch_max)
        shipment = open_.get(name)
        if shipment and (len(shipment.events) >= most or (window_us and sending.due_us >= shipment.due_us)):
            out.append(open_.pop(name))
            shipment = None
        if shipment is None:
            due = sending.due_us + window_us if most > 1 else sending.due_us
            shipment = open_[name] = Shipment(source=name, due_us=due, events=[])
        shipment.events.append(sending.event)
    out += open_.values()
    for shipment, (cut, poison, clock) in zip(out, rng.random((len(out), 3)).tolist(), strict=True):
        shipment.cut = cut < manners.cut
        if shipment.source == "sendgrid":
            shipment.milliseconds = clock < manners.clocks
            if poison < manners.poison:
                shipment.poison = POISON[int(poison / manners.poison * len(POISON))]
    out.sort(key=lambda shipment: shipment.due_us)
    return out
