"""Bits per byte on held-out text, in the loop: what was learnt, and what was lost."""

from collections.abc import Mapping

import torch

from ahkio.model.llama import Llama
from ahkio.model.score import document_losses
from ahkio.tokens.heldout import Texts, bits_per_byte


def measure(model: Llama, sets: Mapping[str, Texts], context: int) -> dict[str, float]:
    """Bits per byte of each set. Leaves the model as it was; nothing in it is random."""
    with torch.compiler.set_stance("force_eager"):  # texts of all lengths: what is compiled is for the training rows
        losses = {name: document_losses(model, texts.ids, context) for name, texts in sets.items()}
    return {name: bits_per_byte([sum(one) for one in losses[name]], texts.sizes) for name, texts in sets.items()}
