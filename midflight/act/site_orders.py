"""What a site's pages report, as records of the log that the conductor obeys: a message that was closed or clicked, and a browser that
takes notifications or takes none any more."""

from __future__ import annotations

from typing import Literal, Protocol

import msgspec

from ..log.record import Record
from .orders import BadOrder

SOURCE = "site"
WHO = "a visitor"


class SiteOrder(msgspec.Struct, kw_only=True, frozen=True, tag_field="do"):
    """What every report says: its own ``id``, the same where it is reported twice, and whose browser it was."""

    id: str
    recipient: str
    who: str = WHO
    why: str = ""


class EndShown(SiteOrder, tag="end_shown"):
    """A message has been closed or its link clicked."""

    message: str
    how: Literal["closed", "clicked"]


class Subscribe(SiteOrder, tag="subscribe_push"):
    """A browser takes notifications, at that endpoint and with those keys (RFC 8291)."""

    endpoint: str
    p256dh: str
    auth: str


class Unsubscribe(SiteOrder, tag="unsubscribe_push"):
    """A browser takes none any more."""

    endpoint: str


AnySiteOrder = EndShown | Subscribe | Unsubscribe
_decoder = msgspec.json.Decoder(AnySiteOrder)


class Shows(Protocol):
    """What keeps messages for the site."""

    def end_shown(self, action_id: str, how: str, now_us: int) -> object: ...


class Subscribes(Protocol):
    """What keeps browsers that take notifications."""

    def put(self, recipient: str, endpoint: str, p256dh: str, auth: str, now_us: int) -> None: ...
    def remove(self, endpoint: str, recipient: str = "") -> bool: ...


def record_of(order: SiteOrder) -> Record:
    """Return the record by which the log carries an order; the door puts in the time."""
    return Record("definition", SOURCE, 0, {}, msgspec.json.encode(order))


def order_of(body: bytes) -> AnySiteOrder:
    """Return the order that a record carries. Raises BadOrder."""
    try:
        return _decoder.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BadOrder(f"Not a report of a site: {error}") from None


def obey(order: AnySiteOrder, shows: Shows, subscribes: Subscribes, now_us: int) -> None:
    """Do what a report says; doing it twice changes nothing more. Both stores share the caller's transaction."""
    match order:
        case EndShown():
            shows.end_shown(order.message, order.how, now_us)
        case Subscribe():
            subscribes.put(order.recipient, order.endpoint, order.p256dh, order.auth, now_us)
        case Unsubscribe():
            subscribes.remove(order.endpoint, order.recipient)
