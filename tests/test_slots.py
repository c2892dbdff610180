"""Slots: content by recipient group, from the definition to the message."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from midflight.act.audience import Recipient
from midflight.act.campaigns import Campaigns
from midflight.act.conductor import give_out_due
from midflight.act.contents import known_of, standings_of
from midflight.act.definition import campaign_of
from midflight.act.language import TemplateError
from midflight.act.outbox import Outbox, Result, options_of
from midflight.act.slots import BadSlot, Filling, Given, Option, Slot, chosen_option, values_max
from midflight.decide.delays import BUCKETS
from midflight.decide.evidence import Prior

START_US = 1_764_000_000_000_000
MINUTE_US = 60_000_000
SLOT = {
    "by": ["region", "age"],
    "options": [
        {"name": "coat", "html": "<p>A coat for {{ attributes.region }}</p>", "text": "A coat"},
        {"name": "shoes", "html": "<p>Shoes</p>", "text": "Shoes"},
        {"name": "hat", "html": "<p>A hat</p>", "text": "A hat"},
    ],
}
RAW = {
    "name": "spring", "channel": "main", "from_address": "a@shop.example", "audience": {"csv": "x"}, "seed": 5,
    "variants": [{"name": n, "subject": f"{n}: {{{{ slots.hero }}}}", "html": "<h1>Hi</h1>{{ slots.hero }}"} for n in "AB"],
    "slots": {"hero": SLOT}, "waves": {"hours": 8, "every_minutes": 60},
}  # fmt: skip
SYSTEM = {"unsubscribe_url": "https://m.example/u/x"}


def people(count: int) -> list[Recipient]:
    """Half of them in the north, a third of each age."""
    return [
        Recipient(
            key=f"p{n}@example.com", address=f"p{n}@example.com",
            attributes={"region": "north" if n % 2 else "south", "age": "<40" if n % 3 else "40+"},
        )
        for n in range(count)
    ]  # fmt: skip


class Desk:
    """A campaign with slots. People of the north click on shoes, those of the south on coats, one in ten; on others one in fifty."""

    def __init__(self, folder: Path, count: int, **changes: object) -> None:
        self.ready = campaign_of(RAW | changes, {"main"})
        self.outbox = Outbox(folder / "outbox.db")
        self.campaigns = Campaigns(self.outbox)
        self.id = self.campaigns.add(self.ready.campaign, people(count), "ada", START_US)
        self.campaigns.move(self.id, "sending", "ada", "", START_US)

    def rows(self) -> list[tuple[str, int, tuple[int, ...], float, str]]:
        found = self.outbox.db.execute(
            "SELECT m.recipient, m.wave, m.options, m.propensity, p.attributes FROM messages m JOIN people p USING (campaign, recipient) "
            "ORDER BY m.recipient"
        )
        return [(r, w, options_of(o), p, "north" if b"north" in a else "south") for r, w, o, p, a in found]

    def responded(self, campaign: str) -> list[str]:
        luck = np.random.default_rng(3)
        found = []
        for recipient, _, (option,), _, region in self.rows():
            rate = 0.1 if option == {"north": 1, "south": 0}[region] else 0.02
            # The same draw whatever he got.
            if luck.random() < rate:
                found.append(recipient)
        return found

    def run(self) -> None:
        for minute in range(0, 8 * 60 + 1, 20):
            now_us = START_US + minute * MINUTE_US
            give_out_due(
                self.campaigns, self.campaigns.get(self.id), self.ready, Prior(),
                lambda campaign, variants, waves: np.zeros((len(waves), len(variants), BUCKETS), np.int64), now_us, self.responded,
            )  # fmt: skip
            waiting = [item.intent for item in self.outbox.waiting(self.id, now_us, 1 << 30)]
            self.outbox.call(waiting, now_us)
            self.outbox.settle([Result(intent=intent, state=2) for intent in waiting], now_us)


def test_each_group_gets_what_works_for_it(tmp_path: Path) -> None:
    """By the last wave most of the north get shoes and most of the south coats, and nobody is without an option."""
    desk = Desk(tmp_path, 9_000, policy={"kind": "fixed_split"})
    desk.run()
    rows = desk.rows()
    assert len(rows) == 9_000 and all(len(options) == 1 for _, _, options, _, _ in rows)
    last = max(wave for _, wave, _, _, _ in rows)
    for region, best in (("north", 1), ("south", 0)):
        counts = Counter(options[0] for _, wave, options, _, where in rows if wave >= last - 1 and where == region)
        assert counts[best] > 0.7 * counts.total(), (region, counts)
    # The chance that is noted is that of the variant times that of the option.
    first = [p for _, wave, _, p, _ in rows if wave == 1]
    assert first == pytest.approx([0.5 / 3] * len(first))


def test_the_same_waves_are_given_out_again_after_a_death(tmp_path: Path) -> None:
    """Who gets what follows from the campaign, the seed and what is known: two runs give the same."""
    found = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        desk = Desk(tmp_path / name, 900)
        desk.run()
        found.append(desk.rows())
    assert found[0] == found[1]


def test_how_slots_stand(tmp_path: Path) -> None:
    """Groups are told with their values, options with sums, bounds that hold their rate, and shares that add up."""
    desk = Desk(tmp_path, 3_000, policy={"kind": "fixed_split"})
    desk.run()
    now = desk.campaigns.get(desk.id)
    known = known_of(desk.campaigns, now, desk.responded("spring"), dict.fromkeys(range(1, 20), 1.0), [])
    (slot,) = standings_of(known, np.random.default_rng(1))
    assert (slot.name, slot.by, slot.options, slot.left_out) == ("hero", ["region", "age"], ["coat", "shoes", "hat"], 0)
    assert sorted(group.group for group in slot.groups) == [["north", "40+"], ["north", "<40"], ["south", "40+"], ["south", "<40"]]
    for group in slot.groups:
        assert sum(option.share for option in group.options) == pytest.approx(1.0)
        assert all(option.low <= option.rate <= option.high and option.responses <= option.sent for option in group.options)
    assert sum(option.sent for group in slot.groups for option in group.options) == 3_000


def test_templates_are_filled_with_the_option() -> None:
    """HTML takes the option's HTML, a subject its text; each combination is made once; every one is checked before the send."""
    ready = campaign_of(RAW, {"main"})
    rendered = ready.template(1, (1,)).render({"region": "north"}, SYSTEM)
    assert rendered.subject == "B: Shoes" and "<p>Shoes</p>" in rendered.html and "Shoes" in rendered.text
    assert "A coat for north" in ready.template(0, (0,)).render({"region": "north"}, SYSTEM).html
    assert ready.template(1, (1,)) is ready.template(1, (1,)) and len(ready.every_template()) == 6
    broken = {**SLOT, "options": [*SLOT["options"], {"name": "bad", "html": "{{ attributes.x | nofilter }}", "text": "t"}]}
    with pytest.raises(TemplateError):
        campaign_of(RAW | {"slots": {"hero": broken}}, {"main"})


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"slots": {"hero": SLOT | {"by": []}}}, "groups by"),
        ({"slots": {"hero": SLOT | {"by": ["a", "a"]}}}, "groups by"),
        ({"slots": {"hero": SLOT | {"options": SLOT["options"][:1]}}}, "Options"),
        ({"slots": {"hero": SLOT | {"options": [SLOT["options"][0]] * 2}}}, "name of its own"),
        ({"slots": {"Hero!": SLOT}}, "name"),
        ({"slots": {"hro": SLOT}}, "Unknown slot `hero`"),
        ({"slots": {"hero": SLOT | {"options": [{"name": "a", "html": "x"}, {"name": "b", "html": "y"}]}}}, "no `text`"),
        ({"audience": {"api": True}}, "Midflight sends"),
    ],
)
def test_a_slot_that_cannot_be_filled_is_refused(changes: dict, said: str) -> None:
    """Each mistake says what is wrong before anything is sent."""
    with pytest.raises(Exception, match=said) as caught:
        campaign_of(RAW | changes, {"main"})
    assert caught.value.code == "bad_campaign" and (caught.value.where or isinstance(caught.value, BadSlot))


