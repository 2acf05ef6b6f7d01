"""How surprising a difference is, what of it remains over a whole table, and how many items it would take to show one.

Nothing here is random but the resamples that are passed in. The distributions are a few lines each, since nothing that
is needed without the extra "eval" brings scipy; tests hold them to published tables.
"""

import math
from collections.abc import Sequence
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

LEVEL, POWER = 0.05, 0.8  # of two-sided tests: chance of a false call, and of showing a difference that is there
EXACT_BELOW = 25  # items that changed sides, from which on McNemar's statistic is near enough to chi-squared
NORMAL = NormalDist()


def mcnemar(lost: int, won: int) -> float:
    """Two-sided p that as many of the items that changed sides were lost as won (McNemar 1947).

    Below EXACT_BELOW changes it is the exact binomial probability, which calls too seldom rather than too often;
    from there on chi-squared without a correction.
    """
    changed = lost + won
    if changed < EXACT_BELOW:
        tail = sum(math.comb(changed, count) for count in range(min(lost, won) + 1))
        return min(1.0, 2 * tail / 2**changed)
    return math.erfc(abs(lost - won) / math.sqrt(2 * changed))


def bootstrap_p(change: float, changes_R: Floats, items: int) -> float:
    """Two-sided p of `change` under no difference: Student's t of it over the spread of its bootstrap.

    A bootstrap of few items is too narrow by sqrt((n - 1) / n). Counting resamples beyond zero instead could give no p
    below 1 / R, which Holm's adjustment of a long table would make nothing of; and no test that swaps the two sides of
    items can give one below 2^(1 - n), which is the least here.
    """
    least, error = 2.0 ** (1 - items), float(np.std(changes_R))
    if items < 2 or not change:
        return 1.0
    t = abs(change) / error * math.sqrt((items - 1) / items) if error else math.inf
    return max(least, student_p(t, items - 1))


def student_p(t: float, degrees: int) -> float:
    """Two-sided p of Student's t, by Wallace's approximation (1959): within 3% of p at 5 degrees, 0.2% at 15."""
    normal = math.sqrt(degrees * math.log1p(t * t / degrees)) * (8 * degrees + 1) / (8 * degrees + 3)
    return math.erfc(normal / math.sqrt(2))


def holm(p: Sequence[float]) -> list[float]:
    """The p of several tests so adjusted that the chance of any false call at LEVEL is at most LEVEL (Holm 1979)."""
    adjusted, largest = [1.0] * len(p), 0.0
    for rank, place in enumerate(sorted(range(len(p)), key=p.__getitem__)):
        largest = max(largest, p[place] * (len(p) - rank))
        adjusted[place] = min(1.0, largest)
    return adjusted


def items_for_sides(changed: float, difference: float) -> int | None:
    """Items that show a `difference` of proportions with POWER by McNemar's test, where a share `changed` of items
    changes sides (Connor 1987); None where none did, which tells nothing."""
    if not changed:
        return None
    changed = max(changed, difference)
    level, power = NORMAL.inv_cdf(1 - LEVEL / 2), NORMAL.inv_cdf(POWER)
    root = level * math.sqrt(changed) + power * math.sqrt(changed - difference**2)
    return math.ceil((root / difference) ** 2)


def items_for_spread(changes_R: Floats, items: int, difference: float) -> int | None:
    """Items that show a `difference` with POWER, where the bootstrap of `items` of them spread like `changes_R`; None
    where it did not spread, which tells nothing."""
    error = float(np.std(changes_R))
    wanted = difference / (NORMAL.inv_cdf(1 - LEVEL / 2) + NORMAL.inv_cdf(POWER))
    return math.ceil(items * (error / wanted) ** 2) if error else None
