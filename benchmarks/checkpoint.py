"""Claim: a checkpoint holds training up for less time than torch's own ways of saving, and is sooner on the disk.

Saved are the weights of SmolLM2-135M's shape and both moments of AdamW in fp32, 1.6 GB, after a step of training. All
are as durable: torch.save is followed by fsync, DCP (torch.distributed.checkpoint) and ours do that by themselves. DCP
writes in two threads; its asynchronous saves stage in the background too, in a buffer they keep, and the optimizer
waits for the stage only, as with ours. Ours alone also takes a checksum of what it writes.

"held" and "slowed" save among steps of training on 64 tokens: seconds that the loop waited, in the call and before the
optimizer's next step; and seconds that the steps until all was on the disk took longer than as many without a save.
"durable" is from call to disk with nothing else to do. `check` is a checksum of what was loaded back.
"""

import os
import shutil
import statistics
import threading
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import torch
from bench import Contender, Line, Round, main
from torch import Tensor
from torch.distributed import checkpoint as dcp
from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions
from torch.distributed.checkpoint.state_dict_saver import AsyncCheckpointerType

from ahkio.core import state
from ahkio.model.llama import random_model
from ahkio.model.shape import LlamaConfig
from ahkio.tokens.batches import Batch
from ahkio.train.engine import alone
from ahkio.train.objectives import NextToken
from ahkio.train.optimizer import AdamW, state_tensors
from ahkio.train.step import train_step

SMOLLM2_135M = LlamaConfig(
    layers=30, width=576, heads=9, kv_heads=3, head_width=64, ffn=1536, vocab=49_152, theta=1e5, tied=True,
)  # fmt: skip
TOKENS = 64  # of a step
STEPS = 4  # to know what a step takes without a save
RUNS = Path(__file__).parent.parent / "runs" / "benchmark-checkpoint"  # on the disk that a run's checkpoints go to

Tensors = dict[str, Tensor]
Wait = Callable[[], object]
Save = Callable[[Path], tuple[Wait, Wait]]  # begins to save; until the tensors may change, until all is on the disk
Load = Callable[[Path, Tensors], object]


def nothing() -> None: ...


def ahkio(tensors: Tensors) -> tuple[Save, Load]:
    saver = state.Saver(RUNS / "ahkio", tensors)

    def save(folder: Path) -> tuple[Wait, Wait]:
        saver.folder = folder
        saver.save(0, {})
        return saver.wait_until_copied, saver.wait

    def load(folder: Path, into: Tensors) -> None:
        (made,) = state.checkpoints(folder)
        state.read_state(made)
        state.load(made, into)

    return save, load


def torch_save(tensors: Tensors) -> tuple[Save, Load]:
    def save(folder: Path) -> tuple[Wait, Wait]:
        with open(folder / "checkpoint.pt", "wb") as file:
            torch.save(tensors, file)
            file.flush()
            os.fsync(file.fileno())
        return nothing, nothing

    return save, lambda folder, into: into.update(torch.load(folder / "checkpoint.pt"))


def dcp_save(tensors: Tensors) -> tuple[Save, Load]:
    def save(folder: Path) -> tuple[Wait, Wait]:
        dcp.save(tensors, storage_writer=dcp.FileSystemWriter(folder, thread_count=2), no_dist=True)
        return nothing, nothing

    return save, lambda folder, into: dcp.load(into, storage_reader=dcp.FileSystemReader(folder), no_dist=True)


def dcp_async(tensors: Tensors, kind: AsyncCheckpointerType) -> tuple[Save, Load]:
    store = RUNS / f"{kind.name}.store"
    store.unlink(missing_ok=True)
    torch.distributed.init_process_group("gloo", init_method=f"file://{store}", rank=0, world_size=1)
    in_process = kind == AsyncCheckpointerType.PROCESS
    stager = DefaultStager(
        StagingOptions(
            use_pinned_memory=False, use_shared_memory=in_process, use_async_staging=True, use_non_blocking_copy=False
        )
    )

    def save(folder: Path) -> tuple[Wait, Wait]:
        writer = dcp.FileSystemWriter(folder, thread_count=2)
        begun = dcp.async_save(tensors, storage_writer=writer, async_checkpointer_type=kind, async_stager=stager)
        return begun.staging_completion.result, begun.upload_completion.result

    return save, dcp_save(tensors)[1]


CONTENDERS: dict[str, Callable[[Tensors], tuple[Save, Load]]] = {
    "ahkio": ahkio,
    "torch.save": torch_save,
    "DCP": dcp_save,
    "DCP async, thread": lambda tensors: dcp_async(tensors, AsyncCheckpointerType.THREAD),
    "DCP async, process": lambda tensors: dcp_async(tensors, AsyncCheckpointerType.PROCESS),
}


