"""Who may look: users with passwords, sessions of the console, tokens of programs; in a file of the console's own."""

from __future__ import annotations

import hashlib
import hmac
import logging
import re
import secrets
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import apsw
import msgspec

from ..config import Config
from ..kit.clock import Clock
from ..kit.errors import MidflightError, NotFound, nearest

logger = logging.getLogger(__name__)

SCOPES = ("read", "write", "send", "decide", "admin")
# What a scope lets through: writers and senders read too, administrators do everything.
GRANTS = {"read": {"read"}, "write": {"read", "write"}, "send": {"read", "send"}, "decide": {"decide"}, "admin": set(SCOPES)}

password_chars_min = 10
password_chars_max = 256
name_chars_max = 64
session_idle_s = 12 * 3600
session_life_s = 7 * 24 * 3600
setup_life_s = 24 * 3600
sessions_max = 10_000
tries_max = 10  # logins at once with one name from one address
address_tries_max = 30  # and from that address with whatever names: an office may have one address
try_again_s = 30.0  # then one more each so often
# From all addresses together with one name, except those from which it has logged in: a stranger locks nobody out of his usual place.
name_tries_max = 60
name_try_again_s = 60.0
places_max = 20  # addresses remembered for each user
keys_max = 10_000
hashing_max = 2  # passwords checked at the same time: each takes 32 MB

OBSTACLES = (apsw.FullError, apsw.IOError, apsw.CantOpenError, OSError)

SCRYPT = {"n": 2**15, "r": 8, "p": 1}

# In the file's `user_version`; files from before it was kept have 0 and the tables of 1.
VERSION = 1
SCHEMA = """
CREATE TABLE IF NOT EXISTS users (name TEXT PRIMARY KEY, salt BLOB NOT NULL, hash BLOB NOT NULL, made_us INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS tokens (id TEXT PRIMARY KEY, hash BLOB NOT NULL UNIQUE, label TEXT NOT NULL, scopes TEXT NOT NULL,
    made_us INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS sessions (hash BLOB PRIMARY KEY, user TEXT NOT NULL, csrf TEXT NOT NULL, made_us INTEGER NOT NULL,
    seen_us INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS places (user TEXT, address TEXT, seen_us INTEGER NOT NULL, PRIMARY KEY (user, address)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS setup (hash BLOB PRIMARY KEY, made_us INTEGER NOT NULL) WITHOUT ROWID;
"""


class WrongCredentials(MidflightError):
    """Nobody is let in with these; which part is wrong is not said."""

    status = 401
    code = "unauthorized"


class Forbidden(MidflightError):
    """Known, but not allowed to do this."""

    status = 403
    code = "forbidden"


class TooManyTries(MidflightError):
    """Too many logins from one address or for one name."""

    status = 429
    code = "too_many_tries"

    def __init__(self, wait_s: int) -> None:
        super().__init__("Too many tries", todo=f"Try again in {wait_s} s")
        self.wait_s = wait_s


class Unkept(MidflightError):
    """The file of users, sessions and tokens cannot be read or written: it is damaged, say."""

    status = 503
    code = "unkept"
    exit_status = 3


class NoRoom(Unkept):
    """The same where the disk is in the way, which may pass: it is full, say. SQLite needs room even to read."""


class Session(msgspec.Struct, frozen=True):
    """Somebody at the console. ``csrf`` has to come with everything that writes."""

    user: str
    csrf: str


class Token(msgspec.Struct, frozen=True):
    """A program's token, without its secret."""

    id: str
    label: str
    scopes: tuple[str, ...]
    made_us: int


