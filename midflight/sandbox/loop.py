"""A campaign in a closed loop: Midflight's own processes send it over real SMTP or HTTP to people of the sandbox, who react to it.

While it runs the processes can be killed at random. In the end the sandbox knows who got what, and what it came to.
"""

from __future__ import annotations

import csv
import io
import math
import os
import random
import socket
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import httpx
import msgspec
import numpy as np

from ..act.campaigns import Campaigns, Running
from ..act.lists import keep
from ..act.orders import Add, Move, Order, Settle, record_of
from ..act.outbox import Outbox
from ..act.rule_orders import RuleOrder
from ..act.rule_orders import record_of as rule_record_of
from ..config import load_config
from ..kit.clock import Clock
from ..kit.errors import MidflightError
from ..metrics.metric import Z_95
from ..serve.auth import Access, base_url
from ..serve.doorlink import DoorAway, append
from ..stream.measures import MEASURES
from .api_vendors import KEYS
from .apis import Apis
from .audience import DIMENSION_NAMES, Audience, audience
from .inbox import Accepted, Inbox
from .mailbox import Mailbox
from .manners import Manners
from .misbehave import Plan
from .react import Effect, Effects, React, Reactor
from .settings import read_keys, sandbox_config, sources_from, write_files
from .verify import Truth, verify

PROCESSES = ("door", "engine", "console", "conductor")
KILLED = ("door", "engine", "conductor")
start_s_max = 90.0
order_s_max = 60.0
late_s_max = 300.0
patience_s = 120.0
TEXT = "Hello {{ attributes.region }}, have a look.\n{{ unsubscribe_url }}"


class Play(msgspec.Struct, kw_only=True):
    """What is played. ``factors`` are the variants' true factors on clicks; ``after`` hours are lived after the campaign's own. ``only``
    one process is killed, where it is named; a ``slow`` server answers byte by byte, so that many calls are under way at any time."""

    recipients: int = 20_000
    factors: tuple[float, ...] = (1.0, 1.3, 0.8, 1.1, 0.9)
    policy: str = "finite_list"
    channel: str = "smtp"
    hours: float = 8.0
    after: float = 16.0
    speed: float = 240.0
    kills: int = 0
    only: str = ""
    slow: bool = False
    seed: int = 1


class Told(msgspec.Struct, kw_only=True):
    """What a run came to. ``clicks`` and ``revenue`` are each person's, [N], of everything that people do in the end; ``again`` messages
    were sent once more by a person's word after no webhook had named them; ``untold`` events the door never took."""

    sent: int
    lost: int
    twice: int
    kills: Counter[str]
    again: int
    states: dict[str, int]
    differences: list
    untold: int
    shares: dict[str, float]
    claim: str
    clicks: np.ndarray
    revenue: np.ndarray
    seconds: float


