"""Before against after, on the same items, with paired bootstrap intervals: is the difference more than chance?

Both models answer the same questions, so a resample draws items and takes both models' results for each of them. What
makes an item easy or hard then cancels, and an interval of the *difference* shows what the change of model did.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ahkio.core.artifact import Artifact
from ahkio.core.errors import UserError
from ahkio.core.stage import Facts, Inputs, Stage
from ahkio.evaluate.evaluate import Evaluate, read_items

Floats = NDArray[np.float64]
Items = list[dict[str, Any]]

TEXT_METRICS = ("bleu", "chrf")  # of a whole corpus, from sums of segment statistics
RESAMPLES_PER_BLOCK = 100  # bounds memory: this many rows of one count per item


@dataclass(frozen=True)
class Difference:
    """A metric before and after, the change with its 95% interval, and the unit of the change."""

    before: float
    after: float
    change: float
    interval: tuple[float, float]
    unit: str


@dataclass(frozen=True, kw_only=True)
class Compare(Stage):
    """Two evaluations side by side; accuracies are stated in per cent, so that differences are points."""

    before: Evaluate
    after: Evaluate
    resamples: int = 2000
    seed: int = 0

    def run(self, out: Path, inputs: Inputs) -> Facts:
        """Compare every held-out set and task. Raises UserError where the two were not asked the same."""
        before, after = inputs[self.before], inputs[self.after]
        rows = [*self._bits_rows(before, after), *self._task_rows(before, after)]
        return {"rows": rows, "samples": _samples(before.facts["samples"], after.facts["samples"])}

    def _bits_rows(self, before: Artifact, after: Artifact) -> Iterator[Facts]:
        for name in _same_names("held-out sets", before.facts["bits_per_byte"], after.facts["bits_per_byte"]):
            items = _paired(before.path, after.path, f"bits_per_byte.{name}", ("document", "bytes"))
            shift = bits_per_byte_difference(*items, resamples=self.resamples, seed=self.seed)
            yield _row("bits_per_byte", name, "bits per byte", "lower", shift, len(items[0]))

    def _task_rows(self, before: Artifact, after: Artifact) -> Iterator[Facts]:
        for name in _same_names("tasks", before.facts["tasks"], after.facts["tasks"]):
            items = _paired(before.path, after.path, name, ("item", "hash"))
            for metric in before.facts["tasks"][name]["metrics"]:
                difference = text_difference if metric in TEXT_METRICS else accuracy_difference
                shift = difference(*items, metric=metric, resamples=self.resamples, seed=self.seed)
                yield _row("task", name, metric, "higher", shift, len(items[0]))


# ---------------------------------------------------------------------------------------------------------------------
# The statistics


def bits_per_byte_difference(before: Items, after: Items, *, resamples: int, seed: int) -> Difference:
    """Change in per cent of total bits over total bytes; items hold `nats` and `bytes` of one document each."""
    stats_N3 = np.array([(b["nats"], a["nats"], b["bytes"]) for b, a in zip(before, after, strict=True)], np.float64)
    nats_before, nats_after, size = stats_N3.sum(0)
    totals_R3 = bootstrap_totals(stats_N3, resamples, seed)
    return Difference(
        before=float(nats_before / np.log(2) / size),
        after=float(nats_after / np.log(2) / size),
        change=float(100 * (nats_after / nats_before - 1)),
        interval=_interval(100 * (totals_R3[:, 1] / totals_R3[:, 0] - 1)),
        unit="%",
    )


def accuracy_difference(before: Items, after: Items, *, metric: str, resamples: int, seed: int) -> Difference:
    """Difference of means in points of a hundred; items hold a number from 0 to 1 under the metric's name."""
    stats_N2 = 100 * np.array([(b[metric], a[metric]) for b, a in zip(before, after, strict=True)], np.float64)
    means_R2 = bootstrap_totals(stats_N2, resamples, seed) / len(stats_N2)
    mean_before, mean_after = stats_N2.mean(0)
    return _points(mean_before, mean_after, means_R2)


