"""The conductor's process: does what people ask of campaigns, gives out their waves, sends them, and keeps what it decided and why."""

from __future__ import annotations

import asyncio
import logging
import re
import signal
import ssl
import threading
from collections.abc import Awaitable, Callable

import apsw
import msgspec
import numpy as np
import uvloop

from ..act.actions import Actions
from ..act.advice import Advice
from ..act.advice import write as write_advice
from ..act.alerts import Alerts
from ..act.begun import Begun
from ..act.campaigns import Campaigns, NotNow, Running
from ..act.carriers import carriers_of
from ..act.conductor import due, evidence_of, give_out_due, grounds_of, moments_us, planned, shares_by_now
from ..act.contents import known_of, standings_of
from ..act.definition import Campaign, Ready, campaign_of
from ..act.kill_switch import Hold, Switch
from ..act.links import Links, public_key
from ..act.outbox import Outbox
from ..act.sender import Sender
from ..act.standing import SlotStanding, Standing
from ..act.standings import Observed, Watch, prior_of
from ..act.stop_list import StopList
from ..config import Config
from ..decide.delays import BUCKETS
from ..decide.evidence import Prior
from ..kit.clock import Clock, SteadyClock
from ..kit.owned import own
from ..log import Reader
from ..store.experiment import Numbers
from ..store.read import TooSlow
from .alerting import Alerting, check_alerts
from .automation import Automation, checked_ways
from .guarding import Guarding
from .noticing import Noticing
from .obeying import Obeying, unsafe_links
from .protecting import Protecting
from .under_way import stop_s

logger = logging.getLogger("midflight.conductor")

tick_s = 0.02
orders_s = 0.05
rules_s = 0.05
alerts_s = 0.2
fresh_s = 0.2
waves_s = 0.5
look_s = 2.0
slots_s = 15.0
unknown_s = 0.5
advice_s = 1.0
protect_s = 1.0
learn_s = 3600.0
past_max = 50  # campaigns that a new one learns from
old_enough_us = 24 * 3600 * 1_000_000  # after its end most of what comes of a campaign has come
behind_s_max = 60.0  # with numbers older than this nothing is sent: who has unsubscribed may not be known
claims_us = 7 * 24 * 3600 * 1_000_000  # so long after its end a campaign is still looked at
looked_at_us = claims_us + 32 * 24 * 3600 * 1_000_000  # and none that was started before that
rest_s = 60.0  # between looks at a campaign that has ended
expected_default = 10_000  # people of a campaign that others ask about, where nobody said how many
INTENT = re.compile(rb"in-[0-9a-f]{30}")


def run_conductor(config: Config) -> None:
    """Run until SIGTERM or SIGINT."""
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(conduct(config, stop.is_set))


async def conduct(config: Config, stop: Callable[[], bool], *, verify: bool | ssl.SSLContext = True) -> None:
    """Conduct the campaigns of one data folder until told to stop. Raises Locked where another process does."""
    config.make_folder()
    conductor = Conductor(config, SteadyClock(), verify=verify)
    try:
        await conductor.run(stop)
    finally:
        conductor.close()


class Every:
    """Says when something that is done now and then is due."""

    def __init__(self, seconds: float, clock: Clock) -> None:
        self._seconds, self._clock = seconds, clock
        self._at = clock.monotonic_s()

    def due(self) -> bool:
        now = self._clock.monotonic_s()
        if now < self._at:
            return False
        self._at = now + self._seconds
        return True