class Access:
    """The file ``access.db``: hashes only, so that a copy of it lets nobody in.

    With ``patient``, a disk that is in the way does not stop the start: the file is opened as soon as it can be, and until then every
    question raises NoRoom.
    """

    def __init__(self, config: Config, clock: Clock | None = None, *, patient: bool = False) -> None:
        self.clock = clock or Clock()
        self._lock = threading.Lock()
        self._hashing = threading.Semaphore(hashing_max)
        self._path = config.make_folder() / "access.db"
        self._opened: apsw.Connection | None = None
        try:
            with worded(self._path):
                self._opened = opened(self._path)
        except NoRoom as error:
            if not patient:
                raise
            logger.error("%s. Nobody can log in until then", error.text())
        self.tries = Tries(self.clock, tries_max, try_again_s)
        self.address_tries = Tries(self.clock, address_tries_max, try_again_s)
        self.name_tries = Tries(self.clock, name_tries_max, name_try_again_s)

    def close(self) -> None:
        with self._lock:
            if self._opened is not None:
                self._opened.close()

    @property
    def _db(self) -> apsw.Connection:
        """The file, opened now where that was not possible before. The lock is held."""
        if self._opened is None:
            self._opened = opened(self._path)
        return self._opened

    def _run(self, sql: str, values: tuple = ()) -> list[tuple]:
        with self._lock, worded():
            return self._db.execute(sql, values).fetchall()

    @contextmanager
    def _changing(self) -> Iterator[None]:
        """Make several changes together. Raises Unkept, and then none of them is made."""
        with self._lock, worded(), self._db:
            yield

    # -- users -------------------------------------------------------------------------------------------------------

    def users(self) -> list[tuple[str, int]]:
        """Return ``(name, made_us)`` of every user."""
        return self._run("SELECT name, made_us FROM users ORDER BY name")

    def set_user(self, name: str, password: str) -> None:
        """Make a user or give one a new password; open sessions of that user end. Raises MidflightError."""
        checked_name(name)
        if not password_chars_min <= len(password) <= password_chars_max:
            raise MidflightError(
                "The password is too short or too long",
                expected=f"{password_chars_min} to {password_chars_max} characters",
                where="password",
            )
        salt = secrets.token_bytes(16)
        digest = self._scrypt(password, salt)
        with self._changing():
            self._db.execute("INSERT OR REPLACE INTO users VALUES (?, ?, ?, ?)", (name, salt, digest, self.clock.now_us()))
            self._db.execute("DELETE FROM sessions WHERE user = ?", (name,))
            self._db.execute("DELETE FROM setup")

    def remove_user(self, name: str) -> None:
        """Remove a user and end the sessions. Raises NotFound."""
        known = [n for n, _ in self.users()]
        if name not in known:
            raise NotFound(f"Unknown user `{name[:100]}`", todo=nearest(name[:100], known))
        with self._changing():
            self._db.execute("DELETE FROM users WHERE name = ?", (name,))
            self._db.execute("DELETE FROM sessions WHERE user = ?", (name,))
            self._db.execute("DELETE FROM places WHERE user = ?", (name,))

    def login(self, name: str, password: str, address: str) -> str:
        """Return the secret of a new session. Raises WrongCredentials, TooManyTries; unknown names take as long as known ones.

        Tries are counted by name and address, and by address. Those with a name from anywhere count together too, against a password
        that is guessed from many addresses; only an address from which this user has logged in before is never held up by them.
        """
        name = name[:name_chars_max]
        pair = f"{name.casefold()} from {address}"
        self.address_tries.take(address)
        self.tries.take(pair)
        if not self._run("SELECT 1 FROM places WHERE user = ? AND address = ?", (name, address)):
            self.name_tries.take(name.casefold())
        found = self._run("SELECT salt, hash FROM users WHERE name = ?", (name,))
        salt, wanted = found[0] if found else (b"\0" * 16, b"\0" * 32)
        given = self._scrypt(password[:password_chars_max], salt)
        if not (hmac.compare_digest(given, wanted) and found):
            raise WrongCredentials("The name or the password is wrong", todo="`midflight user set NAME` sets a new password")
        self.tries.forget(pair)
        secret = self.open_session(name)
        self._remember_place(name, address)
        return secret

    def _remember_place(self, name: str, address: str) -> None:
        with self._changing():
            self._db.execute("INSERT OR REPLACE INTO places VALUES (?, ?, ?)", (name, address, self.clock.now_us()))
            older = "SELECT address FROM places WHERE user = ?1 ORDER BY seen_us DESC LIMIT -1 OFFSET ?2"
            self._db.execute(f"DELETE FROM places WHERE user = ?1 AND address IN ({older})", (name, places_max))

    def _scrypt(self, password: str, salt: bytes) -> bytes:
        with self._hashing:
            return hashlib.scrypt(password.encode("utf-8", "replace"), salt=salt, maxmem=64 * 1024 * 1024, dklen=32, **SCRYPT)

    # -- sessions ----------------------------------------------------------------------------------------------------

    def open_session(self, user: str) -> str:
        """Return the secret of a new session; only its hash is kept."""
        secret = secrets.token_urlsafe(32)
        now = self.clock.now_us()
        with self._changing():
            self._db.execute(
                "DELETE FROM sessions WHERE seen_us < ? OR made_us < ?",
                (now - session_idle_s * 1_000_000, now - session_life_s * 1_000_000),
            )
            self._db.execute(
                "DELETE FROM sessions WHERE hash IN (SELECT hash FROM sessions ORDER BY seen_us DESC LIMIT -1 OFFSET ?)",
                (sessions_max - 1,),
            )
            self._db.execute("INSERT INTO sessions VALUES (?, ?, ?, ?, ?)", (hashed(secret), user, secrets.token_urlsafe(24), now, now))
        return secret

    def session(self, secret: str) -> Session | None:
        """Return the session behind a cookie, or None where it is unknown, idle for too long or too old."""
        if not secret or len(secret) > 200:
            return None
        digest = hashed(secret)
        found = self._run("SELECT user, csrf, made_us, seen_us FROM sessions WHERE hash = ?", (digest,))
        if not found:
            return None
        user, csrf, made, seen = found[0]
        now = self.clock.now_us()
        if now - seen > session_idle_s * 1_000_000 or now - made > session_life_s * 1_000_000:
            with suppress(Unkept):
                self.close_session(secret)
            return None
        if now - seen > 60 * 1_000_000:
            # Who is in already may go on looking while the disk is full.
            with suppress(Unkept):
                self._run("UPDATE sessions SET seen_us = ? WHERE hash = ?", (now, digest))
        return Session(user, csrf)

    def close_session(self, secret: str) -> None:
        self._run("DELETE FROM sessions WHERE hash = ?", (hashed(secret),))

    # -- tokens ------------------------------------------------------------------------------------------------------

    def make_token(self, label: str, scopes: list[str]) -> tuple[Token, str]:
        """Return a new token and its secret, which is shown once and never again. Raises MidflightError."""
        checked_name(label)
        for scope in scopes:
            if scope not in SCOPES:
                raise MidflightError(f"Unknown scope `{scope[:100]}`", where="scope", todo=nearest(scope[:100], SCOPES))
        if not scopes:
            raise MidflightError("A token needs a scope", expected=" or ".join(SCOPES), where="scope")
        token = Token(secrets.token_hex(4), label, tuple(s for s in SCOPES if s in scopes), self.clock.now_us())
        secret = f"mf_{secrets.token_urlsafe(32)}"
        self._run("INSERT INTO tokens VALUES (?, ?, ?, ?, ?)", (token.id, hashed(secret), label, " ".join(token.scopes), token.made_us))
        return token, secret

    def tokens(self) -> list[Token]:
        rows = self._run("SELECT id, label, scopes, made_us FROM tokens ORDER BY made_us, id")
        return [Token(id_, label, tuple(scopes.split()), made) for id_, label, scopes, made in rows]

    def revoke_token(self, id_: str) -> None:
        """End a token. Raises NotFound."""
        known = [t.id for t in self.tokens()]
        if id_ not in known:
            raise NotFound(f"Unknown token `{id_[:100]}`", todo=nearest(id_[:100], known))
        self._run("DELETE FROM tokens WHERE id = ?", (id_,))

    def token_scopes(self, secret: str) -> set[str] | None:
        """Return what a token may do, or None where it is unknown."""
        found = self.token_named(secret)
        return found and found[1]

    def token_named(self, secret: str) -> tuple[str, set[str]] | None:
        """Return a token's label and what it may do, or None where it is unknown. 256 random bits need no slow hash."""
        if not secret or len(secret) > 200:
            return None
        found = self._run("SELECT label, scopes FROM tokens WHERE hash = ?", (hashed(secret),))
        return (found[0][0], set().union(*(GRANTS[s] for s in found[0][1].split()))) if found else None

    # -- the first user ----------------------------------------------------------------------------------------------

    def setup_secret(self) -> str | None:
        """Return a fresh secret for making the first user, or None where there is one; it replaces the secret before."""
        if self.users():
            return None
        secret = secrets.token_urlsafe(24)
        with self._changing():
            self._db.execute("DELETE FROM setup")
            self._db.execute("INSERT INTO setup VALUES (?, ?)", (hashed(secret), self.clock.now_us()))
        return secret

    def setup_fits(self, secret: str) -> bool:
        """Return whether this secret may still make the first user."""
        if not secret or len(secret) > 200 or self.users():
            return False
        found = self._run("SELECT made_us FROM setup WHERE hash = ?", (hashed(secret),))
        return bool(found) and self.clock.now_us() - found[0][0] <= setup_life_s * 1_000_000


