"""What people ask of campaigns, as records of the log: each is done once, in the log's order, and its end can be asked for by its id."""

from __future__ import annotations

from typing import Literal

import msgspec

from ..kit.errors import MidflightError
from ..log.record import Record

SOURCE = "campaigns"


class BadOrder(MidflightError):
    """A record that is no order; only another version can have written it."""

    code = "bad_order"


class Order(msgspec.Struct, kw_only=True, frozen=True, tag_field="do"):
    """What every order says: its own ``id``, which campaign, ``who`` wants it and ``why``."""

    id: str
    campaign: str
    who: str
    why: str = ""


class Add(Order, tag="add"):
    """Put down a draft. ``audience`` names a file of the folder `audiences`, as `act/lists.py` keeps them; empty for one that is asked
    about through the API."""

    definition: dict
    audience: str = ""


class Move(Order, tag="move"):
    """Bring a campaign into another state: `sending`, `paused`, `stopped`, `scheduled`, `draft`."""

    to: str


class Pin(Order, tag="pin"):
    """Give all further waves to one variant; to none gives them back to the policy."""

    variant: str = ""


class Drop(Order, tag="drop"):
    """Take a variant out of all further waves."""

    variant: str


class AddVariant(Order, tag="add_variant"):
    """Put another variant into a campaign that is on its way."""

    variant: dict


class Test(Order, tag="test"):
    """Send one variant to an address of one's own, filled in as for ``recipient``; it is no part of the campaign's numbers."""

    to: str
    variant: str
    recipient: str = ""


class Settle(Order, tag="settle"):
    """Say of all messages whose end nobody knows what became of them: `sent`, or `planned` to send them again."""

    end: Literal["sent", "planned"]


class Guard(Order, tag="guard"):
    """Hold what goes to a provider, a domain or of a campaign (``kind`` and ``name``), try it with a few messages, or let all go. It is
    about no campaign, so ``campaign`` is empty."""

    kind: Literal["provider", "domain", "ip", "campaign"]
    name: str
    to: Literal["held", "probing", "normal"]


AnyOrder = Add | Move | Pin | Drop | AddVariant | Test | Settle | Guard
_decoder = msgspec.json.Decoder(AnyOrder)


def record_of(order: Order) -> Record:
    """Return the record by which the log carries an order; the door puts in the time."""
    return Record("definition", SOURCE, 0, {}, msgspec.json.encode(order))


class _Tagged(msgspec.Struct):
    do: str


_tagged = msgspec.json.Decoder(_Tagged)


def do_of(body: bytes) -> str:
    """Return what a record says is to be done, ``""`` where it does not say."""
    try:
        return _tagged.decode(body).do
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return ""


def order_of(body: bytes) -> AnyOrder:
    """Return the order that a record carries. Raises BadOrder."""
    try:
        return _decoder.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BadOrder(f"Not an order: {error}") from None
