"""One optimizer step, equal to one big batch whatever the micro-batches."""

from collections.abc import Sequence

import torch
from torch.optim import Optimizer

from ahkio.model.llama import Llama
from ahkio.tokens.batches import Batch
from ahkio.train.losses import trained_tokens
from ahkio.train.objectives import NextToken


def train_step(
    model: Llama, optimizer: Optimizer, objective: NextToken, batches: Sequence[Batch], lr: float, clip: float
) -> tuple[float, float]:
    """Learn from micro-batches as one; return the mean loss in nats a token and the gradient's norm before clipping."""
    count = max(1, sum(trained_tokens(batch) for batch in batches))  # documents of one token may leave no label
    summed = torch.zeros((), device=model.embed.weight.device)
    for batch in batches:
        loss = objective.loss(model, batch)
        (loss.total / count).backward()
        summed += loss.total.detach()
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), clip)
    for group in optimizer.param_groups:
        group["lr"] = lr
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return summed.item() / count, norm.item()