def text_difference(before: Items, after: Items, *, metric: str, resamples: int, seed: int) -> Difference:
    """Difference of corpus BLEU or chrF in points; items hold `hypothesis` and `reference`.

    As in sacrebleu's own significance module, segments' sufficient statistics are resampled and scored anew.
    """
    scorer = _scorer(metric)
    stats_NK = [_segment_statistics(scorer, items) for items in (before, after)]
    half = stats_NK[0].shape[1]
    totals_RK = bootstrap_totals(np.concatenate(stats_NK, axis=1), resamples, seed)
    scores_R2 = np.array([(_score(scorer, row[:half]), _score(scorer, row[half:])) for row in totals_RK])
    return _points(_score(scorer, stats_NK[0].sum(0)), _score(scorer, stats_NK[1].sum(0)), scores_R2)


def bootstrap_totals(stats_NK: Floats, resamples: int, seed: int) -> Floats:
    """Column sums, (resamples, K), of that many samples of N rows drawn with replacement; the seed decides them."""
    rng, items = np.random.default_rng(seed), len(stats_NK)
    starts = range(0, resamples, RESAMPLES_PER_BLOCK)
    sizes = [min(RESAMPLES_PER_BLOCK, resamples - start) for start in starts]
    return np.concatenate([rng.multinomial(items, np.full(items, 1 / items), size=n) @ stats_NK for n in sizes])


def _points(before: float, after: float, scores_R2: Floats) -> Difference:
    interval = _interval(scores_R2[:, 1] - scores_R2[:, 0])
    return Difference(float(before), float(after), float(after - before), interval, "points")


def _interval(values_R: Floats) -> tuple[float, float]:
    low, high = np.percentile(values_R, (2.5, 97.5))
    return float(low), float(high)


def _scorer(metric: str) -> Any:
    import sacrebleu  # from the optional extra "eval"

    return {"bleu": sacrebleu.BLEU, "chrf": sacrebleu.CHRF}[metric]()


def _segment_statistics(scorer: Any, items: Items) -> Floats:
    references = [[item["reference"] for item in items]]
    return np.array(scorer._extract_corpus_statistics([item["hypothesis"] for item in items], references), np.float64)


def _score(scorer: Any, totals_K: Floats) -> float:
    return float(scorer._compute_score_from_stats([round(total) for total in totals_K.tolist()]).score)


# ---------------------------------------------------------------------------------------------------------------------
# The table


def _row(kind: str, name: str, metric: str, better: str, shift: Difference, items: int) -> Facts:
    return {
        "kind": kind,
        "set": name,
        "metric": metric,
        "better": better,
        "before": shift.before,
        "after": shift.after,
        "change": shift.change,
        "unit": shift.unit,
        "interval": list(shift.interval),
        "items": items,
        "verdict": verdict(shift.interval, better),
    }


def verdict(interval: tuple[float, float], better: str) -> str:
    """What an interval of the change shows, where `better` is "lower" or "higher"."""
    low, high = interval if better == "higher" else (-interval[1], -interval[0])
    return "better" if low > 0 else "worse" if high < 0 else "no difference shown"


def _paired(before: Path, after: Path, name: str, keys: tuple[str, ...]) -> tuple[Items, Items]:
    items = read_items(before, name), read_items(after, name)
    identities = [[tuple(item[key] for key in keys) for item in side] for side in items]
    if identities[0] != identities[1]:
        raise UserError(
            f"{name}: {before.name} and {after.name} did not measure the same items; "
            "give both evaluations the same held-out sets, questions, shots and limits."
        )
    return items


def _same_names(what: str, before: Facts, after: Facts) -> list[str]:
    if list(before) != list(after):
        raise UserError(
            f"The two evaluations have different {what} ({', '.join(before) or 'none'}; {', '.join(after) or 'none'}); "
            "give both the same."
        )
    return list(before)


def _samples(before: list[Facts], after: list[Facts]) -> list[Facts]:
    if [sample["prompt"] for sample in before] != [sample["prompt"] for sample in after]:
        raise UserError("The two evaluations have different prompts; give both the same.")
    return [
        {"prompt": b["prompt"], "before": b["text"], "after": a["text"]} for b, a in zip(before, after, strict=True)
    ]