def test_rare_values_are_one() -> None:
    """Beyond so many values of an attribute the others are one group, so that no slot has a group for each person."""
    filling = Filling("hero", Slot(by=["city"], options=[Option(name="a", text="a"), Option(name="b", text="b")]))
    labels = [filling.label({"city": f"city {n}"}) for n in range(1_000)]
    assert len(set(labels)) == values_max + 1
    for label in labels:
        filling.number(label)
    groups, effects = filling.believed([Given(wave=1, group=label, option=n % 2, sent=3) for n, label in enumerate(labels)], {1: 1.0})
    assert (
        groups.sent.sum() == 3_000
        and effects is not None
        and filling.chances(effects, np.random.default_rng(1)).shape == (values_max + 1, 2)
    )


def test_a_choice_follows_its_chances() -> None:
    """Over many recipients options come as often as their chances say, and each recipient's is the same when asked again."""
    chances = np.array([0.7, 0.1, 0.2])
    found = [chosen_option(3, "spring", "hero", f"p{n}", chances) for n in range(6_000)]
    assert np.bincount(found) / 6_000 == pytest.approx(chances, abs=0.02)
    assert found[:100] == [chosen_option(3, "spring", "hero", f"p{n}", chances) for n in range(100)]
    assert found != [chosen_option(3, "spring", "other", f"p{n}", chances) for n in range(6_000)]