# ---------------------------------------------------------------------------------------------------------------------


class Training:
    """A run to save: its tensors, a step, and what is waited for before a step changes the tensors."""

    def __init__(self) -> None:
        self.may_change: Wait = nothing
        self.held = 0.0  # seconds in may_change
        model = random_model(SMOLLM2_135M, 0)
        optimizer = AdamW().build(model)
        optimizer.register_step_pre_hook(lambda *_: self._wait())
        ids = np.random.default_rng(0).integers(0, SMOLLM2_135M.vocab, (1, TOKENS + 1))
        batch = Batch(
            ids[:, :-1].copy(),
            ids[:, 1:].copy(),
            np.arange(TOKENS)[None],
            np.array([TOKENS], np.int32),
            ("",),
            (0,),
            (0,),
            (0,),
        )
        engine = alone(model, NextToken())
        self.step = lambda: train_step(engine, optimizer, [batch], 1e-4, 1.0)
        self.step()
        self.tensors = state_tensors(optimizer, model.named_parameters())

    def _wait(self) -> None:
        began = perf_counter()
        self.may_change()
        self.held += perf_counter() - began


def contender(setting: str, name: str) -> Contender:
    warnings.simplefilter("ignore")
    RUNS.mkdir(parents=True, exist_ok=True)
    folder = RUNS / name.replace(" ", "-")
    training = Training()
    save, load = CONTENDERS[name](training.tensors)
    measure = {"held": held, "slowed": slowed, "durable": durable, "bytes": durable}

    def run() -> Round:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        found = measure[setting](training, save, folder)
        if setting == "bytes":
            found |= {"bytes": sum(path.stat().st_size for path in folder.rglob("*")) / 1e6}
            found |= {"check": loaded_back(load, folder, training.tensors)}
        shutil.rmtree(folder)
        return {"value": found[setting]} | found

    return run


def slowed(training: Training, save: Save, folder: Path) -> Round:
    seconds = statistics.median(timed(training.step) for _ in range(STEPS))
    found = held(training, save, folder)
    return found | {"slowed": found["seconds"] - found["steps"] * seconds, "step": seconds}


def held(training: Training, save: Save, folder: Path) -> Round:
    training.held = 0.0
    began = perf_counter()
    training.may_change, wait = save(folder)
    called = perf_counter() - began
    watcher = threading.Thread(target=wait)
    watcher.start()
    steps = 0
    while watcher.is_alive() or not steps:
        training.step()
        steps += 1
    return {"held": called + training.held, "seconds": perf_counter() - began, "steps": steps}


def durable(training: Training, save: Save, folder: Path) -> Round:
    return {"durable": timed(lambda: save(folder)[1]())}


def timed(work: Callable[[], Any]) -> float:
    began = perf_counter()
    work()
    return perf_counter() - began


def loaded_back(load: Load, folder: Path, like: Tensors) -> str:
    into = {name: torch.zeros_like(tensor) for name, tensor in like.items()}
    load(folder, into)
    checksum = 0
    for name in sorted(into):
        checksum = zlib.crc32(into[name].numpy(), checksum)
    return f"{checksum:08x}"


SYNCHRONOUS = ("ahkio", "torch.save", "DCP")
LINES = (
    Line(
        setting="held",
        title="checkpoint of 1.6 GB: training waits",
        unit="s",
        contenders=("ahkio", "DCP async, thread", "DCP async, process"),
        quick=("ahkio", "DCP"),
        bar=0.15,
        goal=0.08,
        higher=False,
        absolute=True,
        rounds=3,
        alone=True,
    ),
    Line(
        setting="durable",
        title="checkpoint of 1.6 GB: from call to disk",
        unit="s",
        contenders=SYNCHRONOUS,
        bar=1.0,
        goal=2.0,
        higher=False,
        rounds=3,
    ),
    Line(
        setting="bytes",
        title="checkpoint of 1.6 GB: size",
        unit="MB",
        contenders=SYNCHRONOUS,
        bar=1.0,
        goal=1.0,
        higher=False,
        rounds=1,
        warm=0,
    ),
    Line(
        setting="slowed",
        title="checkpoint of 1.6 GB: steps take longer, in all",
        unit="s",
        contenders=("ahkio", "DCP async, thread"),
        bar=1.0,
        goal=2.0,
        higher=False,
        rounds=3,
        alone=True,
    ),
)

if __name__ == "__main__":
    main(__file__, LINES, contender)
