"""A door that serves the pages of a site, the conductor's file beside it, and who obeys what pages report."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import apsw
import msgspec
from door_client import Running, configuration, running

from midflight.act import site_orders
from midflight.act.outbox import Outbox
from midflight.act.push_subscriptions import PushSubscriptions
from midflight.act.site_messages import SiteMessages
from midflight.act.ways import Action
from midflight.act.ways._site_id import site_id
from midflight.config import Config
from midflight.events import Event
from midflight.kit.clock import Clock

SECRET = "a secret of the site"
PUSH_KEY = "yfWPiYE-n46HLnH0KqZOF1fJJU3MYrct3AELtAQ-oRw"
FOREVER_S = 1 << 40
ADA = "ada@example.com"


def with_ways(folder: Path, origins: list[str], **door: object) -> Config:
    given = configuration(folder, **door)
    ways = {
        "site": {"kind": "on_site", "secrets": [SECRET], "origins": origins},
        "push": {"kind": "web_push", "private_key": PUSH_KEY, "subject": "mailto:ops@shop.example"},
    }
    return msgspec.structs.replace(given, ways=ways)


def visitor(recipient: str = ADA, expires_s: int = FOREVER_S) -> str:
    return site_id(recipient, SECRET, expires_s)


class Conductor:
    """The writer of the conductor's file: it puts messages down, and obeys what the log says of them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.outbox = Outbox(folder / "outbox.db")
        self.store, self.browsers = SiteMessages(self.outbox.db), PushSubscriptions(self.outbox.db)

    def show(self, id: str, recipient: str = ADA, *, expires_us: int = 0, **body: object) -> None:
        body = {"title": f"Message {id}", "priority": 5} | body
        self.store.show(Action(id=id, way="site", recipient=recipient, expires_us=expires_us), body, Clock().now_us())

    def withdraw(self, id: str) -> None:
        assert self.store.end_shown(id, "withdrawn", Clock().now_us())

    def spoil(self, id: str) -> None:
        """Write something that is no message where one is."""
        self.store.db.execute("UPDATE on_site SET body = ? WHERE id = ?", (b"{\xff", id))

    def ends(self) -> dict[str, str]:
        return dict(self.store.db.execute("SELECT id, ended FROM on_site WHERE ended <> '' ORDER BY seq"))

    def obey(self, door: Running) -> None:
        for order in orders(door):
            with self.store.db:
                site_orders.obey(order, self.store, self.browsers, Clock().now_us())

    def close(self) -> None:
        self.outbox.close()


def orders(door: Running) -> list[site_orders.AnySiteOrder]:
    """Return what the log asks of the conductor."""
    return [site_orders.order_of(record.body) for record in door.records("definition") if record.source == site_orders.SOURCE]


def events(door: Running) -> list[tuple[str, str, object]]:
    """Return the events of pages in the log: what happened, to whom, with which message."""
    found = [event for record in door.records("events") for event in msgspec.json.decode(record.body, type=list[Event])]
    return [(event.name, event.recipient, event.metadata["message"]) for event in found if event.kind == "tracked"]


@contextmanager
def serving(folder: Path, origins: list[str], **door: object) -> Iterator[tuple[Running, Conductor]]:
    """Run a door and a conductor over one folder."""
    conductor = Conductor(folder)
    try:
        with running(with_ways(folder, origins, **door)) as found:
            yield found, conductor
    finally:
        try:
            conductor.close()
        except apsw.ConnectionClosedError:
            pass  # the test has closed it
