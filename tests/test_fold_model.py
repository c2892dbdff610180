"""The fold against a brute-force model: any order, duplicates, cuts, crashes and numbers of shards give the model's cells."""

from __future__ import annotations

import os
import random
from collections import Counter, defaultdict

import msgspec
import numpy as np
import pytest

from midflight.config import Attribute
from midflight.events import Event
from midflight.log.record import Record
from midflight.sandbox.truth import truth
from midflight.stream.edge import Edge
from midflight.stream.measures import MEASURES
from midflight.stream.names import Names
from midflight.stream.providers import PROVIDERS, providers_of
from midflight.stream.shard import Shard
from midflight.stream.tables import NEVER

HISTORIES = int(os.environ.get("MIDFLIGHT_HISTORIES", "3000"))
START_US = 1_790_000_000_000_000
ATTRIBUTES = [Attribute(name="age", trait="age"), Attribute(name="region", trait="region")]
AGENTS = [
    "",
    "Mozilla/5.0 (iPhone; CPU iPhone OS 17_0 like Mac OS X) AppleWebKit/605.1.15",
    "Mozilla/5.0",
    "Mozilla/5.0 (Windows NT 5.1; rv:11.0) Gecko Firefox/11.0 (via ggpht.com GoogleImageProxy)",
    "python-requests/2.31",
]


class Local:
    """Shards and edge without files: what the engine does with a batch, and cells as the store would hold them."""

    def __init__(self, shards: int) -> None:
        self.names = Names()
        self.edge = Edge({}, ATTRIBUTES, self.names)
        self.shards = [Shard(7 * 86_400_000_000, 40) for _ in range(shards)]
        self.cells: dict[tuple, np.ndarray] = defaultdict(lambda: np.zeros(len(MEASURES), np.int64))
        self.delays: Counter[tuple] = Counter()
        self.clickers: dict[tuple, tuple] = {}
        self.position = 0
        self.recent_from_us = NEVER
        self.seconds: dict[tuple, np.ndarray] = defaultdict(lambda: np.zeros(len(MEASURES), np.int64))

    def apply(self, events: list[Event], received_us: int) -> None:
        record = Record("events", "esp", received_us, {}, msgspec.json.encode(events), "", self.position)
        self.position += 1
        prepared = self.edge.prepare([record])
        assert not prepared.dead, prepared.dead
        owner = (prepared.batch.rcpt >> np.uint64(40)) % np.uint64(len(self.shards))
        for number, shard in enumerate(self.shards):
            batch = prepared.batch.take(np.flatnonzero(owner == number))
            self._keep(shard.apply(batch, prepared.log_time_us, self.recent_from_us))

    def _keep(self, effects) -> None:
        for key, value in zip(effects.cell_key.tolist(), effects.cell_value, strict=True):
            self.cells[tuple(key)] += value
        for key, value in zip(effects.recent_key.tolist(), effects.recent_value, strict=True):
            self.seconds[tuple(key)] += value
        for key, n in zip(effects.delay_key.tolist(), effects.delay_n.tolist(), strict=True):
            self.delays[tuple(key)] += n
        for i in range(effects.clicker_message.size):
            place = (int(effects.clicker_recipient[i]), int(effects.clicker_message[i]))
            assert int(effects.clicker_before[i]) == self.clickers.get(place, (-1, 0))[0]
            self.clickers[place] = (int(effects.clicker_clicked_at[i]), int(effects.clicker_converted_at[i]))

    def crash(self) -> None:
        """Lose everything but a snapshot, and go on from it."""
        images = [shard.snapshot() for shard in self.shards]
        edge = msgspec.msgpack.decode(msgspec.msgpack.encode(self.edge.snapshot()))
        self.edge = Edge({}, ATTRIBUTES, self.names)
        self.edge.load(edge)
        for number, image in enumerate(images):
            self.shards[number] = Shard(7 * 86_400_000_000, 40)
            self.shards[number].load(image)

    def named_cells(self, seconds: bool = False) -> dict[tuple, dict[str, int]]:
        """Return the cells, by minute or by second, with names for ids, without zeros, in the model's form."""
        found = self.seconds if seconds else self.cells
        cells = {key: {m: int(v) for m, v in zip(MEASURES, values, strict=True) if v} for key, values in found.items()}
        return {self._named(key): values for key, values in cells.items() if values}

    def named_delays(self) -> dict[tuple, int]:
        return {(*self._named(key[:3]), key[3]): n for key, n in self.delays.items() if n}

    def _named(self, key: tuple[int, int, int]) -> tuple:
        """Ids are given in order of arrival, so deliveries are compared by name."""
        when, place, segment = key
        names = {kind: {number: name for name, number in ids.items()} for kind, ids in self.names.ids.items()}
        labels = (
            names.get("campaign", {}).get(when >> 32, ""),
            names.get("variant", {}).get(place >> 48, ""),
            names.get("wave", {}).get(place >> 32 & 0xFFFF, ""),
            PROVIDERS[place >> 16 & 0xFFFF],
            names["source"][place & 0xFFFF],
        )
        groups = tuple(names.get(f"attribute:{a.name}", {}).get(segment >> 8 * i & 0xFF, "") for i, a in enumerate(ATTRIBUTES))
        return (when & 0xFFFFFFFF, *labels, groups)