class Conductor:
    """The only writer of ``outbox.db``. It reads the store, sends, and is asked for things by orders in the log."""

    def __init__(self, config: Config, clock: Clock, *, verify: bool | ssl.SSLContext = True) -> None:
        self.config, self.clock, self.verify = config, clock, verify
        self.ways = checked_ways(config)
        check_alerts(config, self.ways)
        self._lock = own(
            config.folder / "outbox.lock",
            f"Another conductor runs on {config.folder}",
            todo="Stop it first: two would send everything twice",
        )
        self.outbox = Outbox(config.folder / "outbox.db")
        self.campaigns = Campaigns(self.outbox, config.sending.speed)
        self.actions = Actions(self.outbox)
        self.switch, self.hold = Switch(config.folder), Hold()
        self.numbers = Numbers(config, clock)
        self.log = Reader(config.folder / "log")
        self.begun = Begun(config.folder / "outbox.begun")
        self.stops = StopList()
        self.links = Links(public_key(config.folder), config.door.base_url)
        self.priors: dict[str, Prior] = {}  # by goal, from campaigns that are over
        self.sender: Sender | None = None  # this and the next three from `run` on, because connections belong to a loop
        self.automation: Automation | None = None
        self.guarding: Guarding | None = None
        self.protecting: Protecting | None = None
        self.obeying: Obeying | None = None
        self.alerting: Alerting | None = None
        self.ready: dict[int, tuple[Campaign, Ready]] = {}
        self.watches: dict[int, Watch] = {}
        self.looked_s: dict[int, float] = {}
        self.slots: dict[int, tuple[float, list[SlotStanding]]] = {}
        self.behind_s = 0.0
        self.heard_to = 0  # log position up to which webhooks were searched for unknown intents
        self.asked_at = 0  # the log's position at which who must not be written to was asked last
        self.unknown: set[str] = set()
        self.stopped_at: dict[str, int] = {}  # recipients on the stop list -> the log's end by which their record is in it
        self._fresh, self._waves, self._unknown, self._advice, self._learn, self._protect = (
            Every(s, clock) for s in (fresh_s, waves_s, unknown_s, advice_s, learn_s, protect_s)
        )

    def close(self) -> None:
        self.begun.close()
        self.numbers.close()
        self.log.close()
        self.outbox.close()
        self._lock.close()

    async def run(self, stop: Callable[[], bool]) -> None:
        again, unknown = self.outbox.recover(self.clock.now_us(), self.begun.found)
        if again or unknown:
            logger.warning("%d messages that a former process left open go again, of %d nobody knows", again, unknown)
        self.begun.start()
        await self.stops.start(self.config.folder)
        self.sender = Sender(
            self.campaigns, carriers_of(self.config.channels, self.clock, verify=self.verify), self.stops, self.links, self.clock,
            begun=self.begun.note, suppressed=self.numbers.suppressed, position=self.log.head,
            recipient_per_day=self.config.sending.recipient_per_day, mailto=self.config.sending.mailto,
        )  # fmt: skip
        self.guarding = Guarding(self.campaigns, self.numbers, self.sender)
        self.protecting = Protecting(self.outbox, self.numbers, self.sender, self.clock, self.config.sending.speed)
        self.automation = Automation(
            self.config, self.ways, self.actions, self.campaigns, self.numbers, self.sender, self.links, self.stops, self.switch,
            self.clock, position=self.log.head, behind=self._behind, unsafe=unsafe_links(self.links.base_url), verify=self.verify,
        )  # fmt: skip
        again, unknown = self.automation.acting.start()
        if again or unknown:
            logger.warning("%d actions that a former process left open go again, of %d nobody knows", again, unknown)
        self.obeying = Obeying(
            self.config, self.campaigns, self.numbers, self.sender, self.guarding, self.automation.applying, self._ready,
            self.links.base_url, self.clock, self.protecting,
        )  # fmt: skip
        self.alerting = self._alerting()
        self.alerting.start()
        try:
            async with asyncio.TaskGroup() as group:
                # Also while everything else waits for the engine: that is something to be told.
                group.create_task(self._again_and_again(self.alerting.step, alerts_s, stop))
                await self._barrier(stop)
                # Reading a long list must not hold up who is being sent to.
                group.create_task(self._again_and_again(self.obeying.obey, orders_s, stop))
                group.create_task(self._again_and_again(self.step, tick_s, stop))
                group.create_task(self._again_and_again(self.automation.step, rules_s, stop))
        finally:
            await self.obeying.close()
            await asyncio.gather(self.automation.close(), self.sender.close(stop_s), self.alerting.close())
            await self.automation.closed()
            await self.stops.close()

    def _alerting(self) -> Alerting:
        noticing = Noticing(
            self.config, self.clock, self.numbers, self.campaigns, self.switch,
            lambda: {name: lane.held() for name, lane in self.sender.lanes.items()},
        )  # fmt: skip
        deliver = {name: calls.deliver for name, calls in self.automation.ways_out.calls.items()}
        return Alerting(self.config, self.ways, deliver, Alerts(self.outbox), noticing, self.clock, verify=self.verify)

    async def _again_and_again(self, act: Callable[[], Awaitable[None]], pause_s: float, stop: Callable[[], bool]) -> None:
        while not stop():
            try:
                await act()
            except (TooSlow, apsw.BusyError) as error:
                logger.warning("the store did not answer, which is tried again: %s", error)
            await asyncio.sleep(pause_s)

    async def _barrier(self, stop: Callable[[], bool]) -> None:
        """Wait until all that the log holds now is counted: whoever has unsubscribed before is then known."""
        end = self.log.head()
        while not stop() and self.numbers.position()[0] < end:  # noqa: ASYNC110
            await asyncio.sleep(tick_s)

    async def step(self) -> None:
        """Do what is due; nothing in here waits for anybody."""
        self._look_at_switch()
        self.sender.settle()
        if self._fresh.due():
            self._check_freshness()
        if self._unknown.due():
            self._settle_unknown()
            self._forget_stops()
        if self._protect.due():
            self.protecting.look()
        waves = self._waves.due()
        for now in self.campaigns.in_state("scheduled", "sending"):
            if self.held(now):
                continue
            if waves and now.state == "scheduled":
                self._start_scheduled(now)
            elif now.state == "sending":
                if waves:
                    self._give_out(now)
                if not now.definition.audience.api:
                    self.sender.fill(now, self._ready(now))
                if waves:
                    self._end(now)
        if waves:
            self._look()
        if self._advice.due():
            self._advise()

    def _look_at_switch(self) -> None:
        """See whether everything is held; then what waits for a connection is taken back too."""
        before, self.hold = self.hold, self.switch.look()
        if self.hold.held and not before.held:
            for now in self.campaigns.in_state("sending"):
                self.sender.withdraw(now.id)

    def _behind(self) -> str:
        """Return why who must not be written to is not known for sure, or nothing."""
        old = self.behind_s > behind_s_max
        return f"The numbers are {self.behind_s:.0f} s old: who has unsubscribed since is not known" if old else ""

    def held(self, now: Running) -> str:
        """Return why nothing of a campaign may go now, or nothing."""
        if why := self.hold.text() or self._behind():
            return why
        if now.definition.audience.api:
            return ""
        lane = self.sender.lanes.get(now.definition.channel)
        if lane is None:
            return f"Channel `{now.definition.channel}` is not in the configuration any more"
        return lane.held()

    def _check_freshness(self) -> None:
        position, log_time_us = self.numbers.position()
        if position != self.asked_at:
            self.sender.look_again()
            self.asked_at = position
        self.behind_s = max(0.0, (self.clock.now_us() - log_time_us) / 1e6) if log_time_us else 0.0

    def _ready(self, now: Running) -> Ready:
        """Return a campaign's definition, checked and with its templates; made once."""
        known = self.ready.get(now.id)
        if known is None or known[0] is not now.definition:
            ready = campaign_of(msgspec.to_builtins(now.definition), {*self.config.channels, now.definition.channel})
            self.ready[now.id] = known = (now.definition, ready)
        return known[1]

    def _prior(self, now: Running) -> Prior:
        """Return what is known before a campaign's first response."""
        goal = now.definition.goal
        if self._learn.due():
            self.priors.clear()
        if goal not in self.priors:
            old_us = self.clock.now_us() - old_enough_us
            over = [one for one in self.campaigns.in_state("done") if one.definition.goal == goal and one.ends_us < old_us]
            found = [self.campaigns.standing(one.id) for one in over[-past_max:]]
            self.priors[goal] = prior_of([standing for standing in found if standing])
        return self.priors[goal]

    # -- waves -------------------------------------------------------------------------------------------------------------------

    def _start_scheduled(self, now: Running) -> None:
        start_us = now.definition.waves.start_us()
        if start_us <= self.clock.now_us():
            try:
                self.obeying.may_send(now)
                self.campaigns.move(now.id, "sending", "schedule", "its time has come", self.clock.now_us())
            except NotNow as error:
                self.campaigns.move(now.id, "draft", "schedule", error.text(), self.clock.now_us())

    def _responses(self, now: Running) -> Callable[[str, list[str], list[str]], np.ndarray]:
        return lambda campaign, variants, waves: self.numbers.responses(
            campaign, variants, waves, now.definition.goal, self._times(now), now.speed
        ).people  # fmt: skip

    def _times(self, now: Running) -> list[float]:
        return [wave.at_us / 1e6 for wave in self.campaigns.waves(now.id)]

    def _give_out(self, now: Running) -> None:
        if now.definition.audience.api:
            self._advise_anew(now)
            return
        goal = now.definition.goal
        give_out_due(
            self.campaigns, now, self._ready(now), self._prior(now), self._responses(now), self.clock.now_us(),
            lambda campaign: self.numbers.responded(campaign, goal),
        )  # fmt: skip

    def _advise_anew(self, now: Running) -> None:
        """Let the policy say anew who gets what, for a campaign that others send."""
        now_us = self.clock.now_us()
        if not due(now, now_us):
            return
        seen = self._observed(now, now_us)
        random = np.random.Generator(np.random.PCG64(np.random.SeedSequence([now.definition.seed, len(seen.given)])))
        plan = planned(now, self._ready(now), seen.evidence, self._prior(now), random)
        self.campaigns.advise(now, plan.shares, grounds_of(now, seen.evidence), now_us)

    def _end(self, now: Running) -> None:
        """Note that a campaign is done: nobody is left, nothing waits, nothing is under way."""
        now = self.campaigns.get(now.id)
        over = self.clock.now_us() > now.ends_us
        if now.state != "sending" or now.left or not self.sender.idle(now) or (now.definition.audience.api and not over):
            return
        counts = self.outbox.counts(now.id)
        if not counts["planned"] and not counts["called"]:
            self.campaigns.move(now.id, "done", "conductor", "everybody has been written to", self.clock.now_us())

    # -- looking -----------------------------------------------------------------------------------------------------------------

    def _look(self) -> None:
        now_us, now_s = self.clock.now_us(), self.clock.monotonic_s()
        active = self.campaigns.in_state("sending", "paused")
        for now in [*active, *self.campaigns.in_state("done", "stopped", since_us=now_us - looked_at_us)]:
            pause_s = look_s if now.state in ("sending", "paused") or now_us < now.ends_us else rest_s
            if not now.started_us or now_us > now.ends_us + claims_us or now_s - self.looked_s.get(now.id, -1e9) < pause_s:
                continue
            self.looked_s[now.id] = now_s
            self._look_at(now, now_us)

    def _look_at(self, now: Running, now_us: int) -> None:
        seen = self._observed(now, now_us)
        watch = self.watches.get(now.id)
        if watch is None or watch.arms != now.live.size:
            self.watches[now.id] = watch = Watch(now.live.size)
        before = self.campaigns.standing(now.id)
        standing = watch.look(now, seen, self._prior(now), now_us)
        standing.slots = self._slots(now, seen)
        moments = [moment for moment in moments_us(now) if moment > now_us]
        standing.next_us = moments[0] if moments and now.left and now.state == "sending" else 0
        standing.behind_s, standing.held = self.behind_s, self.held(now)
        with self.outbox.db:
            self._note_changes(now, before, standing, now_us)
            self.campaigns.stands(now.id, standing)
        if now.state == "sending":
            self.guarding.look(now, now_us)

    def _slots(self, now: Running, seen: Observed) -> list[SlotStanding]:
        """Return how the slots stand; looked at less often than the rest, because everybody who responded is asked for."""
        if not now.definition.slots or not seen.given:
            return []
        made_s, found = self.slots.get(now.id, (-1e9, []))
        if self.clock.monotonic_s() - made_s > slots_s:
            share_of = shares_by_now(seen.evidence, seen.given, self._prior(now))
            known = known_of(self.campaigns, now, self.numbers.responded(now.name, now.definition.goal), share_of, [])
            random = np.random.Generator(np.random.PCG64(np.random.SeedSequence([now.definition.seed, len(seen.given), 2])))
            found = standings_of(known, random)
            self.slots[now.id] = (self.clock.monotonic_s(), found)
        return found

    def _observed(self, now: Running, now_us: int) -> Observed:
        given, names = self.campaigns.waves(now.id), now.names
        waves = [str(wave.wave) for wave in given]
        found = self.numbers.responses(now.name, names, waves, now.definition.goal, [wave.at_us / 1e6 for wave in given], now.speed)
        if now.definition.audience.api:
            advised = self.numbers.advised(now.name)
            sent = np.array([[advised.get((wave.wave, name), 0) for name in names] for wave in given]).reshape(len(given), len(names))
            expected = now.definition.audience.expected or expected_default
            now = msgspec.structs.replace(now, people=max(expected, int(sent.sum()) + 1), taken=int(sent.sum()))
            # Others are told by a wave's shares until there is a next one.
            gone_us = np.array([*(wave.at_us for wave in given[1:]), np.inf][: len(given)])
        else:
            sent = self.outbox.sent(now.id, len(given), len(names))
            gone_us = self.outbox.gone_us(now.id, len(given))
        people = found.people if given else np.zeros((0, len(names), BUCKETS), np.int64)
        return Observed(
            evidence=evidence_of(now, given, people, sent, now_us), everybody=found.everybody, given=given,
            gone_s=(gone_us - now.started_us) * now.speed / 1e6,
        )  # fmt: skip

    def _note_changes(self, now: Running, before: Standing | None, standing: Standing, now_us: int) -> None:
        """Write into the ledger what can be said now and could not before, or the other way."""
        said, then = standing.said, before.said if before else None
        if (then is None and said.kind != "not_yet") or (then and (said.kind, said.arms) != (then.kind, then.arms)):
            numbers = {arm.name: {"sent": arm.sent, "responses": arm.responses, "low": arm.low, "high": arm.high} for arm in standing.arms}
            grounds = {"variants": numbers, "evidence": said.evidence}
            self.campaigns.decided(now.id, now_us, "claim", "claims", said.text, "", grounds)
        if standing.split_broken and not (before and before.split_broken):
            self.campaigns.decided(now.id, now_us, "split", "claims", standing.split_text)
        if standing.held and not (before and before.held):
            self.campaigns.decided(now.id, now_us, "held", "conductor", standing.held)
        elif before and before.held and not standing.held:
            self.campaigns.decided(now.id, now_us, "released", "conductor", "It goes on")

    # -- what nobody knows -------------------------------------------------------------------------------------------------------

    def _settle_unknown(self) -> None:
        """Search new webhooks for the intents of calls whose end is unknown. They were verified when they came in."""
        follow_ups = self.automation.unsettled()
        rows = [*self.outbox.unsettled(), *((intent, called_at) for intent, (_, called_at) in follow_ups.items())]
        fresh = [position for intent, position in rows if intent not in self.unknown]
        self.unknown = {intent for intent, _ in rows}
        if not rows:
            return
        if fresh:
            self.heard_to = min([*fresh, self.heard_to]) if self.heard_to else min(fresh)
        records = self.log.read(max(self.heard_to, self.log.first()))
        if not records:
            return
        heard = {
            intent.decode() for record in records if record.kind in ("webhook", "events") for intent in INTENT.findall(record.body)
        }  # fmt: skip
        heard &= self.unknown
        self.outbox.heard_of(heard - follow_ups.keys(), self.clock.now_us())
        self.actions.heard_of([follow_ups[intent][0] for intent in heard & follow_ups.keys()], self.clock.now_us())
        self.heard_to = records[-1].position + 1

    def _forget_stops(self) -> None:
        """Leave to the store those whose record it has counted, unless a message to them waits that was taken before that."""
        stopped = self.stops.stopped
        self.stopped_at = {recipient: self.stopped_at.get(recipient) or self.log.head() for recipient in stopped}
        if stopped:
            counted, _ = self.numbers.position()
            known = {recipient for recipient, position in self.stopped_at.items() if position <= counted}
            self.stops.forget(known - self.sender.holds())
        self.begun.tidy(intent for (intent,) in self.outbox.db.execute("SELECT intent FROM messages WHERE state = 1"))

    # -- the advisor -------------------------------------------------------------------------------------------------------------

    def _advise(self) -> None:
        """Say to the door what it may answer to those who ask about campaigns that they send themselves."""
        told = []
        since_us = self.clock.now_us() - looked_at_us
        for now in self.campaigns.in_state("scheduled", "sending", "paused", "stopped", "done", since_us=since_us):
            if not now.definition.audience.api:
                continue
            given = self.campaigns.waves(now.id)
            shares = given[-1].shares if given else []
            told.append(
                Advice(
                    campaign=now.name, state=now.state, seed=now.definition.seed, holdout=now.definition.holdout,
                    wave=given[-1].wave if given else 0, variants=now.names[: len(shares)], shares=shares,
                    definition=msgspec.to_builtins(now.definition),
                )
            )  # fmt: skip
        # Also where nothing has changed: the door takes what is old for the word of somebody who is gone.
        write_advice(self.config.folder, told)
