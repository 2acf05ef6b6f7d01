"""The processes of a run: how they meet, where each sits on the mesh, and what they tell each other.

The mesh's axes from the outermost, whose ranks may be far apart, to the innermost, whose ranks talk most: pipe,
replicate,
shard, context, tensor. Of one copy of the weights `shard` and `context` together hold a part each ("parameters").
"""

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import distributed_c10d
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from ahkio.core.errors import Lost, UserError
from ahkio.core.mesh import AXES, Mesh, world_size

TALK = ("gloo", "NCCL", "Timed out", "timeout", "Connection", "Watchdog", "Broken pipe", "socket")
PARAMETERS = ("pipe", "replicate", "parameters", "tensor")  # the axes as the weights see them


@dataclass(frozen=True)
class Group:
    """This process among those of the run; alone, it has no one to talk to and no DeviceMesh."""

    mesh: Mesh
    device: torch.device
    devices: DeviceMesh | None = field(default=None, repr=False)  # over AXES
    parameters: DeviceMesh | None = field(default=None, repr=False)  # over PARAMETERS

    @property
    def rank(self) -> int:
        return 0 if self.devices is None else dist.get_rank()

    @property
    def first(self) -> bool:
        """Whether this is the process that speaks and writes for all."""
        return self.rank == 0

    def place(self, axis: str) -> int:
        """This process's coordinate on an axis."""
        return 0 if self.devices is None else self.devices.get_local_rank(axis)

    @property
    def data_rank(self) -> int:
        """Which of `mesh.data_ranks` parts of a step's rows this process reads."""
        return self.place("replicate") * self.mesh.shard + self.place("shard")

    def axis(self, name: str) -> DeviceMesh | None:
        """The ranks along one axis, or None where this process is alone on it."""
        return None if self.devices is None or getattr(self.mesh, name) == 1 else self.devices[name]

    def sum(self, x: Tensor, *axes: str) -> Tensor:
        """`x` added up in place over all ranks along `axes`."""
        for name in axes:
            if ranks := self.axis(name):
                dist.all_reduce(x, group=ranks.get_group())
        return x

    def most(self, number: int) -> int:
        """The largest of all ranks' numbers."""
        if self.devices is None:
            return number
        found = torch.tensor(number, device=self.device)
        dist.all_reduce(found, op=dist.ReduceOp.MAX)
        return int(found)

    def gather(self, value: Any) -> list[Any]:
        """Every rank's `value`, plain data, by rank."""
        if self.devices is None:
            return [value]
        values: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(values, value)
        return values

    def wait(self) -> None:
        """Return when all have come here."""
        if self.devices is not None:
            dist.barrier()

    @contextlib.contextmanager
    def together(self, what: str) -> Iterator[None]:
        """Around work that all ranks do together, of which `what` is the name: where they lose each other in it, say in
        one sentence which ranks did not come to it, or that all did."""
        if self.devices is None:
            yield
            return
        store = dist.PrefixStore("ahkio", distributed_c10d._get_default_store())
        store.set(str(self.rank), what)
        try:
            yield
        except (RuntimeError, dist.DistError) as error:
            if not str(error) or isinstance(error, torch.OutOfMemoryError) or not _is_of_talk(error):
                raise
            others = {rank: _last(store, rank) for rank in range(self.mesh.devices)}
            behind = [f"rank {rank} (last seen in {seen})" for rank, seen in others.items() if seen != what]
            who = (
                f"not there: {', '.join(behind[:8])}"
                if behind
                else "all had come to it, and one has left or hangs in it"
            )
            raise Lost(
                f"The {self.mesh.devices} processes lost each other in {what}; {who}. Rank {self.rank} was told: "
                f"{str(error).splitlines()[0][:200]}"
            ) from error


def _last(store: dist.Store, rank: int) -> str:
    try:
        return store.get(str(rank)).decode() if store.check([str(rank)]) else "the start"
    except (RuntimeError, dist.DistError):  # the store itself is gone with the process that held it
        return "an unknown place"


def _is_of_talk(error: BaseException) -> bool:
    """Whether torch's error is about processes that do not answer, not about the work itself."""
    return isinstance(error, dist.DistError) or any(word in str(error) for word in TALK)


@contextlib.contextmanager
def joined(mesh: Mesh, device: str, seconds: float) -> Iterator[Group]:
    """The group of the processes that a launcher started for `mesh`; none waits for another longer than `seconds`."""
    if mesh.devices != world_size():
        raise UserError(
            f"The mesh has {mesh.devices} devices, but {world_size()} processes were started; start as many "
            "(torchrun --nproc-per-node), or give another mesh."
        )
    if mesh.devices == 1:
        yield Group(mesh, torch.device(device))
        return
    place = torch.device(device)
    if place.type == "cuda":
        place = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        torch.cuda.set_device(place)
    dist.init_process_group("nccl" if place.type == "cuda" else "gloo", timeout=timedelta(seconds=seconds))
    try:
        sizes = tuple(getattr(mesh, axis) for axis in AXES)
        devices = init_device_mesh(place.type, sizes, mesh_dim_names=AXES)
        parameter_sizes = (mesh.pipe, mesh.replicate, mesh.shard * mesh.context, mesh.tensor)
        parameters = init_device_mesh(place.type, parameter_sizes, mesh_dim_names=PARAMETERS)
        yield Group(mesh, place, devices, parameters)
    finally:
        dist.destroy_process_group()
