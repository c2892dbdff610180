"""The conductor's process: does what people ask of campaigns, gives out their waves, sends them, and keeps what it decided and why."""

from __future__ import annotations

import asyncio
import fcntl
import logging
import re
import signal
import ssl
import threading
from collections.abc import Awaitable, Callable
from urllib.parse import urlsplit

import apsw
import msgspec
import numpy as np

from ..act.advice import Advice
from ..act.advice import write as write_advice
from ..act.audience import read_audience
from ..act.begun import Begun
from ..act.campaigns import Campaigns, NotNow, Running, check_move, parts_of
from ..act.carriers import carriers_of
from ..act.conductor import due, evidence_of, give_out_due, grounds_of, moments_us, names_of, planned, shares_by_now
from ..act.contents import known_of, standings_of
from ..act.definition import BadCampaign, Campaign, Ready, Variant, campaign_of, check_columns
from ..act.links import Links, public_key
from ..act.lists import place_of
from ..act.orders import Add, AddVariant, AnyOrder, BadOrder, Drop, Move, Pin, Settle, Test, order_of
from ..act.outbox import Outbox, Planned
from ..act.sender import Job, Sender
from ..act.standing import SlotStanding, Standing
from ..act.standings import Observed, Watch, prior_of, trip_text
from ..act.stop_list import StopList
from ..config import Config
from ..decide.delays import BUCKETS
from ..decide.evidence import Prior
from ..decide.guardrails import Counts, trips
from ..events import recipient_key
from ..kit.clock import Clock
from ..kit.errors import ConfigError, Locked, MidflightError, NotFound, nearest
from ..log import Reader
from ..store.experiment import Numbers
from ..store.read import TooSlow

logger = logging.getLogger("midflight.conductor")

tick_s = 0.02
orders_s = 0.05
fresh_s = 0.2
waves_s = 0.5
look_s = 2.0
slots_s = 15.0
unknown_s = 0.5
advice_s = 1.0
learn_s = 3600.0
past_max = 50  # campaigns that a new one learns from
old_enough_us = 24 * 3600 * 1_000_000  # after its end most of what comes of a campaign has come
behind_s_max = 60.0  # with numbers older than this nothing is sent: who has unsubscribed may not be known
claims_us = 7 * 24 * 3600 * 1_000_000  # so long after its end a campaign is still looked at
looked_at_us = claims_us + 32 * 24 * 3600 * 1_000_000  # and none that was started before that
rest_s = 60.0  # between looks at a campaign that has ended
stop_s = 8.0
expected_default = 10_000  # people of a campaign that others ask about, where nobody said how many
# What our own code may raise where it is wrong.
MISTAKES = (ValueError, TypeError, KeyError, AttributeError, IndexError, OverflowError)
INTENT = re.compile(rb"in-[0-9a-f]{30}")
LOOPBACK = ("localhost", "127.0.0.1", "::1")


def run_conductor(config: Config) -> None:
    """Run until SIGTERM or SIGINT."""
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    asyncio.run(conduct(config, stop.is_set))


