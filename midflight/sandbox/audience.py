"""The people: addresses at real mailbox providers, and the attributes that their behaviour depends on."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..config import Attribute
from ..events import recipient_key
from .truth import PROVIDERS

# Share of each mailbox provider among recipients; the rest have a company's own domain.
MIX = {"Gmail": 0.38, "Microsoft": 0.2, "Yahoo": 0.11, "Apple": 0.11, "GMX / WEB.DE": 0.08, "Other": 0.12}
COMPANIES = tuple(f"{name}.example" for name in ("northwind", "contoso", "tailspin", "initech", "umbrella", "hooli", "acme", "globex"))
REGIONS = ("north", "south", "east", "west")
DEVICES = ("mobile", "desktop")
BANDS = (25, 40, 60)
GIVEN = tuple("ada ben cleo dan eva finn gil hana ida jan kim lou mia noor ole pia rui sol tom uma".split())

# The dimensions that `midflight demo` configures; `Audience.labels` has their values in this order.
DIMENSIONS = (
    Attribute(name="age_band", trait="age", bands=list(BANDS)),
    Attribute(name="region", trait="region"),
    Attribute(name="device", trait="device"),
)
DIMENSION_NAMES = tuple(d.name for d in DIMENSIONS)


def age_band(age: int) -> str:
    """Return ``<25``, ``25-39``, ``40-59`` or ``60+``."""
    if age < BANDS[0]:
        return f"<{BANDS[0]}"
    for low, high in zip(BANDS, BANDS[1:], strict=False):
        if age < high:
            return f"{low}-{high - 1}"
    return f"{BANDS[-1]}+"


@dataclass(frozen=True)
class Audience:
    """Recipients by index. ``addresses`` are as typed by people; ``keys`` is what makes two of them one recipient."""

    addresses: list[str]
    keys: list[str]
    user_ids: list[str]
    providers: list[str]
    ages: list[int]
    regions: list[str]
    devices: list[str]

    def __len__(self) -> int:
        return len(self.addresses)

    def labels(self, index: int) -> tuple[str, str, str]:
        return age_band(self.ages[index]), self.regions[index], self.devices[index]

    def traits(self, index: int) -> dict[str, object]:
        return {"age": self.ages[index], "region": self.regions[index], "device": self.devices[index]}

    def attributes(self) -> dict[str, tuple[str, ...]]:
        """Return the values of the dimensions by recipient key, as the truth needs them."""
        return {key: self.labels(i) for i, key in enumerate(self.keys)}


def audience(rng: np.random.Generator, size: int, tag: str) -> Audience:
    """Draw ``size`` recipients; ``tag`` keeps those of two runs apart."""
    names = list(MIX)
    provider = rng.choice(len(names), size, p=list(MIX.values()))
    pick = rng.integers(0, 1 << 30, size)
    given = rng.integers(0, len(GIVEN), size)
    odd = rng.random(size)
    addresses = []
    for i in range(size):
        domains = PROVIDERS.get(names[provider[i]], COMPANIES)
        domain = domains[int(pick[i]) % len(domains)]
        local = f"{GIVEN[given[i]]}.{i:x}.{tag}"
        # Some people type capitals and plus-tags; both are the address that the vendor reports.
        local = local.title() if odd[i] < 0.02 else f"{local}+news" if odd[i] < 0.04 else local
        addresses.append(f"{local}@{domain}")
    return Audience(
        addresses=addresses,
        keys=[recipient_key(a) for a in addresses],
        user_ids=[f"u-{tag}-{i:x}" for i in range(size)],
        providers=[names[p] for p in provider],
        ages=[int(a) for a in np.clip(rng.normal(43, 17, size), 18, 90)],
        regions=[REGIONS[r] for r in rng.choice(len(REGIONS), size, p=[0.35, 0.3, 0.2, 0.15])],
        devices=[DEVICES[d] for d in rng.choice(len(DEVICES), size, p=[0.62, 0.38])],
    )
