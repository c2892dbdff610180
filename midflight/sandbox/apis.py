"""The vendors' APIs for sending, played on one port of loopback: they check, accept into the inbox, answer, and misbehave by plan."""

from __future__ import annotations

import ssl
from hashlib import blake2b
from itertools import count

from .api_vendors import VENDORS, Asked, Refusal, Reply, Vendor
from .connection import HttpListener
from .inbox import Inbox, accepted
from .misbehave import ACCEPTS, Plan


class Apis(HttpListener):
    """All vendors on one port. ``keys`` are other credentials than those of `KEYS`."""

    def __init__(
        self,
        inbox: Inbox,
        plan: Plan | None = None,
        *,
        keys: dict[str, str] | None = None,
        port: int = 0,
        tls: ssl.SSLContext | None = None,
        vendors: tuple[type[Vendor], ...] = VENDORS,
    ) -> None:
        super().__init__(plan, port=port, tls=tls)
        self.inbox = inbox
        numbers = count(1)
        clock = inbox.clock
        # Two runs against one log have to differ in their message ids.
        tag = blake2b(str(clock.now_us()).encode(), digest_size=4).hexdigest()
        keys = {vendor.name: vendor.key for vendor in vendors} | (keys or {})
        self.vendors = [vendor(keys[vendor.name], numbers.__next__, tag, clock.now_us) for vendor in vendors]
        self._owners: dict[str, Vendor | None] = {}

    def owner(self, method: str, path: str) -> Vendor | None:
        if method != "POST":
            return None
        if path not in self._owners:
            if len(self._owners) > 1000:
                self._owners.clear()
            self._owners[path] = next((vendor for vendor in self.vendors if vendor.owns(path)), None)
        return self._owners[path]

    def answer(self, vendor: Vendor, asked: Asked) -> Reply:
        """Check a request, put what it sends into the inbox, and return the vendor's answer."""
        try:
            vendor.allow(asked)
            reply, letters = vendor.take(asked)
        except Refusal as refusal:
            return refusal.reply
        now_us = self.inbox.clock.now_us()
        self.inbox.put([accepted(vendor.name, to, custom, message_id, now_us) for to, custom, message_id in letters])
        return reply

    def met(self, kind: str, vendor: Vendor, asked: Asked) -> Reply | None:
        """Return what a request gets that meets ``kind``; None where it gets nothing."""
        if kind in ACCEPTS:
            reply = self.answer(vendor, asked)
            if kind in ("accept_and_cut", "accept_and_hang"):
                return None
            if reply.status >= 300 or kind in ("answer", "drip"):
                return reply
            if kind == "202":
                return reply._replace(status=202)
            if kind == "bad_json":
                half = reply.body[: len(reply.body) // 2] or b'{"message": "succ'
                return Reply(200, half, (("content-type", "application/json"),))
            return vendor.error(500)
        if kind == "redirect":
            return self.redirect(asked)
        if kind == "429_retry_after":
            return self.later(vendor.error(429))
        return vendor.error({"400": vendor.wrong, "401": vendor.denied}.get(kind) or int(kind))
