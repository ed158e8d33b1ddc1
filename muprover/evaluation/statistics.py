"""How sure a figure is: 95 % confidence intervals."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

Z = 1.959964  # of 95 %


class Estimate(NamedTuple):
    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


def share(successes: float, trials: int) -> Estimate:
    """Wilson's interval. Half successes (draws) may count as such; then it is on the safe side."""
    if not trials:
        return Estimate(math.nan, 0.0, 1.0)
    p, z2 = successes / trials, Z * Z
    middle = (p + z2 / (2 * trials)) / (1 + z2 / trials)
    half = Z / (1 + z2 / trials) * math.sqrt(p * (1 - p) / trials + z2 / (4 * trials**2))
    return Estimate(p, max(0.0, middle - half), min(1.0, middle + half))


def mean(values: ArrayLike) -> Estimate:
    """By the normal distribution."""
    array = np.asarray(values, np.float64)
    average = float(array.mean())
    half = Z * float(array.std(ddof=1)) / math.sqrt(array.size) if array.size > 1 else math.inf
    return Estimate(average, average - half, average + half)


def elo(score: float) -> float:
    """How many points of rating the expected `score` of a game is worth; infinite at its ends."""
    if not 0 < score < 1:
        return math.copysign(math.inf, score - 0.5)
    return 400 * math.log10(score / (1 - score))
