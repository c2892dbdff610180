"""People and their attributes: each row says who somebody is, the columns beside the address become traits."""

from __future__ import annotations

from hashlib import blake2b

import msgspec

from ..events import Event, clean, recipient_key
from ..sources.source import Malformed, text
from .export import Export, plain_name

EMAILS = ("email", "emailaddress", "mail", "recipient", "address", "subscriberemail", "contactemail", "emailadresse", "correo", "courriel")
IDS = ("userid", "externalid", "customerid", "contactid", "id")


class People(Export):
    label = "people"
    source = "segment"

    @classmethod
    def fits_columns(cls, columns: set[str]) -> bool:
        return False  # only with --people: a list of events has addresses too

    def row(self, row: dict[str, str]) -> list:
        return self.object(row)

    def object(self, item: dict) -> list:
        names = {plain_name(name): name for name in reversed(list(item))}
        email = next((names[name] for name in EMAILS if name in names), None)
        user = next((names[name] for name in IDS if name in names), None)
        if email is None:
            raise Malformed("No column with the addresses", expected="a column called email", got=", ".join(item)[:200])
        address = text(item[email]).strip()
        if not recipient_key(address):
            raise Malformed("No address", expected="an email address", got=address[:60] or "nothing")
        traits = {
            trait_name(name): clean(value).strip() if isinstance(value, str) else value
            for name, value in item.items()
            if name not in (email, user) and value not in ("", None)
        }
        event = Event(kind="identified", recipient=address, user_id=text(item[user]).strip() if user else "", traits=traits)
        # Reading a file twice changes nothing; a later file that says again what an earlier one said is news.
        event.occurred_at_us = self.file_us
        said = msgspec.json.encode([recipient_key(address), event.user_id, traits, self.file_us], order="sorted")
        event.event_id = "h:" + blake2b(said, digest_size=16).hexdigest()
        return [event]


def trait_name(column: str) -> str:
    """Return a column's name as traits are usually written: ``Postal code`` becomes ``postal_code``."""
    return "_".join(clean(column).lower().split())


EXAMPLES = People.EXAMPLES = [
    {
        "title": "Addresses and attributes",
        "file": "Country,E-mail,Customer ID,Age\nNO,ada@example.com,c-1,36\n",
        "people": True,
        "events": [{"kind": "identified", "recipient": "ada@example.com", "user_id": "c-1", "traits": {"country": "NO", "age": "36"}}],
    }
]
