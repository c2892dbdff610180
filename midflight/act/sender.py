"""Takes planned messages out of the outbox, makes them, hands them to their way out, and notes what became of each.

Whatever may keep somebody from being written to is asked as late as it can be: who is suppressed when a message is taken, and again while
it waits for a connection; who has just unsubscribed in the moment in which the call begins.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Iterable
from typing import Protocol

import msgspec

from ..kit.clock import Clock
from ..kit.errors import MidflightError
from ..stream.providers import PROVIDERS, providers_of
from .audience import Recipient
from .campaigns import Campaigns, Running
from .carriers import Carrier
from .channels.channel import Call, Message
from .definition import Ready
from .delivery import ALONE
from .gates import Gates
from .headers import headers_of
from .language import RenderError
from .outbox import PLANNED, REFUSED, SKIPPED, UNKNOWN, Planned, Result
from .pace import Pace

logger = logging.getLogger("midflight.conductor")
CUT_OFF = "cut_off"  # what a follow-up hears whose connection was given up
TEST_NOT_SENT = "test messages that waited for a connection of `%s` and are not sent: %d"
queued_min, queued_max = 200, 2_000  # messages that wait for a connection of one way out
hold_s_first, hold_s_max = 30.0, 900.0
give_up_us = 24 * 3600 * 1_000_000  # after a campaign's hours: what could not be sent by then is stale
cap_wait_us = 3600 * 1_000_000
gate_wait_us = 30 * 1_000_000  # until a message to a domain that is held is looked at again
day_us = 24 * 3600 * 1_000_000
# Answers that say that our credentials are wrong, whoever the message is to.
NOT_US = ("401", "403", "530", "534", "535", "538", "454")


class Links(Protocol):
    """Makes the link by which a recipient unsubscribes."""

    secure: bool

    def url(self, recipient: str, campaign: str, variant: str, wave: str) -> str: ...


class Stops(Protocol):
    """Knows who has just unsubscribed, and whom a call under way is to; see act/stop_list.py."""

    def begin(self, recipients: Iterable[str]) -> set[str]: ...

    def end(self, recipients: Iterable[str]) -> None: ...


class Job(msgspec.Struct, kw_only=True):
    """Messages that go in one call. ``keys`` are their recipients' keys; ``stale_us`` is when it is too late to try again; ``test`` for
    a message that somebody sends to himself, which is in no plan.

    A follow-up, which is an action and no message of the outbox, has ``begin``, which raises Withheld where it must not go after all, and
    ``ends``, which hears its end.
    """

    campaign: int
    keys: list[str]
    messages: list[Message]
    call: Call | None
    tries: int
    stale_us: int
    test: bool = False
    begin: Callable[[], None] | None = None
    ends: Callable[[Result], None] | None = None


class Lane:
    """One way out: jobs wait in order, each connection takes the next."""

    def __init__(self, name: str, carrier: Carrier, stops: Stops, begun: Callable[[list[str]], None], clock: Clock) -> None:
        self.name, self.carrier, self.stops, self.begun, self.clock = name, carrier, stops, begun, clock
        self.pace = Pace(carrier.settings.per_second, clock.monotonic_s())
        self.most = min(queued_max, max(queued_min, 4 * carrier.settings.connections * carrier.batch_max))
        self.ended: list[Result] = []
        self.held_until_s = 0.0
        self.held_why = ""
        self._hold_s = hold_s_first
        self._queue: deque[Job] = deque()
        self._more = asyncio.Event()
        self._under_way = 0
        self._workers = [asyncio.create_task(self._work(line)) for line in range(carrier.settings.connections)]

    @property
    def waiting(self) -> int:
        """Return how many messages wait for a connection."""
        return sum(len(job.messages) for job in self._queue)

    def keys(self) -> set[str]:
        return {key for job in self._queue for key in job.keys}

    @property
    def idle(self) -> bool:
        return not self._queue and not self._under_way

    def held(self) -> str:
        """Return why nothing may go now, or nothing."""
        return self.held_why if self.clock.monotonic_s() < self.held_until_s else ""

    def offer(self, jobs: Iterable[Job]) -> None:
        self._queue.extend(jobs)
        self._more.set()

    def withdraw(self, which: Callable[[Job], bool]) -> list[Job]:
        """Take out of what waits some jobs, and return them; what is under way goes on."""
        gone = [job for job in self._queue if which(job)]
        if gone:
            self._queue = deque(job for job in self._queue if not which(job))
        return gone

    async def close(self, patience_s: float) -> None:
        """Wait for the calls under way, as long as the patience lasts; who is cut off is unknown, and a next start says so."""
        until = self.clock.monotonic_s() + patience_s
        # What has to end is counted, and this happens once: looking is simplest.
        while self._under_way and self.clock.monotonic_s() < until:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        for worker in self._workers:
            worker.cancel()
        await asyncio.gather(*self._workers, return_exceptions=True)
        await self.carrier.close()

    async def _work(self, line: int) -> None:
        while True:
            while not self._queue or self.held():
                if self._queue:
                    await asyncio.sleep(0.05)
                    continue
                self._more.clear()
                await self._more.wait()
            job = self._queue.popleft()
            self._under_way += len(job.messages)
            try:
                await self._call(line, job)
            finally:
                self._under_way -= len(job.messages)

    async def _call(self, line: int, job: Job) -> None:
        barred = self.stops.begin(job.keys)
        if barred:
            stopped = [n for n, key in enumerate(job.keys) if key in barred]
            self._end(job, [Result(intent=job.messages[n].intent, state=SKIPPED, code="unsubscribed") for n in stopped])
            if job.test:
                logger.warning(TEST_NOT_SENT, self.name, 1)
            messages = [message for n, message in enumerate(job.messages) if n not in stopped]
            call = self.carrier.call_of(messages) if messages else None
        else:
            messages, call = job.messages, job.call
        results: list[Result] = []
        begun = (lambda _intents: job.begin()) if job.begin else self.begun
        try:
            results = await self.carrier.carry(line, messages, call, job.tries, begun) if messages else []
        finally:
            self.stops.end(key for key in job.keys if key not in barred)
            if job.ends and not results and not barred:
                job.ends(Result(intent=job.messages[0].intent, state=UNKNOWN, code=CUT_OFF, detail="it was cut off"))
        self._look_at(results)
        self._end(job, [bounded(result, job, self.clock.now_us()) for result in results])

    def _end(self, job: Job, results: list[Result]) -> None:
        if not job.ends:
            self.ended += results
            return
        for result in results:
            job.ends(result)

    def _look_at(self, results: list[Result]) -> None:
        """Hold the way out where the vendor does not know us: it would say the same to everybody, and lock us out in the end."""
        turned_away = [result for result in results if result.state == PLANNED and result.code[:3] in NOT_US]
        if turned_away:
            self.held_until_s = self.clock.monotonic_s() + self._hold_s
            self._hold_s = min(hold_s_max, self._hold_s * 2)
            self.held_why = f"`{self.name}` turned us away: {turned_away[0].code} {turned_away[0].detail}"[:300]
        elif results:
            self._hold_s, self.held_why = hold_s_first, ""


def bounded(result: Result, job: Job, now_us: int) -> Result:
    """Return a result, or a refusal where it would be tried again when nobody wants it any more."""
    if result.state == PLANNED and max(now_us, result.not_before_us) > job.stale_us:
        return msgspec.structs.replace(result, state=REFUSED, code=result.code or "late", detail=f"given up: {result.detail}")
    return result


class _Paces:
    """How fast one campaign may go: all of it, and to each mailbox provider that has a bound of its own."""

    def __init__(self, now: Running, now_s: float) -> None:
        waves = now.definition.waves
        self.all = Pace(waves.per_minute / 60 * now.speed, now_s)
        names = {name.lower(): number for number, name in enumerate(PROVIDERS)}
        self.by_provider = {names[name.lower()]: Pace(n / 60 * now.speed, now_s) for name, n in waves.per_provider_per_minute.items()}
        self.turn = 0


class Sender:
    """Sends what is planned, over all ways out. ``suppressed`` says of recipients who must not be written to, and why."""

    def __init__(
        self,
        campaigns: Campaigns,
        carriers: dict[str, Carrier],
        stops: Stops,
        links: Links,
        clock: Clock,
        *,
        begun: Callable[[list[str]], None],
        suppressed: Callable[[Iterable[str]], dict[str, str]],
        position: Callable[[], int] = lambda: 0,
        recipient_per_day: int = 0,
        mailto: str = "",
        followed: Callable[[list[str], int, str], dict[str, int]] = lambda *_: {},
    ) -> None:
        self.campaigns, self.outbox = campaigns, campaigns.outbox
        self.links, self.clock = links, clock
        self.suppressed, self.position = suppressed, position
        self.recipient_per_day, self.mailto = recipient_per_day, mailto
        self.followed = followed  # how many follow-ups recipients have got since a time
        self.lanes = {name: Lane(name, carrier, stops, begun, clock) for name, carrier in carriers.items()}
        self.gates = Gates()  # what breakers let through; whoever guards fills it
        self._paces: dict[int, _Paces] = {}
        self._days: dict[int, tuple[int, int]] = {}  # campaign -> day of its warm-up, and how many went on it

    # -- taking messages -------------------------------------------------------------------------------------------------------

    def fill(self, now: Running, ready: Ready) -> int:
        """Hand over as many of a campaign's messages as may go now; return how many."""
        lane = self.lanes[now.definition.channel]
        if lane.held():
            return 0
        planned = self._wanted(now, lane)
        now_us = self.clock.now_us()
        planned = self._permitted(now, planned, now_us)
        made = self._made(now, ready, planned, now_us)
        if not made:
            return 0
        jobs = self._jobs(now, lane.carrier, made)
        idempotent = all(job.call is not None and job.call.idempotent for job in jobs)
        allowed = self.outbox.call(
            [message.intent for _, message in made], now_us, idempotent=idempotent, position=self.position()
        )  # fmt: skip
        assert len(allowed) == len(made), "one process takes messages"
        self._took(now, lane, [item for item, _ in made], now_us)
        lane.offer(jobs)
        return len(made)

    def _wanted(self, now: Running, lane: Lane) -> list[Planned]:
        """Return the messages that bounds on speed and on the day allow."""
        now_s, now_us = self.clock.monotonic_s(), self.clock.now_us()
        paces = self._paces.setdefault(now.id, _Paces(now, now_s))
        room = min(lane.pace.ready(now_s, lane.most - lane.waiting), self._left_today(now, now_us))
        room = paces.all.ready(now_s, room)
        if gate := self.gates.campaigns.get(now.name):
            room = gate.ready(now_s, room)
        if room <= 0:
            return []
        if not paces.by_provider and not self.gates.providers:
            return self.outbox.waiting(now.id, now_us, room)
        found: list[Planned] = []
        paces.turn += 1
        for step in range(len(PROVIDERS)):
            provider = (paces.turn + step) % len(PROVIDERS)
            wanted = room - len(found)
            pace = paces.by_provider.get(provider)
            most = pace.ready(now_s, wanted) if pace else wanted
            if gate := self.gates.providers.get(provider):
                most = gate.ready(now_s, most)
            if most > 0:
                found += self.outbox.waiting(now.id, now_us, most, provider)
        return found

    def _left_today(self, now: Running, now_us: int) -> int:
        days = now.definition.waves.warm_up
        day = int((now_us - now.started_us) * now.speed) // day_us
        if not 0 <= day < len(days):
            return queued_max
        if self._days.get(now.id, (-1, 0))[0] != day:
            self._days[now.id] = (day, self.outbox.gone_since(now.id, now.after_us(24 * day)))
        return days[day] - self._days[now.id][1]

    def _took(self, now: Running, lane: Lane, planned: list[Planned], now_us: int) -> None:
        lane.pace.took(len(planned))
        paces = self._paces[now.id]
        paces.all.took(len(planned))
        for item in planned:
            if item.provider in paces.by_provider:
                paces.by_provider[item.provider].took(1)
            for gate in self.gates.of(now.name, item.provider, item.recipient):
                gate.took(1)
        if now.id in self._days:
            day, gone = self._days[now.id]
            self._days[now.id] = (day, gone + len(planned))

    def _permitted(self, now: Running, planned: list[Planned], now_us: int) -> list[Planned]:
        """Take out who must not be written to, for good, and put off who has got enough for today."""
        if not planned:
            return planned
        suppressed = self.suppressed(item.recipient for item in planned)
        if suppressed:
            self.outbox.skip(now.id, {key: (why, "") for key, why in suppressed.items()}, now_us)
            planned = [item for item in planned if item.recipient not in suppressed]
        if self.recipient_per_day and planned:
            often = self.often([item.recipient for item in planned], now_us)
            if often and now_us + cap_wait_us > now.ends_us:
                self.outbox.skip(now.id, dict.fromkeys(often, ("cap", "has got as many messages as anybody may in a day")), now_us)
            elif often:
                self.outbox.put_off(now.id, often, now_us + cap_wait_us)
            planned = [item for item in planned if item.recipient not in often]
        barred = self.gates.barred([item.recipient for item in planned], self.clock.monotonic_s())
        if barred:
            self.outbox.put_off(now.id, barred, now_us + gate_wait_us)
            planned = [item for item in planned if item.recipient not in barred]
        return planned

    def often(self, recipients: list[str], now_us: int, without: str = "") -> set[str]:
        """Return those who have got as many messages as anybody may in a day, campaigns and follow-ups together, but for one."""
        if not self.recipient_per_day:
            return set()
        since_us = now_us - day_us
        return self.outbox.often(recipients, since_us, self.recipient_per_day, self.followed(recipients, since_us, without))

    # -- making messages -------------------------------------------------------------------------------------------------------

    def _made(self, now: Running, ready: Ready, planned: list[Planned], now_us: int) -> list[tuple[Planned, Message]]:
        """Return messages with the text of their recipients; one that cannot be made is taken out and says why."""
        people = self.campaigns.people(now.id, [item.recipient for item in planned])
        made, wrong = [], {}
        for item in planned:
            try:
                made.append((item, self.message(now, ready, item, people[item.recipient], now_us)))
            except MidflightError as error:
                wrong[item.recipient] = ("content", error.text())
        if wrong:
            self.outbox.skip(now.id, wrong, now_us)
        return made

    def message(self, now: Running, ready: Ready, item: Planned, person: Recipient, now_us: int) -> Message:
        """Return one recipient's message. Raises RenderError where it cannot be made."""
        definition = now.definition
        variant, wave = definition.variants[item.variant].name, str(item.wave)
        link = self.links.url(item.recipient, definition.name, variant, wave)
        system = {
            "recipient.email": person.address, "unsubscribe_url": link, "preferences_url": link, "campaign": definition.name,
            "variant": variant, "wave": wave, "now": now_us,
        }  # fmt: skip
        rendered = ready.template(item.variant, item.options).render(person.attributes, system)
        if not person.address:
            raise RenderError("Nobody's address")
        return Message(
            intent=item.intent, campaign=definition.name, variant=variant, wave=wave, propensity=item.propensity, to=person.address,
            from_address=definition.from_address, from_name=rendered.from_name, reply_to=definition.reply_to, subject=rendered.subject,
            html=rendered.html, text=rendered.text, headers=headers_of(link, self.mailto) if self.links.secure else {},
        )  # fmt: skip

    def _jobs(self, now: Running, carrier: Carrier, made: list[tuple[Planned, Message]]) -> list[Job]:
        """Return calls, full ones; messages alone that were refused together, so that one bad one holds up no other."""
        stale_us = now.ends_us + give_up_us
        together = [pair for pair in made if pair[0].code != ALONE]
        parts = [together[start : start + carrier.batch_max] for start in range(0, len(together), carrier.batch_max)]
        parts += [[pair] for pair in made if pair[0].code == ALONE]
        jobs = []
        for part in parts:
            messages = [message for _, message in part]
            jobs.append(
                Job(
                    campaign=now.id, keys=[item.recipient for item, _ in part], messages=messages, call=carrier.call_of(messages),
                    tries=max(item.tries for item, _ in part), stale_us=stale_us,
                )
            )  # fmt: skip
        return jobs

    # -- what became of them ---------------------------------------------------------------------------------------------------

    def settle(self) -> int:
        """Note in the outbox what calls have come to; return how many."""
        ended: list[Result] = []
        for lane in self.lanes.values():
            ended += lane.ended
            lane.ended = []
        if ended:
            self.outbox.settle(ended, self.clock.now_us())
        return len(ended)

    def withdraw(self, campaign: int) -> None:
        """Take back what waits for a connection: it is planned again. What is under way goes on."""
        self._take_back(lambda job: job.campaign == campaign and not job.test)

    def withdraw_gated(self) -> None:
        """Take back what waits for a connection and goes through a gate: what may go is chosen anew."""
        names = {now.id: now.name for now in self.campaigns.in_state("sending", "paused")}

        def gated(job: Job) -> bool:
            providers = providers_of(job.keys)
            campaign = names.get(job.campaign, "")
            return not job.test and any(self.gates.of(campaign, *pair) for pair in zip(providers, job.keys, strict=True))

        self._take_back(gated)

    def look_again(self) -> None:
        """Take back what waits for a connection where one of its recipients must not be written to any more: who may be is asked anew."""
        held = self.holds()
        barred = set(self.suppressed(held)) if held else set()
        if barred:
            self._take_back(lambda job: not barred.isdisjoint(job.keys))

    def _take_back(self, which: Callable[[Job], bool]) -> None:
        for lane in self.lanes.values():
            gone = lane.withdraw(which)
            self.outbox.give_back((message.intent for job in gone if not job.ends for message in job.messages), self.clock.now_us())
            for job in gone:
                if job.ends:
                    job.ends(Result(intent=job.messages[0].intent, state=PLANNED, code="withheld"))
            tests = sum(job.test for job in gone)
            if tests:
                logger.warning(TEST_NOT_SENT, lane.name, tests)
        # What went today is counted anew.
        self._days.clear()

    def holds(self) -> set[str]:
        """Return the recipients whose messages wait for a connection."""
        return {key for lane in self.lanes.values() for key in lane.keys()}

    def idle(self, now: Running) -> bool:
        lane = self.lanes.get(now.definition.channel)
        return lane is None or (lane.idle and not lane.ended)

    async def close(self, patience_s: float) -> None:
        """Take back what waits, wait for what is under way, and note the last outcomes."""
        self._take_back(lambda job: True)
        await asyncio.gather(*(lane.close(patience_s) for lane in self.lanes.values()))
        self.settle()
