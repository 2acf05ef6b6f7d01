"""The losses behind the objectives. Each returns a sum and how many items it summed over."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ahkio.model.llama import Llama
from ahkio.model.loss import IGNORE, summed_loss
from ahkio.tokens.batches import Batch


@dataclass(frozen=True)
class Loss:
    """The step divides the total of the whole batch by the count of the whole batch, so that neither the mesh, nor the
    micro-batch, nor the packing shows in the result."""

    total: Tensor  # nats, an fp32 scalar
    count: int


def next_token(model: Llama, batch: Batch) -> Loss:
    """Predict each token from those before it in its document."""
    device = model.embed.weight.device
    ids_BT, positions_BT, labels_BT = (
        torch.from_numpy(part).to(device) for part in (batch.ids_BT, batch.positions_BT, batch.labels_BT)
    )
    lengths = torch.from_numpy(batch.lengths)
    bounds = torch.cat((torch.zeros(1, dtype=torch.int32), lengths.cumsum(0).int())).to(device)
    longest = ids_BT.shape[1]  # not this batch's own, which torch.compile would compile anew for
    x_BTD = model(ids_BT, positions_BT, bounds, longest)
    total = summed_loss(x_BTD.flatten(0, 1), model.head_weight, labels_BT.flatten())
    return Loss(total, trained_tokens(batch))


def trained_tokens(batch: Batch) -> int:
    """How many of the batch's labels count."""
    return int((batch.labels_BT != IGNORE).sum())
