"""The rules that act, by version: what each does, by which way out, within which limits, and how far it may go on its own now.

An edit makes a new version. A firing names the version that fired, and is acted on by that version's own action and limits. ``oldest`` is
the first version whose firings are still acted on: an edit that drops what waits sets it to the new one, an edit that keeps leaves it.
Counts, cooldowns and who is held out go by the rule's name, so no edit sets them back.
"""

from __future__ import annotations

import logging

import apsw
import msgspec

from ..decide.acts import Acts, BadRule, RuleAction, acts_of, name_chars_max
from ..decide.definitions import rules_max
from ..decide.limits import Autonomy, Limits
from ..kit.errors import NotFound, nearest

logger = logging.getLogger("midflight.conductor")

campaign_chars_max = 100  # of a rule's own campaign

_SCHEMA = """
-- Every version of every rule, as it was put down; nothing is taken out, so that an old action can be explained. It is some kilobytes.
CREATE TABLE IF NOT EXISTS rules (rule TEXT, version INTEGER, definition BLOB NOT NULL, at_us INTEGER NOT NULL, who TEXT NOT NULL,
    why TEXT NOT NULL, PRIMARY KEY (rule, version)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS rules_now (rule TEXT PRIMARY KEY, version INTEGER NOT NULL, oldest INTEGER NOT NULL, autonomy TEXT NOT NULL,
    removed INTEGER NOT NULL DEFAULT 0) WITHOUT ROWID;
"""


class Rule(msgspec.Struct, kw_only=True, frozen=True):
    """One version of a rule. ``autonomy`` is what holds now, for all versions of the rule."""

    name: str
    version: int
    action: RuleAction
    limits: Limits
    autonomy: Autonomy


class Now(msgspec.Struct, kw_only=True, frozen=True):
    """How a rule stands: its version in force, the oldest one whose firings are acted on, and how far it may go on its own."""

    version: int
    oldest: int
    autonomy: Autonomy
    removed: bool


def follow_up_of(rule: str, campaign: object = "") -> str:
    """Return under which campaign a rule's follow-ups are counted: the one that it names, or one of its own."""
    return (campaign if isinstance(campaign, str) and campaign.strip() else f"Follow-up: {rule}")[:campaign_chars_max].strip()


