"""How many devices a run is laid over, and along which axes. Always a *how*: losses do not depend on it."""

from dataclasses import dataclass
from math import prod

from ahkio.core.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Mesh:
    """Devices along each axis; `device` names their kind for the plan (machine.PEAK_FLOPS), empty for this machine."""

    replicate: int = 1
    shard: int = 1
    tensor: int = 1
    pipe: int = 1
    context: int = 1
    device: str = ""

    def __post_init__(self) -> None:
        for axis in ("replicate", "shard", "tensor", "pipe", "context"):
            if getattr(self, axis) < 1:
                raise UserError(f"mesh.{axis} is {getattr(self, axis)}; an axis has at least 1 device.")

    @property
    def devices(self) -> int:
        return prod((self.replicate, self.shard, self.tensor, self.pipe, self.context))

    @property
    def model_parts(self) -> int:
        """Over how many devices one copy of the weights, gradients and optimizer state is divided."""
        return self.shard * self.tensor * self.pipe

    @property
    def data_ranks(self) -> int:
        """How many parts the rows of a step are divided into."""
        return self.replicate * self.shard
