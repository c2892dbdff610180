"""What a browser reports: a message that was shown, closed or clicked, and that it takes notifications; each becomes records of the log."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable

import msgspec

from ...act.guarded import url_problem
from ...act.site_orders import EndShown, SiteOrder, Subscribe, Unsubscribe, record_of
from ...act.ways.web_push import public_point
from ...events import Event
from ...kit.crash import crash_point
from ...kit.errors import MidflightError
from ...log import Record, Stored
from .answers import NO_CONTENT, NOT_FOUND, Answer, json_answer, later
from .http import Exchange
from .site_view import SiteView
from .site_visitors import BAD_ID, BAD_ORIGIN, Visitors, fields_of

LANE = "/site"  # no source can be called so
SOURCE = "midflight"
body_bytes_max = 8192
endpoint_chars_max = 2000
browser_reports_max = 20  # that one visitor's browsers may have noted in an hour
hour_us = 3600 * 1_000_000
heard_max = 100_000  # reports that are known to be in the log
SHOWN = {"shown": "message shown", "closed": "message closed", "clicked": "message clicked"}

# Of a report's fields, recipient and time: the mark by which a repeated one is known, and its records, none where nothing is new.
RecordsOf = Callable[[dict[str, str], str, int], tuple[str, list[Record]]]


class TooMany(MidflightError):
    """One visitor reports more than anybody does."""

    status = 429
    code = "too_many"


class Reports:
    """`POST /v1/site` and `/v1/push`. ``told`` is called with a recipient of whose messages one has ended."""

    def __init__(self, door, visitors: Visitors, view: SiteView, push_key: str, told: Callable[[str], None]) -> None:
        self.door, self.visitors, self.view, self.push_key, self.told = door, visitors, view, push_key, told
        self.heard: OrderedDict[str, None] = OrderedDict()
        self.hour = 0
        self.counts: dict[str, int] = {}  # of this hour's reports of browsers, by recipient

    def ended(self, message: str) -> bool:
        """Tell whether a message was closed or clicked, as far as this process remembers."""
        return f"closed {message}" in self.heard or f"clicked {message}" in self.heard

    def message(self, exchange: Exchange) -> Answer | None:
        """Take the word that a message was shown, closed or clicked. Each is noted once, and only of a visitor's own messages."""
        return self._reported(exchange, self._about_message)

    def browser(self, exchange: Exchange) -> Answer | None:
        """Take the word that a browser takes notifications, or none any more."""
        return self._reported(exchange, self._about_browser)

    def key(self, exchange: Exchange) -> Answer:
        """Return the public key with which a page subscribes its browser."""
        allowed = self.visitors.allowed(exchange)
        return BAD_ORIGIN if allowed is None else json_answer(200, {"key": self.push_key}, headers=allowed)

    def _reported(self, exchange: Exchange, records_of: RecordsOf) -> Answer | None:
        allowed = self.visitors.allowed(exchange)
        if allowed is None:
            return BAD_ORIGIN
        if why := self.door.why_closed():
            return later(why, self.door.closed_what)
        answer = NO_CONTENT._replace(headers=allowed)
        try:
            fields = fields_of(exchange.body)
            recipient = self.visitors.recipient(fields.get("id", ""))
            if not recipient:
                return BAD_ID._replace(headers=BAD_ID.headers + allowed)
            mark, records = records_of(fields, recipient, exchange.at_us)
        except MidflightError as error:
            if error.status == 429:
                return later(error.code, error.what)
            return json_answer(400, error.as_dict(), headers=allowed, reason=error.code)
        except LookupError:
            return NOT_FOUND._replace(headers=NOT_FOUND.headers + allowed)
        if not records:
            return answer
        self.door.submit(records, Reporting(self, exchange, answer, mark, recipient))
        return None

    def _about_message(self, fields: dict[str, str], recipient: str, at_us: int) -> tuple[str, list[Record]]:
        """Return the mark of a report and its records, none where nothing is new. Raises LookupError for a message of nobody or another."""
        message, how = fields.get("message", ""), fields.get("how", "")
        if how not in SHOWN:
            raise MidflightError("What became of a message", expected=", ".join(SHOWN), got=how[:100], where="how")
        mark = f"{how} {message}"
        if mark in self.heard:
            return mark, []
        ended = self.view.ended(message, recipient)
        if ended is None:
            raise LookupError(message)
        if ended:
            return mark, []
        event = Event(
            source=SOURCE, event_id=f"site:{how}:{message}", kind="tracked", name=SHOWN[how], occurred_at_us=at_us, recipient=recipient,
            metadata={"message": message},
        )  # fmt: skip
        records = [Record("events", SOURCE, at_us, {}, msgspec.json.encode([event]))]
        if how != "shown":
            records.append(_stamped(EndShown(id=f"site:{message}", recipient=recipient, message=message, how=how), at_us))
        return mark, records

    def _about_browser(self, fields: dict[str, str], recipient: str, at_us: int) -> tuple[str, list[Record]]:
        endpoint, p256dh, auth = (fields.get(name, "") for name in ("endpoint", "p256dh", "auth"))
        if problem := url_problem(endpoint, ports=None):
            raise MidflightError("The endpoint of a push subscription", expected=problem, got=endpoint[:100], where="endpoint")
        if len(endpoint) > endpoint_chars_max:
            raise MidflightError("The endpoint", expected=f"at most {endpoint_chars_max} characters", got=len(endpoint), where="endpoint")
        gone = fields.get("how") == "gone"
        if not gone:
            public_point(p256dh, auth)
            if self.view.has_browser(recipient, endpoint, p256dh, auth):
                return "", []
        self._count(recipient, at_us)
        digest = hashlib.sha256(msgspec.msgpack.encode((recipient, endpoint, p256dh, auth, gone))).hexdigest()[:32]
        # Each has an id of its own: who subscribes again after leaving has to be heard.
        order_id = f"push:{digest}:{at_us}"
        if gone:
            return "", [_stamped(Unsubscribe(id=order_id, recipient=recipient, endpoint=endpoint), at_us)]
        order = Subscribe(id=order_id, recipient=recipient, endpoint=endpoint, p256dh=p256dh, auth=auth)
        return "", [_stamped(order, at_us)]

    def _count(self, recipient: str, at_us: int) -> None:
        """Let one visitor fill no log. Raises TooMany."""
        if at_us // hour_us != self.hour:
            self.hour, self.counts = at_us // hour_us, {}
        count = self.counts[recipient] = self.counts.get(recipient, 0) + 1
        if count > browser_reports_max:
            raise TooMany("This visitor's browsers have changed too often")

    def stored(self, mark: str, recipient: str) -> None:
        """Note that a report of a message is in the log: no browser is shown again what was closed in one."""
        if not mark:
            return
        self.heard[mark] = None
        if len(self.heard) > heard_max:
            self.heard.popitem(last=False)
        self.told(recipient)


class Reporting:
    """One report on its way to the log; called with what became of it."""

    __slots__ = ("answer", "exchange", "mark", "recipient", "reports")

    def __init__(self, reports: Reports, exchange: Exchange, answer: Answer, mark: str, recipient: str) -> None:
        self.reports, self.exchange, self.answer, self.mark, self.recipient = reports, exchange, answer, mark, recipient

    def __call__(self, outcome: Stored | Exception) -> None:
        door = self.reports.door
        door.release(self.exchange)
        if not isinstance(outcome, Stored):
            door.answer(self.exchange, door.log_refused(outcome))
            return
        crash_point("before_200")
        door.counters.add("door_stored_total", LANE)
        self.reports.stored(self.mark, self.recipient)
        door.answer(self.exchange, self.answer)


def _stamped(order: SiteOrder, at_us: int) -> Record:
    return msgspec.structs.replace(record_of(order), at_us=at_us)
