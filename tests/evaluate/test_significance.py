"""Statistics against published values, and calibration: where nothing changed, one comparison in twenty is called."""

import gzip
import json
import math
import random
from pathlib import Path

import numpy as np
import pytest
import sacrebleu
from sacrebleu.significance import PairedTest

from ahkio.evaluate import compare
from ahkio.evaluate.significance import (
    bootstrap_p,
    holm,
    items_for_sides,
    items_for_spread,
    mcnemar,
    student_p,
)
from ahkio.evaluate.text_scores import SCORES, segment_statistics

DATA = Path(__file__).parents[2] / "data"
SIMULATED = 1000
BOUNDS = range(32, 69)  # calls of 1,000 that a true 5% gives 99 times in 100


# Published values


def test_mcnemar_is_exact_for_few_changes_and_chi_squared_for_many():
    # Fagerland, Lydersen and Laake (2013), airway hyper-responsiveness: 1 and 7 of 21 changed; exact p 0.0703
    assert mcnemar(1, 7) == mcnemar(7, 1) == pytest.approx(0.0703, abs=5e-5)
    # Agresti, Categorical Data Analysis, approval of the prime minister: 150 and 86 changed; z squared 17.36
    assert mcnemar(150, 86) == pytest.approx(3.1e-5, abs=1e-6)
    assert math.erfc(math.sqrt(17.36 / 2)) == pytest.approx(mcnemar(150, 86), rel=0.01)
    assert (mcnemar(0, 0), mcnemar(3, 3), mcnemar(0, 5)) == (1, 1, 0.0625)


@pytest.mark.parametrize(("degrees", "t"), [(5, 2.571), (9, 2.262), (15, 2.131), (30, 2.042), (120, 1.980)])
def test_students_t_is_that_of_the_tables(degrees, t):
    assert student_p(t, degrees) == pytest.approx(0.05, abs=5e-4)


def test_holm_is_that_of_r():
    # p.adjust(c(0.04, 0.01, 0.03, 0.02, 0.05), "holm") and Holm's own order of testing
    assert holm([0.04, 0.01, 0.03, 0.02, 0.05]) == pytest.approx([0.09, 0.05, 0.09, 0.08, 0.09])
    assert holm([0.6, 0.9]) == [1, 1]
    assert holm([]) == []


def test_items_needed_are_those_that_show_it_in_four_of_five_simulations():
    # Connor (1987), as in the tables of Machin et al., Sample Size Tables: 0.3 against 0.1 changed: 78 pairs
    assert items_for_sides(0.4, 0.2) == pytest.approx(78, abs=1)
    assert items_for_sides(0.0, 0.01) is None
    needed = items_for_sides(0.2, 0.05)
    rng = np.random.default_rng(0)
    sides = rng.multinomial(needed, (0.125, 0.075, 0.8), size=2000)
    assert np.mean([mcnemar(lost, won) <= 0.05 for lost, won, _ in sides.tolist()]) == pytest.approx(0.8, abs=0.03)


def test_items_needed_by_spread_are_those_of_the_normal_test():
    # a spread of 10 in each difference: (1.960 + 0.842)^2 * 10^2 for a change of 1
    differences_N = np.random.default_rng(0).normal(0, 10, 400)
    differences_N *= 10 / differences_N.std()
    changes_R = compare.bootstrap_totals(differences_N[:, None] / 400, 4000, 0)[:, 0]
    assert items_for_spread(changes_R, 400, 1.0) == pytest.approx(785, rel=0.05)
    assert items_for_spread(np.zeros(5), 5, 1.0) is None


# Scores of many resamples at once


@pytest.fixture(scope="module")
def translations():
    """Real references, and two outputs for each, equally bad: words left out and swapped at random."""
    rng = random.Random(0)
    with gzip.open(DATA / "pairs.jsonl.gz") as file:
        references = [json.loads(line)["fi"] for line in file][:300]

    def worse(text):
        words = [word for word in text.split() if rng.random() > 0.25]
        return " ".join(words[::-1] if rng.random() < 0.2 else words)

    return references, [worse(text) for text in references], [worse(text) for text in references]


@pytest.mark.parametrize(("metric", "scorer"), [("bleu", sacrebleu.BLEU()), ("chrf", sacrebleu.CHRF())])
def test_every_score_is_that_of_sacrebleu_also_where_nothing_matches(metric, scorer, translations):
    references, hypotheses, _ = translations
    texts = [*hypotheses[:40], "", "x", "aivan muuta", "Ä"], [*references[:40], "sana", "y", "ei sama", "Ä"]
    stats_NK = segment_statistics(metric, *texts)
    totals_RK = np.concatenate([stats_NK, np.cumsum(stats_NK, axis=0), compare.bootstrap_totals(stats_NK, 50, 0)])
    theirs = [scorer._compute_score_from_stats([round(n) for n in row]).score for row in totals_RK.tolist()]
    assert SCORES[metric](totals_RK) == pytest.approx(np.array(theirs), abs=1e-9)


