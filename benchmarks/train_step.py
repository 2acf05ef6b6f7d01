"""Claim: a training step takes less time than in transformers, HF Trainer, TRL and litgpt.

SmolLM2-135M's shape with the same weights for all, in bf16 where the CPU multiplies it and else in fp32, with fp32
master weights. A step is forward, backward, clipping to norm 1 and AdamW, on the same tokens in the same order; one
thread per core. `check` is the mean loss of the last step, so of weights that have taken all steps before it.

In packed rows no document sees another. transformers and HF Trainer are told so by position ids, of which they make a
mask; TRL by its padding-free collator, which lays all rows end to end. litgpt has rows only: it attends across
documents, so its loss is another and is not compared.

MFU = gflops / peak_gflops, of which take the largest that any process found. FLOP are 6 for each token and weight of a
matrix product, and 6 x layers x heads x head width x length for each token of a document of that length (causal); the
peak is the best matrix product that the contender's process measured before its first step.

The last line is ours with and without its own kernels, which without a compiler are PyTorch's.
"""

import math
import os
import queue
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from time import perf_counter
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from bench import Contender, Line, Round, main

from ahkio.core import machine
from ahkio.model.shape import LlamaConfig, config_to_hf
from ahkio.tokens.batches import IGNORE, Batch

if TYPE_CHECKING:
    import torch
    from torch import nn

    from ahkio.model.llama import Llama

SMOLLM2_135M = LlamaConfig(
    layers=30, width=576, heads=9, kv_heads=3, head_width=64, ffn=1536, vocab=49_152, theta=1e5, tied=True,
    max_positions=8192,
)  # fmt: skip
LR, BETAS, DECAY, CLIP = 3e-4, (0.9, 0.95), 0.1, 1.0
BF16 = machine.cpu_has_bf16()
LOGIT_STD = 1.44  # at the first step; wide, so that a token seen or not seen by another shows in the loss
MEAN_DOCUMENT, SPREAD = 250, 0.87  # tokens; the deviation of the logarithm of the lengths of data/fi.jsonl.gz

Step = Callable[[int], float]  # of this number, from 0: its mean loss in nats a token


class Work(NamedTuple):
    """The rows of a step."""

    rows: int
    length: int  # tokens
    packed: bool = False  # with short documents; else each row is one
    vocab: int = SMOLLM2_135M.vocab


WORKS = {
    "1x1024": Work(1, 1024),
    "4x1024-packed": Work(4, 1024, packed=True),
    "1x4096-packed": Work(1, 4096, packed=True),
    "kernels": Work(1, 1024),
}


def batch_of(work: Work, step: int) -> Batch:
    """Random tokens in documents that end with their rows, the same for the same step."""
    rng = np.random.default_rng(step)
    lengths = np.concatenate([_lengths(work, rng) for _ in range(work.rows)])
    ids_BT = rng.integers(0, work.vocab, (work.rows, work.length))
    positions_N = np.concatenate([np.arange(length) for length in lengths])
    labels_N = np.where(np.roll(positions_N, -1) > 0, np.roll(ids_BT.ravel(), -1), IGNORE)
    return Batch(
        ids_BT, labels_N.reshape(ids_BT.shape), positions_N.reshape(ids_BT.shape), lengths.astype(np.int32),
        ("random",) * work.rows, tuple(range(work.rows)), (1,) * work.rows, (0,) * work.rows,
    )  # fmt: skip


def _lengths(work: Work, rng: np.random.Generator) -> list[int]:
    """Documents that fill a row, the last one cut."""
    lengths: list[int] = []
    while (left := work.length - sum(lengths)) > 0:
        drawn = rng.lognormal(math.log(MEAN_DOCUMENT) - SPREAD**2 / 2, SPREAD) if work.packed else left
        lengths.append(min(left, max(2, round(drawn))))
    return lengths


# ---------------------------------------------------------------------------------------------------------------------
# Ours


