"""Steps that would harm the model: how they are told from others, and what is done about them."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from ahkio.core.errors import UserError

Measured = tuple[float, float]  # of a step: its loss and its gradients' norm


@dataclass(frozen=True, kw_only=True)
class Spikes:
    """A step whose loss or gradient norm is not finite, or further above the mean of the last `window` steps than so
    many of their deviations, is not taken: the run goes back to its last checkpoint and comes by without that batch.
    """

    deviations: float = 10.0  # 0: only what is not finite
    window: int = 128  # steps; nothing is compared before half as many are known
    rollbacks: int = 3  # in one run; the next one ends it

    def __post_init__(self) -> None:
        if self.deviations < 0 or self.window < 2 or self.rollbacks < 0:
            raise UserError(
                f"spikes has deviations={self.deviations}, window={self.window}, rollbacks={self.rollbacks}; these "
                "are at least 0, 2 and 0."
            )

    def healthy(self, recent: Sequence[Measured], now: Measured) -> bool:
        """Whether a step that measured `now` after the steps `recent` may be taken."""
        if not all(map(math.isfinite, now)):
            return False
        if not self.deviations or len(recent) < self.window // 2:
            return True
        return all(
            value
            <= statistics.fmean(before)
            + self.deviations * (statistics.pstdev(before) + 1e-3 * abs(statistics.fmean(before)))
            for value, before in zip(now, zip(*recent, strict=True), strict=True)
        )