def history(rng: random.Random) -> list[Event]:
    """Return a random set of events of a few people, dense in coincidences: same second, late labels, repeats, bursts."""
    people = [f"P{i}@{rng.choice(['gmail.com', 'Outlook.com', 'firm.example'])}" for i in range(rng.randint(1, 4))]
    labels: dict[str, tuple[str, str, str]] = {}
    events = []
    for number in range(rng.randint(1, 40)):
        who = rng.choice(people)
        at = START_US + rng.choice([rng.randrange(6_000_000), rng.randrange(600_000_000), rng.randrange(86_400_000_000)])
        kind = rng.choice(
            ["sent", "delivered", "opened", "opened", "clicked", "clicked", "clicked", "bounced", "converted", "identified",
             "paged", "complained",
             "unsubscribed", "deferred", "unknown"]
        )  # fmt: skip
        event = Event(source="esp", event_id=f"e{number}", kind=kind, occurred_at_us=at, recipient=who)
        if kind == "identified":
            event.user_id = f"u{people.index(who)}"
            # One value per person and attribute: which of two values is newer has a test of its own.
            event.traits = rng.choice(
                [{"age": f"{people.index(who)}0s"}, {"region": "north"}, {"age": f"{people.index(who)}0s", "region": "north"}]
            )
        elif kind == "converted":
            event.value_micros = rng.randrange(1, 100) * 1_000_000
            event.order_id = rng.choice(["", f"order {number}"])
            if rng.random() < 0.5:
                event.recipient, event.user_id = "", f"u{people.index(who)}"
        elif kind != "paged":
            message = f"m{rng.randrange(2)} {who}"
            event.message_id = message
            label = labels.setdefault(message, (f"c{rng.randrange(2)}", rng.choice("AB"), str(rng.randrange(2))))
            if rng.random() < 0.6 or kind == "unknown":
                event.campaign, event.variant, event.wave = label
            if kind in ("opened", "clicked"):
                event.user_agent = rng.choice(AGENTS)
                event.url = f"https://x.example/{rng.randrange(4)}" if kind == "clicked" else ""
                event.agent = rng.choice(["", "", "", "machine"])
            if kind == "bounced":
                event.bounce_class = rng.choice(["hard", "soft", "block"])
        events.append(event)
    return events


def attributes_of(events: list[Event]) -> dict[str, tuple[str, str]]:
    values: dict[str, dict] = defaultdict(dict)
    for event in events:
        if event.kind == "identified":
            values[event.recipient.lower()].update(event.traits)
    return {who: (given.get("age", ""), given.get("region", "")) for who, given in values.items()}


def model_cells(events: list[Event]) -> dict[tuple, dict[str, int]]:
    copies = [msgspec.structs.replace(e, received_at_us=START_US + 90_000_000_000) for e in events]
    cells = truth(copies, attributes_of(events), provider=lambda key: PROVIDERS[providers_of([key])[0]])
    out = {}
    for cell, counts in cells.items():
        groups = tuple(cell.attributes) or ("", "")
        # Site behaviour and unknown kinds are counted without attributes.
        for measure, n in counts.items():
            place = ("", "") if measure in ("site", "unknown") else groups
            key = (cell.minute, cell.campaign, cell.variant, cell.wave, cell.provider, cell.source, place)
            if n:
                found = out.setdefault(key, {})
                found[measure] = found.get(measure, 0) + n
    return out


