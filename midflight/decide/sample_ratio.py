"""Whether each wave went to its arms as planned: a broken split makes every comparison wrong; pure."""

from __future__ import annotations

import math

import msgspec
import numpy as np

alarm = 1000.0  # evidence at which the split is called broken; false in at most one of a thousand campaigns, over all looks
concentration = 200.0  # how near to the plan a broken split is expected to be: shares off by some percent


class Split(msgspec.Struct, kw_only=True):
    """``evidence`` against the plan of all waves together, and the wave and arm that are furthest off; -1 where none is."""

    evidence: float
    broken: bool
    wave: int = -1
    arm: int = -1


def check(sent: np.ndarray, planned: np.ndarray) -> Split:
    """Compare what was sent, [W, K], with the planned shares, [W, K].

    Each wave is tested against its own plan, as adaptive shares differ from wave to wave: the ratio of a Dirichlet-multinomial around the
    plan to the multinomial of the plan (Lindon and Malek 2022), valid at any time; waves multiply.
    """
    logs = np.array([_log_ratio(n, p) for n, p in zip(sent, planned, strict=True)])
    total = float(logs.sum()) if logs.size else 0.0
    evidence = math.exp(min(700.0, total))
    if evidence < alarm:
        return Split(evidence=evidence, broken=False)
    wave = int(logs.argmax())
    expected = planned[wave] * sent[wave].sum()
    # Whoever got what nobody should get is further off than any chance.
    off = np.where((planned[wave] <= 0) & (sent[wave] > 0), np.inf, np.abs(sent[wave] - expected) / np.sqrt(np.maximum(expected, 1.0)))
    return Split(evidence=evidence, broken=True, wave=wave, arm=int(off.argmax()))


def _log_ratio(sent: np.ndarray, planned: np.ndarray) -> float:
    if (sent[planned <= 0] > 0).any():
        return math.inf
    n, p = sent[planned > 0].astype(float), planned[planned > 0]
    p = p / p.sum()
    a = concentration * p
    log = math.lgamma(concentration) - math.lgamma(concentration + n.sum())
    for x, share, weight in zip(n, p, a, strict=True):
        log += math.lgamma(weight + x) - math.lgamma(weight) - x * math.log(share)
    return log
