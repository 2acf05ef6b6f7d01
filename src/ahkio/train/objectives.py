"""What a model is asked to do with a batch, as values that a recipe can hold.

An objective gives a total and a count. The step divides the total of the whole batch by the count of the whole batch,
so that neither the mesh, nor the micro-batch, nor the packing shows in the result.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from ahkio.model.llama import Llama
    from ahkio.model.parallel import Part
    from ahkio.tokens.batches import Batch


@dataclass(frozen=True)
class NextToken:
    """Predict each token from those before it in its document."""

    def count(self, batch: "Batch") -> int:
        """How many tokens of `batch` are predicted."""
        from ahkio.train.losses import trained_tokens

        return trained_tokens(batch)

    def total(self, model: "Llama | Part", x_BTD: "Tensor", labels_BT: "Tensor") -> "Tensor":
        """The sum of their losses in nats, from the model's hidden states."""
        from ahkio.train.losses import next_token

        return next_token(model, x_BTD, labels_BT)