class Loop:
    """One run in a folder of its own."""

    def __init__(self, folder: Path, play: Play, say: Callable[[str], None] = lambda line: None) -> None:
        self.folder, self.play, self.say = folder, play, say
        self.clock = Clock()
        self.people = audience(np.random.default_rng([play.seed, 0]), play.recipients, f"l{play.seed}")
        self.inbox = Inbox(self.clock)
        plan = Plan(chances={"drip": 1.0}, drip_s=0.001) if play.slow else None
        self.mailbox, self.apis = Mailbox(self.inbox, plan), Apis(self.inbox, plan)
        self.processes: dict[str, subprocess.Popen] = {}
        self.kills: Counter[str] = Counter()
        self.random = random.Random(play.seed)

    def run(self) -> Told:
        """Play it from the first process to the last comparison. Raises MidflightError where something does not come up."""
        began = self.clock.monotonic_s()
        with self.mailbox, self.apis:
            self._write()
            try:
                return self._run(began)
            finally:
                self._end()

    def _run(self, began: float) -> Told:
        play = self.play
        for name in PROCESSES:
            self._start(name)
        self._await_ready()
        names = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"[: len(play.factors)]
        effects = msgspec.structs.replace(
            self.effects, variants={name: Effect(clicks=factor) for name, factor in zip(names, play.factors, strict=True)}
        )
        react = self.react = React(
            self.people, effects, seed=play.seed, start_us=self.clock.now_us(), speed=play.speed, through={"smtp": "postmark"},
            manners=Manners.good(), **self._world(),
        )  # fmt: skip
        sources = sources_from(read_keys(self.folder / "sandbox.yaml"))
        reactor = Reactor(self.inbox, react, f"http://127.0.0.1:{self.config.door.port}", sources, clock=self.clock)
        with reactor:
            self._order(Add(id="add", campaign="loop", who="sandbox", definition=self._definition(names), audience=self._list()))
            self._prepare()
            self._order(Move(id="start", campaign="loop", who="sandbox", to="sending"))
            self._watch()
            self._await(react)
            again = self._settle(react)
        return self._told(began, react, reactor, again)

    # -- what is played beside the campaign ----------------------------------------------------------------------------------------

    effects = Effects()

    def _world(self) -> dict:
        """Return what else is true of the people."""
        return {}

    def _settings(self) -> dict:
        """Return what else stands in the configuration."""
        return {}

    def _prepare(self) -> None:
        """Put in place what has to be there before the campaign starts."""

    def _look(self) -> None:
        """Do what is due while the campaign goes on."""

    def _await(self, react: React) -> None:
        """Wait for what its end does not wait for."""

    # -- processes -------------------------------------------------------------------------------------------------------------

    def _write(self) -> None:
        ports = free_ports(2)
        config, keys = sandbox_config(dict(zip(("door", "console"), ports, strict=True)), self.play.seed, str(self.folder / "data"))
        config["channels"] = {"out": self._channel()}
        config["sending"] = {"speed": self.play.speed}
        config |= self._settings()
        write_files(self.folder, config, keys)
        self.config = load_config(self.folder / "midflight.yaml")

    def _channel(self) -> dict:
        kind = self.play.channel
        if kind == "smtp":
            settings = {"host": "127.0.0.1", "port": self.mailbox.port, "tls": "none", "source": "postmark"}
            return {"kind": "smtp", **settings, "per_second": 5000.0, "end_timeout_s": 20.0}
        key, url = KEYS[kind], self.apis.url
        if kind == "ses":
            access, secret = key.split(":")
            own = {"region": "eu-west-1", "access_key_id": access, "secret_access_key": secret}
        else:
            own = {"mailgun": {"api_key": key, "domain": "m.example"}, "postmark": {"server_token": key}}.get(kind, {"api_key": key})
        return {"kind": kind, **own, "url": url, "per_second": 5000.0}

    def _start(self, name: str) -> None:
        # They end with this process, however it does.
        environment = os.environ | {"MIDFLIGHT_CONFIG": str(self.folder / "midflight.yaml"), "MIDFLIGHT_SUPERVISED": str(os.getpid())}
        with (self.folder / f"{name}.out").open("a") as out:
            self.processes[name] = subprocess.Popen(
                [sys.executable, "-P", *self._what(name)], env=environment, stdout=out, stderr=out, start_new_session=True
            )

    def _what(self, name: str) -> list[str]:
        """Return what Python runs as one of the processes."""
        return ["-m", "midflight", name]

    def _kill(self) -> None:
        """Kill one of the processes as hard as there is, and start it again."""
        name = self.play.only or self.random.choice(KILLED)
        self.processes[name].kill()
        self.processes[name].wait()
        self.kills[name] += 1
        self._start(name)

    def _end(self) -> None:
        for process in self.processes.values():
            process.terminate()
        for process in self.processes.values():
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def _await_ready(self) -> None:
        self._wait(lambda: self._answers("door", "/ready") and self._answers("console", "/health"), start_s_max, "door and console answer")
        self._wait(lambda: (self.config.folder / "outbox.db").exists(), start_s_max, "the conductor has its outbox")

    def _answers(self, name: str, path: str) -> bool:
        try:
            return httpx.get(f"http://127.0.0.1:{getattr(self.config, name).port}{path}", timeout=2, trust_env=False).status_code == 200
        except httpx.HTTPError:
            return False

    def _wait(self, true: Callable[[], object], seconds: float, what: str) -> None:
        until = self.clock.monotonic_s() + seconds
        while not true():
            if self.clock.monotonic_s() > until:
                raise MidflightError(f"After {seconds:.0f} s it is not so that {what}", where=str(self.folder))
            self.clock.sleep_s(0.05)

    # -- the campaign ----------------------------------------------------------------------------------------------------------

    def _definition(self, names: str) -> dict:
        return {
            "name": "loop", "channel": "out", "from_address": "news@shop.example", "audience": {"csv": "list.csv"},
            "variants": [{"name": name, "subject": f"{name}: two days left", "text": TEXT} for name in names],
            "waves": {"hours": self.play.hours, "every_minutes": 5.0}, "policy": {"kind": self.play.policy}, "seed": self.play.seed,
            "guardrails": {"unsubscribe": 1.0, "complaint": 1.0, "bounce": 1.0},
        }  # fmt: skip

    def _list(self) -> str:
        return keep(self.config.folder, list_of(self.people))

    def _order(self, order: Order | RuleOrder) -> None:
        """Have an order done, by a door that may be away for a moment. Raises MidflightError with what it was refused for."""
        record = rule_record_of(order) if isinstance(order, RuleOrder) else record_of(order)

        def taken() -> bool:
            try:
                return bool(append(self.config, [record]))
            except DoorAway:
                return False

        self._wait(taken, order_s_max, "the door takes an order")
        self._wait(lambda: self._end_of(order.id) is not None, order_s_max, f"order `{order.id}` is done")
        error = self._end_of(order.id)
        if error:
            raise MidflightError(f"The order `{order.id}` was refused", got=error)

    def _asked(self, question: Callable[[Campaigns], object]) -> object:
        outbox = Outbox(self.config.folder / "outbox.db", reading=True)
        try:
            return question(Campaigns(outbox))
        finally:
            outbox.close()

    def _end_of(self, id: str) -> str | None:
        return self._asked(lambda campaigns: campaigns.order_end(id))

    def _now(self) -> Running:
        return self._asked(lambda campaigns: campaigns.named("loop"))

    def _counts(self) -> dict[str, int]:
        return self._asked(lambda campaigns: campaigns.outbox.counts(campaigns.named("loop").id))

    def _watch(self) -> None:
        """Let the hours go by, with the kills spread over them."""
        play = self.play
        began, whole_s = self.clock.monotonic_s(), (play.hours + play.after) * 3600 / play.speed
        span_s = play.hours * 3600 / play.speed
        kills_s = sorted(began + span_s * (0.02 + 1.1 * self.random.random()) for _ in range(play.kills))
        said_s = began
        while self.clock.monotonic_s() < began + whole_s or self._now().state == "sending":
            if self.clock.monotonic_s() > began + whole_s + late_s_max:
                raise MidflightError("The campaign does not end", got=f"{self._counts()}", where=str(self.folder))
            for name, process in self.processes.items():
                if process.poll() is not None:
                    said = (self.folder / f"{name}.out").read_text()[-2000:]
                    raise MidflightError(f"The {name} ended by itself with {process.returncode}: {said}")
            self._look()
            if kills_s and self.clock.monotonic_s() > kills_s[0]:
                kills_s.pop(0)
                self._kill()
            if self.clock.monotonic_s() > said_s:
                said_s += 10
                self.say(f"{len(self.inbox):,} messages taken, {sum(self.kills.values())} kills, {self._now().state}")
            self.clock.sleep_s(0.05)

    def _settle(self, react: React) -> int:
        """When every event has come, send again what no webhook has named: by a person's word, as it is never done by itself."""
        self._wait(lambda: react.next_us == 0 or self.clock.now_us() < react.next_us, 600, "what is due is told")
        self._quiet()
        unknown = self._counts()["unknown"]
        if unknown:
            self._order(Settle(id="again", campaign="loop", who="sandbox", why="no webhook has named them", end="planned"))
            self._wait(lambda: self._counts()["planned"] == self._counts()["called"] == 0, order_s_max, "they are sent")
        return unknown

    def _quiet(self) -> None:
        """Wait until no more unknown calls are settled by webhooks."""
        before, since = -1, self.clock.monotonic_s()
        while self.clock.monotonic_s() < since + 5:
            found = self._counts()["unknown"]
            if found != before:
                before, since = found, self.clock.monotonic_s()
            self.clock.sleep_s(0.2)

    # -- the end ---------------------------------------------------------------------------------------------------------------

    def _told(self, began: float, react: React, reactor: Reactor, again: int) -> Told:
        messages = [m for m in self.inbox.messages() if m.campaign == "loop"]
        who = Counter(m.recipient.lower() for m in messages)
        variants = Counter(m.variant for m in messages)
        standing = self._asked(lambda campaigns: campaigns.standing(campaigns.named("loop").id))
        clicks, revenue = outcomes(react, messages, self.people)
        return Told(
            sent=len(messages),
            lost=len({address.lower() for address in self.people.addresses} - who.keys()),
            twice=sum(count - 1 for count in who.values()),
            kills=self.kills,
            again=again,
            states=self._counts(),
            differences=self._differences(react, reactor, patience_s if max(who.values(), default=0) < 2 else 0.0),
            untold=len(reactor.report.untold),
            shares={name: n / max(1, len(messages)) for name, n in sorted(variants.items())},
            claim=standing.said.text if standing else "",
            clicks=clicks,
            revenue=revenue,
            seconds=self.clock.monotonic_s() - began,
        )

    def _differences(self, react: React, reactor: Reactor, patience_s: float) -> list:
        """Return every number of the API that is not what was reported, after waiting for it.

        There is nothing to wait for where somebody got two messages: they have one id, and two lives under it have no one truth.
        """
        cells = [(cell, dict(counts)) for cell, counts in react.cells(reactor.report).items()]
        truth = Truth(seed=self.play.seed, tag="loop", start_us=0, dimensions=DIMENSION_NAMES, cells=cells)
        access = Access(self.config)
        try:
            token = access.make_token("loop", ["read"])[1]
        finally:
            access.close()
        return verify(truth, base_url(self.config), token=token, measures=MEASURES, timeout_s=patience_s)