class Tries:
    """A bucket of tries for each key that fills up again with time."""

    def __init__(self, clock: Clock, most: int, again_s: float) -> None:
        self.clock, self.most, self.again_s = clock, most, again_s
        self._lock = threading.Lock()
        self._left: dict[str, tuple[float, float]] = {}

    def take(self, key: str) -> None:
        """Use one try. Raises TooManyTries with the seconds to wait."""
        now = self.clock.monotonic_s()
        with self._lock:
            left, at = self._left.get(key, (float(self.most), now))
            left = min(float(self.most), left + (now - at) / self.again_s)
            if left < 1:
                wait = int((1 - left) * self.again_s) + 1
                raise TooManyTries(wait)
            if len(self._left) >= keys_max:
                self._left = {k: v for k, v in self._left.items() if v[0] + (now - v[1]) / self.again_s < self.most}
                if len(self._left) >= keys_max:
                    self._left.pop(next(iter(self._left)))
            self._left[key] = (left - 1, now)

    def forget(self, key: str) -> None:
        with self._lock:
            self._left.pop(key, None)


def opened(path: Path) -> apsw.Connection:
    """Return the file of access, made where there is none. Raises what SQLite raises, and MidflightError where a newer version made it."""
    db = apsw.Connection(str(path))
    try:
        path.chmod(0o600)
        db.set_busy_timeout(5_000)
        version = db.pragma("user_version")
        if version > VERSION:
            raise MidflightError(
                "The file of users and tokens was made by a newer Midflight",
                expected=f"version {VERSION} or older",
                got=version,
                where=str(path),
                todo="Run that version, or move the file away and make users and tokens anew",
            )
        db.execute("PRAGMA journal_mode=WAL; PRAGMA synchronous=FULL")
        with db:
            db.execute(SCHEMA)
            if version < VERSION:
                db.pragma("user_version", VERSION)
    except BaseException:
        db.close()
        raise
    return db


