"""How many devices a run is laid over, and along which axes. Always a *how*: losses do not depend on it."""

import os
from dataclasses import dataclass
from math import prod

from ahkio.core.errors import UserError

AXES = ("pipe", "replicate", "shard", "context", "tensor")  # from those that may be far apart to those that talk most


@dataclass(frozen=True, kw_only=True)
class Mesh:
    """Devices along each axis; `device` names their kind for the plan (machine.DEVICES), empty for this machine."""

    replicate: int = 1
    shard: int = 1
    tensor: int = 1
    pipe: int = 1
    context: int = 1
    device: str = ""

    def __post_init__(self) -> None:
        for axis in AXES:
            if getattr(self, axis) < 1:
                raise UserError(f"mesh.{axis} is {getattr(self, axis)}; an axis has at least 1 device.")

    @property
    def devices(self) -> int:
        return prod(getattr(self, axis) for axis in AXES)

    @property
    def model_parts(self) -> int:
        """Over how many devices one copy of the weights, gradients and optimizer state is divided."""
        return self.shard * self.context * self.tensor * self.pipe

    @property
    def data_ranks(self) -> int:
        """How many parts the rows of a step are divided into."""
        return self.replicate * self.shard


def world_size() -> int:
    """How many processes a launcher started together: torchrun, or srun, whose variables become torchrun's; else 1."""
    given = os.environ
    if "RANK" not in given and int(given.get("SLURM_NTASKS", "1")) > 1 and "SLURM_PROCID" in given:
        given["RANK"], given["WORLD_SIZE"] = given["SLURM_PROCID"], given["SLURM_NTASKS"]
        given["LOCAL_RANK"] = given["SLURM_LOCALID"]
        given.setdefault("MASTER_ADDR", given.get("SLURM_LAUNCH_NODE_IPADDR", "localhost"))
        given.setdefault("MASTER_PORT", str(20000 + int(given.get("SLURM_JOB_ID", "0")) % 20000))
    return int(given.get("WORLD_SIZE", "1"))


def own_rank() -> int:
    """Which of those processes this is."""
    return int(os.environ["RANK"]) if world_size() > 1 else 0
