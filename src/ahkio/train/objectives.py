"""What a model is asked to do with a batch, as values that a recipe can hold."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ahkio.model.llama import Llama
    from ahkio.tokens.batches import Batch
    from ahkio.train.losses import Loss


@dataclass(frozen=True)
class NextToken:
    """Predict each token from those before it in its document."""

    def loss(self, model: "Llama", batch: "Batch") -> "Loss":
        from ahkio.train.losses import next_token

        return next_token(model, batch)
