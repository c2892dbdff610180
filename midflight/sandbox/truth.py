"""What the numbers have to be: a brute-force model over the whole set of events, sharing no code with the fold."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

from ..events import Event, recipient_key

minute_us = 60_000_000
week_us = 7 * 24 * 60 * minute_us

ONCE = ("queued", "sent", "delivered", "deferred", "rejected", "failed", "complained", "unsubscribed", "subscribed", "autoresponded")

PROVIDERS = {
    "Gmail": ("gmail.com", "googlemail.com"),
    "Microsoft": ("outlook.com", "hotmail.com", "live.com"),
    "Yahoo": ("yahoo.com", "aol.com"),
    "Apple": ("icloud.com", "me.com"),
    "GMX / WEB.DE": ("gmx.de", "gmx.net", "web.de"),
}
_PROVIDER = {domain: name for name, domains in PROVIDERS.items() for domain in domains}

# Marks of an open through a proxy, and of machines, in the user agents and addresses that the sandbox uses.
PROXIES = ("GoogleImageProxy", "YahooMailProxy")
MACHINES = ("Edge/12.246 Mozilla/5.0", "BarracudaCentral", "Mimecast", "python-requests")
MACHINE_NETWORK = "209.222.82."


class Cell(NamedTuple):
    """The key of a cell; ``attributes`` are the recipient's values in the order of the configured dimensions."""

    minute: int
    campaign: str
    variant: str
    wave: str
    provider: str
    source: str
    attributes: tuple[str, ...]


def provider_of(address: str) -> str:
    """Return the mailbox provider of an address; ``Other`` for a domain of one's own, ``""`` without an address."""
    return _PROVIDER.get(address.rpartition("@")[2], "Other") if address else ""


def happened_us(event: Event) -> int:
    """Return the time an event counts at: the vendor's, but nothing happens after it was reported."""
    if event.occurred_at_us and event.received_at_us:
        return min(event.occurred_at_us, event.received_at_us)
    return event.occurred_at_us or event.received_at_us


def rule_agents(events: list[Event]) -> list[str]:
    """Return who caused each event of one message, by the rules: vendor's flag, user agent, time since delivery, burst."""
    delivered_us = min((happened_us(e) for e in events if e.kind == "delivered"), default=None)
    clicks = [(happened_us(e), e.url) for e in events if e.kind == "clicked"]
    return [_agent(e, delivered_us, clicks) if e.kind in ("opened", "clicked") else "" for e in events]


def _agent(event: Event, delivered_us: int | None, clicks: list[tuple[int, str]]) -> str:
    if event.agent:
        return event.agent
    at = happened_us(event)
    opened = event.kind == "opened"
    if opened and any(mark in event.user_agent for mark in PROXIES):
        return "proxied"
    if any(mark in event.user_agent for mark in MACHINES) or (opened and event.user_agent == "Mozilla/5.0"):
        return "machine"
    if event.ip.startswith(MACHINE_NETWORK):
        return "machine"
    if delivered_us is not None and abs(at - delivered_us) < 2_000_000:
        return "machine"
    if event.kind == "clicked":
        for start, _ in clicks:
            if start <= at <= start + 2_000_000 and len({u for t, u in clicks if start <= t <= start + 2_000_000}) >= 3:
                return "machine"
    return "human"


