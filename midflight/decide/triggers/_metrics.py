"""What triggers about metrics share: which metric, of which campaign or mailbox provider, over how long."""

from __future__ import annotations

from typing import ClassVar

from ...kit.errors import MidflightError, nearest
from ...metrics import REGISTRY, Metric
from ...stream.conditions import duration_us, duration_words
from ...stream.providers import PROVIDERS
from .trigger import AboutNumbers, BadTrigger, Counted

MINUTE_US = 60_000_000
over_us_max = 7 * 24 * 60 * MINUTE_US


class AboutMetric(AboutNumbers):
    """``metric`` ``over`` the last minutes, of people; of one ``campaign`` or ``provider``, or of all."""

    units: ClassVar[tuple[str, ...]] = ("count", "share", "money_per_thousand")

    metric: str
    over: str = "15m"
    campaign: str = ""
    provider: str = ""

    def of(self) -> type[Metric]:
        return REGISTRY.get(self.metric)

    def check(self) -> None:
        known = {name: metric for name, metric in REGISTRY.all().items() if metric.unit in self.units}
        if self.metric not in known:
            expected = f"one of {', '.join(known)}"
            raise BadTrigger("This metric is not for this trigger", expected=expected, got=self.metric[:100], where="$.when.metric")
        if self._over_us() % MINUTE_US or self._over_us() > over_us_max:
            raise BadTrigger("Over how long?", expected="whole minutes, at most 7d, as `15m`", got=self.over, where="$.when.over")
        if self.provider and self.provider not in PROVIDERS:
            raise BadTrigger("Unknown mailbox provider", got=self.provider[:100], where="$.when.provider",
                             todo=nearest(self.provider[:100], PROVIDERS))  # fmt: skip

    def counted(self) -> Counted:
        metric = self.of()
        measures = (*metric.over(machines=False), *metric.under(machines=False))
        return Counted(tuple(dict.fromkeys(measures)), self._over_us() // MINUTE_US, self.campaign, self.provider)

    def subject(self) -> str:
        """Return metric and what it is of, in words."""
        said = f"the {self.of().label.lower()} of {f'campaign `{self.campaign}`' if self.campaign else 'all mail'}"
        return said + (f" to {self.provider}" if self.provider else "")

    def _over_us(self) -> int:
        try:
            return duration_us(self.over, "$.when.over")
        except MidflightError as error:
            raise BadTrigger(error.what, expected=error.expected, got=error.got, where=error.where) from None

    def length(self) -> str:
        return duration_words(self._over_us())
