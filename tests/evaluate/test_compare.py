from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import sacrebleu
from small_world import FINNISH as WORDS
from small_world import SmallCorpus, SmallModel, quiet, sentences

from ahkio.core.errors import UserError
from ahkio.core.stage import Stage, build
from ahkio.evaluate import compare
from ahkio.evaluate.compare import Compare
from ahkio.evaluate.evaluate import Evaluate, write_items
from ahkio.evaluate.questions import Questions

SETTINGS = {"resamples": 500, "seed": 1}


def documents(factor, noise, count=60):
    rng = np.random.default_rng(0)
    sizes, hardness = rng.integers(200, 2000, count), rng.uniform(0.3, 3.0, count)
    nats = sizes * hardness * (factor + noise * np.random.default_rng(7).normal(size=count))
    return [{"document": i, "nats": n, "bytes": int(b)} for i, (n, b) in enumerate(zip(nats, sizes, strict=True))]


def test_pairing_finds_a_small_gain_among_documents_of_very_different_hardness():
    difference = compare.bits_per_byte_difference(documents(1.0, 0), documents(0.98, 0.005), **SETTINGS)
    assert difference.change == pytest.approx(-2, abs=0.3)
    assert -3 < difference.interval[0] < difference.change < difference.interval[1] < -1
    assert compare.verdict(difference.interval, "lower") == "better"


def test_bits_per_byte_are_a_ratio_of_sums_and_not_a_mean_of_ratios():
    before = [{"nats": 100.0, "bytes": 100}, {"nats": 10.0, "bytes": 900}]
    difference = compare.bits_per_byte_difference(before, before, **SETTINGS)
    assert difference.before == pytest.approx(110 / np.log(2) / 1000)
    assert (difference.change, difference.interval) == (0, (0, 0))
    assert compare.verdict(difference.interval, "lower") == "no difference shown"


def test_a_95_percent_interval_covers_the_truth_about_95_times_in_100():
    rng, covered = np.random.default_rng(3), 0
    for trial in range(200):
        pairs = rng.random((80, 2)) < (0.5, 0.6)
        before, after = ([{"acc": float(hit)} for hit in side] for side in pairs.T)
        low, high = compare.accuracy_difference(before, after, metric="acc", resamples=300, seed=trial).interval
        covered += low <= 10 <= high
    assert 180 <= covered <= 199


@pytest.mark.parametrize("metric", ["bleu", "chrf"])
def test_resampled_text_scores_are_those_of_sacrebleu_on_the_resampled_segments(metric):
    references = sentences("r", WORDS, 12, 8)
    before = [{"hypothesis": t[: len(t) // 2], "reference": t} for t in references]
    after = [{"hypothesis": t[2:], "reference": t} for t in references]
    difference = compare.text_difference(before, after, metric=metric, resamples=20, seed=4)
    score = {"bleu": sacrebleu.corpus_bleu, "chrf": sacrebleu.corpus_chrf}[metric]
    assert difference.after == pytest.approx(score([i["hypothesis"] for i in after], [references]).score)
    counts_RN = compare.bootstrap_totals(np.eye(12), 20, 4).astype(int)
    gains = []
    for counts in counts_RN:
        drawn = np.repeat(np.arange(12), counts)
        sides = [[side[i]["hypothesis"] for i in drawn] for side in (before, after)]
        scores = [score(side, [[references[i] for i in drawn]]).score for side in sides]
        gains.append(scores[1] - scores[0])
    assert difference.interval == pytest.approx(tuple(np.percentile(gains, (2.5, 97.5))))
    assert difference.interval[0] > 0


def test_the_seed_decides_the_interval_and_blocks_do_not(monkeypatch):
    stats = np.random.default_rng(0).random((30, 2))
    first = compare.bootstrap_totals(stats, 250, 5)
    monkeypatch.setattr(compare, "RESAMPLES_PER_BLOCK", 64)
    assert np.array_equal(first, compare.bootstrap_totals(stats, 250, 5))
    assert not np.array_equal(first, compare.bootstrap_totals(stats, 250, 6))


@pytest.mark.parametrize(
    ("interval", "better", "words"),
    [((1, 2), "higher", "better"), ((1, 2), "lower", "worse"), ((-1, 2), "lower", "no difference shown")],
)
def test_a_verdict_needs_an_interval_on_one_side_of_zero(interval, better, words):
    assert compare.verdict(interval, better) == words


# The stage, on evaluations written by hand


@dataclass(frozen=True, kw_only=True)
class Written(Evaluate):
    """An evaluation whose results are given: a gain in everything."""

    gain: float = 0.0
    last: str = "z"

    def run(self, out: Path, inputs):
        write_items(out, "bits_per_byte.fi", documents(1 - self.gain, 0))
        hits = [{"item": i, "hash": f"{i}{self.last}", "acc": float(i < 10 + 100 * self.gain)} for i in range(40)]
        write_items(out, "choice", hits)
        prompts = [{"prompt": prompt, "text": f"gain {self.gain}"} for prompt in self.prompts]
        tasks = {"choice": {"metrics": {"acc": 0.25}}}
        return {"bits_per_byte": {"fi": {}}, "tasks": tasks, "samples": prompts}


QUESTIONS = Questions(corpus=SmallCorpus(), items=10)
BEFORE = Written(model=SmallModel(), heldout=(), questions=QUESTIONS, prompts=("Poro",))
AFTER = replace(BEFORE, gain=0.1)


@pytest.fixture(autouse=True)
def no_inputs(monkeypatch):
    monkeypatch.setattr("ahkio.core.stage.inputs_of", lambda stage: compared(stage))


def compared(stage: Stage) -> list[Stage]:
    return [stage.before, stage.after] if isinstance(stage, Compare) else []


def test_the_table_tells_what_changed_by_how_much_and_how_sure(tmp_path):
    facts = build(Compare(before=BEFORE, after=AFTER, resamples=200), tmp_path, quiet).facts
    bits, accuracy = facts["rows"]
    assert (bits["set"], bits["unit"], bits["better"], bits["verdict"]) == ("fi", "%", "lower", "better")
    assert bits["change"] == pytest.approx(-10)
    assert (accuracy["kind"], accuracy["metric"], accuracy["unit"]) == ("task", "acc", "points")
    assert (accuracy["before"], accuracy["after"], accuracy["items"]) == (25, 50, 40)
    assert accuracy["interval"][0] < 25 < accuracy["interval"][1]
    assert facts["samples"] == [{"prompt": "Poro", "before": "gain 0.0", "after": "gain 0.1"}]


@pytest.mark.parametrize(
    ("after", "message"),
    [
        (replace(AFTER, last="y"), "choice: .* did not measure the same items"),
        (replace(AFTER, prompts=("Ahkio",)), "different prompts"),
    ],
)
def test_evaluations_that_were_not_asked_the_same_are_refused(after, message, tmp_path):
    with pytest.raises(UserError, match=message):
        build(Compare(before=BEFORE, after=after), tmp_path, quiet)
