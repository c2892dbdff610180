"""Vendors' certificates by URL: each is fetched once, a failure is remembered for a moment, and no URL holds up another."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from copy import copy
from threading import Lock

from ..kit.clock import Clock
from ..kit.errors import MidflightError

kept_max = 64  # Amazon has one or two for each region; the one that was not asked for longest goes
failure_s = 15.0  # SNS tries again after 20
# So many failures are remembered; until one is forgotten nothing unknown is fetched, however many URLs somebody makes up.
failures_max = 20
waiting_max = 4  # callers that fetch or wait for another's fetch: half of the door's threads


class NotNow(MidflightError):
    """The certificate cannot be had at the moment: the sender should try again (SNS never retries after a 401)."""

    status = 429
    code = "not_ready"


class Certificates:
    """What ``fetch`` returned for each URL. ``fetch`` raises MidflightError; it is called by one thread at a time for one URL."""

    def __init__(self, fetch: Callable[[str], str], clock: Clock | None = None) -> None:
        self.fetch = fetch
        self.clock = clock or Clock()
        self._lock = Lock()  # never held while something is fetched
        self._known: dict[str, str] = {}  # the latest asked for comes last
        self._failed: dict[str, tuple[float, MidflightError]] = {}
        self._fetching: dict[str, Future[str]] = {}
        self._waiting = 0

    def __len__(self) -> int:
        return len(self._known)

    def get(self, url: str) -> str:
        """Return the certificate behind a URL. Raises what ``fetch`` raised, also a moment ago; NotNow where too much is asked for."""
        with self._lock:
            if url in self._known:
                self._known[url] = self._known.pop(url)
                return self._known[url]
            self._refuse(url)
            self._waiting += 1
            others = self._fetching.get(url)
            result = others or self._fetching.setdefault(url, Future())
        try:
            if others is None:
                self._fetch(url, result)
            return result.result()
        except MidflightError as error:
            raise copy(error) from None  # one object raised in several threads would grow their frames
        finally:
            with self._lock:
                self._waiting -= 1

    def _refuse(self, url: str) -> None:
        """Raise for a URL that failed a moment ago, and where nothing more may be fetched now."""
        now = self.clock.monotonic_s()
        self._failed = {failed: (until, error) for failed, (until, error) in self._failed.items() if until > now}
        if url in self._failed:
            raise copy(self._failed[url][1])
        if len(self._failed) >= failures_max or self._waiting >= waiting_max:
            raise NotNow("Too many certificates are asked for that are not known", todo="Try again soon")

    def _fetch(self, url: str, result: Future[str]) -> None:
        try:
            found = self.fetch(url)
        except BaseException as error:
            with self._lock:
                del self._fetching[url]
                if isinstance(error, MidflightError):
                    self._failed[url] = (self.clock.monotonic_s() + failure_s, error.with_traceback(None))
            result.set_exception(error)
            return
        with self._lock:
            del self._fetching[url]
            while len(self._known) >= kept_max:
                del self._known[next(iter(self._known))]
            self._known[url] = found
        result.set_result(found)