class Rulebook:
    """The rules, in the outbox's file. Every method that changes something is part of its caller's transaction."""

    def __init__(self, db: apsw.Connection) -> None:
        self.db = db
        if not db.readonly("main"):
            db.execute(_SCHEMA)
        self._now: dict[str, Now] = {}
        self._versions: dict[tuple[str, int], Acts] = {}
        self._campaigns: dict[str, str] | None = None
        self.forget()

    def forget(self) -> None:
        """Read anew what is in force, because a transaction ended that did not keep what it changed."""
        self._campaigns = None
        rows = self.db.execute("SELECT rule, version, oldest, autonomy, removed FROM rules_now ORDER BY rule")
        self._now = {
            name: Now(version=version, oldest=oldest, autonomy=autonomy, removed=bool(removed))
            for name, version, oldest, autonomy, removed in rows
        }

    def put(self, name: str, version: int, definition: dict, who: str, why: str, now_us: int, *, keep: bool = False) -> Acts:
        """Put a version of a rule into force; with ``keep``, what waits of the versions before goes on.

        Whoever calls has checked name, version and definition as the engine does: see decide/definitions.py.
        """
        before = self._now.get(name)
        assert version == (before.version if before else 0) + 1, "an order that definitions allowed is one version further"
        acts = acts_of(definition)
        values = (name, version, msgspec.json.encode(definition), now_us, who, why)
        self.db.execute("INSERT INTO rules VALUES (?, ?, ?, ?, ?, ?)", values)
        oldest = before.oldest if before and keep and not before.removed else version
        self._set(name, Now(version=version, oldest=oldest, autonomy=acts.limits.autonomy, removed=False))
        return acts

    def remove(self, name: str) -> None:
        """Take a rule out of force; its versions stay on record, and the name goes on where it was. Raises NotFound."""
        now = self.now(name)
        if now.removed:
            raise NotFound(f"Rule `{name}` is removed already")
        self._set(name, msgspec.structs.replace(now, removed=True, oldest=now.version + 1))

    def let(self, name: str, autonomy: Autonomy) -> None:
        """Say how far a rule may go on its own from now on; it is no new version. Raises NotFound."""
        now = self.now(name)
        if now.removed:
            raise NotFound(f"Rule `{name}` is removed")
        self._set(name, msgspec.structs.replace(now, autonomy=autonomy))

    def _set(self, name: str, now: Now) -> None:
        self.db.execute(
            "INSERT OR REPLACE INTO rules_now VALUES (?, ?, ?, ?, ?)", (name, now.version, now.oldest, now.autonomy, now.removed)
        )  # fmt: skip
        self._now[name] = now
        self._campaigns = None

    # -- reading -----------------------------------------------------------------------------------------------------------------

    def names(self) -> list[str]:
        """Return the names of the rules in force."""
        return [name for name, now in self._now.items() if not now.removed]

    def now(self, name: str) -> Now:
        """Return how a rule stands. Raises NotFound with the nearest one."""
        if name not in self._now:
            raise NotFound(f"Unknown rule `{name[:name_chars_max]}`", todo=nearest(name[:name_chars_max], self.names()))
        return self._now[name]

    def known(self, name: str) -> Now | None:
        return self._now.get(name)

    def rule(self, name: str, version: int) -> Rule | None:
        """Return a version whose firings are acted on; None where they are not, or not yet."""
        now = self._now.get(name)
        if now is None or not now.oldest <= version <= now.version:
            return None
        acting = self.version(name, version)
        if acting is None:
            return None
        return Rule(name=name, version=version, action=acting.action, limits=acting.limits, autonomy=now.autonomy)

    def priority(self, name: str) -> int:
        """Return the priority of a rule's version in force; 0 of one that is not known."""
        now = self._now.get(name)
        acting = self.version(name, now.version) if now else None
        return acting.limits.priority if acting else 0

    def sender_of(self, campaign: str) -> str:
        """Return the rule whose follow-ups are counted under a campaign; nothing where it is none."""
        if self._campaigns is None:
            acts = {name: self.version(name, now.version) for name, now in self._now.items()}
            self._campaigns = {follow_up_of(name, one.action.fields.get("campaign")): name for name, one in acts.items() if one}
        return self._campaigns.get(campaign, "")

    def by_ways(self, ways: set[str]) -> list[str]:
        """Return the rules whose version in force acts by one of these ways out."""
        found = ((name, self.version(name, now.version)) for name, now in self._now.items()) if ways else ()
        return [name for name, acts in found if acts and acts.action.way in ways]

    def version(self, name: str, version: int) -> Acts | None:
        """Return what a version does, in force or not; None where there is none of it."""
        if (name, version) not in self._versions:
            found = self.db.execute("SELECT definition FROM rules WHERE rule = ? AND version = ?", (name, version)).fetchone()
            if found is None:
                return None
            try:
                self._versions[name, version] = acts_of(msgspec.json.decode(found[0]))
            except (BadRule, msgspec.DecodeError) as error:
                # Put down by another version of Midflight: its firings are not acted on, and all others are.
                logger.error("rule `%s`, version %d, cannot be read: %s", name, version, error)
                return None
            if len(self._versions) > 4 * rules_max:
                self._versions.pop(next(iter(self._versions)))
        return self._versions[name, version]

    def definition(self, name: str, version: int) -> dict:
        """Return a version as it was put down, to edit or to explain by. Raises NotFound."""
        found = self.db.execute("SELECT definition FROM rules WHERE rule = ? AND version = ?", (name, version)).fetchone()
        if found is None:
            raise NotFound(f"Rule `{name[:name_chars_max]}` has no version {version}")
        return msgspec.json.decode(found[0])
