"""The import gate: a model on disk gives the logits that transformers gives, or it is refused."""

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path

import torch

from ahkio.core.errors import UserError
from ahkio.core.stage import Facts
from ahkio.model.hub import load_model

BOUND = 2e-5  # of the largest logit: fp32 sums over thousands of terms, taken in another order
PROBE_TOKENS = 64
PROBE_STARTS = (0, 6000)  # positions: RoPE and its scaling show far from the start


def compare_with_transformers(folder: Path, compared: int = PROBE_TOKENS) -> Facts:
    """Compare fp32 logits of `compared` random tokens, early and late in the context, with transformers' own.

    Both models are in memory at once. Raises when they differ by more than rounding; else returns the facts.
    """
    import transformers

    ours = load_model(folder)
    compared = min(compared, ours.config.max_positions)
    ids = torch.randint(ours.config.vocab, (1, compared), generator=torch.Generator().manual_seed(0))
    bounds = torch.tensor([0, compared], dtype=torch.int32)
    starts = [min(start, ours.config.max_positions - compared) for start in PROBE_STARTS]
    positions = [torch.arange(start, start + compared)[None] for start in starts]
    with torch.no_grad():
        mine = torch.cat([ours.logits(ours(ids, where, bounds, compared)) for where in positions])
        del ours
        with _no_bar():
            theirs_model = transformers.AutoModelForCausalLM.from_pretrained(
                folder, dtype=torch.float32, local_files_only=True, attn_implementation="eager"
            )
        theirs = torch.cat([theirs_model(ids, position_ids=where).logits for where in positions])
    difference, largest = (mine - theirs).abs().max().item(), theirs.abs().max().item()
    if not difference <= BOUND * largest:
        raise UserError(
            f"{folder}: logits differ from transformers' by {difference:.2g} (largest logit {largest:.2g}), more than "
            f"fp32 rounding; {_said(folder)} is not the model that Ahkio computes, so do not train on it."
        )
    return {
        "checked": True,
        "max_difference": difference,
        "largest_logit": largest,
        "bound": BOUND * largest,
        "against": f"transformers {transformers.__version__}",
        "tokens": 2 * compared,
    }


@contextlib.contextmanager
def _no_bar() -> Iterator[None]:
    """Keep transformers' progress bar out of what the user reads."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def _said(folder: Path) -> str:
    kind = json.loads((folder / "config.json").read_text()).get("model_type", "unknown")
    return f"this {kind!r} config.json"