async def conduct(config: Config, stop: Callable[[], bool], *, verify: bool | ssl.SSLContext = True) -> None:
    """Conduct the campaigns of one data folder until told to stop. Raises Locked where another process does."""
    config.make_folder()
    conductor = Conductor(config, Clock(), verify=verify)
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
        self._lock = own(config)
        self.outbox = Outbox(config.folder / "outbox.db")
        self.campaigns = Campaigns(self.outbox, config.sending.speed)
        self.numbers = Numbers(config, clock)
        self.log = Reader(config.folder / "log")
        self.begun = Begun(config.folder / "outbox.begun")
        self.stops = StopList()
        self.links = Links(public_key(config.folder), config.door.base_url)
        self.priors: dict[str, Prior] = {}  # by goal, from campaigns that are over
        self.sender: Sender | None = None
        self.ready: dict[int, tuple[Campaign, Ready]] = {}
        self.watches: dict[int, Watch] = {}
        self.looked_s: dict[int, float] = {}
        self.slots: dict[int, tuple[float, list[SlotStanding]]] = {}
        self.behind_s = 0.0
        self.heard_to = 0  # log position up to which webhooks were searched for unknown intents
        self.unknown: set[str] = set()
        self.stopped_at: dict[str, int] = {}  # recipients on the stop list -> the log's end by which their record is in it
        self._fresh, self._waves, self._unknown, self._advice, self._learn = (
            Every(s, clock) for s in (fresh_s, waves_s, unknown_s, advice_s, learn_s)
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
        try:
            await self._barrier(stop)
            async with asyncio.TaskGroup() as group:
                # Reading a long list must not hold up who is being sent to.
                group.create_task(self._again_and_again(self._do_orders, orders_s, stop))
                group.create_task(self._again_and_again(self.step, tick_s, stop))
        finally:
            await self.sender.close(stop_s)
            await self.stops.close()

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
        self.sender.settle()
        if self._fresh.due():
            self._check_freshness()
        if self._unknown.due():
            self._settle_unknown()
            self._forget_stops()
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

    def held(self, now: Running) -> str:
        """Return why nothing of a campaign may go now, or nothing."""
        if self.behind_s > behind_s_max:
            return f"The numbers are {self.behind_s:.0f} s old: who has unsubscribed since is not known"
        if now.definition.audience.api:
            return ""
        lane = self.sender.lanes.get(now.definition.channel)
        if lane is None:
            return f"Channel `{now.definition.channel}` is not in the configuration any more"
        return lane.held()

    def _check_freshness(self) -> None:
        _, log_time_us = self.numbers.position()
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

    # -- orders ----------------------------------------------------------------------------------------------------------------

    async def _do_orders(self) -> None:
        """Do what was asked since the last one that was done, in order."""
        for position, _, body in self.numbers.orders(self.campaigns.orders_position()):
            try:
                order = order_of(body)
            except BadOrder as error:
                logger.error("record %d is no order and is left out: %s", position, error.text())
                self.campaigns.order_done(position, f"position-{position}", error_json(error), self.clock.now_us())
                continue
            ended = self.campaigns.order_end(order.id)
            if ended is not None:
                # Whoever gave it did not hear that it was taken, and gave it again.
                self.campaigns.order_done(position, order.id, ended, self.clock.now_us())
                continue
            try:
                loaded = await self._load(order) if isinstance(order, Add) else None
                with self.outbox.db:
                    if loaded is not None:
                        self.campaigns.drafted(*loaded, order.who, self.clock.now_us())
                    else:
                        self._do(order)
                    self.campaigns.order_done(position, order.id, "", self.clock.now_us())
            except MidflightError as error:
                self.campaigns.order_done(position, order.id, error_json(error), self.clock.now_us())
            except MISTAKES as error:
                # One order must not keep all campaigns from being sent: it would be met again after each start.
                logger.exception("record %d, an order, cannot be done", position)
                said = MidflightError("The order could not be done: a mistake of ours", got=f"{type(error).__name__}: {error}")
                self.campaigns.order_done(position, order.id, error_json(said), self.clock.now_us())

    async def _load(self, order: Add) -> tuple[int, int, int]:
        """Put down a draft's definition and people, a part at a time beside the sending; return id, people and held out."""
        ready = campaign_of(order.definition, set(self.config.channels))
        if ready.campaign.audience.segment:
            raise BadCampaign("There are no segments yet", where="$.audience.segment", todo="Hand in a list")
        recipients = []
        if order.audience:
            recipients, report = await asyncio.to_thread(read_audience, place_of(self.config.folder, order.audience))
            check_columns(ready, report.columns)
        parts = await asyncio.to_thread(parts_of, ready.campaign, recipients)
        number, count, held = self.campaigns.begin(ready.campaign), 0, 0
        for part in parts:
            self.campaigns.put_people(number, count, part)
            count, held = count + len(part.people), held + len(part.held)
            await asyncio.sleep(0)
        return number, count, held

    def _do(self, order: AnyOrder) -> None:
        now_us = self.clock.now_us()
        now = self.campaigns.named(order.campaign)
        if isinstance(order, Move):
            self._move(now, order, now_us)
        elif isinstance(order, Pin):
            self.campaigns.pin(now.id, place_of_variant(now, order.variant) if order.variant else -1, order.who, order.why, now_us)
        elif isinstance(order, Drop):
            self.campaigns.drop(now.id, place_of_variant(now, order.variant), order.who, order.why, now_us)
        elif isinstance(order, AddVariant):
            self._add_variant(now, order, now_us)
        elif isinstance(order, Test):
            self._test(now, order, now_us)
        elif isinstance(order, Settle):
            self.campaigns.settle(now.id, order.end, order.who, order.why, now_us)

    def _move(self, now: Running, order: Move, now_us: int) -> None:
        check_move(now, order.to)
        if order.to in ("paused", "stopped", "draft"):
            # First nothing more begins; what is planned again then stays.
            self.sender.withdraw(now.id)
        if order.to == "sending":
            self._may_send(now)
            if now.state == "paused":
                self._look_past_guards(now)
        self.campaigns.move(now.id, order.to, order.who, order.why, now_us)

    def _may_send(self, now: Running) -> None:
        """Raise NotNow where people could not unsubscribe, or there is no way out."""
        if now.definition.channel not in self.config.channels and not now.definition.audience.api:
            raise NotNow(f"Channel `{now.definition.channel}` is not in the configuration", todo="Put it back, or make a new campaign")
        url = urlsplit(self.links.base_url)
        if url.scheme != "https" and url.hostname not in LOOPBACK:
            raise NotNow(
                "People could not unsubscribe safely", expected="an address with https", got=self.links.base_url, where="$.door.public_url",
                todo="Set it to where the door is reached from outside",
            )  # fmt: skip

    def _add_variant(self, now: Running, order: AddVariant, now_us: int) -> None:
        raw = msgspec.to_builtins(now.definition)
        raw["variants"] = [*raw["variants"], order.variant]
        ready = campaign_of(raw, {*self.config.channels, now.definition.channel})
        ready.templates[-1].check(self.campaigns.columns(now.id))
        self.campaigns.add_variant(now.id, msgspec.convert(order.variant, Variant), order.who, order.why, now_us)

    def _test(self, now: Running, order: Test, now_us: int) -> None:
        """Send one variant to somebody of our own, filled in as for a person of the list; it goes past the outbox and is not repeated."""
        self._may_send(now)
        lane = self.sender.lanes.get(now.definition.channel)
        if lane is None:
            raise NotNow(f"Campaign `{now.name}` has no channel by which a test could go")
        key = recipient_key(order.to)
        if not key:
            raise NotFound("No address", expected="name@domain", got=order.to[:100])
        person = self.campaigns.example(now.id, recipient_key(order.recipient) if order.recipient else "")
        item = Planned(
            recipient=key, wave=0, variant=place_of_variant(now, order.variant), propensity=1.0, intent=f"test-{order.id[:40]}"
        )  # fmt: skip
        message = self.sender.message(now, self._ready(now), item, msgspec.structs.replace(person, key=key, address=order.to), now_us)
        message.campaign, message.subject = "Test messages", f"[Test] {message.subject}"
        call = lane.carrier.call_of([message])
        lane.offer([Job(campaign=now.id, keys=[key], messages=[message], call=call, tries=0, stale_us=now_us)])

    # -- waves -------------------------------------------------------------------------------------------------------------------

    def _start_scheduled(self, now: Running) -> None:
        start_us = now.definition.waves.start_us()
        if start_us <= self.clock.now_us():
            try:
                self._may_send(now)
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
            self._guard(now, now_us)

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
        given, names = self.campaigns.waves(now.id), names_of(now)
        waves = [str(wave.wave) for wave in given]
        found = self.numbers.responses(now.name, names, waves, now.definition.goal, [wave.at_us / 1e6 for wave in given], now.speed)
        if now.definition.audience.api:
            advised = self.numbers.advised(now.name)
            sent = np.array([[advised.get((wave.wave, name), 0) for name in names] for wave in given]).reshape(len(given), len(names))
            expected = now.definition.audience.expected or expected_default
            now = msgspec.structs.replace(now, people=max(expected, int(sent.sum()) + 1), taken=int(sent.sum()))
        else:
            sent = self.outbox.sent(now.id, len(given), len(names))
        people = found.people if given else np.zeros((0, len(names), BUCKETS), np.int64)
        return Observed(evidence=evidence_of(now, given, people, sent, now_us), everybody=found.everybody, given=given)

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

    def _guard(self, now: Running, now_us: int) -> None:
        """Stop an arm, or the campaign, whose people leave, complain or bounce too often."""
        counts = self._happened(now)
        base = self.campaigns.guard_base(now.id)
        if base:
            counts = [less(count, before) for count, before in zip(counts, [*base, *[Counts()] * len(counts)], strict=False)]
        for trip in trips(counts, now.definition.guardrails):
            text = trip_text(trip, now)
            grounds = {name: getattr(trip, name) for name in ("what", "happened", "of", "ceiling", "evidence")}
            grounds["evidence"] = float(min(grounds["evidence"], 1e12))
            live = self.campaigns.get(now.id).live
            with self.outbox.db:
                if trip.arm >= 0 and live.sum() > 1:
                    if live[trip.arm]:
                        self.campaigns.decided(now.id, now_us, "guard", "guard", text, "", grounds)
                        self.campaigns.drop(now.id, trip.arm, "guard", text, now_us)
                    continue
                self.sender.withdraw(now.id)
                self.campaigns.decided(now.id, now_us, "guard", "guard", text, "", grounds)
                self.campaigns.move(now.id, "paused", "guard", text, now_us)
            return

    def _look_past_guards(self, now: Running) -> None:
        """Somebody lets a campaign go on that a guard may have paused: what has happened by now is known and accepted."""
        self.campaigns.guard_from(now.id, self._happened(now))

    def _happened(self, now: Running) -> list[Counts]:
        """Return what guards look at. A plain relay reports no delivery: there what was sent stands for what was delivered."""
        names = names_of(now)
        counts = self.numbers.counts(now.name, names)
        if any(count.delivered for count in counts):
            return counts
        sent = self.outbox.sent(now.id, len(self.campaigns.waves(now.id)), len(names)).sum(0)
        return [
            msgspec.structs.replace(count, delivered=max(0, int(n) - count.bounced)) for count, n in zip(counts, sent, strict=True)
        ]  # fmt: skip

    # -- what nobody knows -------------------------------------------------------------------------------------------------------

    def _settle_unknown(self) -> None:
        """Search new webhooks for the intents of calls whose end is unknown. They were verified when they came in."""
        rows = self.outbox.unsettled()
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
        self.outbox.heard_of(heard & self.unknown, self.clock.now_us())
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
                    wave=given[-1].wave if given else 0, variants=names_of(now)[: len(shares)], shares=shares,
                    definition=msgspec.to_builtins(now.definition),
                )
            )  # fmt: skip
        # Also where nothing has changed: the door takes what is old for the word of somebody who is gone.
        write_advice(self.config.folder, told)


def less(counts: Counts, before: Counts) -> Counts:
    return Counts(**{name: max(0, getattr(counts, name) - getattr(before, name)) for name in Counts.__struct_fields__})


def place_of_variant(now: Running, name: str) -> int:
    """Return a variant's number. Raises NotFound with the nearest one."""
    names = names_of(now)
    if name not in names:
        raise NotFound(f"Unknown variant `{name[:100]}`", todo=nearest(name[:100], names))
    return names.index(name)


def error_json(error: MidflightError) -> str:
    return msgspec.json.encode(error.as_dict()["error"]).decode()


def own(config: Config):
    """Lock the outbox for this process's life. Raises Locked when another conductor has it, ConfigError where it cannot be written."""
    try:
        file = (config.folder / "outbox.lock").open("a+")
    except OSError as error:
        raise ConfigError(f"The data folder cannot be written: {error.strerror}", got=config.data, where="$.data") from None
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        file.close()
        raise Locked(f"Another conductor runs on {config.folder}", todo="Stop it first: two would send everything twice") from None
    return file