def prepared(c: LlamaConfig, bf16: bool, device: str = "cpu", compiled: bool = False) -> "tuple[Llama, Any]":
    """A model and its optimizer, set up as the `ahkio` command and `ahkio.train.loop.train` do it."""
    import torch

    from ahkio.train.optimizer import AdamW

    machine.keep_freed_memory()
    model = first_weights(c).to(device)
    model.compute = torch.bfloat16 if bf16 else torch.float32
    optimizer = AdamW(betas=BETAS, weight_decay=DECAY).build(model)
    if compiled:
        for block in model.blocks:
            block.compile()
    return model, optimizer


def first_weights(c: LlamaConfig) -> "Llama":
    from ahkio.model.llama import random_model

    return random_model(c, 0, LOGIT_STD / math.sqrt(c.width))


def ahkio(
    work: Work, c: LlamaConfig = SMOLLM2_135M, bf16: bool = BF16, device: str = "cpu", compiled: bool = False
) -> Step:
    from ahkio.train.engine import alone
    from ahkio.train.objectives import NextToken
    from ahkio.train.step import train_step

    model, optimizer = prepared(c, bf16, device, compiled)
    engine = alone(model, NextToken())
    return lambda step: train_step(engine, optimizer, [batch_of(work, step)], LR, CLIP).loss


def ahkio_without_kernels(work: Work) -> Step:
    os.environ["AHKIO_NATIVE"] = "0"
    return ahkio(work)


# ---------------------------------------------------------------------------------------------------------------------
# Theirs


def transformers_model(c: LlamaConfig, device: str = "cpu") -> "nn.Module":
    """transformers' Llama with our first weights, fp32."""
    import torch
    import transformers

    with torch.device(device):
        theirs = transformers.LlamaForCausalLM(transformers.LlamaConfig(**config_to_hf(c, "float32", None, None)))
    found = theirs.load_state_dict(transformers_weights(c), strict=False)
    assert not found.unexpected_keys
    assert found.missing_keys == (["lm_head.weight"] if c.tied else [])
    return theirs.train()


def transformers_weights(c: LlamaConfig) -> "dict[str, torch.Tensor]":
    from ahkio.model.hub import hf_name
    from ahkio.model.llama import Llama

    return {hf_name(name, Llama.HF_NAMES): weight.data for name, weight in first_weights(c).named_parameters()}


def transformers_inputs(batch: Batch, packed: bool) -> "dict[str, torch.Tensor]":
    """Their labels are the ids, which they shift themselves; position ids that begin anew part the documents."""
    import torch

    labels_BT = np.where(batch.positions_BT > 0, batch.ids_BT, IGNORE)
    inputs = {"input_ids": batch.ids_BT, "labels": labels_BT}
    if packed:
        inputs["position_ids"] = batch.positions_BT
    return {name: torch.from_numpy(part) for name, part in inputs.items()}


