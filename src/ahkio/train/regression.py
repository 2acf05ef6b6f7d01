"""What runs with different shares of the sources say of a held-out set, with intervals. Arithmetic, without torch.

For each set, ln(bits per byte after / before the run) = sum over sources of coefficient x share: Scheffé's first
polynomial ("Experiments with mixtures", 1958), in which the shares' sum of one takes the intercept's place. It has one
coefficient for each source, the least that tells sources apart, so that few runs leave something over to judge the
error by; logarithms make it the exponential law of J. Ye et al. ("Data Mixing Laws", 2024) without a floor, and its
coefficients changes in per cent. It does not know that the first rows of a source teach more than later ones: where
that matters, the leave-one-out error is large and the intervals wide.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ahkio.core.errors import UserError
from ahkio.core.stage import Facts

Floats = NDArray[np.floating[Any]]

CONFIDENCE = 0.95
MODEL = "ln(bits per byte / base) = sum of coefficient x share; least squares, 95% intervals by Student's t"


class Fit(NamedTuple):
    """Least squares over N runs of K sources; all values are logarithms of after / before."""

    coefficients_K: Floats
    spread_KK: Floats  # their covariance when the error is 1
    error: float  # standard deviation of a run about the fit
    freedom: int  # N - K
    measured_N: Floats
    left_out_N: Floats  # what the other runs predict of each; nan where they can't

    @property
    def reach(self) -> float:
        """Half an interval of CONFIDENCE of what has a standard deviation of 1."""
        return self.error * student_t(self.freedom)

    def predict(self, shares_GK: Floats) -> tuple[Floats, Floats]:
        """The prediction for each mix, and half the interval that holds a new run of it."""
        leverage_G = np.einsum("gk,kj,gj->g", shares_GK, self.spread_KK, shares_GK)
        return shares_GK @ self.coefficients_K, self.reach * np.sqrt(1 + leverage_G)


def fit(shares_NK: Floats, measured_N: Floats) -> Fit:
    runs, sources = shares_NK.shape
    if runs <= sources or np.linalg.matrix_rank(shares_NK) < sources:
        raise UserError(
            f"The rows that {runs} runs have read do not tell {sources} sources apart; take more mixes or more steps."
        )
    spread_KK = np.linalg.inv(shares_NK.T @ shares_NK)
    coefficients_K = spread_KK @ shares_NK.T @ measured_N
    residual_N = measured_N - shares_NK @ coefficients_K
    left_N = 1 - np.einsum("nk,kj,nj->n", shares_NK, spread_KK, shares_NK)  # 1 - leverage
    alone_N = np.divide(residual_N, left_N, out=np.full(runs, np.nan), where=left_N > 1e-9)
    error = math.sqrt(float(residual_N @ residual_N) / (runs - sources))
    return Fit(coefficients_K, spread_KK, error, runs - sources, measured_N, measured_N - alone_N)


def student_t(freedom: int) -> float:
    """The quantile of Student's t that leaves (1 - CONFIDENCE) / 2 above it."""
    low, high = 0.0, math.pi / 2
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if within(middle, freedom) < CONFIDENCE else (low, middle)
    return math.sqrt(freedom) * math.tan(high)


def within(angle: float, freedom: int) -> float:
    """The probability that |t| is below sqrt(freedom) x tan(angle): 26.7.3 and 26.7.4 of M. Abramowitz and I. Stegun,
    "Handbook of Mathematical Functions" (1964)."""
    term = total = math.cos(angle) if freedom % 2 else 1.0
    for n in range(3 if freedom % 2 else 2, freedom - 1, 2):
        term *= math.cos(angle) ** 2 * (n - 1) / n
        total += term
    if freedom % 2 == 0:
        return math.sin(angle) * total
    return 2 / math.pi * (angle + (math.sin(angle) * total if freedom > 1 else 0.0))


def summary(found: Fit, sources: Sequence[str]) -> Facts:
    """The coefficients as changes in per cent if all rows came from one source; the leave-one-out error in points."""
    half_K = found.reach * np.sqrt(np.diag(found.spread_KK))
    missed_N = 100 * (np.expm1(found.measured_N) - np.expm1(found.left_out_N))
    return {
        "coefficients": {
            name: {"change": percent(value), "interval": [percent(value - half), percent(value + half)]}
            for name, value, half in zip(sources, found.coefficients_K, half_K, strict=True)
        },
        "left_out_error": math.sqrt(float(np.nanmean(missed_N**2))),
        "degrees_of_freedom": found.freedom,
    }


def foretold(found: Fit, weights: Sequence[float], base: float) -> Facts:
    """What a run with these weights would measure, with the interval of one such run."""
    (value,), (half,) = found.predict(np.array([weights]) / sum(weights))
    ends = (value - half, value + half)
    return {
        "bits_per_byte": base * math.exp(value),
        "interval": [base * math.exp(end) for end in ends],
        "change": percent(value),
        "change_interval": [percent(end) for end in ends],
    }


def percent(logarithm: float) -> float | None:
    return None if math.isnan(logarithm) else 100 * math.expm1(logarithm)
