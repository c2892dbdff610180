"""Which last minutes are also kept by the second, so that a short window can begin at any second and not only at a full minute."""

from __future__ import annotations

from collections import Counter

import numpy as np

from ..stream.tables import NEVER

kept_s = 16 * 60  # the longest window that begins to the second is a quarter of an hour
rows_max = 500_000  # with many dimensions and much traffic less is kept
cut_every_s = 10
# Numbers are up to date, and worth seconds, while the log is read this close behind its end; well behind it the work is saved.
up_to_date_s, behind_s = 2.0, 15.0


class Recent:
    """Says for each batch from when on seconds are wanted, and what of the oldest is cut off.

    Sums by the second are right from ``start_s`` on: nothing that happened later had been folded before they were begun, and everything
    that happened later was folded with them. A restart begins anew, as does having been far behind.
    """

    def __init__(self) -> None:
        self.start_s = 0  # 0: nothing is kept
        self._anew = True
        self._cut_at_s = 0
        self._to_cut: list[int] = []
        self._rows: Counter[int] = Counter()  # second -> rows written, at least as many as there are
        self._latest: dict[int, int] = {}  # campaign -> its latest second

    def wanted_from_us(self, now_us: int, log_time_us: int, folded_us: int) -> int:
        """Return from when on the next batch has to come by the second.

        The batch came in until ``log_time_us``, all that is folded until ``folded_us``.
        """
        behind_by_s = (now_us - log_time_us) / 1_000_000
        if not self.start_s and behind_by_s <= up_to_date_s:
            # Things happen before they are received, so nothing from the next second on was folded yet.
            self.start_s = folded_us // 1_000_000 + 1
        elif self.start_s and behind_by_s > behind_s:
            self.__init__()
        if self.start_s and now_us // 1_000_000 - self._cut_at_s >= cut_every_s:
            self._cut_at_s = now_us // 1_000_000
            self._move_start(self._cut_at_s - kept_s)
        return self.start_s * 1_000_000 if self.start_s else NEVER

    def has_to_begin_anew(self) -> bool:
        """Tell, once after each beginning, that the store holds seconds of before."""
        anew, self._anew = self._anew, False
        return anew

    def note(self, campaign: np.ndarray, second: np.ndarray) -> None:
        """Take into account rows that were written."""
        seconds, rows = np.unique(second, return_counts=True)
        self._rows.update(dict(zip(seconds.tolist(), rows.tolist(), strict=True)))
        for id_ in np.unique(campaign).tolist():
            self._latest[id_] = max(self._latest.get(id_, 0), int(second[campaign == id_].max()))

    def cuts(self) -> list[int]:
        """Return, once after each move of the start, the campaigns that may have rows from before it."""
        cut, self._to_cut = self._to_cut, []
        return cut

    def _move_start(self, start_s: int) -> None:
        kept = 0
        for second in sorted(self._rows, reverse=True):
            kept += self._rows[second]
            if kept > rows_max:
                start_s = max(start_s, second + 1)
                break
        if start_s > self.start_s:
            self.start_s = start_s
            self._rows = Counter({second: rows for second, rows in self._rows.items() if second >= start_s})
            self._to_cut = list(self._latest)
            self._latest = {campaign: latest for campaign, latest in self._latest.items() if latest >= start_s}