def outcomes(react: React, messages: list[Accepted], people: Audience) -> tuple[np.ndarray, np.ndarray]:
    """Return each person's clicks and revenue, [N], of the messages that reached them."""
    place = {address.lower(): n for n, address in enumerate(people.addresses)}
    clicks, revenue = np.zeros(len(people)), np.zeros(len(people))
    for message in messages:
        found = react.would(message)
        n = place[message.recipient.lower()]
        clicks[n] += found["clicked"]
        revenue[n] += found["revenue_micros"] / 1e6
    return clicks, revenue


def gain(with_: np.ndarray, without: np.ndarray) -> tuple[float, float, float]:
    """Return how much more the same people did, in sum, with the 95 % interval over people: each is compared with himself."""
    more = with_ - without
    half = Z_95 * float(more.std()) * math.sqrt(more.size)
    return float(more.sum()), float(more.sum()) - half, float(more.sum()) + half


def list_of(people: Audience) -> bytes:
    """Return the people as a CSV."""
    text = io.StringIO()
    rows = csv.writer(text)
    rows.writerow(["email", "age", "region", "device"])
    for address, age, region, device in zip(people.addresses, people.ages, people.regions, people.devices, strict=True):
        rows.writerow([address, age, region, device])
    return text.getvalue().encode()


def free_ports(count: int) -> list[int]:
    """Return ports of loopback that nobody listens on."""
    held = []
    try:
        for _ in range(count):
            one = socket.socket()
            one.bind(("127.0.0.1", 0))
            held.append(one)
        return [one.getsockname()[1] for one in held]
    finally:
        for one in held:
            one.close()