@contextmanager
def worded(path: Path | None = None) -> Iterator[None]:
    """Raise Unkept for what SQLite says, NoRoom for what the disk does."""
    try:
        yield
    except (apsw.Error, OSError) as error:
        kind = NoRoom if isinstance(error, OBSTACLES) else Unkept
        where = None if path is None else str(path)
        raise kind(f"Users and tokens cannot be read or written: {error}", where=where, todo="Look at the disk: is it full?") from None


def hashed(secret: str) -> bytes:
    return hashlib.sha256(secret.encode("utf-8", "replace")).digest()


def checked_name(name: str) -> None:
    """Raise MidflightError unless a name of a user or token is short and printable."""
    if not re.fullmatch(r"[\w.@+ -]{1,64}", name) or name != name.strip():
        raise MidflightError(
            "Not a name", expected=f"1 to {name_chars_max} letters, digits, . @ + - _ or spaces", got=name[:64], where="name"
        )


def base_url(config: Config) -> str:
    """Return where the console is reached from this machine."""
    host = config.console.host
    host = "127.0.0.1" if host in ("", "0.0.0.0", "::") else f"[{host}]" if ":" in host else host
    return f"http://{host}:{config.console.port}"


def setup_url(config: Config, clock: Clock | None = None) -> str | None:
    """Return the one-time link that makes the first user, or None where there is a user already. For `midflight up` to print."""
    access = Access(config, clock)
    try:
        secret = access.setup_secret()
    finally:
        access.close()
    return f"{base_url(config)}/setup?key={secret}" if secret else None


def demo_user(config: Config, clock: Clock | None = None) -> tuple[str, str]:
    """Make or renew the user of a demonstration; return name and password to show on the terminal."""
    access = Access(config, clock)
    try:
        password = "-".join(secrets.token_hex(2) for _ in range(3))
        access.set_user("demo", password)
    finally:
        access.close()
    return "demo", password