def transformers_loop(
    work: Work, c: LlamaConfig = SMOLLM2_135M, bf16: bool = BF16, device: str = "cpu", compiled: bool = False
) -> Step:
    """The plain loop that a user would write."""
    import torch

    model = transformers_model(c, device)
    optimizer = adamw(model)
    forward = torch.compile(model) if compiled else model

    def step(number: int) -> float:
        inputs = transformers_inputs(batch_of(work, number), work.packed)
        with torch.autocast(device, torch.bfloat16, enabled=bf16):
            loss = forward(**{name: part.to(device) for name, part in inputs.items()}, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()
        optimizer.zero_grad()
        return loss.item()

    return step


def adamw(model: "nn.Module") -> "torch.optim.Optimizer":
    import torch

    matrices = [weight for weight in model.parameters() if weight.ndim > 1]
    vectors = [weight for weight in model.parameters() if weight.ndim <= 1]
    groups = [{"params": matrices, "weight_decay": DECAY}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=LR, betas=BETAS, fused=True)


TRAINER_SETTINGS = {
    "output_dir": "unused",
    "use_cpu": True,
    "bf16": BF16,
    "learning_rate": LR,
    "lr_scheduler_type": "constant",
    "adam_beta1": BETAS[0],
    "adam_beta2": BETAS[1],
    "weight_decay": DECAY,
    "max_grad_norm": CLIP,
    "optim": "adamw_torch_fused",
    "gradient_checkpointing": False,
    "max_steps": 1_000_000,
    "logging_steps": 1,
    "logging_nan_inf_filter": False,
    "save_strategy": "no",
    "report_to": "none",
    "disable_tqdm": True,
    "dataloader_pin_memory": False,
}  # fmt: skip


def hf_trainer(work: Work) -> Step:
    import transformers

    arguments = transformers.TrainingArguments(**TRAINER_SETTINGS, per_device_train_batch_size=work.rows)
    rows = _dataset(lambda batch: _rows(transformers_inputs(batch, work.packed)), work)
    return _paced(transformers.Trainer(transformers_model(SMOLLM2_135M), arguments, train_dataset=rows))


def trl_sft(work: Work) -> Step:
    return _paced(trl_trainer(transformers_model(SMOLLM2_135M), work))


def trl_trainer(model: "nn.Module", work: Work) -> Any:
    """Rows come packed, with the lengths of their documents, as TRL's own `pack_dataset` would leave them."""
    import tokenizers
    import transformers
    import trl

    settings = {"padding_free": work.packed, "max_length": None, "dataset_kwargs": {"skip_prepare_dataset": True}}
    arguments = trl.SFTConfig(**TRAINER_SETTINGS, **settings, per_device_train_batch_size=work.rows)
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel({"<end>": 0}, unk_token="<end>"))
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=words, eos_token="<end>", pad_token="<end>")
    return trl.SFTTrainer(model, arguments, train_dataset=_dataset(_trl_rows, work), processing_class=tokenizer)


