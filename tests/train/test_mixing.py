"""Short runs with different weights: which are tried, what is learnt from them, and what is recommended."""

import math

import numpy as np
import pytest

from ahkio.core.errors import UserError
from ahkio.tokens.mixture import Segment, Share
from ahkio.train.mixing import LARGEST_GRID, MOST_SOURCES, UNIT, design, grid, recommend
from ahkio.train.regression import fit, foretold, student_t, summary

OWN = (30, 30, 30, 10)
TRUE = {  # ln(after / before) if all rows came from one of four sources
    "finnish": np.array([-0.20, -0.01, 0.02, 0.01]),
    "english": np.array([0.05, -0.04, 0.01, 0.0]),
    "code": np.array([0.04, 0.01, -0.05, -0.01]),
    "math": np.array([0.03, 0.0, -0.01, -0.06]),
}
NAMES = list(TRUE)


def shares(count, seed=0):
    weights_NK = np.array(design(OWN, count, seed), float)
    return weights_NK / weights_NK.sum(1, keepdims=True)


def fits(count=10, error=0.0, seed=0):
    shares_NK, draw = shares(count), np.random.default_rng(seed)
    return {name: fit(shares_NK, shares_NK @ true + draw.normal(0, error, count)) for name, true in TRUE.items()}


# ---------------------------------------------------------------------------------------------------------------------
# The design


@pytest.mark.parametrize("own", [OWN, (95, 5), (1, 1, 2), (1.0,) * MOST_SOURCES])
def test_a_design_has_the_own_mix_and_different_round_ones_that_tell_the_sources_apart(own):
    tried = design(own, len(own) + 3, seed=1)
    assert tried[0] == own
    assert len(tried) == len({tuple(100 * one / sum(weights) for one in weights) for weights in tried}) == len(own) + 3
    assert np.linalg.matrix_rank(np.array(tried)) == len(own)
    for weights in tried[1:]:
        assert sum(weights) == 100
        assert all(weight % UNIT == 0 and weight > 0 for weight in weights)
        shared = tuple(Share(name=str(n), tokens=None, weight=weight) for n, weight in enumerate(weights))
        assert sum(Segment(rows=0, shares=shared).weights) <= 100 // UNIT


def test_the_seed_decides_the_mixes_in_between():
    assert design(OWN, 12, 0) == design(OWN, 12, 0) != design(OWN, 12, 1)
    assert design(OWN, 12, 0)[:9] == design(OWN, 9, 0)


def test_more_mixes_than_there_are_is_refused():
    with pytest.raises(UserError, match="try at most 19"):
        design((1, 1), 20, 0)


# ---------------------------------------------------------------------------------------------------------------------
# The regression


@pytest.mark.parametrize(
    ("freedom", "table"), [(1, 12.706), (2, 4.303), (3, 3.182), (4, 2.776), (9, 2.262), (30, 2.042)]
)
def test_students_t_is_that_of_the_tables(freedom, table):
    assert student_t(freedom) == pytest.approx(table, abs=1e-3)


def test_without_noise_the_coefficients_are_recovered():
    for name, found in fits(5).items():
        assert found.coefficients_K == pytest.approx(TRUE[name], abs=1e-9)
        assert summary(found, NAMES)["left_out_error"] == pytest.approx(0, abs=1e-6)
        told = foretold(found, (40, 30, 20, 10), base=2.0)
        assert told["bits_per_byte"] == pytest.approx(2 * math.exp(TRUE[name] @ [0.4, 0.3, 0.2, 0.1]))
        assert told["interval"] == pytest.approx([told["bits_per_byte"]] * 2)


def test_intervals_cover_the_truth_and_a_new_run_as_often_as_they_say():
    shares_NK, true_K, draw = shares(8), TRUE["finnish"], np.random.default_rng(3)
    new_K = np.array([0.4, 0.3, 0.2, 0.1])
    covered = np.zeros(5)
    for _ in range(2000):
        found = fit(shares_NK, shares_NK @ true_K + draw.normal(0, 0.01, 8))
        half_K = found.reach * np.sqrt(np.diag(found.spread_KK))
        value, half = found.predict(new_K[None])
        inside = abs(new_K @ true_K + draw.normal(0, 0.01) - value[0]) < half[0]
        covered += [*(abs(found.coefficients_K - true_K) < half_K), inside]
    assert covered / 2000 == pytest.approx(0.95, abs=0.02)


def test_what_the_others_predict_is_what_a_fit_without_the_run_predicts():
    shares_NK, draw = shares(8), np.random.default_rng(5)
    measured_N = shares_NK @ TRUE["code"] + draw.normal(0, 0.01, 8)
    found = fit(shares_NK, measured_N)
    for n in range(8):
        others = fit(np.delete(shares_NK, n, 0), np.delete(measured_N, n))
        assert found.left_out_N[n] == pytest.approx(others.predict(shares_NK[n : n + 1])[0][0])


@pytest.mark.parametrize("shares_NK", [np.eye(3), np.full((6, 3), 1 / 3)])
def test_runs_that_tell_no_sources_apart_are_refused(shares_NK):
    with pytest.raises(UserError, match="do not tell 3 sources apart"):
        fit(shares_NK, np.zeros(len(shares_NK)))


# ---------------------------------------------------------------------------------------------------------------------
# The recommendation


@pytest.mark.parametrize("sources", range(2, MOST_SOURCES + 1))
def test_the_grid_is_of_whole_mixes_and_not_too_large(sources):
    grid_GK = grid(sources)
    assert len(np.unique(grid_GK, axis=0)) == len(grid_GK) <= LARGEST_GRID
    assert grid_GK.min() == UNIT
    assert (grid_GK.sum(1) == 100).all()
    assert (100 - UNIT * (sources - 1) == grid_GK).any()  # the mix with most of one source is among them


@pytest.mark.parametrize("error", [0.0, 0.002])
def test_the_recommended_mix_respects_the_limit_at_the_upper_end(error):
    found = fits(error=error)
    limited = [name for name in NAMES if name != "finnish"]
    choice = recommend(found, "finnish", limited, math.log(1.01))
    assert choice.excess <= 0
    told = {name: foretold(one, choice.weights, 1.0) for name, one in found.items()}
    assert all(told[name]["change_interval"][1] <= 1.0 for name in limited)
    more = foretold(found["finnish"], (choice.weights[0] + 2, choice.weights[1] - 2, *choice.weights[2:]), 1.0)
    assert more["change"] < told["finnish"]["change"]  # it is the limit that keeps it from more
    if not error:
        assert recommend(fits(error=0.002), "finnish", limited, math.log(1.01)).weights[0] < choice.weights[0]


def test_a_wide_limit_gives_the_target_all_that_the_others_can_spare():
    assert recommend(fits(), "finnish", NAMES[1:], math.log(2)).weights == (85, 5, 5, 5)


def test_where_no_mix_keeps_the_limit_the_nearest_is_named_as_such():
    choice = recommend(fits(), "finnish", NAMES[1:], math.log(0.9))
    assert choice.excess > 0
    assert choice.weights[0] < 85