def run(rng: random.Random, events: list[Event], shards: int, crashes: bool = True, recent_from_us: int = NEVER) -> Local:
    """Deliver the events in random order, some twice, in random cuts, with crashes between."""
    local = Local(shards)
    local.recent_from_us = recent_from_us
    order = events + rng.sample(events, rng.randint(0, len(events) // 2))
    rng.shuffle(order)
    while order:
        size = rng.choice([1, 2, 5, 100])
        part, order = order[:size], order[size:]
        local.apply(part, START_US + 90_000_000_000)
        if crashes and rng.random() < 0.1:
            local.crash()
    return local


@pytest.mark.parametrize("block", range(10))
def test_any_delivery_of_a_set_of_events_gives_the_models_cells(block):
    """Duplicates, order, cuts, crashes and the number of shards do not show in the cells."""
    for number in range(HISTORIES // 10):
        seed = block * 1_000_000 + number
        rng = random.Random(seed)
        events = history(rng)
        local = run(rng, events, shards=rng.choice([1, 1, 2, 4]))
        assert local.named_cells() == model_cells(events), f"seed {seed}"


def test_one_or_four_shards_and_any_cut_give_the_same_bytes():
    """Cells, delay curves and the list of clickers are equal whatever the batch size, the shards and the crashes."""
    for seed in range(HISTORIES // 10):
        rng = random.Random(seed)
        events = history(rng)
        states = []
        for shards in (1, 4):
            local = run(rng, events, shards)
            states.append((local.named_cells(), local.named_delays(), {k: v for k, v in local.clickers.items() if v[0] >= 0}))
        assert states[0] == states[1], f"seed {seed}"


def test_seconds_are_the_minutes_cut_finer():
    """What is counted by the second does not depend on the delivery either, and adds up to the minutes."""
    compared = 0
    for seed in range(HISTORIES // 10):
        rng = random.Random(seed)
        events = history(rng)
        recent_from_us = START_US + rng.randrange(900) * 1_000_000
        local, other = (run(rng, events, shards, recent_from_us=recent_from_us) for shards in (1, 4))
        assert local.named_cells() == model_cells(events), f"seed {seed}"
        seconds = local.named_cells(seconds=True)
        assert seconds == other.named_cells(seconds=True), f"seed {seed}"
        assert all(key[0] * 1_000_000 >= recent_from_us for key in seconds)
        added: dict[tuple, Counter] = defaultdict(Counter)
        for (second, *place), counts in seconds.items():
            added[second // 60, *place].update(counts)
        whole = {key: counts for key, counts in local.named_cells().items() if key[0] * 60_000_000 >= recent_from_us}
        first = -(-recent_from_us // 60_000_000)
        sums = {key: {m: n for m, n in counts.items() if n} for key, counts in added.items() if key[0] >= first}
        assert {key: counts for key, counts in sums.items() if counts} == whole, f"seed {seed}"
        compared += len(seconds) > len(whole) > 0
    assert compared > HISTORIES // 100


def test_the_model_notices_a_lost_duplicate_check():
    """Control: a fold that counts every delivery is caught."""
    caught = 0
    for seed in range(40):
        rng = random.Random(seed)
        events = history(rng)
        local = Local(1)
        for number, event in enumerate([*events, *events]):
            local.apply([msgspec.structs.replace(event, event_id=f"{event.event_id}-{number}")], START_US + 90_000_000_000)
        caught += local.named_cells() != model_cells(events)
    assert caught >= 30


def test_the_newer_of_two_attribute_values_wins_in_either_order():
    """An older `identify` that arrives later changes nothing."""
    older = Event(source="s", event_id="1", kind="identified", occurred_at_us=START_US, recipient="a@b.c", traits={"age": "20s"})
    newer = Event(source="s", event_id="2", kind="identified", occurred_at_us=START_US + 1, recipient="a@b.c", traits={"age": "30s"})
    sent = Event(source="s", event_id="3", kind="sent", occurred_at_us=START_US, recipient="a@b.c", message_id="m", campaign="c")
    for events in ([older, newer, sent], [newer, older, sent], [sent, newer, older], [older, sent, newer]):
        local = Local(1)
        for event in events:
            local.apply([event], START_US + 10)
        assert [key[-1] for key, counts in local.named_cells().items() if "sent" in counts] == [("30s", "")]


def test_an_event_id_is_forgotten_after_the_window_and_not_before():
    """A repetition 39 days later is a duplicate; whatever table growth did in between."""
    local = Local(1)
    event = Event(source="s", event_id="1", kind="opened", occurred_at_us=START_US, recipient="a@b.c", message_id="m", campaign="c")
    local.apply([event], START_US + 1)
    for day in range(1, 40):
        crowd = [msgspec.structs.replace(event, event_id=f"{day} {i}", recipient=f"{day}{i}@x.y") for i in range(200)]
        local.apply(crowd, START_US + day * 86_400_000_000)
    before = sum(c.get("opens", 0) for c in local.named_cells().values())
    local.apply([event], START_US + 39 * 86_400_000_000)
    assert sum(c.get("opens", 0) for c in local.named_cells().values()) == before