def _trl_rows(batch: Batch) -> list[dict[str, Any]]:
    rows = [{"input_ids": ids.tolist(), "seq_lengths": []} for ids in batch.ids_BT]
    ends = batch.lengths.cumsum()
    for end, length in zip(ends, batch.lengths, strict=True):
        rows[(end - 1) // batch.ids_BT.shape[1]]["seq_lengths"].append(int(length))
    return rows


def _rows(inputs: "dict[str, torch.Tensor]") -> "list[dict[str, torch.Tensor]]":
    return [dict(zip(inputs, parts, strict=True)) for parts in zip(*inputs.values(), strict=True)]


def _dataset(rows_of: Callable[[Batch], list[dict[str, Any]]], work: Work) -> Any:
    """Step after step, row by row, without end."""
    import datasets

    def rows() -> Iterator[dict[str, Any]]:
        for step in range(TRAINER_SETTINGS["max_steps"]):
            yield from rows_of(batch_of(work, step))

    return datasets.IterableDataset.from_generator(rows)


def _paced(trainer: Any) -> Step:
    """`trainer.train()` in a thread, in which it waits before every step until it is asked for."""
    import transformers

    go: queue.SimpleQueue[None] = queue.SimpleQueue()
    losses: queue.SimpleQueue[float] = queue.SimpleQueue()

    class Pace(transformers.TrainerCallback):
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            go.get()

        def on_log(self, *_: Any, logs: dict[str, float], **__: Any) -> None:
            losses.put(float(logs["loss"]))

    def train() -> None:
        try:
            trainer.train()
        finally:
            losses.put(math.nan)  # it failed, and no step is to wait for it

    def step(_: int) -> float:
        go.put(None)
        return losses.get()

    trainer.add_callback(Pace())
    threading.Thread(target=train, daemon=True).start()
    return step


def litgpt_pretrain(work: Work) -> Step:
    """What `litgpt pretrain` does: setup, then the body of `litgpt.pretrain.fit`."""
    import lightning
    import torch
    from litgpt import GPT, Config
    from litgpt.scripts.convert_hf_checkpoint import copy_weights_hf_llama
    from litgpt.utils import chunked_cross_entropy, instantiate_torch_optimizer

    fabric = lightning.Fabric(accelerator="cpu", devices=1, precision="bf16-mixed" if BF16 else "32-true")
    config, state = Config.from_name("SmolLM2-135M"), {}
    copy_weights_hf_llama(config, {}, state, transformers_weights(SMOLLM2_135M))
    model = GPT(config)
    model.load_state_dict(state)
    model.transformer.wte.weight = model.lm_head.weight
    model.max_seq_length = work.length
    model = fabric.setup(torch.compile(model))
    settings = {"class_path": "torch.optim.AdamW", "init_args": {"lr": LR, "betas": BETAS, "weight_decay": DECAY}}
    optimizer = fabric.setup_optimizers(instantiate_torch_optimizer(settings, model.parameters(), fused=True))

    def step(number: int) -> float:
        batch = batch_of(work, number)
        loss = chunked_cross_entropy(model(torch.from_numpy(batch.ids_BT)), torch.from_numpy(batch.labels_BT))
        fabric.backward(loss)
        fabric.clip_gradients(model, optimizer, max_norm=CLIP)
        optimizer.step()
        optimizer.zero_grad()
        return loss.item()

    return step


# ---------------------------------------------------------------------------------------------------------------------

CONTENDERS: dict[str, Callable[[Work], Step]] = {
    "ahkio": ahkio,
    "PyTorch kernels": ahkio_without_kernels,
    "transformers": transformers_loop,
    "transformers compiled": partial(transformers_loop, compiled=True),
    "HF Trainer": hf_trainer,
    "TRL SFTTrainer": trl_sft,
    "litgpt": litgpt_pretrain,
}


def contender(setting: str, name: str) -> Contender:
    import torch

    torch.set_num_threads(machine.cores())
    work, numbers = WORKS[setting], iter(range(1_000_000))
    step = CONTENDERS[name](work)
    peak, _ = machine.peak_flops("bfloat16" if BF16 else "float32")

    def run() -> Round:
        number = next(numbers)
        began = perf_counter()
        loss = step(number)
        seconds = perf_counter() - began
        lengths = batch_of(work, number).lengths.tolist()
        flops = sum(length * SMOLLM2_135M.flops_per_token(length) for length in lengths)
        check = {} if name == "litgpt" and work.packed else {"check": loss}
        return {
            "value": sum(lengths) / seconds,
            "loss": loss,
            "gflops": flops / seconds / 1e9,
            "peak_gflops": peak / 1e9,
        } | check

    return run


LINE = Line(
    setting="1x1024",
    title="training step, SmolLM2-135M, 1 x 1,024 tokens, one document",
    unit="tokens/s",
    contenders=("ahkio", "transformers", "transformers compiled", "HF Trainer", "TRL SFTTrainer", "litgpt"),
    quick=("ahkio", "transformers"),
    quick_rounds=1,
    bar=1.5,
    goal=2.0,
    rounds=2,
    agree=2e-2 if BF16 else 1e-3,
)
LINES = (
    LINE,
    replace(
        LINE,
        setting="4x1024-packed",
        title="the same, 4 x 1,024, packed with short documents",
        contenders=("ahkio", "transformers", "litgpt"),
        bar=1.8,
        goal=3.0,
        rounds=1,
        alone=True,
        apart=("litgpt",),
        note="not the same work, as it attends across documents, is",
    ),
    replace(
        LINE,
        setting="1x4096-packed",
        title="the same, 1 x 4,096, packed with short documents",
        contenders=("ahkio", "transformers"),
        bar=1.8,
        goal=3.0,
        rounds=1,
        alone=True,
    ),
    replace(
        LINE,
        setting="kernels",
        title="1 x 1,024 as above, our native kernels against PyTorch's in the same step",
        contenders=("ahkio", "PyTorch kernels"),
        bar=1.2,
        goal=1.3,
    ),
)

if __name__ == "__main__":
    main(__file__, LINES, contender)
