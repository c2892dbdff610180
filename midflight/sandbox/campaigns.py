"""What is sent: campaigns with variants whose effects on each group of people are known."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import cycle, islice


@dataclass(frozen=True)
class Variant:
    """One version: the chance that a person opens, that an opener clicks, that a clicker buys, and what is paid on average."""

    name: str
    opens: float
    clicks: float
    buys: float
    price: float


@dataclass(frozen=True)
class Campaign:
    """One campaign. ``tastes`` multiplies clicks and purchases: ``{(attribute, value): {variant: factor}}``."""

    name: str
    sources: tuple[str, ...]
    variants: tuple[Variant, ...]
    links: tuple[str, ...]
    tastes: dict[tuple[str, str], dict[str, float]] = field(default_factory=dict)
    share: float = 0.7
    waves: int = 4

    def taste(self, variant: str, labels: dict[str, str]) -> float:
        factor = 1.0
        for group in labels.items():
            factor *= self.tastes.get(group, {}).get(variant, 1.0)
        return factor

    def effects(self) -> dict:
        """Return the true effects as plain data, for the truth file."""
        return {
            "variants": {
                v.name: {"open": v.opens, "click_of_openers": v.clicks, "buy_of_clickers": v.buys, "price": v.price} for v in self.variants
            },
            "tastes": [{"attribute": a, "value": v, "factors": f} for (a, v), f in self.tastes.items()],
        }


_YOUNG_A_OLD_B = {
    ("age_band", "<25"): {"A": 1.9, "B": 0.5},
    ("age_band", "25-39"): {"A": 1.3, "B": 0.8},
    ("age_band", "40-59"): {"A": 0.8, "B": 1.3},
    ("age_band", "60+"): {"A": 0.5, "B": 1.9},
}
_MOBILE_B = {("device", "mobile"): {"A": 0.8, "B": 1.25}, ("device", "desktop"): {"A": 1.2, "B": 0.8}}
_NORTH_C = {("region", "north"): {"C": 1.8}, ("region", "west"): {"C": 0.6, "A": 1.3}}

# (name, preferred sources, variants, tastes, share of the audience)
_CATALOGUE = (
    ("spring-sale", ("sendgrid", "ses"), (Variant("A", 0.42, 0.16, 0.10, 59), Variant("B", 0.42, 0.16, 0.10, 59)), _YOUNG_A_OLD_B, 0.9),
    ("weekly-digest", ("ses",), (Variant("A", 0.36, 0.10, 0.02, 25), Variant("B", 0.36, 0.15, 0.02, 25)), _MOBILE_B, 0.7),
    ("trial-ending", ("postmark",), (Variant("A", 0.55, 0.22, 0.20, 19), Variant("B", 0.50, 0.22, 0.12, 29)), {}, 0.4),
    (
        "win-back",
        ("mailgun",),
        (Variant("A", 0.22, 0.07, 0.05, 80), Variant("B", 0.27, 0.07, 0.05, 80), Variant("C", 0.22, 0.11, 0.06, 80)),
        _NORTH_C,
        0.6,
    ),
    ("product-launch", ("resend",), (Variant("A", 0.48, 0.14, 0.05, 140), Variant("B", 0.48, 0.14, 0.07, 120)), _YOUNG_A_OLD_B, 0.5),
)


def campaigns(count: int, tag: str, sources: tuple[str, ...], waves: int = 4) -> list[Campaign]:
    """Return the first ``count`` campaigns, sent through those of ``sources`` that each prefers, or any when there is none of them."""
    made = []
    for number, (name, preferred, variants, tastes, share) in enumerate(islice(cycle(_CATALOGUE), count)):
        through = tuple(s for s in preferred if s in sources) or (sources[number % len(sources)],)
        again = number // len(_CATALOGUE)
        full = f"{name}-{again + 1}-{tag}" if again else f"{name}-{tag}"
        links = tuple(f"https://shop.example/{name}/{page}" for page in ("", "offer", "sizes", "reviews"))
        made.append(Campaign(full, through, variants, links, tastes, share, waves))
    return made
