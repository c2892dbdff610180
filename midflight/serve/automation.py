"""The conductor's part that acts on rules: put together from its configuration, with what is known of people, and how far it may reach."""

from __future__ import annotations

import ssl
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import msgspec

from ..act.actions import Actions
from ..act.begun import Begun
from ..act.campaigns import Campaigns
from ..act.follow_up import FollowUps, intent_of
from ..act.guarded import Guard
from ..act.kill_switch import Switch
from ..act.links import Links
from ..act.rule_orders import Applying
from ..act.sender import Sender
from ..act.stop_list import StopList
from ..act.ways.way import Way
from ..act.ways_out import NoWay, WaysOut, says_of, ways_of
from ..config import Automation as Settings
from ..config import Config
from ..decide.acts import acts_of
from ..decide.limits import Radius
from ..kit.clock import Clock
from ..kit.errors import MidflightError
from ..store.experiment import Numbers
from ..store.firings import Firings
from ..stream.providers import PROVIDERS
from .acting import Acting, Breakers

FILE = "actions.begun"
trim_s = 60.0
lists_max = 50  # of the newest campaigns, in which somebody's attributes are looked for


def guard_of(settings: Settings) -> Guard:
    """Return what keeps calls from inside addresses, as it is configured."""
    return Guard(allow=settings.allow_networks, ports=frozenset(settings.allow_ports), http=settings.allow_http)


def checked_ways(config: Config) -> dict[str, Way]:
    """Return the ways out that a configuration names. Raises ConfigError for one that is wrong."""
    return ways_of(config.ways, guard_of(config.automation))


def radius_of(settings: Settings) -> Radius:
    return msgspec.convert({name: getattr(settings, name) for name in Radius.__struct_fields__}, Radius)


class KnownPeople:
    """What the conductor knows of people: who must not be written to, and their attributes.

    These are what the newest list says that they are in, and before it what anybody said of them by an event: a list is of one day.
    """

    def __init__(self, numbers: Numbers, campaigns: Campaigns) -> None:
        self.numbers, self.campaigns = numbers, campaigns

    def suppressed(self, recipients: Iterable[str]) -> Mapping[str, str]:
        return self.numbers.suppressed(recipients)

    def attributes(self, recipients: Iterable[str]) -> Mapping[str, Mapping[str, object]]:
        recipients = list(recipients)
        said = self.numbers.attributes(recipients)
        found = {recipient: self.campaigns.attributes_of(recipient, lists_max) | said.get(recipient, {}) for recipient in recipients}
        return {recipient: known for recipient, known in found.items() if known}


class Automation:
    """Rules that act. ``behind`` says why who has unsubscribed is not known for sure, or nothing; it holds what reaches people."""

    def __init__(
        self, config: Config, ways: dict[str, Way], actions: Actions, campaigns: Campaigns, numbers: Numbers, sender: Sender, links: Links,
        stops: StopList, switch: Switch, clock: Clock, *, position: Callable[[], int], behind: Callable[[], str],
        unsafe: str = "", verify: bool | ssl.SSLContext = True,
    ) -> None:  # fmt: skip
        self.actions, self.sender, self.behind, self.clock = actions, sender, behind, clock
        self._trimmed_s = clock.monotonic_s()
        follow_ups = FollowUps(sender, links, clock, unsafe=unsafe)
        guard = guard_of(config.automation)
        self.ways_out = WaysOut(ways, actions, follow_ups, links, clock, guard=guard, verify=verify)
        self.mailing = frozenset(self.ways_out.mailing())
        self.begun = Begun(config.folder / FILE)
        self.acting = Acting(
            actions, Firings(numbers.store), KnownPeople(numbers, campaigns), self.ways_out, stops=stops, switch=switch, begun=self.begun,
            clock=clock, radius=radius_of(config.automation), breakers=self.breakers, position=position,
        )  # fmt: skip
        self.applying = Applying(actions, campaigns, Path(config.folder), self.ways_out.can_undo, self._remarks)
        sender.followed = self.followed

    def breakers(self) -> Breakers:
        """Return what is held: a mailbox provider that no campaign writes to gets no follow-up either."""
        held = [PROVIDERS[number] for number in self.sender.gates.held()]
        providers = {provider: f"Nothing goes to {provider} now: it is held, see Deliverability" for provider in held}
        return Breakers(person=self.behind(), providers=providers, mailing=self.mailing)

    def followed(self, recipients: list[str], since_us: int, without: str = "") -> dict[str, int]:
        """Return how many follow-ups these have got since then."""
        return self.actions.reached_by(self.ways_out.mailing(), recipients, since_us, without)

    def _remarks(self, definition: dict) -> str:
        """Return why nothing of a rule can be said as the configuration is now, or nothing."""
        try:
            says_of(self.ways_out.ways, acts_of(definition).action)
        except (MidflightError, NoWay) as error:
            return error.text()
        return ""

    def unsettled(self) -> dict[str, tuple[str, int]]:
        """Return the follow-ups whose end nobody knows: by the name that webhooks have for one, its action and the log's end then."""
        return {intent_of(id): (id, called_at) for id, called_at in self.actions.unsettled(self.ways_out.mailing())}

    async def step(self) -> None:
        """Do what is due; nothing in here waits for anybody."""
        await self.acting.step()
        now_s = self.clock.monotonic_s()
        if now_s - self._trimmed_s >= trim_s:
            self._trimmed_s = now_s
            self.ways_out.messages.trim(self.clock.now_us())

    async def close(self) -> None:
        await self.acting.close()

    async def closed(self) -> None:
        """Close what calls went over, once none is under way."""
        await self.ways_out.close()
        self.begun.close()
