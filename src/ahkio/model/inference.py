"""A Llama at work, not in training: tokens end to end through its blocks, attention left to the caller."""

from collections.abc import Callable
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor

from ahkio.model.llama import Block, Llama, angles
from ahkio.model.operators import gated, rms_norm

ROWS = 1024  # tokens that go through an MLP at a time: its inner states then stay in a CPU's cache

# (layer, queries NHE and keys NKE before their rotation, values NKE, cos and sin of the angles 2NP) -> attended NHE
Attend = Callable[[int, Tensor, Tensor, Tensor, Tensor], Tensor]


@torch.no_grad()
def hidden(model: Llama, ids_N: Tensor, positions_N: Tensor, attend: Attend) -> Tensor:
    """Hidden states (N, D) after the last norm."""
    c = model.config
    x_ND = F.embedding(ids_N, model.embed.weight).to(model.compute)
    rope_2NP = angles(positions_N, c)
    for layer, module in enumerate(model.blocks):
        block = cast(Block, module)
        attention, mlp = block.attention, block.mlp
        y_ND = rms_norm(x_ND, block.attention_norm.weight, c.norm_eps)
        q, k, v = (part(y_ND).unflatten(-1, (-1, c.head_width)) for part in (attention.q, attention.k, attention.v))
        x_ND += attention.o(attend(layer, q, k, v, rope_2NP).flatten(1))
        for x in x_ND.split(ROWS):
            y = rms_norm(x, block.mlp_norm.weight, c.norm_eps)
            x += mlp.down(gated(mlp.gate(y), mlp.up(y)))
    return rms_norm(x_ND, model.norm.weight, c.norm_eps)
