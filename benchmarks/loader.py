"""The loader: how soon a run has its first row, what it holds in memory for that, and how many rows a second it reads.

A mix of four sources of equal size at 30/30/30/10, rows of 2,048 tokens, documents of 300 tokens on average. At 1
million documents the ids are real; above, .bin is a sparse file of zeros, since a start reads indices only, and 1
billion is ten links to each shard of 100 million. A start runs in a fresh process: from the first call after the
imports to the first row in hand, and the growth of its peak memory meanwhile, pages of mapped files included. Files are
in the page cache.

Against Megatron-Core's GPTDataset and BlendedDataset for one epoch of all sources, as pretrain_gpt.py builds them:
indices built ("megatron-core"), and found in its cache on disk ("megatron-core, cached"). It is not run at 1 billion,
where its indices would take some 20 GB. Rows are also compared with copying random rows out of NumPy memory maps.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from time import perf_counter
from types import SimpleNamespace
from typing import Any

import numpy as np
from bench import OURS, Contender, Line, Round, main

from ahkio.core.machine import keep_freed_memory, peak_memory
from ahkio.core.stage import Stage
from ahkio.tokens.batches import Batches, Rows, open_batches
from ahkio.tokens.mixture import Mix, Segment, Share
from ahkio.tokens.shards import HEADER, MAGIC, file_of

DATA = Path(tempfile.gettempdir()) / "ahkio-bench-loader"
SHARES = {"finnish": 30, "english": 30, "code": 30, "math": 10}
DOCUMENTS = {"1M": 10**6, "100M": 10**8, "1B": 10**9}
MEAN_TOKENS, VOCAB = 300, 128_256
LENGTH, PER_READ = 2048, 32
ROWS = 1 << 15  # read in a round, the same in each
MEGATRON, CACHED, NUMPY = "megatron-core", "megatron-core, cached", "numpy memory map"


def start_line(size: str, what: str) -> Line:
    memory = what == "memory"
    return Line(
        setting=f"{what}-{size}",
        title=f"loader: {'memory for' if memory else 'time to'} the first row of a four-way mix, {size} documents",
        unit="MB" if memory else "s",
        contenders=(OURS,) if size == "1B" else (OURS, MEGATRON, CACHED),
        bar=50 if memory else 0.5,
        goal=20 if memory else 0.05,
        higher=False,
        absolute=True,
        rounds=1 if memory else 2,
        warm=0 if memory else 1,
    )


LINES = [
    *(start_line(size, what) for what in ("start", "memory") for size in DOCUMENTS),
    Line(
        setting="ids",
        title="loader: ids of the mix's rows of 2,048 tokens, against random rows of a memory map",
        unit="rows/s",
        contenders=(OURS, NUMPY),
        bar=0.5,
        goal=1.0,
        rounds=3,
    ),
    Line(
        setting="batches",
        title="loader: rows of the mix in batches of ids, labels and positions (ours: by document)",
        unit="rows/s",
        contenders=(OURS, MEGATRON),
        bar=1.0,
        goal=5.0,
        rounds=3,
    ),
]


# ---------------------------------------------------------------------------------------------------------------------
# Data


def prefixes(size: str, source: str) -> list[Path]:
    """The shards of a source at a size; made when first asked for."""
    folder = DATA / size / source
    shards = [folder / f"shard-{number:05}" for number in range(10 if size == "1B" else 1)]
    if not folder.exists():
        folder.mkdir(parents=True)
        if size != "1B":
            write_shard(shards[0], DOCUMENTS[size] // len(SHARES), len(source))
        for shard in shards if size == "1B" else ():
            for suffix in (".bin", ".idx"):
                os.link(file_of(prefixes("100M", source)[0], suffix), file_of(shard, suffix))
    return shards


def write_shard(prefix: Path, documents: int, seed: int) -> None:
    draw = np.random.default_rng(seed)
    lengths = draw.geometric(1 / MEAN_TOKENS, documents).astype("<i4")
    ends = np.cumsum(lengths, dtype="<i8")
    with open(file_of(prefix, ".idx"), "wb") as index:
        index.write(HEADER.pack(MAGIC, 1, 4, documents, documents + 1))
        for column in (lengths, (ends - lengths) * 4, np.arange(documents + 1, dtype="<i8")):
            index.write(column.data)
    with open(file_of(prefix, ".bin"), "wb") as ids:
        if documents <= 10**6:
            ids.write(draw.integers(0, VOCAB, ends[-1], "<i4").data)
        ids.truncate(int(ends[-1]) * 4)


# ---------------------------------------------------------------------------------------------------------------------
# Ours and theirs


@dataclass(frozen=True, kw_only=True)
class Text(Stage):
    source: str


def open_ours(size: str) -> Batches:
    shares = tuple(Share(name=name, tokens=Text(source=name), weight=weight) for name, weight in SHARES.items())
    mix = Mix(segments=(Segment(rows=0, shares=shares),))
    stores = {share.tokens: DATA / size / share.name for share in shares}
    return open_batches(mix, stores, Rows(length=LENGTH, per_step=PER_READ), total_rows=1000)


def open_megatron(size: str, cached: bool) -> Any:
    """As pretrain_gpt.py opens it, without attention masks, which are left to kernels."""
    from megatron.core.datasets.blended_megatron_dataset_builder import BlendedMegatronDatasetBuilder
    from megatron.core.datasets.gpt_dataset import GPTDataset, GPTDatasetConfig

    config = GPTDatasetConfig(
        random_seed=1,
        sequence_length=LENGTH,
        blend=([str(shard) for name in SHARES for shard in prefixes(size, name)], [float(w) for w in SHARES.values()]),
        split="1,0,0",
        path_to_cache=str(DATA / size / "cache") if cached else None,
        tokenizer=SimpleNamespace(vocab_size=VOCAB, eod=0, unique_identifiers={}),
        reset_position_ids=False,
        reset_attention_mask=False,
        eod_mask_loss=False,
        create_attention_mask=False,
    )
    rows = DOCUMENTS[size] * MEAN_TOKENS // LENGTH
    return BlendedMegatronDatasetBuilder(GPTDataset, [rows, 0, 0], lambda: True, config).build()[0]


# ---------------------------------------------------------------------------------------------------------------------
# A start, in a process of its own


def start(size: str, name: str) -> dict[str, float]:
    """Seconds to the first row, and megabytes that the process grew by at most."""
    prepare(name)
    with peak_memory() as peak:
        before, began = peak(), perf_counter()
        if name == OURS:
            open_ours(size).read([0])
        else:
            open_megatron(size, cached=name == CACHED)[0]
        return {"start": perf_counter() - began, "memory": (peak() - before) / 1e6}


def prepare(name: str) -> None:
    """Import what Megatron-Core needs; with its cache it asks for a process group, if of one."""
    if name != OURS:
        import megatron.core.datasets.gpt_dataset  # noqa: F401
        import torch.distributed as dist

        dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)


def started(size: str, name: str) -> dict[str, float]:
    command = [sys.executable, "-W", "ignore", __file__, "--start", size, name]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])


# ---------------------------------------------------------------------------------------------------------------------
# Rows a second


def ids_of_ours() -> None:
    batches = open_ours("1M")
    for first in range(0, ROWS, PER_READ):
        ids_BT = np.empty((PER_READ, LENGTH + 1), np.int64)
        for b in range(PER_READ):
            place = batches.plan.row(first + b)
            ids_BT[b] = batches.layouts[place.source].store.read(place.row * LENGTH, LENGTH + 1)


def ids_of_numpy() -> None:
    maps = [np.memmap(file_of(shard, ".bin"), "<i4", "r") for name in SHARES for shard in prefixes("1M", name)]
    draw = np.random.default_rng(0)
    rows = [draw.integers(0, len(ids) // LENGTH - 1, ROWS // 4).tolist() for ids in maps]
    for first in range(0, ROWS, PER_READ):
        ids_BT = np.empty((PER_READ, LENGTH + 1), np.int64)
        for b in range(PER_READ):
            which, k = b % 4, (first + b) // 4
            start = rows[which][k] * LENGTH
            ids_BT[b] = maps[which][start : start + LENGTH + 1]


def batches_of_ours() -> None:
    batches = open_ours("1M")
    for first in range(0, ROWS, PER_READ):
        batches.read(range(first, first + PER_READ))


def batches_of_megatron(dataset: Any) -> None:
    from torch.utils.data import default_collate

    for first in range(0, ROWS, PER_READ):
        default_collate([dataset[number] for number in range(first, first + PER_READ)])


def contender(setting: str, name: str) -> Contender:
    what, _, size = setting.partition("-")
    for source in SHARES:
        prefixes(size or "1M", source)
    if size:
        if name == CACHED:
            started(size, name)
        return lambda: {"value": (found := started(size, name))[what]} | found
    keep_freed_memory()
    if name == MEGATRON:
        return partial(timed, partial(batches_of_megatron, open_megatron("1M", cached=False)))
    return partial(
        timed, {"ids": {OURS: ids_of_ours, NUMPY: ids_of_numpy}, "batches": {OURS: batches_of_ours}}[setting][name]
    )


def timed(read: Callable[[], None]) -> Round:
    began = perf_counter()
    read()
    return {"value": ROWS / (perf_counter() - began)}


if __name__ == "__main__":
    if "--start" in sys.argv:
        print(json.dumps(start(*sys.argv[2:])))
    elif "--work" in sys.argv:
        main(__file__, LINES, contender)
    else:
        try:
            main(__file__, LINES, contender)
        finally:
            shutil.rmtree(DATA, ignore_errors=True)
