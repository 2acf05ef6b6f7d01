"""Scores that lm-eval hasn't got: BLEU over FLORES-200's pieces, and GSM8K's number as the translated tasks read it."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import sacrebleu
from sacrebleu.tokenizers.tokenizer_spm import SPM_MODELS
from sacrebleu.utils import SACREBLEU_DIR

from ahkio.core.errors import UserError

NUMBER = re.compile(r"#### (-?[0-9.,]+)")
SOURCE = SPM_MODELS["flores200"]["url"]
PIECES = Path(SACREBLEU_DIR) / "models" / Path(SOURCE).name  # where sacrebleu keeps the tokenizer's model

Segment = tuple[str, str]  # reference, translation


def bleu_flores200(segment: Segment) -> Segment:
    """lm-eval's metric of one item: BLEU is of a corpus, so that the item is handed on."""
    return segment


def corpus_bleu_flores200(segments: Sequence[Segment]) -> float:
    references, translations = zip(*segments, strict=True)
    score: float = flores200_bleu().corpus_score(list(translations), [list(references)]).score
    return score


def flores200_bleu(fetch: bool = True) -> Any:
    """sacrebleu's BLEU with tokenize=flores200; `fetch` lets it get the tokenizer's model, into $SACREBLEU.

    Raises UserError where it can't be had: another tokenizer would give other figures.
    """
    if not (fetch or PIECES.is_file()):
        raise UserError(f"BLEU with tokenize=flores200 needs {PIECES}; fetch {SOURCE} to that place.")
    try:
        return sacrebleu.BLEU(tokenize="flores200")
    except ImportError as error:
        raise UserError("BLEU with tokenize=flores200 needs sentencepiece; run: pip install sentencepiece.") from error
    except OSError as error:
        what = f"BLEU with tokenize=flores200 needs {PIECES}, and it can't be fetched ({error})"
        raise UserError(f"{what}; fetch {SOURCE} to that place.") from error


def number_after_marks(doc: dict[str, Any], results: Sequence[str]) -> dict[str, float]:
    """Whether the number after the first #### of a solution is that of the dataset's, thousands' commas aside."""
    given, wanted = (_number(text) for text in (results[0], doc["answer"]))
    return {"acc": float(given == wanted and wanted != "")}


def _number(text: str) -> str:
    found = NUMBER.search(text)
    return found[1].replace(",", "") if found else ""
