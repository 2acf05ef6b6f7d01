"""Corpus BLEU and chrF of many resamples at once, from sums of sacrebleu's segment statistics.

sacrebleu scores one sum at a time, 20 microseconds each; here it takes the statistics and these few lines score them
all. Tests hold every score to sacrebleu's.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ahkio.core.errors import UserError

Floats = NDArray[np.float64]

ORDERS = 4  # of words in BLEU
RECALL_WEIGHT = 4  # of chrF2, which is beta squared


def segment_statistics(metric: str, hypotheses: list[str], references: list[str], tokenize: str = "") -> Floats:
    """What each segment adds to the score of its corpus, (N, K). `tokenize`: sacrebleu's name of BLEU's tokenizer.

    Raises UserError where the tokenizer can't be had: another one would give other figures.
    """
    import sacrebleu  # from the optional extra "eval"

    try:
        scorer: Any = sacrebleu.CHRF() if metric == "chrf" else sacrebleu.BLEU(tokenize=tokenize or None)
    except (ImportError, OSError) as error:
        raise UserError(f"BLEU with tokenize={tokenize} can't be had ({error}); see to what it needs.") from error
    return np.array(scorer._extract_corpus_statistics(hypotheses, [references]), np.float64)


def bleu(totals_RK: Floats) -> Floats:
    """BLEU from sums of lengths of output and reference, and of matches and n-grams of each order; smoothing "exp"."""
    output_R, reference_R = totals_RK[:, 0], totals_RK[:, 1]
    matches_RO, grams_RO = totals_RK[:, 2 : 2 + ORDERS], totals_RK[:, 2 + ORDERS :]
    halvings_RO = np.cumsum(matches_RO == 0, axis=1)
    smooth_RO = np.where(matches_RO > 0, matches_RO, 0.5**halvings_RO)
    scored_R = matches_RO.any(axis=1) & grams_RO.all(axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        logs_R = np.log(smooth_RO / grams_RO).mean(axis=1) + np.minimum(0, 1 - reference_R / output_R)
    return 100 * np.exp(np.where(scored_R, logs_R, -np.inf))


def chrf(totals_RK: Floats) -> Floats:
    """chrF2 from sums of the character n-grams of output and reference, and of those they share, order by order."""
    output_RO, reference_RO, shared_RO = (totals_RK[:, part::3] for part in range(3))
    counted_RO = (output_RO > 0) & (reference_RO > 0)
    orders_R = np.maximum(1, counted_RO.sum(axis=1))
    precision_R = (counted_RO * shared_RO / np.maximum(1, output_RO)).sum(axis=1) / orders_R
    recall_R = (counted_RO * shared_RO / np.maximum(1, reference_RO)).sum(axis=1) / orders_R
    weighted_R = RECALL_WEIGHT * precision_R + recall_R
    product_R = (1 + RECALL_WEIGHT) * precision_R * recall_R
    return 100 * np.divide(product_R, weighted_R, out=np.zeros_like(product_R), where=weighted_R > 0)


SCORES = {"bleu": bleu, "chrf": chrf}