def test_p_of_the_bootstrap_is_that_of_sacrebleus_approximate_randomization(translations):
    references, first, second = translations
    second = [r if n % 12 == 0 else h for n, (h, r) in enumerate(zip(second, references, strict=True))]
    metrics = {"BLEU": sacrebleu.BLEU(references=[references])}
    systems = [("before", first), ("after", second)]
    _, scores = PairedTest(systems, metrics, [references], "ar", n_samples=1000)()
    items = [[{"hypothesis": h, "reference": r} for h, r in zip(side, references, strict=True)] for _, side in systems]
    ours = compare.text_difference(*items, metric="bleu", resamples=2000, seed=0)
    assert ours.p == pytest.approx(scores["BLEU"][1].p_value, abs=0.05)
    assert 0.1 < ours.p < 0.4


# Calibration


def test_mcnemar_calls_one_in_twenty_of_comparisons_without_a_difference():
    rng = np.random.default_rng(1)
    lost, won, _ = rng.multinomial(1000, (0.1, 0.1, 0.8), size=SIMULATED).T.tolist()
    assert sum(mcnemar(*sides) <= 0.05 for sides in zip(lost, won, strict=True)) in BOUNDS


@pytest.mark.parametrize("changed", [6, 12, 24])
def test_exact_mcnemar_never_calls_more_often(changed):
    chances = [math.comb(changed, lost) / 2**changed for lost in range(changed + 1)]
    called = sum(chance for lost, chance in enumerate(chances) if mcnemar(lost, changed - lost) <= 0.05)
    assert 0 < called <= 0.05


@pytest.mark.parametrize("items", [16, 100])
def test_the_bootstrap_of_means_calls_one_in_twenty(items):
    scores_NS2 = np.random.default_rng(2).beta(0.7, 0.7, (items, SIMULATED, 2))
    totals_RS2 = compare.bootstrap_totals(scores_NS2.reshape(items, -1), 2000, 3).reshape(2000, SIMULATED, 2)
    changes_RS, change_S = (np.diff(part, axis=-1)[..., 0] for part in (totals_RS2, scores_NS2.sum(0)))
    assert called(change_S, changes_RS, items) in BOUNDS


@pytest.mark.parametrize("documents", [16, 100])
def test_the_bootstrap_of_bits_per_byte_calls_one_in_twenty(documents):
    rng = np.random.default_rng(4)
    nats_N = rng.integers(200, 2000, documents) * rng.uniform(0.3, 3.0, documents)
    nats_NS2 = nats_N[:, None, None] * np.exp(0.03 * rng.normal(size=(documents, SIMULATED, 2)))
    totals_RS2 = compare.bootstrap_totals(nats_NS2.reshape(documents, -1), 2000, 5).reshape(2000, SIMULATED, 2)
    changes_RS, change_S = (part[..., 1] / part[..., 0] - 1 for part in (totals_RS2, nats_NS2.sum(0)))
    assert called(change_S, changes_RS, documents) in BOUNDS


@pytest.mark.parametrize("metric", ["bleu", "chrf"])
def test_the_bootstrap_of_translation_scores_calls_one_in_twenty(metric, translations):
    """Which output of a segment is whose is drawn by lot, so there is no difference to find."""
    references, *outputs = translations
    stats_2NK = np.stack([segment_statistics(metric, output, references) for output in outputs])
    rng, score, found = np.random.default_rng(6), SCORES[metric], 0
    for simulation in range(SIMULATED):
        drawn, lot = rng.integers(0, len(references), 100), rng.integers(0, 2, 100)
        sides = [stats_2NK[lot, drawn], stats_2NK[1 - lot, drawn]]
        totals_RK = compare.bootstrap_totals(np.concatenate(sides, axis=1), 199, simulation)
        before_R, after_R = (score(totals) for totals in np.split(totals_RK, 2, axis=1))
        once = [float(score(side.sum(0, keepdims=True))[0]) for side in sides]
        found += called(np.diff(once), (after_R - before_R)[:, None], 100)
    assert found in BOUNDS


def test_a_table_without_a_difference_is_called_at_most_one_time_in_twenty():
    p_ST = np.random.default_rng(7).random((SIMULATED, 12))
    assert sum(min(holm(p_T)) <= 0.05 for p_T in p_ST.tolist()) in BOUNDS


def called(change_S, changes_RS, items):
    """How many changes get a word, as rows of tables of one row."""
    intervals = np.percentile(changes_RS, (2.5, 97.5), axis=0).T
    p = [bootstrap_p(change, changes_RS[:, n], items) for n, change in enumerate(change_S.tolist())]
    words = [compare.verdict(tuple(one), "higher", chance) for one, chance in zip(intervals, p, strict=True)]
    return sum(word != "no difference shown" for word in words)