def truth(
    events: Iterable[Event],
    attributes: Mapping[str, tuple[str, ...]],
    click_window_us: int = week_us,
    *,
    agents: Mapping[tuple[str, str], str] | None = None,
    provider: Callable[[str], str] = provider_of,
) -> dict[Cell, Counter[str]]:
    """Return measures by cell for these events in any order, duplicates included.

    ``attributes`` gives the values of the dimensions by recipient key. ``agents`` gives the true agent by (source, event id);
    without it the rules decide.
    """
    unique: dict[tuple[str, str, str], Event] = {}
    for event in events:
        unique.setdefault((event.source, event.event_id, recipient_key(event.recipient)), event)
    people = {e.user_id: recipient_key(e.recipient) for e in unique.values() if e.kind == "identified" and e.user_id and e.recipient}
    nobody = ("",) * max((len(values) for values in attributes.values()), default=0)
    cells: dict[Cell, Counter[str]] = defaultdict(Counter)

    def person(event: Event) -> str:
        return recipient_key(event.recipient) or people.get(event.user_id, "")

    messages: dict[tuple[str, str, str], list[Event]] = defaultdict(list)
    orders: list[Event] = []
    for event in unique.values():
        if event.kind == "converted":
            orders.append(event)
        elif event.kind in ("paged", "tracked"):
            _add(cells, event, ("", "", ""), person(event), provider, nobody, event.source, "site")
        elif event.kind in ("unknown", "inbound"):
            _add(cells, event, (event.campaign, event.variant, event.wave), person(event), provider, nobody, event.source, "unknown")
        elif event.kind != "identified":
            messages[event.source, event.message_id, recipient_key(event.recipient)].append(event)

    clicks: dict[str, list[tuple[int, tuple]]] = defaultdict(list)
    labels: dict[tuple, tuple[str, str, str]] = {}
    for key, its in messages.items():
        its.sort(key=lambda e: (happened_us(e), e.event_id))
        labels[key] = tuple(next((getattr(e, f) for e in its if getattr(e, f)), "") for f in ("campaign", "variant", "wave"))
        who = key[2]
        found = [agents.get((e.source, e.event_id), "") for e in its] if agents is not None else rule_agents(its)
        first: set[str] = set()
        for event, agent in zip(its, found, strict=True):
            once, total = _counts(event, agent)
            for measure in [m for m in once if m not in first] + total:
                _add(cells, event, labels[key], who, provider, attributes.get(who, nobody), event.source, measure)
            first.update(once)
            if event.kind == "clicked" and agent != "machine":
                clicks[who].append((happened_us(event), key))

    bought: set[tuple[str, str]] = set()
    converted: set[tuple] = set()
    for order in sorted(orders, key=lambda e: (happened_us(e), e.event_id)):
        who, at = person(order), happened_us(order)
        buyer = who or order.user_id
        if order.order_id and (buyer, order.order_id) in bought:
            continue
        bought.add((buyer, order.order_id))
        touches = [(t, key) for t, key in clicks.get(who, ()) if at - click_window_us <= t <= at] if who else []
        key = max(touches)[1] if touches else None
        source = key[0] if key else order.source
        place = (cells, order, labels[key] if key else ("", "", ""), who, provider, attributes.get(who, nobody), source)
        _add(*place, "conversions")
        _add(*place, "revenue_micros", order.value_micros)
        if key and key not in converted:
            converted.add(key)
            _add(*place, "converted")
    return dict(cells)


def _counts(event: Event, agent: str) -> tuple[list[str], list[str]]:
    """Return the measures an event counts for once per message, and those it always counts for."""
    kind = event.kind
    if kind in ONCE:
        return [kind], []
    if kind == "bounced":
        return [f"bounced_{event.bounce_class or 'soft'}"], []
    if kind in ("opened", "clicked"):
        total = "opens" if kind == "opened" else "clicks"
        once, every = [kind], [total]
        if agent != "machine":
            once.append(f"{kind}_human")
            every.append(f"{total}_human")
        if agent == "proxied" and kind == "opened":
            every.append("opens_proxied")
        return once, every
    return [], []


def _add(cells, event, label, who, provider, values, source, measure, count=1) -> None:
    cells[Cell(happened_us(event) // minute_us, *label, provider(who), source, tuple(values))][measure] += count


def rows(
    cells: Mapping[Cell, Counter[str]],
    by: Iterable[str] = (),
    *,
    dimensions: tuple[str, ...] = (),
    **only: object,
) -> dict[tuple[str, ...], Counter[str]]:
    """Return the sums by these dimensions (cell fields or names of attributes) of the cells with the values in ``only``."""

    def value(cell: Cell, name: str) -> object:
        return cell.attributes[dimensions.index(name)] if name in dimensions else getattr(cell, name)

    by = tuple(by)
    sums: dict[tuple, Counter[str]] = defaultdict(Counter)
    for cell, counts in cells.items():
        if all(value(cell, name) == wanted for name, wanted in only.items()):
            sums[tuple(value(cell, name) for name in by)].update(counts)
    return dict(sums)
